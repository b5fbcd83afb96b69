//! Identities of nodes: key pairs, certificates, a cluster's CA, and the rules of trust.
//!
//! A node has an [`Identity`]: a key and a certificate. The operator provides them, or the node
//! makes them at its first start. [`Trust`] is the rule for accepting certificates of others. With
//! a CA, it accepts a certificate that the CA has signed for the name of the other node. Without a
//! CA, it accepts the certificate with the SHA-256 that the other node's lease announces
//! ([`Fingerprint`]). An [`Authority`] is the CA itself, for `hopsack pki`. openssl can make the
//! same files.
//!
//! It opens no connection and knows no lease. [`verify::Verifier`] tells TLS whether a certificate
//! is valid at all. [`Trust::admits`] tells after the handshake whether it belongs to a given node.
//!
//! Invariant: a private key is never in a file that others may read, in a log, or in an error.
//!
//! Sources: RFC 5280 (certificates), RFC 6125 (only the SAN is compared with a name), RFC 8446
//! (TLS 1.3), RFC 3779 (address blocks).
//!
#![doc = include_str!("pki/README.md")]
#![forbid(unsafe_code)]

mod authority;
mod description;
mod error;
mod files;
mod fingerprint;
mod identity;
mod own_certificate;
mod reset_key;
mod subnets;
mod trust;
mod validity;
pub mod verify;

pub use authority::Authority;
pub use description::Description;
pub use error::{PkiError, X509Error};
pub use identity::Identity;
pub use own_certificate::{OwnCertificateError, check_own};
pub use reset_key::reset_key;
pub use trust::{Claim, Trust, Untrusted};

pub use crate::route::Fingerprint;

#[cfg(test)]
mod tests;
