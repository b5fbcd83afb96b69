//! Operator commands.

use super::*;

#[tokio::test]
async fn operator_reads_and_changes_the_store() {
    let etcd = Etcd::start().await;
    let host = Host::new(&etcd, 1);
    let settings = &host.settings;
    let missing = admin::network_show(settings).await.expect_err("nothing there");
    assert_eq!(missing.code, ErrorCode::NetworkMissing);
    assert_eq!(host.refused().await.code, ErrorCode::NetworkMissing);
    let wrong = admin::network_init(settings, "{}").await.expect_err("flanneld refuses it too");
    assert_eq!(wrong.code, ErrorCode::NetworkInvalid);
    let shown = admin::network_init(settings, NETWORK).await.expect("written");
    assert_eq!((shown.pools[0].network.to_string(), shown.port), ("10.1.0.0/16".to_owned(), 8285));
    admin::network_init(settings, NETWORK).await.expect("writing the same again is no error");
    let other = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":7890}}"#;
    let refusal = admin::network_init(settings, other).await.expect_err("there is one");
    assert_eq!(refusal.code, ErrorCode::NetworkExists);

    let mut node = host.open().await;
    node.connected().await;
    etcd.put("subnets/10.1.250.0-24", &flanneld("198.51.100.9")).await;
    etcd.put("subnets/nonsense", "").await;
    let table = admin::leases_list(settings, true).await.expect("listed");
    assert_eq!((table.leases.len(), table.bad.len(), table.used[0].1), (2, 1, 2));
    assert!(table.leases.iter().any(|lease| lease.expires_in.is_some_and(|left| left > 86_000)));
    let daemons: BTreeSet<&str> = table.leases.iter().map(|lease| lease.daemon.as_str()).collect();
    assert_eq!(daemons, ["flanneld", "hopsack"].into());
    assert!(table.leases.iter().any(|lease| lease.reserved) && table.bad[0].0.ends_with("/subnets/nonsense"));
    let set = admin::network_set(settings, other).await.expect("written");
    assert_eq!((set.before.as_deref(), set.port), (Some(NETWORK), 7890));
    node.until("a notice", |node| node.has_noticed(NoticeCode::NetworkChanged)).await;

    let reserved = "10.1.250.0/24".parse().expect("net");
    let refusal = admin::leases_release(settings, reserved, false).await.expect_err("reserved");
    assert_eq!(refusal.code, ErrorCode::Reserved);
    admin::leases_release(settings, reserved, true).await.expect("released");
    let refusal = admin::leases_release(settings, reserved, true).await.expect_err("no such lease");
    assert_eq!(refusal.code, ErrorCode::NoSuchLease);
    let own = node.opened.lease.subnets[0];
    let released = admin::leases_release(settings, own, false).await.expect("released");
    assert_eq!(released.lease.name, "host1");
    node.until("the lease again", |node| node.store.health().renewals.recreated == 1).await;
}
