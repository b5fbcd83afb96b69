//! Another writer between our read of a key and our write: no kind of write overwrites or deletes
//! what it has not read.

use super::*;

const SUBNET: &str = "10.1.178.0/24";

/// A lease of another node.
fn rival() -> String {
    hopsack("rival-id", "192.0.2.66")
}

/// Whether the key has the rival's value.
fn is_rivals(etcd: &MemoryEtcd, key: &str) -> bool {
    etcd.value(key).is_some_and(|(value, _)| value == rival())
}

#[tokio::test(start_paused = true)]
async fn adopted_lease_is_not_overwritten() {
    let etcd = etcd_with(NETWORK);
    etcd.put(&lease_key(SUBNET), &flanneld("192.0.2.1"));
    etcd.write_before_next_write(&lease_key(SUBNET), &rival());
    let node = Host::new(&etcd, 1).join().await;
    assert!(node.subnet() != SUBNET && is_rivals(&etcd, &lease_key(SUBNET)));
}

#[tokio::test(start_paused = true)]
async fn cleared_lease_is_not_deleted() {
    let etcd = etcd_with(r#"{"Network":"10.1.0.0/16","SubnetMax":"10.1.8.0"}"#);
    etcd.put_leased(&lease_key(SUBNET), &flanneld("192.0.2.1"));
    etcd.write_before_next_write(&lease_key(SUBNET), &rival());
    Host::new(&etcd, 1).join().await;
    assert!(is_rivals(&etcd, &lease_key(SUBNET)));
}

#[tokio::test(start_paused = true)]
async fn created_lease_does_not_overwrite() {
    let etcd = etcd_with(NETWORK);
    let host = Host::new(&etcd, 1);
    std::fs::write(host.dir.path().join("subnet.env"), "FLANNEL_SUBNET=10.1.178.1/24\n").expect("written");
    etcd.write_before_next_write(&lease_key(SUBNET), &rival());
    let node = host.join().await;
    assert!(node.subnet() != SUBNET && is_rivals(&etcd, &lease_key(SUBNET)));
}

#[tokio::test(start_paused = true)]
async fn created_lease_does_not_share_an_ipv6_subnet() {
    let etcd = etcd_with(r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}"#);
    let host = Host::new(&etcd, 1);
    let env = "FLANNEL_SUBNET=10.1.178.1/24\nFLANNEL_IPV6_SUBNET=fd00:1:0:5::1/64\n";
    std::fs::write(host.dir.path().join("subnet.env"), env).expect("written");
    // The same IPv6 subnet under another key.
    let other = key("subnets/10.1.7.0-24&fd00:1:0:5::-64");
    etcd.write_before_next_write(&other, &rival());
    let node = host.join().await;
    assert_ne!(node.opened.lease.subnets[1].to_string(), "fd00:1:0:5::/64");
    assert!(is_rivals(&etcd, &other));
}

#[tokio::test(start_paused = true)]
async fn corrected_key_is_not_overwritten() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    let key = node.key();
    etcd.write_before_next_write(&key, &rival());
    etcd.put(&key, &flanneld("192.0.2.1"));
    assert_eq!(node.lost().await, LostCause::Taken);
    assert!(is_rivals(&etcd, &key));
}

#[tokio::test(start_paused = true)]
async fn new_address_does_not_overwrite() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    let key = node.key();
    etcd.write_before_next_write(&key, &rival());
    assert!(node.store.readdress(&[[192, 0, 2, 99].into()]));
    assert_eq!(node.lost().await, LostCause::Taken);
    assert!(is_rivals(&etcd, &key));
}

#[tokio::test(start_paused = true)]
async fn lease_that_is_created_again_does_not_overwrite() {
    let etcd = etcd_with(NETWORK);
    let mut node = Host::new(&etcd, 1).join().await;
    let key = node.key();
    etcd.write_before_next_write(&key, &rival());
    etcd.delete(&key);
    assert_eq!(node.lost().await, LostCause::Taken);
    assert!(is_rivals(&etcd, &key));
}

#[tokio::test(start_paused = true)]
async fn lease_that_is_given_back_is_not_deleted() {
    let etcd = etcd_with(NETWORK);
    let mut host = Host::new(&etcd, 1);
    host.settings.revoke_on_exit = true;
    let node = host.join().await;
    let key = node.key();
    etcd.write_before_next_write(&key, &rival());
    node.store.close().await.expect("closed");
    assert!(is_rivals(&etcd, &key));
}

#[tokio::test(start_paused = true)]
async fn host_that_gives_way_does_not_delete() {
    let etcd = etcd_with(NETWORK);
    let (one, two) = (Host::new(&etcd, 1), Host { address: [192, 0, 2, 1].into(), ..Host::new(&etcd, 2) });
    let (first, second) = tokio::join!(one.try_open(), two.try_open());
    let mut nodes = [first.expect("joined"), second.expect("joined")];
    let later = nodes.iter().max_by_key(|node| node.opened.lease.revision).expect("two").key();
    etcd.write_before_next_write(&later, &rival());
    for node in &mut nodes {
        node.run(Duration::from_secs(2)).await;
    }
    assert_eq!(nodes.iter().filter(|node| node.lost.is_some()).count(), 1);
    assert!(is_rivals(&etcd, &later));
}
