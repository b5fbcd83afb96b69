//! Why a packet is not sealed, a datagram not opened, or a secret not installed.
//!
//! A sealing or opening error is not a failure of the worker: the packet is dropped and counted.
//!
//! Invariant: on a [`SealError`] nothing may be sent in clear instead.
#![forbid(unsafe_code)]

/// Why a packet could not be sealed. The caller drops the packet: it must not be sent in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No handshake has given a key for this peer and worker.
    #[error("no handshake has given a key for this peer and worker")]
    NoKey,
    /// The key has reached its packet limit or its age limit: a new handshake is needed.
    #[error("the key has reached its packet limit or its age limit: a new handshake is needed")]
    Exhausted,
    /// The output buffer is too short for the sealed packets.
    #[error("the output buffer is too short for the sealed packets")]
    NoRoom,
}

/// Why a sealed datagram was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The header is not that of a sealed datagram, or the datagram is too short.
    #[error("the header is not that of a sealed datagram, or the datagram is too short")]
    Malformed,
    /// No key of this epoch and number is in use with this peer.
    #[error("no key of this epoch and number is in use with this peer")]
    NoKey,
    /// The datagram was opened before, or its counter is behind the replay window.
    #[error("the datagram was opened before, or its counter is behind the replay window")]
    Replayed,
    /// The datagram was changed on its way, or it was sealed with another key.
    #[error("the datagram was changed on its way, or it was sealed with another key")]
    Unauthentic,
}

/// Why a secret must not become keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// The secret is installed already: reusing it would repeat nonces. Make a new handshake.
    #[error("the secret is installed already, and reusing it would repeat nonces: make a new handshake")]
    Known,
    /// The epoch is in use, because two handshakes ran at once. Make a new handshake.
    #[error("epoch {0} is in use, because two handshakes ran at once: make a new handshake")]
    EpochInUse(u8),
}
