//! Who a node is to other nodes, and how it knows them: key pairs, certificates, a cluster CA.
//!
//! A node has an [`Identity`]: a key and a certificate, given by the operator or made at the first start. It trusts another
//! by a [`Trust`]: certificates that the cluster's CA has signed for the node's name, or, without a CA, the one whose
//! SHA-256 the store names ([`Fingerprint`]). An [`Authority`] is the CA, for `hopsack pki`; openssl makes files as good.
//!
//! It opens no connection and knows no lease: [`verify::Verifier`] says to TLS that a certificate may be shown at all, and
//! [`Trust::admits`] says afterwards whether it is this node's.
//!
//! Invariant: no private key is ever in a file that others may read, in a log or in an error.
//!
//! Sources: RFC 5280 (certificates), RFC 6125 (names are compared with the SAN alone), RFC 8446 (TLS 1.3).
#![forbid(unsafe_code)]

mod authority;
mod files;
mod identity;
pub mod verify;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use serde::Serialize;

pub use authority::Authority;
pub use identity::{Identity, reset_key};
pub use verify::{Trust, Untrusted};

pub use crate::route::Fingerprint;

/// Certificates are valid from so long before they are made: clocks of hosts differ.
const SKEW: Duration = Duration::from_secs(3600);
/// A day.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Why there is no identity, trust or certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// From the kernel.
        error: std::io::Error,
    },
    /// A file is there that must not be overwritten.
    #[error("{0} is there already: delete it first, or choose another folder")]
    Exists(PathBuf),
    /// A file holds something else.
    #[error("{path}: {problem}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// A private key lies open.
    #[error("{path} can be read by others (mode {mode:o}): chmod 600 it")]
    Open {
        /// The key's file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// No name that a certificate can hold.
    #[error(
        "{0:?} is no name for a certificate: write letters, digits, '-', '_' and '.', as in a host name, and give the \
         node that name (node.name)"
    )]
    Name(String),
    /// The library refused.
    #[error("cannot make a certificate: {0}")]
    Library(String),
}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> Self {
        Self::Library(error.to_string())
    }
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// Whose it is.
    pub subject: String,
    /// The names that it stands for.
    pub names: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// It may sign others.
    pub is_ca: bool,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Days that are left; negative: it has run out.
    pub days_left: i64,
    /// SHA-256 of the whole certificate, in hexadecimal.
    pub fingerprint: String,
}

impl Description {
    /// Reads a certificate. The error says what is wrong with it.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|error| format!("no X.509 certificate ({error})"))?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map_or(Vec::new(), |san| san.value.general_names.iter().map(name).collect());
        let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        Ok(Self {
            subject: parsed.subject().to_string(),
            names,
            issuer: parsed.issuer().to_string(),
            is_ca: parsed.is_ca(),
            not_before: from,
            not_after: to,
            days_left: (to - since_1970(SystemTime::now())).div_euclid(24 * 3600),
            fingerprint: Fingerprint::of(certificate).to_string(),
        })
    }
}

impl Description {
    /// All certificates of a PEM file.
    pub fn read(path: &std::path::Path) -> Result<Vec<Self>, PkiError> {
        let problem = |problem| PkiError::Content { path: path.to_owned(), problem };
        files::certificates(path)?.iter().map(|certificate| Self::of(certificate).map_err(problem)).collect()
    }
}

fn name(name: &x509_parser::extensions::GeneralName<'_>) -> String {
    if let x509_parser::extensions::GeneralName::DNSName(name) = name {
        return (*name).to_owned();
    }
    name.to_string()
}

fn since_1970(time: SystemTime) -> i64 {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

impl Fingerprint {
    /// SHA-256 of a whole certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = if self.names.is_empty() { "none".to_owned() } else { self.names.join(", ") };
        let left = match self.days_left {
            days @ 0.. => format!("{days} days left"),
            days => format!("RUN OUT {} days ago", -days),
        };
        writeln!(f, "subject      {}", self.subject)?;
        writeln!(f, "names        {names}")?;
        writeln!(f, "issuer       {}{}", self.issuer, if self.is_ca { " (this is a CA)" } else { "" })?;
        writeln!(f, "validity     {left}")?;
        writeln!(f, "fingerprint  sha256:{}", self.fingerprint)
    }
}

#[cfg(test)]
mod tests;
