//! Watching: changes, invalid keys, drift, and watches that etcd ends.

use super::*;
use crate::store::etcd::run::RELIST_INTERVAL;

#[tokio::test(start_paused = true)]
async fn lease_of_another_host_costs_no_call() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    let calls = etcd.all_calls();
    etcd.put(&lease_key("10.1.200.0/24"), &flanneld("198.51.100.7"));
    node.sees("10.1.200.0/24").await;
    etcd.delete(&lease_key("10.1.200.0/24"));
    node.until("the deletion", |node| node.subnets().len() == 1).await;
    assert_eq!(etcd.all_calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn invalid_keys_are_ignored_and_reported() {
    let etcd = etcd_with(NETWORK);
    etcd.put(&lease_key("10.1.200.0/24"), &flanneld("198.51.100.7"));
    let mut node = Host::new(&etcd, 1).join().await;
    for name in ["nonsense", "10.1.7.7-24", "10.77.3.0-24", "10.1.0.7-33"] {
        etcd.put(&key(&format!("subnets/{name}")), &flanneld("198.51.100.7"));
    }
    // A valid lease that becomes invalid is removed, as a fresh list would do.
    etcd.put(&lease_key("10.1.200.0/24"), "garbage");
    etcd.put(&lease_key("10.1.201.0/24"), &flanneld("198.51.100.8"));
    let expected: BTreeSet<String> = [node.subnet(), "10.1.201.0/24".into()].into();
    node.until("the valid leases", |node| node.subnets() == expected).await;
    node.until("the invalid keys", |node| node.store.health().bad_keys.len() == 5).await;
    node.until("a notice", |node| node.notice_codes().contains(&NoticeCode::InvalidKeys)).await;

    etcd.delete(&key("subnets/nonsense"));
    node.until("one less", |node| node.store.health().bad_keys.len() == 4).await;
}

#[tokio::test(start_paused = true)]
async fn flanneld_with_our_address_is_reported() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    etcd.put(&lease_key("10.1.250.0/24"), &flanneld("192.0.2.1"));
    node.until("a notice", |node| node.notice_codes() == [NoticeCode::AddressShared]).await;
    node.run(HOUR).await;
    assert!(node.lost.is_none() && node.notices.len() == 1, "{:?}", node.notices);

    etcd.delete(&lease_key("10.1.250.0/24"));
    node.run(HOUR).await;
    etcd.put(&lease_key("10.1.250.0/24"), &flanneld("192.0.2.1"));
    node.until("another notice", |node| node.notices.len() == 2).await;
}

/// The list replaces the events that were compacted. It must reach the node even if the watch that
/// follows it cannot be opened.
#[tokio::test(start_paused = true)]
async fn list_after_a_compaction_survives_a_refused_watch() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    let mut node = host.join().await;
    host.set_link(Link::Refused);
    node.disconnected().await;
    etcd.put(&lease_key("10.1.200.0/24"), &flanneld("198.51.100.7"));
    etcd.put("/another/prefix", "x");
    etcd.compact();
    // The first watch ends with the compaction, and the second would continue from the list.
    etcd.refuse_watch(2);
    host.set_link(Link::Up);
    node.sees("10.1.200.0/24").await;
    node.connected().await;
    assert_eq!(node.store.health().resyncs.compacted, 1);
}

#[tokio::test(start_paused = true)]
async fn changed_network_configuration_is_reported() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    etcd.put(&key("config"), r#"{"Network":"10.2.0.0/16"}"#);
    node.until("a notice", |node| node.notice_codes() == [NoticeCode::NetworkChanged]).await;
    etcd.put(&key("config"), "{}");
    node.until("a notice", |node| node.notice_codes().last() == Some(&NoticeCode::NetworkInvalid)).await;
    // The same network in other words needs no restart.
    etcd.put(&key("config"), r#"{"Network":"10.1.0.0/16","SubnetLen":24}"#);
    node.run(Duration::from_secs(1)).await;
    assert_eq!(node.notices.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn periodic_list_corrects_what_the_watch_missed() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    etcd.put_unwatched(&lease_key("10.1.200.0/24"), &flanneld("198.51.100.7"));
    node.run(RELIST_INTERVAL / 2).await;
    assert!(!node.subnets().contains("10.1.200.0/24"));
    node.run(RELIST_INTERVAL).await;
    assert!(node.subnets().contains("10.1.200.0/24"));
    let health = node.store.health();
    assert!(health.drift == 1 && health.resyncs.periodic >= 1, "{health:#?}");
    assert_eq!(node.notice_codes(), [NoticeCode::Drift]);
}

#[tokio::test(start_paused = true)]
async fn periodic_list_is_fresh_after_a_compaction() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    // Keys outside our prefix move the revision on, and no event of ours does.
    for _ in 0..3 {
        etcd.put("/another/prefix", "x");
    }
    etcd.compact();
    node.run(RELIST_INTERVAL * 2).await;
    let health = node.store.health();
    assert!(health.resyncs.periodic >= 1 && health.drift == 0 && health.connected, "{health:#?}");
    assert!(node.outages.is_empty() && node.notices.is_empty());
}

#[tokio::test(start_paused = true)]
async fn requested_list_is_read() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    node.store.reload();
    node.until("a list", |node| node.store.health().resyncs.asked == 1).await;
}

#[tokio::test(start_paused = true)]
async fn cancelled_watch_is_opened_again() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    etcd.cancel_watches();
    etcd.put(&lease_key("10.1.200.0/24"), &flanneld("198.51.100.7"));
    node.sees("10.1.200.0/24").await;
    assert_eq!(node.outages, [true, false]);
    assert_eq!(node.store.health().resyncs.compacted, 0);
}

#[tokio::test(start_paused = true)]
async fn dropped_future_loses_no_update() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    // Our own subnet is one of the first hundred.
    for n in 120..220u8 {
        etcd.put(&lease_key(&format!("10.1.{n}.0/24")), &flanneld("198.51.100.7"));
        let mut next = Box::pin(node.store.next());
        let polled = futures_util::poll!(&mut next);
        drop(next);
        if let std::task::Poll::Ready(update) = polled {
            node.take(update);
        }
        tokio::task::yield_now().await;
    }
    node.until("all of them", |node| node.subnets().len() == 101).await;
}
