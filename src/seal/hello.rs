//! What two hosts tell each other before they derive keys, over the authenticated connection, and what follows from it.
//!
//! Invariant: both sides, each with its own view of who is who, come to the same [`Agreement`].
#![forbid(unsafe_code)]

use super::schedule::Role;

/// The AEAD algorithms there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Suite {
    /// AES-256-GCM: where both CPUs have AES instructions.
    Aes256Gcm = 1,
    /// ChaCha20-Poly1305: elsewhere.
    ChaCha20Poly1305 = 2,
}

impl Suite {
    /// Its name, as operators know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "AES-256-GCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        }
    }
}

/// Whether this CPU has what makes AES-GCM the faster of the two.
#[must_use]
pub(super) fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// What a host says of itself. On the wire: version 1, flags (bit 0: AES), workers, then a byte for each epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its CPU has AES instructions.
    pub aes: bool,
    /// How many workers it seals on, at least 1: each has a key of its own.
    pub workers: u8,
    /// The epochs of which it still has keys with the other, the newest first.
    pub epochs: Vec<u8>,
}

/// These bytes are no hello of a version that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are no hello of a version that we speak")]
pub struct HelloError;

const VERSION: u8 = 1;
const AES: u8 = 1;
/// More than any host keeps.
const MOST_EPOCHS: usize = 16;

impl Hello {
    /// The longest encoding, in bytes.
    pub const MAX_LEN: usize = 3 + MOST_EPOCHS;

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let epochs = self.epochs.iter().copied().take(MOST_EPOCHS);
        [VERSION, u8::from(self.aes) * AES, self.workers].into_iter().chain(epochs).collect()
    }

    /// Reads it. Flags that we don't know are passed over.
    pub fn decode(bytes: &[u8]) -> Result<Self, HelloError> {
        let [VERSION, flags, workers, epochs @ ..] = bytes else { return Err(HelloError) };
        if *workers == 0 || epochs.len() > MOST_EPOCHS {
            return Err(HelloError);
        }
        Ok(Self { aes: flags & AES != 0, workers: *workers, epochs: epochs.to_vec() })
    }
}

/// By what keys two hosts will seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// The algorithm.
    pub suite: Suite,
    /// The new epoch: also the exporter's context.
    pub epoch: u8,
    /// Who we are.
    pub role: Role,
    /// Our workers.
    pub ours: u8,
    /// The peer's.
    pub theirs: u8,
}

impl Agreement {
    /// What follows from both hellos, for the side that said `ours`.
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

    fn hello() -> impl Strategy<Value = Hello> {
        (any::<bool>(), 1u8.., proptest::collection::vec(any::<u8>(), 0..MOST_EPOCHS))
            .prop_map(|(aes, workers, epochs)| Hello { aes, workers, epochs })
    }

    proptest! {
        #[test]
        fn both_sides_agree_on_an_epoch_that_neither_has(ours in hello(), theirs in hello()) {
            let here = Agreement::of(&ours, &theirs, Role::Initiator);
            let there = Agreement::of(&theirs, &ours, Role::Responder);
            prop_assert_eq!((here.suite, here.epoch), (there.suite, there.epoch));
            prop_assert_eq!((here.ours, here.theirs), (there.theirs, there.ours));
            prop_assert!(!ours.epochs.contains(&here.epoch) && !theirs.epochs.contains(&here.epoch));
            prop_assert_eq!(here.suite == Suite::Aes256Gcm, ours.aes && theirs.aes);
        }

        #[test]
        fn a_hello_is_read_as_it_was_written(hello in hello()) {
            prop_assert!(hello.encode().len() <= Hello::MAX_LEN);
            prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(hello) = Hello::decode(&bytes) {
                prop_assert!(hello.workers > 0 && hello.epochs.len() <= MOST_EPOCHS);
            }
        }
    }

    #[test]
    fn what_is_no_hello_is_refused() {
        for bytes in [&[][..], &[1], &[1, 0], &[1, 0, 0], &[2, 0, 1], &[1; 20]] {
            assert_eq!(Hello::decode(bytes), Err(HelloError), "{bytes:?}");
        }
    }
}
