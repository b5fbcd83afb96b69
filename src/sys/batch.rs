//! A [`Batch`]: what one call hands to the kernel, as [`Message`]s in one memory.
//!
//! The shape is that of `Transmit` in quinn-udp, with a range where that has a slice. A message
//! does not say which packets are in it or whether they are sealed: the engine keeps that in a
//! record of its own.
//!
//! Invariant: a batch has at most [`MAX_BATCH`] messages, and each is within the memory of its
//! batch.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::ops::Range;

use crate::packet::ecn::Ecn;

/// Messages in a batch at most: what one super packet is cut into (8,192 segments in the worst
/// case, 64 a message), and as many small messages again.
pub const MAX_BATCH: usize = 256;

/// Messages of one memory, in the order in which the kernel sends or writes them.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    /// The memory that holds all messages.
    pub memory: &'a [u8],
    /// The messages, at most [`MAX_BATCH`]. The call writes its result to each.
    pub messages: &'a mut [Message],
}

/// One message to send, or one frame to write to a TUN.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// The address that the message is sent to; `None` for a write.
    pub destination: Option<SocketAddr>,
    /// The ECN field of the outer header.
    pub ecn: Ecn,
    /// Where the message begins in the memory.
    pub start: usize,
    /// How many bytes the message has.
    pub len: usize,
    /// How many bytes each datagram has. A longer message is a train of datagrams (UDP_SEGMENT),
    /// and the last may be shorter.
    pub segment_size: usize,
    /// The result of the call: 0 for success, or an error number. It is 0 before the call.
    pub errno: i32,
}

impl Message {
    /// A train of datagrams for `destination`, with outer headers that say "not ECN-capable".
    #[must_use]
    #[inline]
    pub fn train(start: usize, len: usize, segment_size: usize, destination: SocketAddr) -> Self {
        Self { segment_size, destination: Some(destination), ..Self::frame(start, len) }
    }

    /// A frame to write to a TUN.
    #[must_use]
    #[inline]
    pub fn frame(start: usize, len: usize) -> Self {
        Self { destination: None, ecn: Ecn::NotEct, start, len, segment_size: len, errno: 0 }
    }

    /// The range of the memory that the message is.
    #[must_use]
    #[inline]
    pub fn contents(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Whether the message is more than one datagram, so that it needs UDP_SEGMENT.
    #[must_use]
    #[inline]
    pub fn is_train(&self) -> bool {
        self.len > self.segment_size
    }

    /// How many datagrams the message is.
    #[must_use]
    #[inline]
    pub fn datagrams(&self) -> u64 {
        self.len.div_ceil(self.segment_size.max(1)).max(1) as u64
    }
}
