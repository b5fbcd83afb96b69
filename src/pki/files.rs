//! PEM files: certificates that all may read, keys that only the owner may.
//!
//! Invariant: a key is in a file of mode 0600 from its first byte on; a file is whole or not there.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Fingerprint, PkiError};

/// All certificates of a file, in its order; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let problem = |problem: String| PkiError::Content { path: path.to_owned(), problem };
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => {
            Err(problem("no certificate is in it: it must hold -----BEGIN CERTIFICATE----- (PEM)".into()))
        }
        Ok(found) => Ok(found),
        Err(error) => Err(problem(format!("it is no PEM file of certificates ({error})"))),
    }
}

/// The private key of a file that nobody else may read, as PEM and as DER.
pub(super) fn key(path: &Path) -> Result<(String, PrivateKeyDer<'static>), PkiError> {
    let failed = |error| PkiError::File { path: path.to_owned(), error };
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PkiError::Open { path: path.to_owned(), mode });
    }
    let text = read(path)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| PkiError::Content {
        path: path.to_owned(),
        problem: "no private key is in it: it must hold -----BEGIN PRIVATE KEY----- (PEM, not encrypted)"
            .into(),
    })?;
    Ok((String::from_utf8_lossy(&text).into_owned(), key))
}

/// The 32 bytes that stand in a file in hexadecimal.
pub(super) fn secret(path: &Path) -> Result<[u8; 32], PkiError> {
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    text.trim()
        .parse()
        .map(|Fingerprint(bytes)| bytes)
        .map_err(|()| PkiError::Content { path: path.to_owned(), problem: "it is damaged: delete it".into() })
}

fn read(path: &Path) -> Result<Vec<u8>, PkiError> {
    std::fs::read(path).map_err(|error| PkiError::File { path: path.to_owned(), error })
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// 0644.
    Public,
    /// 0600.
    Secret,
}

/// Writes a file that must not be there yet.
pub(super) fn create(path: &Path, text: &str, mode: Mode) -> Result<(), PkiError> {
    let failed = |error| PkiError::File { path: path.to_owned(), error };
    match std::fs::symlink_metadata(path) {
        Ok(_) => Err(PkiError::Exists(path.to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => replace(path, text, mode),
        Err(error) => Err(failed(error)),
    }
}

/// Writes a file in place of what is there.
pub(super) fn replace(path: &Path, text: &str, mode: Mode) -> Result<(), PkiError> {
    let failed = |error| PkiError::File { path: path.to_owned(), error };
    let bits = match mode {
        Mode::Public => 0o644,
        Mode::Secret => 0o600,
    };
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // What a crash left there may be open to others.
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(bits).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(failed)
}
