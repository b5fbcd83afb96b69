//! The key schedule: derives a key and an IV for each direction, epoch and sending worker from one
//! exporter secret.
//!
//! ```text
//! secret  = TLS-Exporter("EXPORTER-hopsack-sealed-1", context = epoch, 32)      RFC 8446 §7.5
//! root    = HKDF-Extract(salt = "hopsack sealed 1", secret)             RFC 5869, SHA-256
//! key, iv = HKDF-Expand(root, label || suite || direction || epoch || worker, 32 | 12)
//! id      = HKDF-Expand(root, "id", 16)                    tells nothing about the keys
//! ```
//!
//! It does not make handshakes, and keeps no counter.
//!
//! Invariant: two different (secret, suite, direction, epoch, worker) share no key; a [`Secret`]
//! cannot be copied or printed, and is overwritten when it is dropped.
#![forbid(unsafe_code)]

use aws_lc_rs::aead::{AES_256_GCM, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use zeroize::Zeroizing;

use super::role::Direction;
use super::suite::Suite;

/// Label of the TLS exporter; its context is one byte, the epoch.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-hopsack-sealed-1";
const SALT: &[u8] = b"hopsack sealed 1";
const KEY_BYTES: usize = 32;

/// SHA-256 of the certificate that a peer has shown in a handshake.
pub type CertificateHash = [u8; 32];

/// The output of a handshake's TLS exporter: 32 bytes that only the two hosts know.
pub struct Secret {
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    pub(super) certificate: CertificateHash,
}

impl Secret {
    /// Takes the exporter's output. `certificate` is the one that the peer has shown.
    #[must_use]
    pub fn new(bytes: [u8; KEY_BYTES], certificate: CertificateHash) -> Self {
        Self { bytes: Zeroizing::new(bytes), certificate }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Public name of a secret. Two hosts that show the same name have the same keys; the name tells
/// nothing about them.
pub(super) type Id = [u8; 16];

/// Derives the keys of one epoch.
pub(super) struct Schedule {
    root: Prk,
    suite: Suite,
    epoch: u8,
}

/// A key, and the IV from which its nonces are made.
pub(super) struct KeyAndIv {
    pub(super) key: LessSafeKey,
    pub(super) iv: [u8; NONCE_LEN],
}

/// Length of an HKDF output, in bytes.
#[derive(Clone, Copy)]
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Schedule {
    pub(super) fn new(secret: &Secret, suite: Suite, epoch: u8) -> Self {
        Self { root: Salt::new(HKDF_SHA256, SALT).extract(&*secret.bytes), suite, epoch }
    }

    pub(super) fn id(&self) -> Id {
        self.expand(&[b"id"])
    }

    /// The key with which worker number `worker` of the host that sends in `direction` seals.
    pub(super) fn key(&self, direction: Direction, worker: u8) -> KeyAndIv {
        let (key, iv) = self.bytes(direction, worker);
        let algorithm: &'static Algorithm = match self.suite {
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = UnboundKey::new(algorithm, &*key).expect("both suites take a key of 32 bytes");
        KeyAndIv { key: LessSafeKey::new(key), iv }
    }

    fn bytes(&self, direction: Direction, worker: u8) -> (Zeroizing<[u8; KEY_BYTES]>, [u8; NONCE_LEN]) {
        let context = [self.suite as u8, direction as u8, self.epoch, worker];
        (Zeroizing::new(self.expand(&[b"key", &context])), self.expand(&[b"iv", &context]))
    }

    fn expand<const N: usize>(&self, info: &[&[u8]]) -> [u8; N] {
        let mut out = [0; N];
        let filled = self.root.expand(info, Length(N)).and_then(|okm| okm.fill(&mut out));
        filled.expect("HKDF-SHA256 yields up to 8,160 bytes");
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::role::Role;
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn secret() -> Secret {
        Secret::new(std::array::from_fn(|n| u8::try_from(n).expect("small")), [0; 32])
    }

    /// The output of RustCrypto's HKDF, another implementation of RFC 5869.
    fn independent<const N: usize>(info: &[u8]) -> [u8; N] {
        let (mut out, secret) = ([0; N], secret());
        let hkdf = hkdf::Hkdf::<sha2::Sha256>::new(Some(b"hopsack sealed 1"), &*secret.bytes);
        hkdf.expand(info, &mut out).expect("short");
        out
    }

    #[test]
    fn keys_match_an_independent_hkdf() {
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

    #[test]
    fn keys_match_the_test_vector_of_the_specification() {
        let schedule = Schedule::new(&secret(), Suite::Aes256Gcm, 1);
        let (key, iv) = schedule.bytes(Direction::FromInitiator, 0);
        let specification = include_str!("README.md");
        for (name, value) in [("key", &key[..]), ("iv", &iv[..]), ("id", &schedule.id()[..])] {
            let line = format!("{name} = {}", hex(value));
            assert!(specification.contains(&line), "src/seal/README.md lacks {line:?}");
        }
    }

    #[test]
    fn different_inputs_give_different_keys() {
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
