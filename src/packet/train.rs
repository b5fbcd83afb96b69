//! A [`Train`]: packets back to back in one buffer, which the kernel takes and brings as one.
//!
//! It is a view: it owns nothing, and does not know what stands in its datagrams.
//!
//! Invariant: the datagrams, one after the other, are exactly `bytes`; only the last may be shorter than
//! `stride`.
#![forbid(unsafe_code)]

/// Datagrams back to back in one buffer, each `stride` bytes long but for the last, which may be shorter:
/// what one GRO receive brings and one GSO send takes. A single packet is a train of one.
#[derive(Debug, Clone, Copy)]
pub struct Train<'a> {
    /// All datagrams.
    pub bytes: &'a [u8],
    /// Bytes from one datagram to the next; at least 1.
    pub stride: usize,
}

impl<'a> Train<'a> {
    /// A train of one, which may be empty.
    #[must_use]
    pub fn single(bytes: &'a [u8]) -> Self {
        Self { bytes, stride: bytes.len().max(1) }
    }

    /// The datagrams. An empty datagram is one datagram.
    pub fn datagrams(self) -> impl Iterator<Item = &'a [u8]> {
        let empty = self.bytes.is_empty().then_some(self.bytes);
        empty.into_iter().chain(self.bytes.chunks(self.stride))
    }

    /// How many datagrams there are.
    #[must_use]
    pub fn count(self) -> u64 {
        self.bytes.len().div_ceil(self.stride).max(1) as u64
    }
}
