//! Snapshots that are written, read back, damaged, and out of date.

use std::path::Path;

use super::*;
use crate::route::{Abilities, Public};
use crate::store::flannel::{Identity, Keys};

fn saved() -> Snapshot {
    let own = OwnLease {
        key: "/p/subnets/10.1.2.0-24".into(),
        subnets: vec!["10.1.2.0/24".parse().expect("net")],
        value: "{}".into(),
        created: 5,
        mod_revision: 7,
        lease: 9,
        granted: Duration::from_secs(86_400),
        expires: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
    };
    let now = (8, SystemTime::now());
    Snapshot::new(&node("id"), r#"{"Network":"10.1.0.0/16"}"#, &own, now, [own.kv()].iter())
}

fn node(id: &str) -> NodeIdentity {
    NodeIdentity {
        keys: Keys::new("/p"),
        identity: Identity { id: id.into(), name: "alpha".into(), abilities: Abilities::OURS },
        public: Public::default(),
        subnets: None,
        ttl: Duration::from_secs(60),
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn snapshot_reads_back_as_it_was() {
    let dir = tempfile::tempdir().expect("a folder");
    assert_eq!(Snapshot::load(dir.path()), Ok(None));
    saved().store(dir.path()).expect("written");
    let back = Snapshot::load(dir.path()).expect("valid").expect("there");
    assert_eq!(Snapshot { written: 0, ..back.clone() }, Snapshot { written: 0, ..saved() });
    assert_eq!((back.own().key, back.listing().kvs.len()), ("/p/subnets/10.1.2.0-24".into(), 1));
}

#[test]
fn expired_lease_is_usable_only_in_the_same_boot() {
    let (saved, boot) = (saved(), boot_id());
    let usable = |id: &str, boot: &str, now| saved.usable(&node(id), boot, now).map(drop);
    assert_eq!(usable("id", "another", at(1_799_999_999)), Ok(()));
    assert_eq!(usable("id", &boot, at(1_800_000_001)), Ok(()));
    assert_eq!(usable("id", "another", at(1_800_000_001)), Err(SnapshotError::LeaseExpired));
    assert_eq!(usable("another-id", &boot, at(0)), Err(SnapshotError::OtherNode));
    let without_boot = Snapshot { boot: String::new(), ..saved.clone() };
    assert!(!without_boot.is_of_boot(&boot) && !without_boot.is_of_boot(""));
}

#[test]
fn every_damage_is_detected() {
    let whole = saved();
    let good = pack(&whole);
    let unpack = |bytes: &[u8]| unpack(Path::new("map"), bytes);
    assert_eq!(unpack(&good), Ok(whole));
    for at in 0..good.len() {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        assert!(unpack(&damaged).is_err(), "byte {at}");
        assert!(unpack(&good[..at]).is_err(), "cut at {at}");
    }
    assert!(unpack(&[good.as_slice(), b"x"].concat()).is_err());
    let later = String::from_utf8(good).expect("text").replacen("map-1", "map-2", 1);
    assert!(matches!(unpack(later.as_bytes()), Err(SnapshotError::OtherVersion { .. })));
}

#[test]
fn map_of_version_0_1_is_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let map = include_bytes!("../../../../tests/golden/v0.1/map");
    std::fs::write(dir.path().join("map"), map).expect("written");
    let snapshot = Snapshot::load(dir.path()).expect("valid").expect("there");
    assert_eq!((snapshot.revision, snapshot.own().mod_revision, snapshot.own().created), (8, 7, 0));
    assert_eq!(snapshot.own().subnets, ["10.244.1.0/24".parse().expect("net")]);
    assert_eq!(snapshot.listing().kvs.len(), 1);
}
