//! [`OpenMessage`]: a message of a transmit batch that may still grow.
//!
//! It is plain data: the batch decides what joins a message.
//!
//! Invariant: there is one for each peer at most.

use std::net::SocketAddr;

/// A message that may grow.
#[derive(Debug)]
pub(super) struct OpenMessage {
    pub(super) to: SocketAddr,
    /// Bytes that sealing will add to each datagram.
    pub(super) overhead: usize,
    /// The index of the message in the block.
    pub(super) index: usize,
    /// Where its last packet ends.
    pub(super) end: usize,
    /// Where the next message begins, if there is one.
    pub(super) limit: usize,
    /// Where its last bundle begins, or would begin if it is a single small packet; `None` for a
    /// train of bare packets.
    pub(super) bundle: Option<usize>,
    /// The length of its bundles.
    pub(super) bundle_len: usize,
}

/// Where the packets of a reservation are written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Slot {
    /// The scratch memory.
    Scratch,
    /// After the open message with this number.
    Append(usize),
    /// A new message that begins here.
    New(usize),
}
