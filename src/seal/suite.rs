//! The AEAD algorithms, and which of them this CPU prefers.
//!
//! It does not choose: two hosts agree on a suite in their hellos.
//!
//! Invariant: the numbers are those on the wire and in the key schedule; they never change.
#![forbid(unsafe_code)]

/// An AEAD algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Suite {
    /// AES-256-GCM, which is used if both CPUs have AES instructions.
    Aes256Gcm = 1,
    /// ChaCha20-Poly1305, which is used otherwise.
    ChaCha20Poly1305 = 2,
}

impl Suite {
    /// The algorithm's usual name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "AES-256-GCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        }
    }
}

/// Whether this CPU has the instructions that make AES-GCM the faster of the two algorithms.
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
