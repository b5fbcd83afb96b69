//! A node's own key and certificate.
//!
//! The operator names the files, or the node makes them in its state folder: then the certificate is self-signed, and made
//! anew, with a new key, before it runs out.
//!
//! Invariant: key and certificate of an [`Identity`] belong together.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use super::authority::{lifetime, usages};
use super::files::{self, Mode};
use super::{DAY, Description, Fingerprint, PkiError, SKEW, since_1970};

/// A certificate that nobody but the store vouches for.
const SELF_SIGNED: Duration = DAY.saturating_mul(365);
/// It is due for another when less than this is left, or a third of its life if that is less.
const RENEW: Duration = DAY.saturating_mul(30);

/// A node's key and certificate.
#[derive(Debug, Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    description: Description,
}

impl Identity {
    /// Reads what the operator has made: a certificate, its intermediates after it, and the key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, PkiError> {
        let chain = files::certificates(certificate)?;
        let (_, key) = files::key(key)?;
        Self::of(chain, key, certificate)
    }

    /// The node's own in `state_dir`: made if it is not there, and made anew if it soon runs out. `name` is for people:
    /// without a CA nothing hangs on it.
    pub fn load_or_make(state_dir: &Path, name: &str) -> Result<Self, PkiError> {
        let (certificate, key) = own_files(state_dir);
        match Self::load(&certificate, &key) {
            Ok(identity) if !identity.is_due(SystemTime::now()) => return Ok(identity),
            // The key is written first: a certificate without its key is what a crash between the two left.
            Ok(_) => {}
            Err(PkiError::File { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(PkiError::Content { problem, .. }) if problem == MISMATCH => {}
            Err(error) => return Err(error),
        }
        Self::make(state_dir, name)
    }

    /// A new key and a self-signed certificate in place of what is in `state_dir`.
    pub fn make(state_dir: &Path, name: &str) -> Result<Self, PkiError> {
        let pair = KeyPair::generate()?;
        // A host's name need not be a DNS name.
        let mut params = CertificateParams::new(vec![name.to_owned()])
            .or_else(|_| CertificateParams::new(vec!["hopsack".to_owned()]))?;
        params.distinguished_name.push(DnType::CommonName, name);
        lifetime(&mut params, SELF_SIGNED);
        usages(&mut params);
        let made = params.self_signed(&pair)?;
        let (certificate, key) = own_files(state_dir);
        files::replace(&key, &pair.serialize_pem(), Mode::Secret)?;
        files::replace(&certificate, &made.pem(), Mode::Public)?;
        Self::load(&certificate, &key)
    }

    fn of(
        chain: Vec<CertificateDer<'static>>,
        key: rustls::pki_types::PrivateKeyDer<'static>,
        path: &Path,
    ) -> Result<Self, PkiError> {
        let problem = |problem: String| PkiError::Content { path: path.to_owned(), problem };
        let description = Description::of(&chain[0]).map_err(problem)?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let refused = |error: rustls::Error| match matches!(error, rustls::Error::InconsistentKeys(_)) {
            true => problem(MISMATCH.into()),
            false => problem(format!("the key cannot be used: {error}")),
        };
        let key = CertifiedKey::from_der(chain, key, &provider).map_err(refused)?;
        Ok(Self { key: Arc::new(key), description })
    }

    /// For TLS.
    #[must_use]
    pub fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// What the certificate says.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// What the store says of the certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.key.cert[0])
    }

    /// When it runs out.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        at(self.description.not_after)
    }

    /// When it is time for a new one.
    #[must_use]
    pub fn due(&self) -> SystemTime {
        let life = self.not_after().duration_since(at(self.description.not_before)).unwrap_or_default();
        self.not_after() - (life.saturating_sub(SKEW) / 3).min(RENEW)
    }

    /// Whether it is time for a new one.
    #[must_use]
    pub fn is_due(&self, now: SystemTime) -> bool {
        now >= self.due()
    }

    /// Whether it can be shown at all.
    #[must_use]
    pub fn is_valid(&self, now: SystemTime) -> bool {
        (self.description.not_before..=self.description.not_after).contains(&since_1970(now))
    }
}

/// Seconds since 1970 as a time.
fn at(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}

/// A secret of this installation, made at the first use: by it the peers of a process that was killed are told by the next
/// one that their connections are no more (RFC 9000 §10.3).
pub fn reset_key(state_dir: &Path) -> Result<[u8; 32], PkiError> {
    let path = state_dir.join("quic-reset.key");
    if !path.exists() {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| PkiError::Library("no randomness".into()))?;
        files::replace(&path, &Fingerprint(secret).to_string(), Mode::Secret)?;
    }
    files::secret(&path)
}

const MISMATCH: &str = "the key does not belong to this certificate";

fn own_files(state_dir: &Path) -> (PathBuf, PathBuf) {
    (state_dir.join("node.crt"), state_dir.join("node.key"))
}
