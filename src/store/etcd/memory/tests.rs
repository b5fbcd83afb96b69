//! The example in the documentation, and what the store relies on.

use std::time::Duration;

use super::*;
use crate::store::etcd::failure::FailureKind;
use crate::store::etcd::guard::Guard;
use crate::store::{Store, Update};

#[tokio::test(start_paused = true)]
async fn store_on_memory_survives_an_outage() {
    let etcd = MemoryEtcd::new();
    etcd.put("/coreos.com/network/config", r#"{"Network":"10.1.0.0/16"}"#);
    let dir = tempfile::tempdir().expect("a folder");
    let settings = etcd.settings("host1", dir.path());
    let (mut store, opened) =
        Store::open_memory(&etcd, &settings, &[[192, 0, 2, 1].into()]).await.expect("a lease");
    assert_eq!(opened.lease.name, "host1");
    tokio::time::sleep(Duration::from_secs(1)).await;
    etcd.set_link("host1", Link::Refused);
    assert!(matches!(store.next().await, Update::Trouble(_)));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    etcd.set_link("host1", Link::Up);
    // The cause may change while the outage lasts: the watch breaks, then connections are refused.
    let mut update = store.next().await;
    while matches!(update, Update::Trouble(_)) {
        update = store.next().await;
    }
    assert!(matches!(update, Update::Recovered));
    assert!(store.health().is_some_and(|health| health.connected));
}

#[tokio::test(start_paused = true)]
async fn leases_expire_in_virtual_time_with_their_keys() {
    let etcd = MemoryEtcd::new();
    let mut session = MemoryEndpoints::new(&etcd, "host1").connect().await.expect("up");
    let guard = Guard::Version(0);
    let (lease, _) = session.grant(Duration::from_secs(60)).await.expect("granted");
    session.put("/x", "1", lease, &guard).await.expect("written");
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert!(session.keep_alive(lease).await.expect("asked"));
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(etcd.value("/x"), Some(("1".to_owned(), lease)));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(etcd.value("/x"), None);
    assert!(!session.keep_alive(lease).await.expect("asked"));
}

#[tokio::test(start_paused = true)]
async fn old_revisions_can_be_listed_until_they_are_compacted() {
    let etcd = MemoryEtcd::new();
    let first = etcd.put("/x", "1");
    etcd.put("/x", "2");
    let mut session = MemoryEndpoints::new(&etcd, "host1").connect().await.expect("up");
    let listing = session.list("/", Some(first)).await.expect("listed");
    assert_eq!((listing.revision, listing.kvs[0].value.as_slice()), (first, b"1".as_slice()));
    etcd.compact();
    let kind = session.list("/", Some(first)).await.expect_err("compacted").kind;
    assert_eq!(kind, FailureKind::RevisionGone);
}
