//! How two hosts protect the packets between them: a rule that both apply to the same facts.
//!
//! It knows no key and no certificate, only the SHA-256 of a certificate.
//!
//! Invariant: both hosts of a pair arrive at the same [`Protection`] (test
//! `both_ends_choose_the_same_protection`).
#![forbid(unsafe_code)]

use std::str::FromStr;

use super::fingerprint::Fingerprint;

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
}
