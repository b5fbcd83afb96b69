//! The content of a certificate, for people and for `--json`.
//!
//! It does not check the certificate: [`super::verify`] does.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::extensions::GeneralName;

use super::error::{PkiError, X509Error};
use super::validity::{DAY, since_1970};
use super::{files, subnets};
use crate::route::Fingerprint;

/// Content of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// Distinguished name of the certificate's owner.
    pub subject: String,
    /// Names for which the certificate is valid (SAN).
    pub names: Vec<String>,
    /// Subnets that the certificate's owner may have (RFC 3779).
    pub subnets: Vec<IpNet>,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// Whether the certificate may sign others.
    pub is_ca: bool,
    /// Start of the validity, in seconds since 1970.
    pub not_before: i64,
    /// End of the validity, in seconds since 1970.
    pub not_after: i64,
    /// Days until the certificate expires; negative if it has expired.
    pub days_left: i64,
    /// SHA-256 of the whole certificate, in hexadecimal.
    pub fingerprint: String,
}

impl Description {
    /// Reads one certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, X509Error> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map_or(Vec::new(), |san| san.value.general_names.iter().map(plain_name).collect());
        let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let day_seconds = i64::try_from(DAY.as_secs()).unwrap_or(i64::MAX);
        Ok(Self {
            subject: parsed.subject().to_string(),
            names,
            subnets: subnets::of(certificate).unwrap_or_default(),
            issuer: parsed.issuer().to_string(),
            is_ca: parsed.is_ca(),
            not_before: from,
            not_after: to,
            days_left: (to - since_1970(SystemTime::now())).div_euclid(day_seconds),
            fingerprint: Fingerprint::of(certificate).to_string(),
        })
    }

    /// Reads all certificates of a PEM file.
    pub fn read(path: &Path) -> Result<Vec<Self>, PkiError> {
        let not_x509 = |source| PkiError::NotX509 { path: path.to_owned(), source };
        files::certificates(path)?.iter().map(|certificate| Self::of(certificate).map_err(not_x509)).collect()
    }
}

fn plain_name(name: &GeneralName<'_>) -> String {
    if let GeneralName::DNSName(name) = name {
        return (*name).to_owned();
    }
    name.to_string()
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = if self.names.is_empty() { "none".to_owned() } else { self.names.join(", ") };
        let validity = match self.days_left {
            days @ 0.. => format!("{days} days left"),
            days => format!("EXPIRED {} days ago", -days),
        };
        writeln!(f, "subject      {}", self.subject)?;
        writeln!(f, "names        {names}")?;
        let subnets: Vec<String> = self.subnets.iter().map(ToString::to_string).collect();
        let subnets = if subnets.is_empty() { "none".to_owned() } else { subnets.join(", ") };
        writeln!(f, "subnets      {subnets}")?;
        writeln!(f, "issuer       {}{}", self.issuer, if self.is_ca { " (this is a CA)" } else { "" })?;
        writeln!(f, "validity     {validity}")?;
        writeln!(f, "fingerprint  sha256:{}", self.fingerprint)
    }
}
