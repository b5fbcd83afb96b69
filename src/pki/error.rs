//! Why a key, a certificate or a CA cannot be read, made or used.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use rustls::pki_types::pem;

/// Error of the X.509 parser.
pub type X509Error = x509_parser::nom::Err<x509_parser::error::X509Error>;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error from the kernel.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Error from the kernel.
        source: io::Error,
    },
    /// A file exists that must not be overwritten.
    #[error("{0} exists already: delete it first, or choose another folder")]
    Exists(PathBuf),
    /// A private key can be read by other users.
    #[error("{path} can be read by others (mode {mode:o}): run chmod 600 on it")]
    KeyIsReadable {
        /// Path of the key.
        path: PathBuf,
        /// Permissions of the file.
        mode: u32,
    },
    /// A file is damaged PEM.
    #[error("{path} is not a PEM file of certificates ({source})")]
    NotPem {
        /// Path of the file.
        path: PathBuf,
        /// Error from the PEM parser.
        source: pem::Error,
    },
    /// A file contains no certificate.
    #[error("{0} contains no certificate: it must contain -----BEGIN CERTIFICATE----- (PEM)")]
    NoCertificate(PathBuf),
    /// A file contains something else than an X.509 certificate.
    #[error("{path} contains no X.509 certificate ({source})")]
    NotX509 {
        /// Path of the file.
        path: PathBuf,
        /// Error from the X.509 parser.
        source: X509Error,
    },
    /// A file contains no private key.
    #[error(
        "{path} contains no private key ({source}): it must contain -----BEGIN PRIVATE KEY----- (PEM, not encrypted)"
    )]
    NoPrivateKey {
        /// Path of the file.
        path: PathBuf,
        /// Error from the PEM parser.
        source: pem::Error,
    },
    /// A key belongs to another certificate.
    #[error("the private key does not belong to the certificate {0}")]
    KeyMismatch(PathBuf),
    /// The TLS library does not accept a key.
    #[error("the private key of the certificate {path} cannot be used: {source}")]
    UnusableKey {
        /// Path of the certificate.
        path: PathBuf,
        /// Error from the TLS library.
        source: rustls::Error,
    },
    /// The key of a CA is of a type that cannot sign.
    #[error("the key in {path} cannot sign certificates ({source})")]
    CannotSign {
        /// Path of the CA's key.
        path: PathBuf,
        /// Error from the certificate library.
        source: rcgen::Error,
    },
    /// A certificate is not one of a CA.
    #[error("{path} is not a CA certificate ({source})")]
    NotCa {
        /// Path of the certificate.
        path: PathBuf,
        /// Error from the certificate library.
        source: rcgen::Error,
    },
    /// A CA certificate cannot be an anchor of trust.
    #[error("the CA certificate {path} cannot be trusted: {source}")]
    UnusableCa {
        /// Path of the certificate.
        path: PathBuf,
        /// Error from the TLS library.
        source: rustls::Error,
    },
    /// The file with the key of stateless resets is damaged.
    #[error("{0} is damaged: delete it, and a new one is made")]
    DamagedResetKey(PathBuf),
    /// A certificate cannot contain a node's name.
    #[error(
        "{0:?} cannot be the name in a certificate: use letters, digits, '-', '_' and '.', as in a host name, and \
         give the node that name (node.name)"
    )]
    Name(String),
    /// The certificate library failed.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The kernel gave no random bytes.
    #[error("cannot get random bytes from the kernel")]
    NoRandomness,
}

impl PkiError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "pki_read",
            Self::Write { .. } => "pki_write",
            Self::Exists(_) => "pki_exists",
            Self::KeyIsReadable { .. } => "pki_key_is_readable",
            Self::NotPem { .. } => "pki_not_pem",
            Self::NoCertificate(_) => "pki_no_certificate",
            Self::NotX509 { .. } => "pki_not_x509",
            Self::NoPrivateKey { .. } => "pki_no_private_key",
            Self::KeyMismatch(_) => "pki_key_mismatch",
            Self::UnusableKey { .. } => "pki_unusable_key",
            Self::CannotSign { .. } => "pki_cannot_sign",
            Self::NotCa { .. } => "pki_not_ca",
            Self::UnusableCa { .. } => "pki_unusable_ca",
            Self::DamagedResetKey(_) => "pki_damaged_reset_key",
            Self::Name(_) => "pki_name",
            Self::Make(_) => "pki_make",
            Self::NoRandomness => "pki_no_randomness",
        }
    }
}
