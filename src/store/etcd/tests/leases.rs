//! Our own lease: renewal, loss, expiry, a new address, and the end.

use super::*;

#[tokio::test(start_paused = true)]
async fn lease_is_renewed_at_a_third_of_its_time_without_a_write() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    let (_, lease) = etcd.value(&node.key()).expect("there");
    let (writes, revision) = (etcd.calls("txn"), etcd.revision());
    node.run(8 * HOUR - Duration::from_secs(1)).await;
    assert_eq!(node.store.health().renewals.renewed, 0);
    node.run(Duration::from_secs(2)).await;
    assert_eq!(node.store.health().renewals.renewed, 1);
    assert!(etcd.time_left(lease).expect("alive") > 23 * HOUR);

    node.run(64 * HOUR).await;
    assert_eq!(node.store.health().renewals.renewed, 9, "three days");
    assert_eq!((etcd.calls("txn"), etcd.revision()), (writes, revision), "no other host was woken");
    assert!(node.notices.is_empty() && node.outages.is_empty(), "{:?}", node.notices);
}

#[tokio::test(start_paused = true)]
async fn deleted_lease_is_created_again() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    let (_, lease) = etcd.value(&node.key()).expect("there");
    etcd.revoke(lease);
    node.until("a new lease", |node| node.store.health().renewals.recreated == 1).await;
    node.until("a notice", |node| node.notice_codes() == [NoticeCode::LeaseRecreated]).await;
    assert!(etcd.value(&node.key()).is_some_and(|(_, new)| new != 0 && new != lease));
    let subnet = node.subnet();
    node.sees(&subnet).await;
}

#[tokio::test(start_paused = true)]
async fn lease_with_another_owner_is_lost_and_kept() {
    let etcd = etcd_with(NETWORK);
    for (number, thief) in [(1, hopsack("thief-id", "192.0.2.66")), (2, flanneld("192.0.2.66"))] {
        let host = Host::new(&etcd, number);
        let mut node = host.join().await;
        etcd.put(&node.key(), &thief);
        assert_eq!(node.lost().await, LostCause::Taken);
        node.run(24 * HOUR).await;
        assert_eq!(etcd.value(&node.key()).expect("there").0, thief);
        assert_ne!(host.open().await.subnet(), node.subnet(), "the next start gets another");
    }
}

#[tokio::test(start_paused = true)]
async fn lease_of_a_copy_is_lost() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    let mut node = host.join().await;
    let id = std::fs::read_to_string(host.settings.state_dir.join("node-id")).expect("an id");
    etcd.put(&node.key(), &hopsack(id.trim(), "192.0.2.66"));
    assert_eq!(node.lost().await, LostCause::StateCopied);
}

#[tokio::test(start_paused = true)]
async fn subnet_is_taken_over_after_a_day_of_outage() {
    let etcd = etcd_with(r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.4.0","SubnetMax":"10.1.4.0"}"#);
    let (one, two) = (Host::new(&etcd, 1), Host::new(&etcd, 2));
    let mut first = one.join().await;
    one.set_link(Link::Refused);
    first.run(23 * HOUR).await;
    assert!(two.try_open().await.is_err(), "the lease has not expired");
    first.run(2 * HOUR).await;
    let second = two.join().await;
    assert_eq!(second.subnet(), "10.1.4.0/24");
    assert!(first.lost.is_none(), "it cannot know");
    one.set_link(Link::Up);
    assert_eq!(first.lost().await, LostCause::Taken);
    assert!(etcd.value(&second.key()).expect("there").0.contains("host2"));
}

#[tokio::test(start_paused = true)]
async fn key_that_no_other_host_can_have_is_rewritten() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    let values = [
        (flanneld("192.0.2.1"), NoticeCode::WrittenByFlanneld),
        ("garbage".to_owned(), NoticeCode::WrittenInvalid),
    ];
    for (times, (value, code)) in (1..).zip(values) {
        etcd.put(&node.key(), &value);
        node.until("a new value", |node| node.store.health().renewals.rewritten == times).await;
        node.until("a notice", |node| node.notice_codes().contains(&code)).await;
        assert!(etcd.value(&node.key()).expect("there").0.contains("host1"));
    }
}

#[tokio::test(start_paused = true)]
async fn new_address_is_published_in_the_same_key() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    let mut other = Host::new(&etcd, 2).join().await;
    let (key, subnet, keys) = (node.key(), node.subnet(), etcd.keys());
    assert!(node.store.readdress(&[[192, 0, 2, 77].into()]));
    node.until("the new address", |_| etcd.value(&key).is_some_and(|(v, _)| v.contains("192.0.2.77"))).await;
    assert_eq!(etcd.keys(), keys);
    let has_moved = |node: &Node| node.address_of(&subnet) == Some([192, 0, 2, 77].into());
    other.until("the new address", has_moved).await;
    node.connected().await;
    assert!(node.outages.is_empty(), "a reconnect is no outage");
}

#[tokio::test(start_paused = true)]
async fn new_address_during_an_outage_is_published_after_it() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    let mut node = host.join().await;
    host.set_link(Link::Refused);
    node.disconnected().await;
    assert!(node.store.readdress(&[[192, 0, 2, 77].into()]));
    node.run(HOUR).await;
    assert!(etcd.value(&node.key()).expect("there").0.contains("192.0.2.1"));
    host.set_link(Link::Up);
    node.connected().await;
    assert!(etcd.value(&node.key()).expect("there").0.contains("192.0.2.77"));
    assert_eq!(node.store.health().renewals.rewritten, 1);
}

#[tokio::test(start_paused = true)]
async fn new_address_that_another_lease_has_is_reported() {
    let etcd = etcd_with(NETWORK);
    let old = lease_key("10.1.250.0/24");
    etcd.put(&old, &hopsack("old-id", "192.0.2.77"));
    let mut node = Host::new(&etcd, 1).join().await;
    assert!(node.store.readdress(&[[192, 0, 2, 77].into()]));
    node.until("a notice", |node| node.notice_codes() == [NoticeCode::AddressShared]).await;
    node.run(HOUR).await;
    assert!(node.lost.is_none(), "the old owner of the address may be gone");
}

#[tokio::test(start_paused = true)]
async fn clean_stop_gives_the_lease_back_only_if_configured() {
    for revoke_on_exit in [false, true] {
        let etcd = etcd_with(NETWORK);
        let mut host = Host::new(&etcd, 1);
        host.settings.revoke_on_exit = revoke_on_exit;
        let node = host.join().await;
        let key = node.key();
        node.store.close().await.expect("closed");
        assert_eq!(etcd.value(&key).is_none(), revoke_on_exit);
    }
}

#[tokio::test(start_paused = true)]
async fn stop_during_an_outage_reports_the_kept_lease() {
    let etcd = etcd_with(NETWORK);
    let mut host = Host::new(&etcd, 1);
    host.settings.revoke_on_exit = true;
    let mut node = host.join().await;
    host.set_link(Link::Refused);
    node.disconnected().await;
    let key = node.key();
    assert!(node.store.close().await.is_err());
    assert!(etcd.value(&key).is_some());
}

#[tokio::test(start_paused = true)]
async fn reservation_does_not_expire() {
    let etcd = etcd_with(NETWORK);
    let reserved = lease_key("10.1.50.0/24");
    etcd.put(&reserved, &flanneld("192.0.2.1"));
    let mut host = Host::new(&etcd, 1);
    host.settings.revoke_on_exit = true;
    let mut node = host.join().await;
    assert_eq!(node.subnet(), "10.1.50.0/24");
    node.run(48 * HOUR).await;
    assert_eq!(node.store.health().renewals.renewed, 6);
    assert_eq!(node.store.health().lease_expires, None);
    node.store.close().await.expect("closed");
    let (value, lease) = etcd.value(&reserved).expect("a reservation is not given back");
    assert!(value.contains("host1") && lease == 0, "{value} {lease}");
}

#[tokio::test(start_paused = true)]
async fn suspected_duplicate_makes_the_store_check_our_key() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    let (reads, renewed) = (etcd.calls("get"), node.store.health().renewals.renewed);
    node.store.verify();
    node.until("the answer", |node| node.store.health().renewals.renewed > renewed).await;
    assert_eq!(etcd.calls("get"), reads + 1);
    assert!(node.notices.is_empty() && node.outages.is_empty());
}
