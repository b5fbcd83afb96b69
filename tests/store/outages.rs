//! Outages of etcd: killed, frozen, compacted, restored.

use super::*;

#[tokio::test]
async fn watch_resumes_after_etcd_was_killed() {
    let mut etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    etcd.kill();
    node.until("trouble", |node| node.outages == ["begin"]).await;
    let health = node.store.health();
    assert!(!health.connected && health.stale_since.is_some() && health.trouble.is_some());
    assert_eq!(node.subnets().len(), 1, "the last map stays in use");
    etcd.restart().await;
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.7")).await;
    node.sees("10.1.200.0/24").await;
    node.until("recovery", |node| node.outages == ["begin", "end"]).await;
    let health = node.store.health();
    assert!(health.connected && health.stale_since.is_none() && health.trouble.is_none());
    let resyncs = health.resyncs;
    assert_eq!((resyncs.start, resyncs.compacted, resyncs.rewound), (1, 0, 0), "resumed, not listed again");
    assert!(health.renewals.renewed >= 1, "ownership was checked");
}

#[tokio::test]
async fn frozen_etcd_is_noticed_only_if_it_lasts() {
    let etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    etcd.signal("-STOP");
    tokio::time::sleep(Duration::from_secs(5)).await;
    etcd.signal("-CONT");
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.7")).await;
    node.sees("10.1.200.0/24").await;

    etcd.signal("-STOP");
    node.until("trouble", |node| !node.store.health().connected).await;
    etcd.signal("-CONT");
    etcd.put("subnets/10.1.201.0-24", &flanneld("198.51.100.8")).await;
    node.sees("10.1.201.0/24").await;
    node.connected().await;
}

#[tokio::test]
async fn dead_endpoint_is_skipped() {
    let etcd = Etcd::with(NETWORK).await;
    for number in 1..=4 {
        let mut host = Host::new(&etcd, number);
        host.settings.endpoints = vec![format!("http://127.0.0.1:{}", free_port()), etcd.url()];
        host.open().await.connected().await;
    }
}

#[tokio::test]
async fn compaction_during_an_outage_makes_a_list() {
    let mut etcd = Etcd::with(NETWORK).await;
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.7")).await;
    etcd.put("subnets/10.1.201.0-24", &flanneld("198.51.100.8")).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    etcd.kill();
    node.until("trouble", |node| !node.store.health().connected).await;
    let port = etcd.restart_elsewhere().await;
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.99")).await;
    etcd.delete("subnets/10.1.201.0-24").await;
    etcd.compact().await;
    etcd.come_back(port).await;
    let moved = |node: &Node| {
        let mut leases = node.rib.leases();
        leases.any(|lease| lease.public.v4 == Some([198, 51, 100, 99].into()))
    };
    node.until("the moved lease", moved).await;
    assert!(!node.subnets().contains("10.1.201.0/24"));
    node.connected().await;
    assert_eq!(node.store.health().resyncs.compacted, 1);
    etcd.put("subnets/10.1.202.0-24", &flanneld("198.51.100.9")).await;
    node.sees("10.1.202.0/24").await;
}

#[tokio::test]
async fn store_restored_from_a_backup_is_followed() {
    let mut etcd = Etcd::with(NETWORK).await;
    for _ in 0..20 {
        etcd.put("x", "1").await;
    }
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.7")).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    etcd.kill();
    std::fs::remove_dir_all(etcd.dir.path().join("data")).expect("removed");
    let port = etcd.restart_elsewhere().await;
    etcd.put("config", NETWORK).await;
    etcd.put("subnets/10.1.201.0-24", &flanneld("198.51.100.8")).await;
    etcd.come_back(port).await;
    let expected: BTreeSet<String> = [node.subnet(), "10.1.201.0/24".into()].into();
    node.until("the new store's map", |node| node.subnets() == expected).await;
    node.connected().await;
    let health = node.store.health();
    assert_eq!((health.resyncs.rewound, health.renewals.recreated), (1, 1));
}
