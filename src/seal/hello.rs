//! The hellos that two hosts exchange over their authenticated connection before they derive keys,
//! and the agreement that follows from them.
//!
//! It does not authenticate the peer: the connection has done that.
//!
//! Invariant: both hosts derive the same [`Agreement`], each from its own point of view.
#![forbid(unsafe_code)]

use super::role::Role;
use super::suite::Suite;

/// What a host says about itself. On the wire: version 1, flags (bit 0: AES), workers, then one
/// byte for each epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Whether the host's CPU has AES instructions.
    pub aes: bool,
    /// Number of workers that seal, at least 1; each has a key of its own.
    pub workers: u8,
    /// Epochs of which the host still has keys with the receiver of this hello, newest first.
    pub epochs: Vec<u8>,
}

/// The hello is malformed or of an unsupported version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed or unsupported hello")]
pub struct HelloError;

const VERSION: u8 = 1;
const AES: u8 = 1;
/// The most epochs in a hello; more than any host keeps.
const MOST_EPOCHS: usize = 16;

impl Hello {
    /// The longest encoding, in bytes.
    pub const MAX_LEN: usize = 3 + MOST_EPOCHS;

    /// The hello as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let epochs = self.epochs.iter().copied().take(MOST_EPOCHS);
        [VERSION, u8::from(self.aes) * AES, self.workers].into_iter().chain(epochs).collect()
    }

    /// Reads a hello. Unknown flags are ignored.
    pub fn decode(bytes: &[u8]) -> Result<Self, HelloError> {
        let [VERSION, flags, workers, epochs @ ..] = bytes else { return Err(HelloError) };
        if *workers == 0 || epochs.len() > MOST_EPOCHS {
            return Err(HelloError);
        }
        Ok(Self { aes: flags & AES != 0, workers: *workers, epochs: epochs.to_vec() })
    }
}

/// What two hosts have agreed on: from it and a secret both derive the same keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// The AEAD algorithm.
    pub suite: Suite,
    /// The new epoch, which is also the context of the TLS exporter.
    pub epoch: u8,
    /// This host's role in the handshake.
    pub role: Role,
    /// Number of workers of this host.
    pub ours: u8,
    /// Number of workers of the peer.
    pub theirs: u8,
}

impl Agreement {
    /// Derives the agreement from both hellos, for the host that sent `ours`.
    #[must_use]
    pub fn of(ours: &Hello, theirs: &Hello, role: Role) -> Self {
        let newest = |hello: &Hello| hello.epochs.first().copied().unwrap_or(0);
        let mut epoch = newest(ours).max(newest(theirs)).wrapping_add(1);
        while ours.epochs.contains(&epoch) || theirs.epochs.contains(&epoch) {
            epoch = epoch.wrapping_add(1);
        }
        let suite = if ours.aes && theirs.aes { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 };
        Self { suite, epoch, role, ours: ours.workers, theirs: theirs.workers }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_hello() -> impl Strategy<Value = Hello> {
        (any::<bool>(), 1u8.., proptest::collection::vec(any::<u8>(), 0..MOST_EPOCHS))
            .prop_map(|(aes, workers, epochs)| Hello { aes, workers, epochs })
    }

    proptest! {
        #[test]
        fn both_hosts_agree_on_an_unused_epoch(ours in any_hello(), theirs in any_hello()) {
            let here = Agreement::of(&ours, &theirs, Role::Initiator);
            let there = Agreement::of(&theirs, &ours, Role::Responder);
            prop_assert_eq!((here.suite, here.epoch), (there.suite, there.epoch));
            prop_assert_eq!((here.ours, here.theirs), (there.theirs, there.ours));
            prop_assert!(!ours.epochs.contains(&here.epoch) && !theirs.epochs.contains(&here.epoch));
            prop_assert_eq!(here.suite == Suite::Aes256Gcm, ours.aes && theirs.aes);
        }

        #[test]
        fn decode_undoes_encode(hello in any_hello()) {
            prop_assert!(hello.encode().len() <= Hello::MAX_LEN);
            prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(hello) = Hello::decode(&bytes) {
                prop_assert!(hello.workers > 0 && hello.epochs.len() <= MOST_EPOCHS);
            }
        }
    }

    #[test]
    fn malformed_hellos_are_refused() {
        for bytes in [&[][..], &[1], &[1, 0], &[1, 0, 0], &[2, 0, 1], &[1; 20]] {
            assert_eq!(Hello::decode(bytes), Err(HelloError), "{bytes:?}");
        }
    }
}
