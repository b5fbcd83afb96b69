//! The cluster's certificate authority: `ca.crt` and `ca.key` in a folder of the operator's, who signs nodes' certificates.
//!
//! No daemon ever needs the key. It keeps no list of what it signed, and revokes nothing: a certificate is short-lived
//! instead, or the CA is replaced.
//!
//! Invariant: no file is overwritten.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::ServerName;

use super::files::{self, Mode};
use super::{PkiError, SKEW};

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";

/// A CA that can sign.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a CA called `name` in `folder`. Returns the paths of certificate and key.
    pub fn init(folder: &Path, name: &str, life: Duration) -> Result<[PathBuf; 2], PkiError> {
        let paths = [folder.join(CERTIFICATE), folder.join(KEY)];
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        lifetime(&mut params, life);
        let certificate = params.self_signed(&pair)?;
        files::create(&paths[1], &pair.serialize_pem(), Mode::Secret)?;
        files::create(&paths[0], &certificate.pem(), Mode::Public)?;
        Ok(paths)
    }

    /// The CA in `folder`, made by [`Authority::init`] or by openssl.
    pub fn load(folder: &Path) -> Result<Self, PkiError> {
        let (certificate, key) = (folder.join(CERTIFICATE), folder.join(KEY));
        let chain = files::certificates(&certificate)?;
        let (pem, _) = files::key(&key)?;
        let problem = |path: PathBuf, problem: String| PkiError::Content { path, problem };
        let pair = KeyPair::from_pem(&pem)
            .map_err(|error| problem(key, format!("the key cannot sign ({error})")))?;
        let issuer = Issuer::from_ca_cert_der(&chain[0], pair)
            .map_err(|error| problem(certificate, format!("no CA certificate ({error})")))?;
        Ok(Self { issuer })
    }

    /// Makes key and certificate for the node `name` in `folder`. Returns their paths.
    pub fn issue(&self, folder: &Path, name: &str, life: Duration) -> Result<[PathBuf; 2], PkiError> {
        if name.is_empty() || ServerName::try_from(name).is_err() {
            return Err(PkiError::Name(name.to_owned()));
        }
        let paths = [folder.join(format!("{name}.crt")), folder.join(format!("{name}.key"))];
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        lifetime(&mut params, life);
        usages(&mut params);
        let certificate = params.signed_by(&pair, &self.issuer)?;
        files::create(&paths[1], &pair.serialize_pem(), Mode::Secret)?;
        files::create(&paths[0], &certificate.pem(), Mode::Public)?;
        Ok(paths)
    }
}

/// Valid from a little before now.
pub(super) fn lifetime(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(SKEW);
    params.not_after = date_time_ymd(1970, 1, 1) + now + life;
}

/// A node both dials and answers.
pub(super) fn usages(params: &mut CertificateParams) {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
}
