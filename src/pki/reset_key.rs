//! The key of QUIC's stateless resets, in the node's state folder.
//!
//! Invariant: the key survives restarts. A new process uses it to tell peers that their connections
//! to an earlier process are gone (RFC 9000 section 10.3).
#![forbid(unsafe_code)]

use std::path::Path;

use super::error::PkiError;
use super::files::{self, FileMode};
use crate::route::Fingerprint;

const FILE: &str = "quic-reset.key";

/// Reads the key of this installation. The first call makes it.
pub fn reset_key(state_dir: &Path) -> Result<[u8; 32], PkiError> {
    let path = state_dir.join(FILE);
    if !path.exists() {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| PkiError::NoRandomness)?;
        // The file has the format of a fingerprint: 32 bytes in hexadecimal.
        files::replace(&path, &Fingerprint(key).to_string(), FileMode::Secret)?;
    }
    let text = String::from_utf8_lossy(&files::read(&path)?).into_owned();
    match text.trim().parse() {
        Ok(Fingerprint(key)) => Ok(key),
        Err(()) => Err(PkiError::DamagedResetKey(path)),
    }
}
