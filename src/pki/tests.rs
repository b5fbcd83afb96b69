//! Tests of identities, CA and trust, with openssl as the second opinion.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustls::{CertificateError, Error};

use super::validity::DAY;
use super::*;

const VALIDITY: Duration = DAY;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("the file exists").permissions().mode() & 0o777
}

fn openssl(folder: &Path, arguments: &str) -> String {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
    let output = output.expect("openssl is installed: scripts/test installs it");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn is_expired(result: &Result<(), OwnCertificateError>) -> bool {
    let Err(OwnCertificateError::Invalid(Error::InvalidCertificate(error))) = result else { return false };
    matches!(error, CertificateError::Expired | CertificateError::ExpiredContext { .. })
}

#[test]
fn node_makes_its_identity_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Identity::load_or_make(folder.path(), "alpha").expect("made");
    assert_eq!(mode(&folder.path().join("node.key")), 0o600);
    let again = Identity::load_or_make(folder.path(), "alpha").expect("loaded");
    assert_eq!(first.fingerprint(), again.fingerprint());
    assert_eq!(first.description().names, ["alpha"]);
    let now = SystemTime::now();
    assert!(first.is_valid(now) && !first.is_due(now));
    assert!(first.is_due(now + DAY * 340) && !first.is_valid(now + DAY * 366));
}

#[test]
fn crash_between_key_and_certificate_is_repaired() {
    let [folder, other] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let first = Identity::make(folder.path(), "alpha").expect("made");
    Identity::make(other.path(), "alpha").expect("made");
    // The key is newer than the certificate.
    std::fs::copy(other.path().join("node.key"), folder.path().join("node.key")).expect("copied");
    let name = "a name that is no DNS name";
    let second = Identity::load_or_make(folder.path(), name).expect("made again");
    assert_ne!(first.fingerprint(), second.fingerprint());
}

#[test]
fn key_that_others_may_read_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    Identity::make(folder.path(), "alpha").expect("made");
    std::fs::set_permissions(folder.path().join("node.key"), PermissionsExt::from_mode(0o644)).expect("set");
    let refused = Identity::load_or_make(folder.path(), "alpha");
    assert!(matches!(refused, Err(PkiError::KeyIsReadable { mode: 0o644, .. })), "{refused:?}");
}

#[test]
fn openssl_accepts_issued_certificates() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    Authority::init(path, "test cluster", VALIDITY).expect("made");
    assert_eq!((mode(&path.join("ca.key")), mode(&path.join("ca.crt"))), (0o600, 0o644));
    assert!(matches!(Authority::init(path, "again", VALIDITY), Err(PkiError::Exists(_))));
    let authority = Authority::load(path).expect("loaded");
    let [_, key] = authority.issue(path, "alpha", VALIDITY).expect("issued");
    assert_eq!(mode(&key), 0o600);
    assert!(matches!(authority.issue(path, "no name", VALIDITY), Err(PkiError::Name(_))));

    openssl(path, "verify -CAfile ca.crt -purpose sslserver -verify_hostname alpha alpha.crt");
    openssl(path, "verify -CAfile ca.crt -purpose sslclient alpha.crt");
}

#[test]
fn trust_depends_on_the_name_or_on_the_fingerprint() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    Authority::init(path, "test cluster", VALIDITY).expect("made");
    let authority = Authority::load(path).expect("loaded");
    let [certificate, key] = authority.issue(path, "alpha", VALIDITY).expect("issued");
    let trust = Trust::load(&path.join("ca.crt")).expect("loaded");
    let identity = Identity::load(&certificate, &key).expect("loaded");
    check_own(&trust, &identity, "alpha").expect("valid");
    match check_own(&trust, &identity, "beta") {
        Err(OwnCertificateError::Name { names, name }) => {
            assert_eq!((names, name.as_str()), (vec!["alpha".to_owned()], "beta"));
        }
        other => panic!("{other:?}"),
    }
    let (own, announced) = (identity.key().cert.first(), Fingerprint([7; 32]));
    assert_eq!(trust.admits(own, "alpha", announced), Ok(()), "the CA decides, not the store");
    assert!(matches!(Trust::Store.admits(own, "alpha", announced), Err(Untrusted::Fingerprint { .. })));
    assert_eq!(Trust::Store.admits(own, "x", identity.fingerprint()), Ok(()));
    assert_eq!(Trust::Store.admits(None, "x", announced), Err(Untrusted::None));
}

#[test]
fn certificates_of_openssl_are_accepted() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    std::fs::write(path.join("san"), "subjectAltName=DNS:alpha\n").expect("written");
    openssl(path, "ecparam -name prime256v1 -genkey -noout -out ca.key");
    openssl(path, "req -x509 -new -key ca.key -sha256 -days 2 -subj /CN=by-hand -out ca.crt");
    openssl(path, "ecparam -name prime256v1 -genkey -noout -out alpha.key");
    openssl(path, "req -new -key alpha.key -subj /CN=alpha -out alpha.csr");
    openssl(
        path,
        "x509 -req -in alpha.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 -extfile san -out alpha.crt",
    );
    let trust = Trust::load(&path.join("ca.crt")).expect("loaded");
    let identity = Identity::load(&path.join("alpha.crt"), &path.join("alpha.key")).expect("loaded");
    check_own(&trust, &identity, "alpha").expect("valid");

    // hopsack can sign with the CA of openssl.
    openssl(path, "pkcs8 -topk8 -nocrypt -in ca.key -out ca.pk8");
    std::fs::rename(path.join("ca.pk8"), path.join("ca.key")).expect("renamed");
    std::fs::set_permissions(path.join("ca.key"), PermissionsExt::from_mode(0o600)).expect("set");
    Authority::load(path).expect("loaded").issue(path, "beta", VALIDITY).expect("issued");
    openssl(path, "verify -CAfile ca.crt beta.crt");
}

#[test]
fn foreign_and_expired_certificates_are_refused() {
    let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    for folder in [&ours, &theirs] {
        Authority::init(folder.path(), "cluster", VALIDITY).expect("made");
    }
    let trust = Trust::load(&ours.path().join("ca.crt")).expect("loaded");
    let issue = |folder: &Path, name: &str, validity| {
        let paths = Authority::load(folder).expect("loaded").issue(folder, name, validity).expect("issued");
        Identity::load(&paths[0], &paths[1]).expect("loaded")
    };
    let foreign = issue(theirs.path(), "alpha", VALIDITY);
    let refused = check_own(&trust, &foreign, "alpha");
    assert!(matches!(refused, Err(OwnCertificateError::Invalid(_))) && !is_expired(&refused), "{refused:?}");
    let expired = issue(ours.path(), "beta", Duration::ZERO);
    std::thread::sleep(Duration::from_millis(1100));
    for trust in [&trust, &Trust::Store] {
        let refused = check_own(trust, &expired, "beta");
        assert!(is_expired(&refused), "{refused:?}");
    }
}

#[test]
fn files_without_certificates_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ca.crt");
    assert!(matches!(Trust::load(&path), Err(PkiError::Read { path: named, .. }) if named == path));
    std::fs::write(&path, "nothing").expect("written");
    assert!(matches!(Trust::load(&path), Err(PkiError::NoCertificate(named)) if named == path));
}
