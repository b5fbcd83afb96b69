//! A node's own key and certificate.
//!
//! The operator names the files, or the node makes them in its state folder. In the second case the
//! certificate is self-signed, and the node replaces it and its key before the certificate expires.
//!
//! It does not check the certificate against a CA: [`super::check_own`] does. Invariant: key and
//! certificate of an [`Identity`] belong together.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::authority::allow_both_ends;
use super::description::Description;
use super::error::PkiError;
use super::files::{self, FileMode};
use super::validity::{self, CLOCK_SKEW, DAY, from_1970, since_1970};
use crate::route::Fingerprint;

/// Validity of a self-signed certificate.
const SELF_SIGNED_VALIDITY: Duration = DAY.saturating_mul(365);
/// A certificate is due for renewal this long before it expires, or after two thirds of its
/// validity if that is later.
const RENEWAL_LEAD: Duration = DAY.saturating_mul(30);

/// A node's key and certificate.
#[derive(Debug, Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    description: Description,
}

impl Identity {
    /// Reads the operator's files. The certificate's file may contain intermediate certificates
    /// after the node's own.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, PkiError> {
        let chain = files::certificates(certificate)?;
        let (_, key) = files::key(key)?;
        Self::of(chain, key, certificate)
    }

    /// Reads the node's own files in `state_dir`. Makes them if they do not exist, if they are due
    /// for renewal, if they are not valid yet (the clock was ahead when they were made), or if they
    /// do not belong together. `name` is only informative: without a CA, no
    /// host compares it.
    pub fn load_or_make(state_dir: &Path, name: &str) -> Result<Self, PkiError> {
        match Self::usable(state_dir)? {
            Some(identity) => Ok(identity),
            None => Self::make(state_dir, name),
        }
    }

    /// The key and certificate in `state_dir`; `None` if [`Identity::load_or_make`] would make new
    /// ones.
    pub fn usable(state_dir: &Path) -> Result<Option<Self>, PkiError> {
        let (certificate, key) = own_files(state_dir);
        let now = SystemTime::now();
        match Self::load(&certificate, &key) {
            Ok(identity) if identity.is_valid(now) && !identity.is_due(now) => Ok(Some(identity)),
            Ok(_) => Ok(None),
            Err(PkiError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            // The key is written before the certificate: a crash between the two leaves such files.
            Err(PkiError::KeyMismatch(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a new key and a self-signed certificate, and replaces those in `state_dir`.
    pub fn make(state_dir: &Path, name: &str) -> Result<Self, PkiError> {
        let pair = KeyPair::generate()?;
        // A host's name may be no valid DNS name.
        let mut params = CertificateParams::new(vec![name.to_owned()])
            .or_else(|_| CertificateParams::new(vec!["hopsack".to_owned()]))?;
        params.distinguished_name.push(DnType::CommonName, name);
        validity::set(&mut params, SELF_SIGNED_VALIDITY);
        allow_both_ends(&mut params);
        let made = params.self_signed(&pair)?;
        let (certificate, key) = own_files(state_dir);
        files::replace(&key, &pair.serialize_pem(), FileMode::Secret)?;
        files::replace(&certificate, &made.pem(), FileMode::Public)?;
        Self::load(&certificate, &key)
    }

    fn of(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        path: &Path,
    ) -> Result<Self, PkiError> {
        let path = || path.to_owned();
        let description =
            Description::of(&chain[0]).map_err(|source| PkiError::NotX509 { path: path(), source })?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider).map_err(|source| {
            if matches!(source, rustls::Error::InconsistentKeys(_)) {
                PkiError::KeyMismatch(path())
            } else {
                PkiError::UnusableKey { path: path(), source }
            }
        })?;
        Ok(Self { key: Arc::new(key), description })
    }

    /// Key and certificate chain, for TLS.
    #[must_use]
    pub fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// Content of the certificate.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Fingerprint of the certificate, as the lease announces it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.key.cert[0])
    }

    /// From when on the certificate is valid.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        from_1970(self.description.not_before)
    }

    /// When the certificate expires.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        from_1970(self.description.not_after)
    }

    /// When the certificate is due for renewal.
    #[must_use]
    pub fn due(&self) -> SystemTime {
        let validity = self.not_after().duration_since(self.not_before()).unwrap_or_default();
        self.not_after() - (validity.saturating_sub(CLOCK_SKEW) / 3).min(RENEWAL_LEAD)
    }

    /// Whether the certificate is due for renewal.
    #[must_use]
    pub fn is_due(&self, now: SystemTime) -> bool {
        now >= self.due()
    }

    /// Whether the certificate is within its validity.
    #[must_use]
    pub fn is_valid(&self, now: SystemTime) -> bool {
        (self.description.not_before..=self.description.not_after).contains(&since_1970(now))
    }
}

fn own_files(state_dir: &Path) -> (PathBuf, PathBuf) {
    (state_dir.join("node.crt"), state_dir.join("node.key"))
}
