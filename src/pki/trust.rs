//! The rule that decides whether a certificate belongs to another node.
//!
//! The answer depends on the lease at the other node's address, which TLS does not know. So
//! [`Trust::admits`] is called after the handshake, before anything is sent or accepted. It does
//! not check validity and signatures: [`super::verify::Verifier`] has done that during the
//! handshake.
//!
//! Invariant: a certificate that [`Trust::admits`] accepts was made for that node, according to the
//! CA or to the store.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;

use super::description::Description;
use super::error::PkiError;
use super::files;
use super::verify::{End, Verifier};
use crate::route::Fingerprint;

/// How a node recognises certificates of other nodes.
#[derive(Debug, Clone)]
pub enum Trust {
    /// This CA has signed the certificate for the other node's name.
    Authority(Arc<RootCertStore>),
    /// The other node's lease announces the certificate's SHA-256.
    Store,
}

/// Why a certificate does not belong to a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// The certificate is for another node.
    #[error("the peer's certificate is for {names:?}, but the lease at its address belongs to {expected:?}")]
    Name {
        /// Name in the lease.
        expected: String,
        /// Names in the certificate.
        names: Vec<String>,
    },
    /// The certificate is not the one that the lease announces.
    #[error(
        "the peer's certificate has the fingerprint {shown}, but the lease of {expected:?} announces {announced}"
    )]
    Fingerprint {
        /// Name in the lease.
        expected: String,
        /// Fingerprint of the certificate.
        shown: Fingerprint,
        /// Fingerprint in the lease.
        announced: Fingerprint,
    },
    /// There is no certificate, or it cannot be read.
    #[error("the peer showed no readable certificate")]
    None,
}

impl Trust {
    /// Loads the certificates of a CA.
    pub fn load(ca: &Path) -> Result<Self, PkiError> {
        let mut roots = RootCertStore::empty();
        for certificate in files::certificates(ca)? {
            roots.add(certificate).map_err(|source| PkiError::UnusableCa { path: ca.to_owned(), source })?;
        }
        Ok(Self::Authority(Arc::new(roots)))
    }

    /// Whether this rule would have accepted a chain of certificates at the time `at`, when another
    /// rule has accepted it.
    #[must_use]
    pub fn accepts(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> bool {
        let Some((own, intermediates)) = chain.split_first() else { return false };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Verifier::new(self.clone(), provider);
        // The end at which the certificate was shown is not known here. It was checked then.
        [End::Server, End::Client]
            .into_iter()
            .any(|end| verifier.check_validity(own, intermediates, at, end).is_ok())
    }

    /// Whether a valid certificate belongs to the node `name`, the lease of which announces the
    /// fingerprint `announced`.
    pub fn admits(
        &self,
        certificate: Option<&CertificateDer<'_>>,
        name: &str,
        announced: Fingerprint,
    ) -> Result<(), Untrusted> {
        let certificate = certificate.ok_or(Untrusted::None)?;
        match self {
            Self::Store => check_fingerprint(certificate, name, announced),
            Self::Authority(_) => check_name(certificate, name),
        }
    }
}

fn check_fingerprint(
    certificate: &CertificateDer<'_>,
    name: &str,
    announced: Fingerprint,
) -> Result<(), Untrusted> {
    let shown = Fingerprint::of(certificate);
    if shown == announced {
        return Ok(());
    }
    Err(Untrusted::Fingerprint { expected: name.to_owned(), shown, announced })
}

fn check_name(certificate: &CertificateDer<'_>, name: &str) -> Result<(), Untrusted> {
    let parsed = ParsedCertificate::try_from(certificate).map_err(|_| Untrusted::None)?;
    if ServerName::try_from(name).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok()) {
        return Ok(());
    }
    let names = Description::of(certificate).map_or(Vec::new(), |description| description.names);
    Err(Untrusted::Name { expected: name.to_owned(), names })
}
