//! Tells TLS whether a certificate is valid, on both sides of the handshake.
//!
//! With a CA, the certificate must chain to it and be within its validity. Without one, it must be
//! within its validity. If it lists purposes (extended key usage), it must list the one for the
//! end of the handshake at which it is shown: serverAuth or clientAuth. TLS itself checks that the
//! other host holds the key. Whether the certificate belongs to the expected node is a later
//! question ([`Trust::admits`]).
//!
//! Invariant: what TLS gets as the reason of a refusal, and sends to a stranger, says no more than
//! the alert's code does. The log has the rest, at the level `debug`.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
};
use x509_parser::extensions::ExtendedKeyUsage;

use super::description::Description;
use super::trust::Trust;

/// The end of a handshake at which a certificate is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Client,
    Server,
}

/// Whether a rule of trust would have accepted a chain of certificates at the time `at`, when
/// another rule has accepted it.
#[must_use]
pub fn would_accept(trust: &Trust, chain: &[CertificateDer<'_>], at: UnixTime) -> bool {
    let Some((own, intermediates)) = chain.split_first() else { return false };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier::new(trust.clone(), provider);
    // The end at which the certificate was shown is not known here. It was checked then.
    [End::Server, End::Client]
        .into_iter()
        .any(|end| verifier.check_validity(own, intermediates, at, end).is_ok())
}

/// Checks certificates for TLS.
#[derive(Debug)]
pub struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Applies a rule of trust.
    #[must_use]
    pub fn new(trust: Trust, provider: Arc<CryptoProvider>) -> Self {
        Self { trust, provider }
    }

    /// Checks a certificate that is shown at one end of a handshake, with the intermediate ones
    /// that came with it.
    pub(super) fn check_validity(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        end: End,
    ) -> Result<(), Error> {
        match (&self.trust, end) {
            (Trust::Authority { roots, .. }, End::Server) => {
                let parsed = ParsedCertificate::try_from(certificate)?;
                let algorithms = self.provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
            }
            (Trust::Authority { roots, .. }, End::Client) => {
                let builder =
                    WebPkiClientVerifier::builder_with_provider(roots.clone(), self.provider.clone());
                let verifier = builder.build().map_err(|error| Error::General(error.to_string()))?;
                verifier.verify_client_cert(certificate, intermediates, now).map(drop)
            }
            (Trust::Store, _) => {
                check_time(certificate, now)?;
                check_purpose(certificate, end)
            }
        }
    }

    /// Checks a certificate for TLS.
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        end: End,
    ) -> Result<(), Error> {
        self.check_validity(certificate, intermediates, now, end).map_err(|error| {
            tracing::debug!(%error, "certificate refused");
            without_detail(error)
        })
    }

    fn check_signature(
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

fn check_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let unreadable = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
    let Description { not_before, not_after, .. } = Description::of(certificate).map_err(unreadable)?;
    let time =
        |seconds: i64| UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    let now_seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let error = if now_seconds < not_before {
        CertificateError::NotValidYetContext { time: now, not_before: time(not_before) }
    } else if now_seconds > not_after {
        CertificateError::ExpiredContext { time: now, not_after: time(not_after) }
    } else {
        return Ok(());
    };
    Err(Error::InvalidCertificate(error))
}

/// Self-signed certificates that list purposes must list the one for their end.
fn check_purpose(certificate: &CertificateDer<'_>, end: End) -> Result<(), Error> {
    let unreadable = || Error::InvalidCertificate(CertificateError::BadEncoding);
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| unreadable())?;
    let usage = parsed.extended_key_usage().map_err(|_| unreadable())?;
    let allows = |usage: &ExtendedKeyUsage<'_>| match end {
        End::Client => usage.client_auth,
        End::Server => usage.server_auth,
    };
    match usage {
        Some(usage) if !usage.value.any && !allows(usage.value) => {
            Err(Error::InvalidCertificate(CertificateError::InvalidPurpose))
        }
        _ => Ok(()),
    }
}

/// An error with the same alert, and a text that says no more than the alert.
fn without_detail(error: Error) -> Error {
    let Error::InvalidCertificate(reason) = error else {
        return Error::InvalidCertificate(CertificateError::BadEncoding);
    };
    let alert = AlertDescription::from(reason);
    let plain = [
        CertificateError::Expired,
        CertificateError::UnknownIssuer,
        CertificateError::InvalidPurpose,
        CertificateError::BadSignature,
    ];
    let same = plain.into_iter().find(|plain| AlertDescription::from(plain.clone()) == alert);
    Error::InvalidCertificate(same.unwrap_or(CertificateError::BadEncoding))
}

/// QUIC uses TLS 1.3 only (RFC 9001 section 4.2).
fn tls12_refused() -> Error {
    Error::General("TLS 1.2 is not supported".into())
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
        self.check(certificate, intermediates, now, End::Server).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12_refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
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
        self.check(certificate, intermediates, now, End::Client).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12_refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
