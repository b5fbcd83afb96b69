//! PEM files: certificates, which all users may read, and keys, which only the owner may read.
//!
//! Invariant: a key's file has mode 0600 before its first byte is written. A file is complete, or
//! it does not exist.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::error::PkiError;
use crate::files::{SecretError, secret};

/// Reads all certificates of a file, in the order of the file. There is at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let text = read(path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|source| PkiError::NotPem { path: path.to_owned(), source })?;
    if found.is_empty() {
        return Err(PkiError::NoCertificate(path.to_owned()));
    }
    Ok(found)
}

/// Reads a private key as PEM and as DER. Fails if others may read the file.
pub(super) fn key(path: &Path) -> Result<(String, PrivateKeyDer<'static>), PkiError> {
    let text = secret(path).map_err(|error| match error {
        SecretError::Unreadable(source) => PkiError::Read { path: path.to_owned(), source },
        SecretError::Public(mode) => PkiError::KeyIsReadable { path: path.to_owned(), mode },
    })?;
    let key = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|source| PkiError::NoPrivateKey { path: path.to_owned(), source })?;
    Ok((String::from_utf8_lossy(&text).into_owned(), key))
}

/// Reads a whole file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, PkiError> {
    std::fs::read(path).map_err(|source| PkiError::Read { path: path.to_owned(), source })
}

/// Which users may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileMode {
    /// All users (0644).
    Public,
    /// Only the owner (0600).
    Secret,
}

/// Writes a file that must not exist yet.
pub(super) fn create(path: &Path, text: &str, mode: FileMode) -> Result<(), PkiError> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Err(PkiError::Exists(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => replace(path, text, mode),
        Err(source) => Err(PkiError::Read { path: path.to_owned(), source }),
    }
}

/// Writes a file. If one exists, replaces it in one step.
pub(super) fn replace(path: &Path, text: &str, mode: FileMode) -> Result<(), PkiError> {
    let bits = match mode {
        FileMode::Public => 0o644,
        FileMode::Secret => 0o600,
    };
    crate::files::replace(path, text.as_bytes(), bits)
        .map_err(|source| PkiError::Write { path: path.to_owned(), source })
}
