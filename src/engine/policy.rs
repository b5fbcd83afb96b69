//! What counts as bulk: all thresholds of the data path, in one place, with their units.
//!
//! Bulk is traffic of which many bytes come at once, so that its packets meet each other in queues.
//! All other traffic is sparse: its packets come alone, and the time that they wait is time that an
//! application waits. The engines ask for bulk on four scales, and one number follows from the
//! other:
//!
//! - A **packet** or train of at least [`BULK_PACKET_BYTES`] is part of a stream: the segments of a
//!   stream have 1,400 bytes and more, while acknowledgements, DNS and most requests are shorter
//!   than 1 KiB. Only bulk packets are marked or dropped when a queue has not been empty for a
//!   while, and after a packet that is shorter and came alone no other is expected.
//! - A **turn** that moves at least [`BULK_TURN_BYTES`], sixteen such packets, is bulk: sparse
//!   traffic brings a few packets a turn. While there are such turns, spinning would take the CPU
//!   from the transfer.
//! - A **worker** that moves [`BULK_BEGIN_BYTES`] within [`BULK_BEGIN_WINDOW`], sixteen such turns
//!   in 4 ms or 0.5 Gbit/s, has a bulk transfer and gets a dedicated thread. It returns to the
//!   shared thread when it has moved less than [`BULK_END_BYTES`] in [`BULK_END_WINDOW`], 0.17
//!   Gbit/s. The second rate is a third of the first and its window is twelve times as long, so
//!   that a transfer with pauses does not move to and fro.
//! - A **turn's budget** is [`TURN_BYTES`], eight such turns: more would keep the first packet
//!   waiting for the copy of the last. A copy of 64 KiB costs 3 to 4 us in a warm cache and 9 to 12
//!   us in a cold one.
//!
//! It measures nothing: the scheduler, the budget and the spin count and compare.

use std::time::Duration;

/// Bytes from which on a packet or train is bulk. Pure code defines it, because it marks and drops
/// by it.
pub(super) const BULK_PACKET_BYTES: usize = crate::forward::MIN_BULK_BYTES;

/// Bytes from which on a turn is bulk.
pub(super) const BULK_TURN_BYTES: usize = 16 * BULK_PACKET_BYTES;

/// How long after a bulk turn no thread spins. It is longer than the time between two turns of a
/// transfer.
pub(super) const BULK_TURN_MEMORY: Duration = Duration::from_millis(10);

/// Bytes within [`BULK_BEGIN_WINDOW`] from which on a worker has a bulk transfer.
pub(super) const BULK_BEGIN_BYTES: usize = 16 * BULK_TURN_BYTES;

/// The time in which [`BULK_BEGIN_BYTES`] are counted.
pub(super) const BULK_BEGIN_WINDOW: Duration = Duration::from_millis(4);

/// Bytes within [`BULK_END_WINDOW`] below which the bulk transfer of a worker has ended.
pub(super) const BULK_END_BYTES: usize = 1024 * 1024;

/// The time in which [`BULK_END_BYTES`] are counted.
pub(super) const BULK_END_WINDOW: Duration = Duration::from_millis(50);

/// Bytes that one turn should move in one direction at most.
pub(super) const TURN_BYTES: usize = 8 * BULK_TURN_BYTES;

/// How long after a packet that came alone the next one may be the first of several. To ask for a
/// second packet costs a round trip of single packets one system call, so later packets are left to
/// the wait.
pub(super) const FOLLOW_UP_WINDOW: Duration = Duration::from_micros(30);

const _: () =
    assert!(BULK_TURN_BYTES == 16 * 1024 && BULK_BEGIN_BYTES == 256 * 1024 && TURN_BYTES == 128 * 1024);
