//! Starts without etcd, by the map on disk.

use super::*;

/// The text of an edited map file with the right checksum (FNV-1a) and length.
fn with_right_checksum(text: &str) -> String {
    let (head, body) = text.split_once('\n').expect("two lines");
    let magic = head.split(' ').next().expect("a word");
    let sum = body.bytes().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{magic} {sum:016x} {}\n{body}", body.len())
}

#[tokio::test]
async fn start_without_etcd_uses_the_map_on_disk() {
    let mut etcd = Etcd::with(NETWORK).await;
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.7")).await;
    let host = Host::new(&etcd, 1);
    let node = host.open().await;
    let subnet = node.subnet();
    node.store.close().await.expect("closed");
    etcd.kill();

    let mut node = host.open().await;
    assert_eq!(node.subnet(), subnet);
    assert_eq!(node.subnets(), [subnet.clone(), "10.1.200.0/24".into()].into());
    assert_eq!(node.opened.cluster.port, Some(8285));
    node.until("trouble", |node| node.outages == ["begin"]).await;
    assert!(node.store.health().stale_since.is_some());

    etcd.restart().await;
    etcd.put("subnets/10.1.201.0-24", &flanneld("198.51.100.8")).await;
    node.sees("10.1.201.0/24").await;
    node.until("recovery", |node| node.outages == ["begin", "end"]).await;
    assert_eq!(node.store.health().renewals.renewed, 1, "ownership was checked");
    node.store.close().await.expect("closed");

    // The same, but another node takes the subnet meanwhile.
    etcd.kill();
    let mut node = host.open().await;
    let port = etcd.restart_elsewhere().await;
    etcd.put(&key_of(&subnet), &hopsack("thief-id", "192.0.2.66")).await;
    etcd.come_back(port).await;
    assert!(node.lost().await.theirs.contains("thief-id"));
}

#[tokio::test]
async fn damaged_or_old_map_is_refused() {
    let mut etcd = Etcd::with(NETWORK).await;
    let mut host = Host::new(&etcd, 1);
    host.settings.lease_ttl = Duration::from_secs(3);
    host.open().await.store.close().await.expect("closed");
    etcd.kill();
    let map = host.settings.state_dir.join("map");
    let good = std::fs::read(&map).expect("saved");
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&map, &bad).expect("written");
    let refusal = host.refused().await;
    assert_eq!(refusal.code, ErrorCode::Unreachable);
    assert!(matches!(refusal.snapshot, Some(SnapshotError::Damaged { .. })), "{refusal:?}");

    // Once the lease of 3 s has expired, another node may have the subnet. But this host was up all
    // the time, so it goes on.
    tokio::time::sleep(Duration::from_secs(4)).await;
    std::fs::write(&map, &good).expect("written");
    let mut node = host.open().await;
    node.until("trouble", |node| node.outages == ["begin"]).await;
    let health = node.store.health();
    assert!(health.trouble.is_some());
    drop(node);

    // A rebooted host waits.
    let text = String::from_utf8(good.clone()).expect("text");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("there");
    let rebooted = with_right_checksum(&text.replace(boot.trim(), "another-boot"));
    std::fs::write(&map, rebooted).expect("written");
    assert_eq!(host.refused().await.snapshot, Some(SnapshotError::LeaseExpired));

    // While etcd answers, a damaged map is no reason to stop.
    std::fs::write(&map, &bad).expect("written");
    etcd.restart().await;
    let mut node = host.open().await;
    node.until("a notice", |node| node.has_noticed(NoticeCode::SnapshotRefused)).await;
}
