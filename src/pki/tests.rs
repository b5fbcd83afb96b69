//! Tests of identities, CA and trust, with openssl as the second opinion.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier as _;
use rustls::{CertificateError, Error};

use super::validity::DAY;
use super::verify::Verifier;
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

/// The clock was ten hours ahead when the node started first, and is right now.
#[test]
fn certificate_that_is_not_valid_yet_is_made_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Identity::load_or_make(folder.path(), "alpha").expect("made");
    let pair = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["alpha".to_owned()]).expect("a name");
    super::validity::set(&mut params, VALIDITY);
    params.not_before += Duration::from_secs(10 * 3600);
    params.not_after += Duration::from_secs(10 * 3600);
    let ahead = params.self_signed(&pair).expect("signed");
    std::fs::write(folder.path().join("node.key"), pair.serialize_pem()).expect("written");
    std::fs::write(folder.path().join("node.crt"), ahead.pem()).expect("written");
    let again = Identity::load_or_make(folder.path(), "alpha").expect("made again");
    assert!(again.is_valid(SystemTime::now()));
    assert_ne!(again.fingerprint(), first.fingerprint());
    check_own(&Trust::Store, &again, ("alpha", &[])).expect("valid");
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
    let [_, key] = authority.issue(path, ("alpha", &[]), VALIDITY).expect("issued");
    assert_eq!(mode(&key), 0o600);
    assert!(matches!(authority.issue(path, ("no name", &[]), VALIDITY), Err(PkiError::Name(_))));

    openssl(path, "verify -CAfile ca.crt -purpose sslserver -verify_hostname alpha alpha.crt");
    openssl(path, "verify -CAfile ca.crt -purpose sslclient alpha.crt");
}

#[test]
fn trust_depends_on_the_name_or_on_the_fingerprint() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    Authority::init(path, "test cluster", VALIDITY).expect("made");
    let authority = Authority::load(path).expect("loaded");
    let [certificate, key] = authority.issue(path, ("alpha", &[]), VALIDITY).expect("issued");
    let trust = Trust::load(&path.join("ca.crt"), false).expect("loaded");
    let identity = Identity::load(&certificate, &key).expect("loaded");
    check_own(&trust, &identity, ("alpha", &[])).expect("valid");
    match check_own(&trust, &identity, ("beta", &[])) {
        Err(OwnCertificateError::Name { names, name }) => {
            assert_eq!((names, name.as_str()), (vec!["alpha".to_owned()], "beta"));
        }
        other => panic!("{other:?}"),
    }
    let chain = &identity.key().cert;
    let claim = |name, fingerprint| Claim { name, fingerprint, subnets: &[] };
    let announced = Fingerprint([7; 32]);
    assert_eq!(trust.admits(chain, &claim("alpha", announced)), Ok(()), "the CA decides, not the store");
    let refused = Trust::Store.admits(chain, &claim("alpha", announced));
    assert!(matches!(refused, Err(Untrusted::Fingerprint { .. })));
    assert_eq!(Trust::Store.admits(chain, &claim("x", identity.fingerprint())), Ok(()));
    assert_eq!(Trust::Store.admits(&[], &claim("x", announced)), Err(Untrusted::None));
}

fn subnets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().expect("a prefix")).collect()
}

#[test]
fn lease_gets_only_the_subnets_in_the_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    Authority::init(path, "test cluster", VALIDITY).expect("made");
    let authority = Authority::load(path).expect("loaded");
    let own = subnets(&["10.244.1.0/24", "fd00:244:0:1::/64"]);
    let issue = |name: &str, subnets: &[ipnet::IpNet]| {
        let [certificate, key] = authority.issue(path, (name, subnets), VALIDITY).expect("issued");
        Identity::load(&certificate, &key).expect("loaded")
    };
    let (bound, unbound) = (issue("alpha", &own), issue("beta", &[]));
    assert_eq!(bound.description().subnets, own);
    openssl(path, "verify -CAfile ca.crt -purpose sslserver alpha.crt");
    let trust = Trust::load(&path.join("ca.crt"), true).expect("loaded");
    assert_eq!(trust.required_subnets(&bound.key().cert[0]), Some(own.clone()));
    check_own(&trust, &bound, ("alpha", &own)).expect("its own");
    check_own(&trust, &bound, ("alpha", &own[..1])).expect("one of them");
    let more = [own.clone(), subnets(&["10.244.2.0/25"])].concat();
    for (identity, name, claimed) in [(&bound, "alpha", &more), (&unbound, "beta", &own)] {
        let refused = check_own(&trust, identity, (name, claimed));
        assert!(matches!(refused, Err(OwnCertificateError::Subnets(_))), "{refused:?}");
    }
    let names_only = Trust::load(&path.join("ca.crt"), false).expect("loaded");
    check_own(&names_only, &unbound, ("beta", &own)).expect("only the name counts");
    check_own(&names_only, &bound, ("alpha", &more)).expect("only the name counts");
}

#[test]
fn certificates_of_openssl_are_accepted() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let extensions =
        "subjectAltName=DNS:alpha\nsbgp-ipAddrBlock=IPv4:10.244.1.0/24, IPv6:fd00:244:0:1::/64\n";
    std::fs::write(path.join("san"), extensions).expect("written");
    openssl(path, "ecparam -name prime256v1 -genkey -noout -out ca.key");
    openssl(path, "req -x509 -new -key ca.key -sha256 -days 2 -subj /CN=by-hand -out ca.crt");
    openssl(path, "ecparam -name prime256v1 -genkey -noout -out alpha.key");
    openssl(path, "req -new -key alpha.key -subj /CN=alpha -out alpha.csr");
    openssl(
        path,
        "x509 -req -in alpha.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 -extfile san -out alpha.crt",
    );
    let trust = Trust::load(&path.join("ca.crt"), true).expect("loaded");
    let identity = Identity::load(&path.join("alpha.crt"), &path.join("alpha.key")).expect("loaded");
    let own = subnets(&["10.244.1.0/24", "fd00:244:0:1::/64"]);
    assert_eq!(identity.description().subnets, own);
    check_own(&trust, &identity, ("alpha", &own)).expect("valid");

    // hopsack can sign with the CA of openssl.
    openssl(path, "pkcs8 -topk8 -nocrypt -in ca.key -out ca.pk8");
    std::fs::rename(path.join("ca.pk8"), path.join("ca.key")).expect("renamed");
    std::fs::set_permissions(path.join("ca.key"), PermissionsExt::from_mode(0o600)).expect("set");
    Authority::load(path).expect("loaded").issue(path, ("beta", &[]), VALIDITY).expect("issued");
    openssl(path, "verify -CAfile ca.crt beta.crt");
}

#[test]
fn foreign_and_expired_certificates_are_refused() {
    let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    for folder in [&ours, &theirs] {
        Authority::init(folder.path(), "cluster", VALIDITY).expect("made");
    }
    let trust = Trust::load(&ours.path().join("ca.crt"), false).expect("loaded");
    let issue = |folder: &Path, name: &str, validity| {
        let paths =
            Authority::load(folder).expect("loaded").issue(folder, (name, &[]), validity).expect("issued");
        Identity::load(&paths[0], &paths[1]).expect("loaded")
    };
    let foreign = issue(theirs.path(), "alpha", VALIDITY);
    let refused = check_own(&trust, &foreign, ("alpha", &[]));
    assert!(matches!(refused, Err(OwnCertificateError::Invalid(_))) && !is_expired(&refused), "{refused:?}");
    let expired = issue(ours.path(), "beta", Duration::ZERO);
    std::thread::sleep(Duration::from_millis(1100));
    for trust in [&trust, &Trust::Store] {
        let refused = check_own(trust, &expired, ("beta", &[]));
        assert!(is_expired(&refused), "{refused:?}");
    }
}

#[test]
fn files_without_certificates_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ca.crt");
    assert!(matches!(Trust::load(&path, true), Err(PkiError::Read { path: named, .. }) if named == path));
    std::fs::write(&path, "nothing").expect("written");
    assert!(matches!(Trust::load(&path, true), Err(PkiError::NoCertificate(named)) if named == path));
}

/// A certificate for one purpose only, signed by the CA in `folder` or by itself.
fn for_one_purpose(
    folder: Option<&Path>,
    purpose: rcgen::ExtendedKeyUsagePurpose,
) -> CertificateDer<'static> {
    let pair = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["alpha".to_owned()]).expect("a name");
    params.extended_key_usages = vec![purpose];
    super::validity::set(&mut params, VALIDITY);
    let certificate = match folder {
        None => params.self_signed(&pair),
        Some(folder) => {
            let [certificate, key] = ["ca.crt", "ca.key"].map(|file| folder.join(file));
            let pem = |path| std::fs::read_to_string(path).expect("read");
            let signer = rcgen::KeyPair::from_pem(&pem(key)).expect("a key");
            let issuer = rcgen::Issuer::from_ca_cert_pem(&pem(certificate), signer).expect("a CA");
            params.signed_by(&pair, &issuer)
        }
    };
    certificate.expect("signed").der().clone()
}

#[test]
fn certificate_is_accepted_for_its_purpose_only() {
    use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let folder = tempfile::tempdir().expect("a folder");
    Authority::init(folder.path(), "cluster", VALIDITY).expect("made");
    let ca = Trust::load(&folder.path().join("ca.crt"), false).expect("loaded");
    for (trust, folder) in [(ca, Some(folder.path())), (Trust::Store, None)] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Verifier::new(trust, provider);
        let server_name = ServerName::try_from("alpha").expect("a name");
        for (purpose, is_server) in [(ServerAuth, true), (ClientAuth, false)] {
            let shown = for_one_purpose(folder, purpose);
            let as_server = verifier.verify_server_cert(&shown, &[], &server_name, &[], UnixTime::now());
            let as_client = verifier.verify_client_cert(&shown, &[], UnixTime::now());
            assert_eq!((as_server.is_ok(), as_client.is_ok()), (is_server, !is_server));
            let refused = as_server.err().or(as_client.err()).expect("one of them is refused");
            assert_eq!(refused, Error::InvalidCertificate(CertificateError::InvalidPurpose));
        }
    }
}

#[test]
fn refusal_tells_a_stranger_nothing_but_the_alert() {
    let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    for (folder, name) in [(&ours, "cluster"), (&theirs, "another cluster")] {
        Authority::init(folder.path(), name, VALIDITY).expect("made");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let ca = Trust::load(&ours.path().join("ca.crt"), false).expect("loaded");
    let issue = |folder: &Path, validity| {
        let out = tempfile::tempdir().expect("a folder");
        let authority = Authority::load(folder).expect("loaded");
        let [certificate, key] = authority.issue(out.path(), ("alpha", &[]), validity).expect("issued");
        Identity::load(&certificate, &key).expect("loaded").key().cert[0].clone()
    };
    let (expired, foreign) = (issue(ours.path(), Duration::ZERO), issue(theirs.path(), VALIDITY));
    std::thread::sleep(Duration::from_millis(1100));
    let verifier = Verifier::new(ca, provider);
    for (shown, reason) in [(expired, CertificateError::Expired), (foreign, CertificateError::UnknownIssuer)]
    {
        // The text of the error is the text of the alert.
        let refused = verifier.verify_client_cert(&shown, &[], UnixTime::now());
        assert_eq!(refused.expect_err("refused"), Error::InvalidCertificate(reason));
    }
}
