//! Outages of etcd: refused and silent connections, backoff, and what is made up for afterwards.

use super::*;
use crate::store::etcd::backoff::Backoff;

#[tokio::test(start_paused = true)]
async fn outage_is_reported_once_and_ends_with_the_watch() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    let mut node = host.join().await;
    let renewed = node.store.health().renewals.renewed;
    host.set_link(Link::Refused);
    node.run(HOUR).await;
    assert_eq!(node.outages, [true]);
    let health = node.store.health();
    assert!(!health.connected && health.stale_since.is_some() && health.trouble.is_some());
    assert_eq!(node.subnets().len(), 1, "the last map stays in use");

    etcd.put(&lease_key("10.1.200.0/24"), &flanneld("198.51.100.7"));
    host.set_link(Link::Up);
    node.sees("10.1.200.0/24").await;
    assert_eq!(node.outages, [true, false]);
    let health = node.store.health();
    assert!(health.connected && health.stale_since.is_none() && health.trouble.is_none());
    assert_eq!(
        health.resyncs.start + health.resyncs.compacted + health.resyncs.rewound,
        1,
        "not listed again"
    );
    assert!(health.renewals.renewed > renewed, "ownership was checked");
}

#[tokio::test(start_paused = true)]
async fn attempts_back_off_to_five_seconds() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    let mut node = host.join().await;
    host.set_link(Link::Refused);
    let before = etcd.attempts(host.name()).len();
    node.run(Duration::from_secs(120)).await;
    let attempts = etcd.attempts(host.name()).split_off(before);
    let gaps: Vec<Duration> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // The first wait was before the first of these attempts.
    for (n, gap) in gaps.iter().enumerate() {
        let longest = Duration::from_millis(200 << n.min(5)).min(Backoff::LIMIT);
        // Timers have a resolution of a millisecond.
        let slack = Duration::from_millis(2);
        assert!(*gap + slack >= longest / 2 && *gap <= longest + slack, "{n}: {gap:?}");
    }
    assert!((24..60).contains(&gaps.len()), "{}", gaps.len());

    // After a good connection the backoff begins again.
    host.set_link(Link::Up);
    node.connected().await;
    host.set_link(Link::Refused);
    let before = etcd.attempts(host.name()).len();
    node.run(Duration::from_secs(1)).await;
    assert!(etcd.attempts(host.name()).len() - before >= 3);
}

#[tokio::test(start_paused = true)]
async fn silent_etcd_is_noticed_within_nine_seconds() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    let mut node = host.join().await;
    // A short silence breaks nothing.
    host.set_link(Link::Silent);
    node.run(Duration::from_secs(5)).await;
    host.set_link(Link::Up);
    node.run(Duration::from_secs(5)).await;
    assert!(node.outages.is_empty());

    host.set_link(Link::Silent);
    let begun = Instant::now();
    node.disconnected().await;
    assert!(begun.elapsed() <= Duration::from_secs(10), "{:?}", begun.elapsed());
    host.set_link(Link::Up);
    node.connected().await;
}

#[tokio::test(start_paused = true)]
async fn outage_of_one_host_does_not_disturb_another() {
    let etcd = etcd_with(NETWORK);
    let (one, two) = (Host::new(&etcd, 1), Host::new(&etcd, 2));
    let (mut first, mut second) = (one.join().await, two.join().await);
    one.set_link(Link::Refused);
    first.disconnected().await;
    etcd.put(&lease_key("10.1.200.0/24"), &flanneld("198.51.100.7"));
    second.sees("10.1.200.0/24").await;
    assert!(second.outages.is_empty() && !first.subnets().contains("10.1.200.0/24"));
}

#[tokio::test(start_paused = true)]
async fn lease_that_was_taken_during_an_outage_is_lost() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    let mut node = host.join().await;
    host.set_link(Link::Refused);
    node.disconnected().await;
    etcd.put(&node.key(), &hopsack("thief-id", "192.0.2.66"));
    host.set_link(Link::Up);
    assert_eq!(node.lost().await, LostCause::Taken);
}

#[tokio::test(start_paused = true)]
async fn lease_that_expired_during_an_outage_is_created_again() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    let mut node = host.join().await;
    host.set_link(Link::Refused);
    node.run(25 * HOUR).await;
    assert!(etcd.value(&node.key()).is_none(), "it has expired");
    host.set_link(Link::Up);
    node.connected().await;
    assert_eq!(node.store.health().renewals.recreated, 1);
    assert!(etcd.value(&node.key()).is_some());
}

#[tokio::test(start_paused = true)]
async fn compaction_during_an_outage_makes_a_list() {
    let etcd = etcd_with(NETWORK);
    etcd.put(&lease_key("10.1.200.0/24"), &flanneld("198.51.100.7"));
    etcd.put(&lease_key("10.1.201.0/24"), &flanneld("198.51.100.8"));
    let host = Host::new(&etcd, 1);
    let mut node = host.join().await;
    host.set_link(Link::Refused);
    node.disconnected().await;
    etcd.put(&lease_key("10.1.200.0/24"), &flanneld("198.51.100.99"));
    etcd.delete(&lease_key("10.1.201.0/24"));
    etcd.compact();
    host.set_link(Link::Up);
    node.until("a list", |node| node.store.health().resyncs.compacted == 1).await;
    node.connected().await;
    assert_eq!(node.address_of("10.1.200.0/24"), Some([198, 51, 100, 99].into()), "a moved lease is noticed");
    assert!(!node.subnets().contains("10.1.201.0/24"));
    etcd.put(&lease_key("10.1.202.0/24"), &flanneld("198.51.100.9"));
    node.sees("10.1.202.0/24").await;
}

#[tokio::test(start_paused = true)]
async fn store_restored_from_a_backup_is_followed() {
    let etcd = etcd_with(NETWORK);
    let backup = etcd.backup();
    for _ in 0..20 {
        etcd.put("/x", "moves the revision on");
    }
    etcd.put(&lease_key("10.1.200.0/24"), &flanneld("198.51.100.7"));
    let mut node = Host::new(&etcd, 1).join().await;
    etcd.restore(backup);
    etcd.put(&lease_key("10.1.201.0/24"), &flanneld("198.51.100.8"));
    let expected: BTreeSet<String> = [node.subnet(), "10.1.201.0/24".into()].into();
    node.until("the restored map", |node| node.subnets() == expected).await;
    node.connected().await;
    let health = node.store.health();
    assert_eq!((health.resyncs.rewound, health.renewals.recreated), (1, 1));
    etcd.put(&lease_key("10.1.202.0/24"), &flanneld("198.51.100.9"));
    node.sees("10.1.202.0/24").await;
}
