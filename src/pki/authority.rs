//! The cluster's certificate authority: `ca.crt` and `ca.key` in a folder of the operator.
//!
//! It signs certificates of nodes. No daemon needs its key. It keeps no list of what it has
//! signed, and revokes nothing. Instead, certificates are short-lived, or the operator replaces
//! the CA.
//!
//! Invariant: it overwrites no file.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::ServerName;

use super::error::PkiError;
use super::files::{self, FileMode};
use super::{subnets, validity};

const CERTIFICATE_FILE: &str = "ca.crt";
const KEY_FILE: &str = "ca.key";

/// A CA that can sign.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a CA called `name` in `folder`. Returns the paths of certificate and key.
    pub fn init(folder: &Path, name: &str, validity: Duration) -> Result<[PathBuf; 2], PkiError> {
        let paths = [folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE)];
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Without this, openssl does not accept certificates with subnets (RFC 3779 section 2.3).
        params.custom_extensions = vec![subnets::extension(&everything())];
        validity::set(&mut params, validity);
        let certificate = params.self_signed(&pair)?;
        files::create(&paths[1], &pair.serialize_pem(), FileMode::Secret)?;
        files::create(&paths[0], &certificate.pem(), FileMode::Public)?;
        Ok(paths)
    }

    /// Loads the CA in `folder`. [`Authority::init`] or openssl has made it.
    pub fn load(folder: &Path) -> Result<Self, PkiError> {
        let (certificate, key) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
        let chain = files::certificates(&certificate)?;
        let (pem, _) = files::key(&key)?;
        let pair = KeyPair::from_pem(&pem).map_err(|source| PkiError::CannotSign { path: key, source })?;
        let issuer = Issuer::from_ca_cert_der(&chain[0], pair)
            .map_err(|source| PkiError::NotCa { path: certificate, source })?;
        Ok(Self { issuer })
    }

    /// Makes key and certificate of the node `name` with `subnets` in `folder`. Returns the paths
    /// of certificate and key.
    pub fn issue(
        &self,
        folder: &Path,
        (name, subnets): (&str, &[IpNet]),
        validity: Duration,
    ) -> Result<[PathBuf; 2], PkiError> {
        if name.is_empty() || ServerName::try_from(name).is_err() {
            return Err(PkiError::Name(name.to_owned()));
        }
        let paths = [folder.join(format!("{name}.crt")), folder.join(format!("{name}.key"))];
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name = common_name(name);
        params.use_authority_key_identifier_extension = true;
        validity::set(&mut params, validity);
        allow_both_ends(&mut params);
        if !subnets.is_empty() {
            params.custom_extensions = vec![subnets::extension(subnets)];
        }
        let certificate = params.signed_by(&pair, &self.issuer)?;
        files::create(&paths[1], &pair.serialize_pem(), FileMode::Secret)?;
        files::create(&paths[0], &certificate.pem(), FileMode::Public)?;
        Ok(paths)
    }
}

fn everything() -> [IpNet; 2] {
    [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, name);
    distinguished_name
}

/// Allows a certificate for client and server, because a node both dials and answers.
pub(super) fn allow_both_ends(params: &mut CertificateParams) {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
}
