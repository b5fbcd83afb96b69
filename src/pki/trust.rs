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

use ipnet::IpNet;
use rustls::RootCertStore;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;

use super::description::Description;
use super::error::PkiError;
use super::{files, subnets};
use crate::route::Fingerprint;

/// How a node recognises certificates of other nodes.
#[derive(Debug, Clone)]
pub enum Trust {
    /// This CA has signed the certificate for the other node's name.
    Authority {
        /// Certificates of the CA.
        roots: Arc<RootCertStore>,
        /// Whether the certificate must contain the other node's subnets.
        bind_subnets: bool,
    },
    /// The other node's lease announces the certificate's SHA-256.
    Store,
}

/// What the lease of a node says about it.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// Name of the node.
    pub name: &'a str,
    /// Fingerprint of its certificate.
    pub fingerprint: Fingerprint,
    /// Its subnets.
    pub subnets: &'a [IpNet],
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
    /// The lease has subnets for which the certificate is not made.
    #[error(
        "the certificate of {host:?} is for the subnets [{}], but its lease claims {}: delete that lease, or issue a \
         certificate with these subnets (hopsack pki issue --subnet)",
        text(.certified),
        text(.claimed)
    )]
    Subnets {
        /// Name in the lease.
        host: String,
        /// Subnets of the lease that the certificate does not contain.
        claimed: Vec<IpNet>,
        /// Subnets in the certificate; none if it has no readable extension.
        certified: Vec<IpNet>,
    },
    /// This host does not trust the CA of the certificate.
    #[error("no CA that this host trusts has signed the peer's certificate")]
    Authority,
    /// There is no certificate, or it cannot be read.
    #[error("the peer showed no readable certificate")]
    None,
}

impl Trust {
    /// Loads the certificates of a CA.
    pub fn load(ca: &Path, bind_subnets: bool) -> Result<Self, PkiError> {
        let mut roots = RootCertStore::empty();
        for certificate in files::certificates(ca)? {
            roots.add(certificate).map_err(|source| PkiError::UnusableCa { path: ca.to_owned(), source })?;
        }
        Ok(Self::Authority { roots: Arc::new(roots), bind_subnets })
    }

    /// The subnets that a node with this certificate must have; `None` if it may have any.
    #[must_use]
    pub fn required_subnets(&self, certificate: &CertificateDer<'_>) -> Option<Vec<IpNet>> {
        match self {
            Self::Authority { bind_subnets: true, .. } => Some(subnets::of(certificate).unwrap_or_default()),
            Self::Authority { .. } | Self::Store => None,
        }
    }

    /// Whether a valid certificate belongs to the node of a lease. `chain` is the certificate and
    /// the intermediate ones that came with it.
    pub fn admits(&self, chain: &[CertificateDer<'_>], claim: &Claim<'_>) -> Result<(), Untrusted> {
        let certificate = chain.first().ok_or(Untrusted::None)?;
        match self {
            Self::Store => check_fingerprint(certificate, claim),
            Self::Authority { bind_subnets, .. } => {
                check_name(certificate, claim.name)?;
                if *bind_subnets { check_subnets(chain, claim) } else { Ok(()) }
            }
        }
    }
}

fn check_fingerprint(certificate: &CertificateDer<'_>, claim: &Claim<'_>) -> Result<(), Untrusted> {
    let (shown, announced) = (Fingerprint::of(certificate), claim.fingerprint);
    if shown == announced {
        return Ok(());
    }
    Err(Untrusted::Fingerprint { expected: claim.name.to_owned(), shown, announced })
}

/// Each subnet of the lease must be in the certificate, and in each intermediate one that limits
/// subnets.
fn check_subnets(chain: &[CertificateDer<'_>], claim: &Claim<'_>) -> Result<(), Untrusted> {
    let certified = chain.first().and_then(subnets::of).unwrap_or_default();
    let limits: Vec<Vec<IpNet>> = chain.iter().skip(1).filter_map(subnets::of).collect();
    let contains = |blocks: &[IpNet], subnet: &IpNet| blocks.iter().any(|block| block.contains(subnet));
    let is_certified = |subnet: &&IpNet| {
        contains(&certified, subnet) && limits.iter().all(|blocks| contains(blocks, subnet))
    };
    let claimed: Vec<IpNet> = claim.subnets.iter().filter(|subnet| !is_certified(subnet)).copied().collect();
    if claimed.is_empty() {
        return Ok(());
    }
    Err(Untrusted::Subnets { host: claim.name.to_owned(), claimed, certified })
}

fn text(subnets: &[IpNet]) -> String {
    subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn check_name(certificate: &CertificateDer<'_>, name: &str) -> Result<(), Untrusted> {
    let parsed = ParsedCertificate::try_from(certificate).map_err(|_| Untrusted::None)?;
    if ServerName::try_from(name).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok()) {
        return Ok(());
    }
    let names = Description::of(certificate).map_or(Vec::new(), |description| description.names);
    Err(Untrusted::Name { expected: name.to_owned(), names })
}
