//! The key schedule: one exporter secret becomes a key and an IV for each direction, epoch and sending worker.
//!
//! ```text
//! secret  = TLS-Exporter("EXPORTER-hopsack-sealed-1", context = epoch, 32)          RFC 8446 §7.5
//! root    = HKDF-Extract(salt = "hopsack sealed 1", secret)                         RFC 5869, SHA-256
//! key, iv = HKDF-Expand(root, label || suite || direction || epoch || worker, 32 | 12)
//! id      = HKDF-Expand(root, "id", 16)                                             says nothing of the keys
//! ```
//!
//! Invariant: two different (secret, suite, direction, epoch, worker) share no key; a [`Secret`] cannot be copied or printed,
//! and is overwritten when it is dropped.
#![forbid(unsafe_code)]

use aws_lc_rs::aead::{AES_256_GCM, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use zeroize::Zeroizing;

use super::Suite;

/// What the TLS exporter is called with. Its context is the one byte of the epoch.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-hopsack-sealed-1";
const SALT: &[u8] = b"hopsack sealed 1";
const KEY: usize = 32;

/// What a handshake's exporter gave: 32 bytes that only the two hosts know.
pub struct Secret(Zeroizing<[u8; KEY]>);

impl Secret {
    /// Over the exporter's output.
    #[must_use]
    pub fn new(bytes: [u8; KEY]) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Who of the two began the handshake: the TLS client or the TLS server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The TLS client.
    Initiator,
    /// The TLS server.
    Responder,
}

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    FromInitiator = 0,
    FromResponder = 1,
}

impl Role {
    /// The direction in which he who has this role sends.
    pub(super) fn sends(self) -> Direction {
        match self {
            Self::Initiator => Direction::FromInitiator,
            Self::Responder => Direction::FromResponder,
        }
    }

    /// The direction in which he receives.
    pub(super) fn receives(self) -> Direction {
        match self {
            Self::Initiator => Direction::FromResponder,
            Self::Responder => Direction::FromInitiator,
        }
    }
}

/// Public name of a secret: two hosts that see the same have the same keys, and nobody learns a key by it.
pub(super) type Id = [u8; 16];

/// What is derived from one secret.
pub(super) struct Schedule {
    root: Prk,
    suite: Suite,
    epoch: u8,
}

/// A key, and what its nonces are made from.
pub(super) struct KeyAndIv {
    pub(super) key: LessSafeKey,
    pub(super) iv: [u8; NONCE_LEN],
}

/// An HKDF output of so many bytes.
#[derive(Clone, Copy)]
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Schedule {
    pub(super) fn new(secret: &Secret, suite: Suite, epoch: u8) -> Self {
        Self { root: Salt::new(HKDF_SHA256, SALT).extract(&*secret.0), suite, epoch }
    }

    pub(super) fn id(&self) -> Id {
        self.expand(&[b"id"])
    }

    /// The key by which the host that sends in `direction` seals on its worker `worker`.
    pub(super) fn key(&self, direction: Direction, worker: u8) -> KeyAndIv {
        let (key, iv) = self.bytes(direction, worker);
        let algorithm: &'static Algorithm = match self.suite {
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = UnboundKey::new(algorithm, &*key).expect("both suites take a key of 32 bytes");
        KeyAndIv { key: LessSafeKey::new(key), iv }
    }

    fn bytes(&self, direction: Direction, worker: u8) -> (Zeroizing<[u8; KEY]>, [u8; NONCE_LEN]) {
        let context = [self.suite as u8, direction as u8, self.epoch, worker];
        (Zeroizing::new(self.expand(&[b"key", &context])), self.expand(&[b"iv", &context]))
    }

    fn expand<const N: usize>(&self, info: &[&[u8]]) -> [u8; N] {
        let mut out = [0; N];
        let filled = self.root.expand(info, Length(N)).and_then(|okm| okm.fill(&mut out));
        filled.expect("HKDF-SHA256 gives up to 8,160 bytes");
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn secret() -> Secret {
        Secret::new(std::array::from_fn(|n| u8::try_from(n).expect("small")))
    }

    /// RustCrypto's HKDF: another implementation of RFC 5869.
    fn independent<const N: usize>(info: &[u8]) -> [u8; N] {
        let (mut out, secret) = ([0; N], secret());
        let hkdf = hkdf::Hkdf::<sha2::Sha256>::new(Some(b"hopsack sealed 1"), &*secret.0);
        hkdf.expand(info, &mut out).expect("short");
        out
    }

    #[test]
    fn keys_are_those_of_an_independent_hkdf() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            for (direction, worker, epoch) in [
                (Direction::FromInitiator, 0, 1),
                (Direction::FromResponder, 0, 1),
                (Direction::FromInitiator, 255, 1),
                (Direction::FromInitiator, 0, 255),
            ] {
                let (key, iv) = Schedule::new(&secret(), suite, epoch).bytes(direction, worker);
                let context = [suite as u8, direction as u8, epoch, worker];
                assert_eq!(*key, independent(&[b"key", &context[..]].concat()));
                assert_eq!(iv, independent(&[b"iv", &context[..]].concat()));
            }
        }
        assert_eq!(Schedule::new(&secret(), Suite::Aes256Gcm, 9).id(), independent(b"id"));
    }

    /// The vectors of src/seal.md.
    #[test]
    fn the_vectors_of_the_specification() {
        let schedule = Schedule::new(&secret(), Suite::Aes256Gcm, 1);
        let (key, iv) = schedule.bytes(Direction::FromInitiator, 0);
        let specification = include_str!("../seal.md");
        for (name, value) in [("key", &key[..]), ("iv", &iv[..]), ("id", &schedule.id()[..])] {
            let line = format!("{name} = {}", hex(value));
            assert!(specification.contains(&line), "src/seal.md lacks {line:?}");
        }
    }

    #[test]
    fn nothing_that_differs_shares_a_key() {
        let mut keys = BTreeSet::new();
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            for epoch in 0..4 {
                for worker in 0..4 {
                    for direction in [Direction::FromInitiator, Direction::FromResponder] {
                        keys.insert(*Schedule::new(&secret(), suite, epoch).bytes(direction, worker).0);
                    }
                }
            }
        }
        assert_eq!(keys.len(), 2 * 4 * 4 * 2);
        assert_eq!(Role::Initiator.sends(), Role::Responder.receives());
        assert_eq!(Role::Responder.sends(), Role::Initiator.receives());
        assert_eq!(format!("{:?}", secret()), "Secret(..)");
    }
}
