//! Checks this node's own certificate by the rule that the other nodes apply to it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use rustls::pki_types::UnixTime;

use super::identity::Identity;
use super::trust::{Claim, Trust, Untrusted};
use super::verify::{End, Verifier};

/// Why other nodes would not accept this node's certificate.
#[derive(Debug, thiserror::Error)]
pub enum OwnCertificateError {
    /// The certificate has expired, the CA has not signed it, or it is not for both ends of a
    /// connection (serverAuth and clientAuth).
    #[error("this node's own certificate is not valid: {0}")]
    Invalid(#[source] rustls::Error),
    /// The certificate is for another name.
    #[error(
        "this node's certificate is for {names:?}, but this node is called {name:?}: issue one for that name, or set \
         node.name"
    )]
    Name {
        /// Names in the certificate.
        names: Vec<String>,
        /// Name of this node in the store.
        name: String,
    },
    /// The certificate does not contain the subnets of this node.
    #[error("this node's certificate does not contain its subnets: {0}")]
    Subnets(#[source] Untrusted),
    /// The certificate does not belong to this node for another reason.
    #[error(transparent)]
    Untrusted(Untrusted),
}

impl OwnCertificateError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "own_certificate_invalid",
            Self::Name { .. } => "own_certificate_name",
            Self::Subnets(_) => "own_certificate_subnets",
            Self::Untrusted(_) => "own_certificate_untrusted",
        }
    }
}

/// Whether other nodes with the same rule of trust accept the certificate of this node, which has
/// this name and these subnets.
pub fn check_own(
    trust: &Trust,
    identity: &Identity,
    (name, subnets): (&str, &[IpNet]),
) -> Result<(), OwnCertificateError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = &identity.key().cert;
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(since_1970.as_secs()));
    let verifier = Verifier::new(trust.clone(), provider);
    // A node both dials and answers.
    for end in [End::Server, End::Client] {
        let checked = verifier.check_validity(&chain[0], &chain[1..], now, end);
        checked.map_err(OwnCertificateError::Invalid)?;
    }
    let claim = Claim { name, fingerprint: identity.fingerprint(), subnets };
    trust.admits(chain, &claim).map_err(|untrusted| match untrusted {
        Untrusted::Name { names, expected } => OwnCertificateError::Name { names, name: expected },
        other @ Untrusted::Subnets { .. } => OwnCertificateError::Subnets(other),
        other @ (Untrusted::Fingerprint { .. } | Untrusted::Authority | Untrusted::None) => {
            OwnCertificateError::Untrusted(other)
        }
    })
}
