//! A [`Train`]: datagrams back to back in one buffer, which the kernel takes and delivers as one.
//!
//! It is a view: it owns nothing, and does not look into its datagrams.
//!
//! Invariant: the datagrams, one after the other, are exactly `bytes`; only the last may be shorter
//! than `stride`.
#![forbid(unsafe_code)]

/// Datagrams back to back in one buffer, each `stride` bytes long except for the last, which may be
/// shorter. One GRO receive delivers a train, and one GSO send takes one. A single packet is a
/// train of one.
#[derive(Debug, Clone, Copy)]
pub struct Train<'a> {
    /// The bytes of all datagrams.
    pub bytes: &'a [u8],
    /// Bytes from the start of one datagram to the start of the next; at least 1.
    pub stride: usize,
}

impl<'a> Train<'a> {
    /// A train of one datagram, which may be empty.
    #[must_use]
    #[inline]
    pub fn single(bytes: &'a [u8]) -> Self {
        Self { bytes, stride: bytes.len().max(1) }
    }

    /// The datagrams. An empty train is one empty datagram.
    #[inline]
    pub fn datagrams(self) -> impl Iterator<Item = &'a [u8]> {
        let empty = self.bytes.is_empty().then_some(self.bytes);
        empty.into_iter().chain(self.bytes.chunks(self.stride))
    }

    /// The number of datagrams.
    #[must_use]
    #[inline]
    pub fn count(self) -> u64 {
        self.bytes.len().div_ceil(self.stride).max(1) as u64
    }
}
