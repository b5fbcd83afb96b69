//! Whose certificate is believed.
//!
//! TLS asks a [`Verifier`] whether a certificate may be shown at all, on both sides of the handshake: with a CA it must
//! chain to it and be in its time, without one it must be in its time. TLS itself checks that the other holds the key. Whose
//! certificate it may be depends on the lease at the other's address, which TLS does not know: [`Trust::admits`] is
//! asked after the handshake, before anything is sent or taken.
//!
//! Invariant: a certificate that [`Trust::admits`] was, in the CA's words or the store's, made for that node.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};

use super::files;
use super::{Description, Fingerprint, PkiError, since_1970};

/// By what others are believed.
#[derive(Debug, Clone)]
pub enum Trust {
    /// A certificate of this CA, for the node's name.
    Authority(Arc<RootCertStore>),
    /// The certificate whose SHA-256 the node's lease names.
    Store,
}

/// Why a certificate is not that node's. The doc sentences are what the log says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// It names another node.
    #[error("its certificate is for {names:?}, and the lease at its address belongs to {expected:?}")]
    Name {
        /// The lease's.
        expected: String,
        /// The certificate's.
        names: Vec<String>,
    },
    /// It is not the one that the store names.
    #[error("its certificate has the fingerprint {shown}, and the lease of {expected:?} names {announced}")]
    Fingerprint {
        /// The lease's owner.
        expected: String,
        /// What was shown.
        shown: Fingerprint,
        /// What the lease names.
        announced: Fingerprint,
    },
    /// It showed none, or none that can be read.
    #[error("it showed no certificate")]
    None,
}

impl Trust {
    /// A CA's certificates.
    pub fn load(ca: &Path) -> Result<Self, PkiError> {
        let mut roots = RootCertStore::empty();
        for certificate in files::certificates(ca)? {
            roots.add(certificate).map_err(|error| PkiError::Content {
                path: ca.to_owned(),
                problem: format!("it cannot be trusted: {error}"),
            })?;
        }
        Ok(Self::Authority(Arc::new(roots)))
    }

    /// Whether a certificate, which [`Verifier`] has let pass, is that of the node `name` with the lease that announces
    /// `announced`.
    pub fn admits(
        &self,
        certificate: Option<&CertificateDer<'_>>,
        name: &str,
        announced: Fingerprint,
    ) -> Result<(), Untrusted> {
        let certificate = certificate.ok_or(Untrusted::None)?;
        match self {
            Self::Store => {
                let shown = Fingerprint::of(certificate);
                let expected = name.to_owned();
                if shown == announced {
                    Ok(())
                } else {
                    Err(Untrusted::Fingerprint { expected, shown, announced })
                }
            }
            Self::Authority(_) => {
                let parsed = ParsedCertificate::try_from(certificate).map_err(|_| Untrusted::None)?;
                let is_for =
                    ServerName::try_from(name).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok());
                let names =
                    || Description::of(certificate).map_or(Vec::new(), |description| description.names);
                if is_for {
                    Ok(())
                } else {
                    Err(Untrusted::Name { expected: name.to_owned(), names: names() })
                }
            }
        }
    }
}

/// What TLS asks.
#[derive(Debug)]
pub struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Believes as `trust` says.
    #[must_use]
    pub fn new(trust: Trust, provider: Arc<CryptoProvider>) -> Self {
        Self { trust, provider }
    }

    fn may_be_shown(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        match &self.trust {
            Trust::Authority(roots) => {
                let algorithms = self.provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
            }
            Trust::Store => {
                let bad = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
                let description = Description::of(certificate).map_err(bad)?;
                let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
                let time = |seconds: i64| {
                    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
                };
                let (from, to) = (description.not_before, description.not_after);
                let error = match seconds {
                    early if early < from => {
                        CertificateError::NotValidYetContext { time: now, not_before: time(from) }
                    }
                    late if late > to => CertificateError::ExpiredContext { time: now, not_after: time(to) },
                    _ => return Ok(()),
                };
                Err(Error::InvalidCertificate(error))
            }
        }
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// QUIC has TLS 1.3 only (RFC 9001 §4.2).
fn too_old() -> Error {
    Error::General("TLS 1.2 is not spoken here".into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.may_be_shown(certificate, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.may_be_shown(certificate, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

/// Whether a node's own certificate would be believed by those who believe as it does.
pub fn check_own(trust: &Trust, identity: &super::Identity, name: &str) -> Result<(), String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = &identity.key().cert;
    let seconds = u64::try_from(since_1970(SystemTime::now())).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    Verifier::new(trust.clone(), provider)
        .may_be_shown(&chain[0], &chain[1..], now)
        .map_err(|error| format!("this node's own certificate is not valid: {error}"))?;
    match trust.admits(chain.first(), name, identity.fingerprint()) {
        Ok(()) => Ok(()),
        Err(Untrusted::Name { names, .. }) => Err(format!(
            "this node's certificate is for {names:?}, and this node is called {name:?}: issue one for that name, or \
             set node.name"
        )),
        Err(other) => Err(other.to_string()),
    }
}
