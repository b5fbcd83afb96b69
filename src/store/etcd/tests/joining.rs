//! Joining: races for subnets, hosts with one address, copies of a host, and starts without etcd.

use super::*;
use crate::store::error::{ErrorCode, SnapshotError};
use crate::store::etcd::snapshot::Snapshot;

#[tokio::test(start_paused = true)]
async fn two_hosts_learn_of_each_other() {
    let etcd = etcd_with(NETWORK);
    let mut first = Host::new(&etcd, 1).join().await;
    let mut second = Host::new(&etcd, 2).join().await;
    first.sees(&second.subnet()).await;
    second.sees(&first.subnet()).await;
    assert_eq!(first.address_of(&second.subnet()), Some([192, 0, 2, 2].into()));
    assert_eq!(first.subnets(), second.subnets());
}

#[tokio::test(start_paused = true)]
async fn fifty_hosts_that_start_together_get_fifty_subnets() {
    for network in [
        // There is room for 63: collisions are certain.
        r#"{"Network":"10.1.0.0/16","SubnetLen":22}"#,
        r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}"#,
    ] {
        let etcd = etcd_with(network);
        let hosts: Vec<Host> = (1..=50).map(|number| Host::new(&etcd, number)).collect();
        let mut nodes = Vec::new();
        let mut all = tokio::task::JoinSet::new();
        for host in hosts {
            all.spawn(async move { host.open().await });
        }
        nodes.extend(all.join_all().await);
        for family in 0..nodes[0].opened.lease.subnets.len() {
            let subnets: BTreeSet<_> = nodes.iter().map(|node| node.opened.lease.subnets[family]).collect();
            assert_eq!(subnets.len(), 50, "{network}");
        }
        nodes[0].until("fifty leases", |node| node.subnets().len() == 50).await;
    }
}

#[tokio::test(start_paused = true)]
async fn loser_of_a_race_for_the_last_subnet_is_refused() {
    let etcd = etcd_with(r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.4.0","SubnetMax":"10.1.4.0"}"#);
    let (one, two) = (Host::new(&etcd, 1), Host::new(&etcd, 2));
    let results = tokio::join!(one.try_open(), two.try_open());
    let codes: Vec<_> =
        [results.0, results.1].into_iter().map(|result| result.err().map(|e| e.code)).collect();
    assert!(codes.contains(&None) && codes.contains(&Some(ErrorCode::NetworkFull)), "{codes:?}");
    assert!(etcd.calls("txn") >= 2, "both tried to create the lease");
}

#[tokio::test(start_paused = true)]
async fn address_of_another_hopsack_is_refused() {
    let etcd = etcd_with(NETWORK);
    let _first = Host::new(&etcd, 1).join().await;
    let second = Host { address: [192, 0, 2, 1].into(), ..Host::new(&etcd, 2) };
    assert_eq!(second.refused().await.code, ErrorCode::AddressTaken);
}

#[tokio::test(start_paused = true)]
async fn address_inside_the_overlay_is_refused() {
    let etcd = etcd_with(NETWORK);
    let host = Host { address: [10, 1, 9, 9].into(), ..Host::new(&etcd, 1) };
    let error = host.refused().await;
    assert!(error.code == ErrorCode::AddressUnfit && error.is_permanent());
    assert!(!etcd.keys().iter().any(|key| key.contains("/subnets/")), "nothing was written");
}

#[tokio::test(start_paused = true)]
async fn later_of_two_hosts_with_one_address_gives_way() {
    let etcd = etcd_with(NETWORK);
    let (one, two) = (Host::new(&etcd, 1), Host { address: [192, 0, 2, 1].into(), ..Host::new(&etcd, 2) });
    // Both list before either writes, so that neither list shows the other.
    let (first, second) = tokio::join!(one.try_open(), two.try_open());
    let mut nodes: Vec<Node> = [first, second].into_iter().filter_map(Result::ok).collect();
    assert_eq!(nodes.len(), 2, "both have joined");
    for node in &mut nodes {
        node.run(Duration::from_secs(2)).await;
    }
    let lost: Vec<_> = nodes.iter().filter_map(|node| node.lost.as_ref()).map(|lost| lost.cause).collect();
    assert_eq!(lost, [LostCause::AddressTaken]);
    assert_eq!(etcd.keys().iter().filter(|key| key.contains("/subnets/")).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn copy_of_a_living_host_is_refused() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    let mut node = host.join().await;
    let copy = Host::new(&etcd, 2);
    std::fs::create_dir_all(&copy.settings.state_dir).expect("a folder");
    std::fs::copy(host.settings.state_dir.join("node-id"), copy.settings.state_dir.join("node-id"))
        .expect("copied");
    assert_eq!(copy.refused().await.code, ErrorCode::StateCopied);
    node.until("a notice", |node| node.notice_codes() == [NoticeCode::StateCopied]).await;
    assert_eq!(node.store.health().renewals.rewritten, 0, "the original is not disturbed");

    // Once the original is gone, the same disk at another address is the same host.
    let subnet = node.subnet();
    node.store.close().await.expect("closed");
    let begun = Instant::now();
    assert_eq!(copy.open().await.subnet(), subnet);
    assert!(begun.elapsed() >= Duration::from_secs(2), "the question was not answered");
    assert!(!etcd.keys().iter().any(|key| key.contains("/overlay/")), "no question is left");
}

#[tokio::test(start_paused = true)]
async fn start_without_etcd_and_map_fails_after_fifteen_seconds() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    host.set_link(Link::Refused);
    let begun = Instant::now();
    let error = host.refused().await;
    assert_eq!((error.code, error.snapshot), (ErrorCode::Unreachable, None));
    assert!((15..20).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn refused_credentials_end_a_start_at_once() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    host.set_link(Link::Denied);
    let begun = Instant::now();
    let error = host.refused().await;
    assert!(error.code == ErrorCode::Denied && error.is_permanent());
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn start_without_etcd_uses_the_map_on_disk() {
    let etcd = etcd_with(NETWORK);
    etcd.put(&lease_key("10.1.200.0/24"), &flanneld("198.51.100.7"));
    let host = Host::new(&etcd, 1);
    let node = host.join().await;
    let subnet = node.subnet();
    node.store.close().await.expect("closed");

    host.set_link(Link::Refused);
    let mut node = host.open().await;
    assert_eq!(node.subnets(), [subnet.clone(), "10.1.200.0/24".into()].into());
    node.run(HOUR).await;
    assert_eq!(node.outages, [true], "reported once");
    assert!(node.store.health().stale_since.is_some());

    host.set_link(Link::Up);
    etcd.put(&lease_key("10.1.201.0/24"), &flanneld("198.51.100.8"));
    node.sees("10.1.201.0/24").await;
    node.connected().await;
    node.until("recovery", |node| node.outages == [true, false]).await;
    let health = node.store.health();
    assert_eq!((health.resyncs.start, health.renewals.renewed), (1, 1), "listed, and ownership was checked");
    assert_eq!(node.subnet(), subnet);
}

#[tokio::test(start_paused = true)]
async fn subnet_taken_before_etcd_is_back_is_lost() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    host.join().await.store.close().await.expect("closed");
    host.set_link(Link::Refused);
    let mut node = host.open().await;
    etcd.put(&node.key(), &hopsack("thief-id", "192.0.2.66"));
    host.set_link(Link::Up);
    assert_eq!(node.lost().await, LostCause::Taken);
}

#[tokio::test(start_paused = true)]
async fn rebooted_host_with_an_expired_lease_waits_for_etcd() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    host.join().await.store.close().await.expect("closed");
    host.set_link(Link::Refused);
    tokio::time::sleep(25 * HOUR).await;
    // A host that was up all the time goes on: its pods run.
    let mut node = host.open().await;
    node.run(Duration::from_secs(1)).await;
    assert_eq!(node.outages, [true]);
    drop(node);

    let dir = &host.settings.state_dir;
    let snapshot = Snapshot::load(dir).expect("valid").expect("there");
    snapshot.of_boot("another-boot").store(dir).expect("written");
    assert_eq!(host.refused().await.snapshot, Some(SnapshotError::LeaseExpired));
}

#[tokio::test(start_paused = true)]
async fn damaged_map_is_refused_and_needed_only_without_etcd() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    host.join().await.store.close().await.expect("closed");
    std::fs::write(host.settings.state_dir.join("map"), "hopsack-map-1 0 0").expect("written");
    host.set_link(Link::Refused);
    assert!(matches!(host.refused().await.snapshot, Some(SnapshotError::Damaged { .. })));
    host.set_link(Link::Up);
    let mut node = host.join().await;
    node.until("a notice", |node| node.notice_codes() == [NoticeCode::SnapshotRefused]).await;
}

#[tokio::test(start_paused = true)]
async fn host_gets_its_last_subnet_by_the_map_and_by_subnet_env() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    let node = host.join().await;
    let (subnet, lease_key) = (node.subnet(), node.key());
    node.store.close().await.expect("closed");
    etcd.delete(&lease_key);
    assert_eq!(host.open().await.subnet(), subnet, "by the map on disk");

    let other = Host::new(&etcd, 2);
    std::fs::write(other.dir.path().join("subnet.env"), "FLANNEL_SUBNET=10.1.178.1/24\n").expect("written");
    assert_eq!(other.open().await.subnet(), "10.1.178.0/24", "by the file of the flanneld before it");
}
