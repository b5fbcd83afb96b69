//! The clear header of a sealed datagram, and what sealing adds to a packet.
//!
//! It does not check whether the header is authentic: the AEAD tag does, since the header is its
//! associated data.
//!
//! Invariant: `Header::parse(Header::to_bytes(h) + tag) == h`.
#![forbid(unsafe_code)]

/// The first four bits of a sealed datagram.
pub const NIBBLE: u8 = 1;
/// Bytes before the sealed packet: type, epoch, key, a zero, counter.
pub const HEADER: usize = 12;
/// Bytes after the sealed packet: the AEAD tag.
pub const TAG: usize = 16;
/// A sealed datagram is longer than its packet by this many bytes.
pub const OVERHEAD: usize = HEADER + TAG;

/// The clear part of a sealed datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Epoch of the key that sealed the datagram: the number of the handshake that gave it.
    pub epoch: u8,
    /// Number of the sender's worker that sealed the datagram; each worker has a key of its own.
    pub key: u8,
    /// Number of packets that the key has sealed, this one included.
    pub counter: u64,
}

impl Header {
    /// Reads the header. `None` if the datagram is too short for header and tag, is of another
    /// type, or has no zero in its fourth byte.
    #[must_use]
    #[inline]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let (header, rest) = datagram.split_first_chunk::<HEADER>()?;
        let [kind, epoch, key, zero, counter @ ..] = *header;
        let is_whole = rest.len() >= TAG && kind == NIBBLE << 4 && zero == 0;
        is_whole.then_some(Self { epoch, key, counter: u64::from_be_bytes(counter) })
    }

    /// The header as bytes of the datagram.
    #[must_use]
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&[NIBBLE << 4, self.epoch, self.key, 0]);
        bytes[4..].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }
}
