//! How two hosts protect the packets between them: a rule that both apply to the same facts.
//!
//! It knows no key and no certificate, only the SHA-256 of a certificate.
//!
//! Invariant: both hosts of a pair arrive at the same [`Protection`] (test
//! `both_ends_choose_the_same_protection`).
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use super::Peer;
use crate::seal;

/// How a host is configured to protect packets (`security.mode`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Packets are not encrypted.
    #[default]
    None,
    /// Workers seal packets, with keys from a QUIC handshake.
    Sealed,
    /// A QUIC connection carries packets.
    Quic,
}

impl Mode {
    /// The word in configurations and leases. A lease never contains the word for [`Mode::None`].
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sealed => "sealed",
            Self::Quic => "quic",
        }
    }
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::None, Self::Sealed, Self::Quic].into_iter().find(|mode| mode.word() == text).ok_or(())
    }
}

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Fingerprint {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(());
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(drop)?;
        }
        Ok(Self(bytes))
    }
}

/// What a host announces about its encryption in its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// Configured mode; never [`Mode::None`].
    pub mode: Mode,
    /// UDP port of the QUIC endpoint.
    pub port: u16,
    /// Fingerprint of the host's certificate.
    pub fingerprint: Fingerprint,
}

/// How this host is configured to encrypt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Mode towards hosts that announce encryption.
    pub mode: Mode,
    /// Whether packets to and from hosts that do not encrypt are dropped.
    pub require: bool,
}

/// How the packets between two hosts travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protection {
    /// Without encryption.
    #[default]
    Clear,
    /// Sealed by the workers. While there is no key, a QUIC connection carries them.
    Sealed,
    /// In a QUIC connection.
    Quic,
}

impl Policy {
    /// How packets to and from a host that announces `theirs` travel. They are in clear if either
    /// host does not encrypt. If the two modes differ, QUIC is used.
    #[must_use]
    pub fn with(self, theirs: Option<Announced>) -> Protection {
        match (self.mode, theirs.map_or(Mode::None, |theirs| theirs.mode)) {
            (Mode::None, _) | (_, Mode::None) => Protection::Clear,
            (Mode::Sealed, Mode::Sealed) => Protection::Sealed,
            (Mode::Quic, _) | (_, Mode::Quic) => Protection::Quic,
        }
    }
}

impl Peer {
    /// Bytes that sealing adds to each datagram to this peer.
    #[must_use]
    #[inline]
    pub fn overhead(&self) -> usize {
        if self.session.is_some() { seal::OVERHEAD } else { 0 }
    }

    /// Whether packets to this peer are sealed, and there is a key for it.
    #[must_use]
    #[inline]
    pub fn can_seal(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.keys().sealing().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_choose_the_same_protection() {
        let modes = [Mode::None, Mode::Sealed, Mode::Quic];
        let announce = |mode| {
            let announced = Announced { mode, port: 8286, fingerprint: Fingerprint([0; 32]) };
            (mode != Mode::None).then_some(announced)
        };
        let policy = |mode| Policy { mode, require: false };
        for ours in modes {
            for theirs in modes {
                assert_eq!(policy(ours).with(announce(theirs)), policy(theirs).with(announce(ours)));
                let clear = policy(ours).with(announce(theirs)) == Protection::Clear;
                assert_eq!(clear, ours == Mode::None || theirs == Mode::None);
            }
        }
    }

    #[test]
    fn fingerprints_round_trip() {
        let print = Fingerprint(std::array::from_fn(|n| u8::try_from(n * 7 % 256).expect("a byte")));
        assert_eq!(print.to_string().parse(), Ok(print));
        for bad in ["", "zz", &"0".repeat(63), &"0".repeat(66), &"g".repeat(64), &"ä".repeat(32)] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(()));
        }
    }
}
