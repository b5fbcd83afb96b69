//! The fingerprint of a certificate.
#![forbid(unsafe_code)]

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;

use crate::route::Fingerprint;

impl Fingerprint {
    /// SHA-256 of a whole certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(digest(&SHA256, certificate).as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}
