//! What counts as bulk: all thresholds of the data path, in one place, with their units.
//!
//! Bulk traffic sends many bytes at once, so its packets queue behind each other. All other traffic
//! is sparse: its packets arrive singly, and every delay is a delay for an application. Four
//! thresholds define bulk; each is derived from the one before:
//!
//! - A **packet** or train of at least [`BULK_PACKET_BYTES`] is part of a stream. The segments of a
//!   stream have 1,400 bytes or more; acknowledgements, DNS and most requests are shorter than 1
//!   KiB. Only bulk packets are marked or dropped when a queue has not been empty for a while.
//!   After a single shorter packet, the engine does not expect another one.
//! - A **turn** that moves at least [`BULK_TURN_BYTES`], sixteen such packets, is bulk: sparse
//!   traffic brings a few packets a turn. While there are such turns, spinning would take the CPU
//!   from the transfer.
//! - A **worker** that moves [`BULK_BEGIN_BYTES`] within [`BULK_BEGIN_WINDOW`], sixteen such turns
//!   in 4 ms or 0.5 Gbit/s, has a bulk transfer and gets a dedicated thread. It returns to the
//!   shared thread when it has moved less than [`BULK_END_BYTES`] in [`BULK_END_WINDOW`], 0.17
//!   Gbit/s. The second rate is a third of the first and its window is twelve times as long, so
//!   that a transfer with pauses does not switch back and forth between threads.
//! - A **turn's budget** is [`TURN_BYTES`], eight such turns: more would keep the first packet
//!   waiting for the copy of the last. A copy of 64 KiB costs 3 to 4 us in a warm cache and 9 to 12
//!   us in a cold one.
//!
//! It measures nothing: the scheduler, the budget and the spin count the bytes and compare them.

use std::time::Duration;

/// A packet or train with at least this many bytes is bulk. Pure code defines the number, because
/// it decides there what is marked and dropped.
pub(super) const BULK_PACKET_BYTES: usize = crate::forward::MIN_BULK_BYTES;

/// A turn that moves at least this many bytes is bulk.
pub(super) const BULK_TURN_BYTES: usize = 16 * BULK_PACKET_BYTES;

/// How long after a bulk turn no thread spins. It is longer than the time between two turns of a
/// transfer.
pub(super) const BULK_TURN_MEMORY: Duration = Duration::from_millis(10);

/// A worker that moves at least this many bytes within [`BULK_BEGIN_WINDOW`] has a bulk transfer.
pub(super) const BULK_BEGIN_BYTES: usize = 16 * BULK_TURN_BYTES;

/// The time in which [`BULK_BEGIN_BYTES`] are counted.
pub(super) const BULK_BEGIN_WINDOW: Duration = Duration::from_millis(4);

/// The bulk transfer of a worker has ended when it moves fewer bytes than this within
/// [`BULK_END_WINDOW`].
pub(super) const BULK_END_BYTES: usize = 1024 * 1024;

/// The time in which [`BULK_END_BYTES`] are counted.
pub(super) const BULK_END_WINDOW: Duration = Duration::from_millis(50);

/// Bytes that one turn should move in one direction at most.
pub(super) const TURN_BYTES: usize = 8 * BULK_TURN_BYTES;

/// If a packet arrives within this time after a single packet, more packets probably follow. Asking
/// for a second packet costs one more system call. For later packets the worker waits instead.
pub(super) const FOLLOW_UP_WINDOW: Duration = Duration::from_micros(30);

const _: () =
    assert!(BULK_TURN_BYTES == 16 * 1024 && BULK_BEGIN_BYTES == 256 * 1024 && TURN_BYTES == 128 * 1024);
