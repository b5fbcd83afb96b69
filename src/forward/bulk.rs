//! Which packets and trains may be marked or dropped because a queue is never empty.
//!
//! It does not find such queues: the engine does.
#![forbid(unsafe_code)]

/// The smallest packet or train, in bytes, that counts as bulk. Only bulk is marked or dropped for
/// a standing queue: its sender can slow down, while short packets wait behind bulk and do not
/// cause the queue.
pub const MIN_BULK_BYTES: usize = 1024;
