//! Sealed packets: the AEAD envelope in which hosts that have authenticated each other carry inner packets.
//!
//! A handshake elsewhere (TLS 1.3 over QUIC) yields a [`Secret`] for each peer and epoch. A [`Session`] derives keys from it,
//! seals what workers send and opens what they receive. The protocol is written down in
//! `src/seal.md`; it is our own, and `quic` is the conservative choice.
//!
//! Nothing here shakes hands, knows a descriptor, a thread or a log, or reads a clock: the time is given. Sealing and opening
//! allocate nothing and take no lock.
//!
//! Invariants: no key meets a nonce twice (each worker has a key of its own, and a counter that only grows, and that no
//! republished table can set back); what was opened once is never opened again (property tests in `window`); every byte of a
//! datagram is authenticated.
//! Sources: RFC 5116 (AEAD), RFC 5869 (HKDF), RFC 8446 §7.5 (exporters), NIST SP 800-38D (GCM), RFC 8439 (ChaCha20-Poly1305),
//! RFC 4303 §3.4.3 (replay windows).
#![forbid(unsafe_code)]

mod envelope;
mod hello;
mod schedule;
mod session;
mod window;

pub use envelope::{Opening, Sealing};
pub use hello::{Agreement, Hello, HelloError, Suite};
pub use schedule::{EXPORTER_LABEL, Role, Secret};
pub use session::{InstallError, Keys, Lifetime, Session, Status};
pub use window::{WINDOW, Window};

/// The first four bits of a sealed datagram.
pub const NIBBLE: u8 = 1;
/// Bytes before the sealed packet: type, epoch, key, a zero, counter.
pub const HEADER: usize = 12;
/// Bytes behind it: the AEAD tag.
pub const TAG: usize = 16;
/// What sealing adds to a packet.
pub const OVERHEAD: usize = HEADER + TAG;

/// A key seals at most so many packets and then no more, however late a handshake is; twice what a rekey waits for.
///
/// 2^33 packets of 92 blocks are 2^39.5 blocks: an attacker who saw them all would tell AES-256-GCM from a random permutation
/// with an advantage of 2^-50 (SP 800-38D leaves the count of deterministic nonces to the counter's length).
pub const MOST_PACKETS: u64 = 1 << 33;
/// A rekey is due after so many packets under one key.
pub const REKEY_PACKETS: u64 = 1 << 32;

/// The clear part of a sealed datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which handshake's keys.
    pub epoch: u8,
    /// Which worker of the sender sealed it.
    pub key: u8,
    /// How many packets this key has sealed, this one included.
    pub counter: u64,
}

impl Header {
    /// Reads it; `None` if the datagram is too short for header and tag, or its type or its zero are others.
    #[must_use]
    #[inline]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let (header, rest) = datagram.split_first_chunk::<HEADER>()?;
        let [kind, epoch, key, zero, counter @ ..] = *header;
        let is_whole = rest.len() >= TAG && kind == NIBBLE << 4 && zero == 0;
        is_whole.then_some(Self { epoch, key, counter: u64::from_be_bytes(counter) })
    }

    /// Its bytes on the wire.
    #[must_use]
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&[NIBBLE << 4, self.epoch, self.key, 0]);
        bytes[4..].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }
}

/// Why a packet could not be sealed. It must be dropped: nothing goes in clear to whom it should be sealed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No handshake has given a key for this peer and worker.
    #[error("no handshake has given a key for this peer and worker")]
    NoKey,
    /// The key has sealed all that it may, or for as long as it may: a new handshake is needed.
    #[error("the key has sealed all that it may, or for as long as it may: a new handshake is needed")]
    Exhausted,
    /// There is no room for the sealed packets.
    #[error("there is no room for the sealed packets")]
    NoRoom,
}

/// Why a sealed datagram was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Its header is none that a peer of ours writes.
    #[error("its header is none that a peer of ours writes")]
    Malformed,
    /// No key of that epoch and number is in force with this peer.
    #[error("no key of that epoch and number is in force with this peer")]
    NoKey,
    /// It was opened before, or is too far behind the newest to tell.
    #[error("it was opened before, or is too far behind the newest to tell")]
    Replayed,
    /// A bit of it was changed, or it was sealed with another key.
    #[error("a bit of it was changed, or it was sealed with another key")]
    Unauthentic,
}
