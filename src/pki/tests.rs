use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::*;

const LIFE: Duration = Duration::from_secs(24 * 3600);

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

fn openssl(folder: &Path, arguments: &str) -> String {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
    let output = output.expect("openssl is there: scripts/test installs it");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_node_makes_its_identity_once_and_keeps_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Identity::load_or_make(folder.path(), "alpha").expect("made");
    assert_eq!(mode(&folder.path().join("node.key")), 0o600);
    let again = Identity::load_or_make(folder.path(), "alpha").expect("loaded");
    assert_eq!(first.fingerprint(), again.fingerprint());
    assert_eq!(first.description().names, ["alpha"]);
    let now = SystemTime::now();
    assert!(first.is_valid(now) && !first.is_due(now));
    assert!(first.is_due(now + DAY * 340) && !first.is_valid(now + DAY * 366));

    // A crash between the two files: the key is newer than the certificate.
    let other = tempfile::tempdir().expect("a folder");
    Identity::make(other.path(), "alpha").expect("made");
    std::fs::copy(other.path().join("node.key"), folder.path().join("node.key")).expect("copied");
    let third = Identity::load_or_make(folder.path(), "a name that is no DNS name").expect("made anew");
    assert_ne!(first.fingerprint(), third.fingerprint());

    std::fs::set_permissions(folder.path().join("node.key"), PermissionsExt::from_mode(0o644)).expect("set");
    let open = Identity::load_or_make(folder.path(), "alpha").expect_err("the key lies open").to_string();
    assert!(open.contains("chmod 600"), "{open}");
}

#[test]
fn what_the_authority_signs_satisfies_openssl_and_us() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    Authority::init(path, "test cluster", LIFE).expect("made");
    assert_eq!((mode(&path.join("ca.key")), mode(&path.join("ca.crt"))), (0o600, 0o644));
    assert!(matches!(Authority::init(path, "again", LIFE), Err(PkiError::Exists(_))));
    let authority = Authority::load(path).expect("loaded");
    let [certificate, key] = authority.issue(path, "alpha", LIFE).expect("issued");
    assert_eq!(mode(&key), 0o600);
    assert!(matches!(authority.issue(path, "no name", LIFE), Err(PkiError::Name(_))));

    let said = openssl(path, "verify -CAfile ca.crt -purpose sslserver -verify_hostname alpha alpha.crt");
    assert!(said.contains("alpha.crt: OK"), "{said}");
    assert!(openssl(path, "verify -CAfile ca.crt -purpose sslclient alpha.crt").contains("OK"));

    let trust = Trust::load(&path.join("ca.crt")).expect("loaded");
    let identity = Identity::load(&certificate, &key).expect("loaded");
    verify::check_own(&trust, &identity, "alpha").expect("valid");
    let wrong = verify::check_own(&trust, &identity, "beta").expect_err("another's");
    assert!(wrong.contains("\"alpha\"") && wrong.contains("\"beta\""), "{wrong}");
    let announced = Fingerprint([7; 32]);
    assert!(
        trust.admits(identity.key().cert.first(), "alpha", announced).is_ok(),
        "the CA vouches, not the store"
    );
    assert!(Trust::Store.admits(identity.key().cert.first(), "alpha", announced).is_err());
    assert!(Trust::Store.admits(identity.key().cert.first(), "x", identity.fingerprint()).is_ok());
    assert_eq!(Trust::Store.admits(None, "x", announced), Err(Untrusted::None));
}

#[test]
fn a_chain_that_openssl_made_is_accepted() {
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
    verify::check_own(&trust, &identity, "alpha").expect("valid");

    // And its CA signs by our hand too.
    openssl(path, "pkcs8 -topk8 -nocrypt -in ca.key -out ca.pk8");
    std::fs::rename(path.join("ca.pk8"), path.join("ca.key")).expect("renamed");
    std::fs::set_permissions(path.join("ca.key"), PermissionsExt::from_mode(0o600)).expect("set");
    Authority::load(path).expect("loaded").issue(path, "beta", LIFE).expect("issued");
    assert!(openssl(path, "verify -CAfile ca.crt beta.crt").contains("OK"));
}

#[test]
fn another_ca_and_an_expired_certificate_are_refused() {
    let (ours, theirs) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    for folder in [&ours, &theirs] {
        Authority::init(folder.path(), "cluster", LIFE).expect("made");
    }
    let trust = Trust::load(&ours.path().join("ca.crt")).expect("loaded");
    let issue = |folder: &Path, name: &str, life| {
        let paths = Authority::load(folder).expect("loaded").issue(folder, name, life).expect("issued");
        Identity::load(&paths[0], &paths[1]).expect("loaded")
    };
    let foreign = issue(theirs.path(), "alpha", LIFE);
    let refused = verify::check_own(&trust, &foreign, "alpha").expect_err("another CA");
    assert!(refused.contains("not valid"), "{refused}");
    let expired = issue(ours.path(), "beta", Duration::ZERO);
    std::thread::sleep(Duration::from_millis(1100));
    assert!(verify::check_own(&trust, &expired, "beta").expect_err("expired").contains("expired"));
    assert!(verify::check_own(&Trust::Store, &expired, "beta").expect_err("expired").contains("expired"));
}

#[test]
fn what_is_no_certificate_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ca.crt");
    assert!(Trust::load(&path).expect_err("not there").to_string().contains("ca.crt"));
    std::fs::write(&path, "nothing").expect("written");
    assert!(Trust::load(&path).expect_err("empty").to_string().contains("BEGIN CERTIFICATE"));
}
