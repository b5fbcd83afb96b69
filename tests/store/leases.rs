//! Our own lease: renewal, theft, expiry.

use super::*;

#[tokio::test]
async fn lease_that_another_host_wrote_is_lost() {
    let etcd = Etcd::with(NETWORK).await;
    for (number, thief) in [(1, hopsack("thief-id", "192.0.2.66")), (2, flanneld("192.0.2.66"))] {
        let host = Host::new(&etcd, number);
        let mut node = host.open().await;
        node.connected().await;
        etcd.put(&node.key(), &thief).await;
        let lost = node.lost().await;
        assert!(lost.ours.contains(&format!("host{number}")) && lost.theirs.contains(".66"), "{lost:?}");
        assert_eq!(lost.cause, LostCause::Taken);
        assert!(lost.reason.contains(&lost.ours) && lost.reason.contains(&lost.theirs), "{lost}");
        assert_eq!(etcd.value(&node.key()).await.expect("there").0, thief, "not overwritten");
        assert!(!node.store.health().connected);
        assert_ne!(host.open().await.subnet(), node.subnet(), "the next start gets another");
    }
}

#[tokio::test]
async fn lease_taken_during_an_outage_is_lost() {
    let mut etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    etcd.kill();
    node.until("trouble", |node| !node.store.health().connected).await;
    let port = etcd.restart_elsewhere().await;
    etcd.put(&node.key(), &hopsack("thief-id", "192.0.2.66")).await;
    etcd.come_back(port).await;
    assert!(node.lost().await.theirs.contains("thief-id"));
}

#[tokio::test]
async fn key_that_no_other_host_can_have_is_rewritten() {
    let etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    for (n, (value, code)) in [
        (flanneld("192.0.2.1"), NoticeCode::WrittenByFlanneld),
        ("garbage".to_owned(), NoticeCode::WrittenInvalid),
    ]
    .iter()
    .enumerate()
    {
        etcd.put(&node.key(), value).await;
        let times = u64::try_from(n).expect("small") + 1;
        node.until("a new value", |node| node.store.health().renewals.rewritten == times).await;
        node.until("a notice", |node| node.has_noticed(*code)).await;
        let (value, _) = etcd.value(&node.key()).await.expect("there");
        assert!(value.contains("host1"), "{value}");
    }
    let subnet = node.subnet();
    node.sees(&subnet).await;
}

#[tokio::test]
async fn lease_is_renewed_and_recreated_if_it_expired() {
    let etcd = Etcd::with(NETWORK).await;
    let mut host = Host::new(&etcd, 1);
    host.settings.lease_ttl = Duration::from_secs(3);
    let mut node = host.open().await;
    node.connected().await;
    node.until("renewals", |node| node.store.health().renewals.renewed >= 4).await;
    assert_eq!(node.store.health().renewals.recreated, 0);
    assert!(node.notices.is_empty(), "{:?}", node.notices);

    let lease = etcd.value(&node.key()).await.expect("there").1;
    etcd.client().await.lease_revoke(lease).await.expect("revoked");
    node.until("a new lease", |node| node.store.health().renewals.recreated == 1).await;
    assert!(etcd.value(&node.key()).await.is_some_and(|(_, new)| new != lease && new != 0));
    node.until("a notice", |node| node.has_noticed(NoticeCode::LeaseRecreated)).await;
    let subnet = node.subnet();
    node.sees(&subnet).await;
}

#[tokio::test]
async fn ownership_can_be_checked_at_any_time() {
    let etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    let before = node.store.health().renewals.renewed;
    node.store.verify();
    node.until("the answer", |node| node.store.health().renewals.renewed > before).await;
    assert!(node.notices.is_empty() && node.outages.is_empty(), "{:?}", node.notices);
}

#[tokio::test]
async fn reservation_does_not_expire() {
    let etcd = Etcd::with(NETWORK).await;
    etcd.put("subnets/10.1.50.0-24", &flanneld("192.0.2.1")).await;
    let mut host = Host::new(&etcd, 1);
    host.settings.lease_ttl = Duration::from_secs(3);
    host.settings.revoke_on_exit = true;
    let mut node = host.open().await;
    assert_eq!(node.subnet(), "10.1.50.0/24");
    node.connected().await;
    node.until("renewals", |node| node.store.health().renewals.renewed >= 2).await;
    assert_eq!(node.store.health().lease_expires, None);
    node.store.close().await.expect("closed");
    let (value, lease) = etcd.value("subnets/10.1.50.0-24").await.expect("a reservation is not given back");
    assert!(value.contains("host1") && lease == 0, "{value} {lease}");
}
