//! How the packets of a pair of hosts are protected, by what both say: a rule that both ends apply to the same facts.
//!
//! It knows no key and no certificate, but a certificate's SHA-256.
//!
//! Invariant: the two ends of a pair come to the same [`Protection`] (test `both_ends_agree`).
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use super::Peer;
use crate::seal;

/// What a host is configured to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Packets travel in clear.
    #[default]
    None,
    /// Packets are sealed by the workers, with keys from a QUIC handshake.
    Sealed,
    /// Packets travel in a QUIC connection.
    Quic,
}

impl Mode {
    /// The word for it in configurations and leases; `Mode::None` has none in a lease.
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

/// What a host tells the others of its encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// What it is configured to do; never [`Mode::None`].
    pub mode: Mode,
    /// The UDP port of its QUIC endpoint.
    pub port: u16,
    /// Its certificate's.
    pub fingerprint: Fingerprint,
}

/// What this host is configured to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// With whom announces something too.
    pub mode: Mode,
    /// Nothing goes to, and nothing comes from, a host that does not encrypt.
    pub require: bool,
}

/// How the packets of a pair travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protection {
    /// In clear.
    #[default]
    Clear,
    /// Sealed by the workers; by QUIC until there are keys.
    Sealed,
    /// By QUIC.
    Quic,
}

impl Policy {
    /// How packets to and from a host that announces `theirs` travel: in clear if either end says so; of two ways the
    /// conservative one.
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
    /// Bytes that its datagrams are longer than what stands in them.
    #[must_use]
    #[inline]
    pub fn overhead(&self) -> usize {
        if self.session.is_some() { seal::OVERHEAD } else { 0 }
    }

    /// Whether its packets are sealed, and a handshake has given a key to do it.
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
    fn both_ends_agree() {
        let modes = [Mode::None, Mode::Sealed, Mode::Quic];
        let says = |mode| {
            let announced = Announced { mode, port: 8286, fingerprint: Fingerprint([0; 32]) };
            (mode != Mode::None).then_some(announced)
        };
        let policy = |mode| Policy { mode, require: false };
        for ours in modes {
            for theirs in modes {
                assert_eq!(policy(ours).with(says(theirs)), policy(theirs).with(says(ours)));
                let clear = policy(ours).with(says(theirs)) == Protection::Clear;
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
