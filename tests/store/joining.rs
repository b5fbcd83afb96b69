//! Joining: which subnet a node gets, and which nodes are refused.

use super::*;

#[tokio::test]
async fn fifty_nodes_that_start_together_get_fifty_subnets() {
    for network in [
        NETWORK,
        // There is room for 63: collisions are certain.
        r#"{"Network":"10.1.0.0/16","SubnetLen":22}"#,
        r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}"#,
    ] {
        let etcd = Etcd::with(network).await;
        let mut all = JoinSet::new();
        for number in 1..=50 {
            let host = Host::new(&etcd, number);
            all.spawn(async move { (host.open().await, host) });
        }
        let mut nodes = all.join_all().await;
        for family in 0..nodes[0].0.opened.lease.subnets.len() {
            let subnets: BTreeSet<_> =
                nodes.iter().map(|(node, _)| node.opened.lease.subnets[family]).collect();
            assert_eq!(subnets.len(), 50, "{network}");
        }
        for (node, _) in nodes.iter_mut().take(3) {
            node.until("fifty leases", |node| node.subnets().len() == 50).await;
        }
    }
}

#[tokio::test]
async fn address_of_another_node_is_refused() {
    let etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    let mut second = Host::new(&etcd, 2);
    second.address = "192.0.2.1".parse().expect("v4");
    let refusal = second.refused().await;
    assert_eq!(refusal.code, ErrorCode::AddressTaken);
    for name in ["host1", "host2"] {
        assert!(refusal.text.contains(name), "{name}: {refusal}");
    }
    // A flanneld cannot be refused, but it is reported.
    etcd.put("subnets/10.1.250.0-24", &flanneld("192.0.2.1")).await;
    node.until("a notice", |node| node.has_noticed(NoticeCode::AddressShared)).await;
}

#[tokio::test]
async fn one_of_two_nodes_with_one_address_gives_way() {
    let etcd = Etcd::with(NETWORK).await;
    let mut all = JoinSet::new();
    for number in 1..=2 {
        let mut host = Host::new(&etcd, number);
        host.address = "192.0.2.9".parse().expect("v4");
        all.spawn(async move {
            // The list refuses it, or, if both listed before either wrote, the watch reports it.
            let mut node = host.try_open().await.ok()?;
            let over = Instant::now() + Duration::from_secs(2);
            let lost = node.drive("end of the wait", |_| Instant::now() > over).await;
            if let Some(lost) = &lost {
                assert_eq!(lost.cause, LostCause::AddressTaken);
            }
            lost.is_none().then_some((node, host))
        });
    }
    let survivors: Vec<_> = all.join_all().await.into_iter().flatten().collect();
    assert_eq!(survivors.len(), 1);
    let table = admin::leases_list(&survivors[0].1.settings, false).await.expect("listed");
    assert_eq!(table.leases.len(), 1, "{table:?}");
}

#[tokio::test]
async fn copy_of_a_living_node_is_refused() {
    let etcd = Etcd::with(NETWORK).await;
    let host = Host::new(&etcd, 1);
    let mut node = host.open().await;
    node.connected().await;
    let mut copy = Host::new(&etcd, 2);
    std::fs::create_dir_all(&copy.settings.state_dir).expect("a folder");
    let id = std::fs::read(host.settings.state_dir.join("node-id")).expect("an id");
    std::fs::write(copy.settings.state_dir.join("node-id"), id).expect("copied");
    let refusal = copy.refused().await;
    assert_eq!(refusal.code, ErrorCode::StateCopied);
    for part in ["host1", "host2", &node.subnet()] {
        assert!(refusal.text.contains(part), "{part}: {refusal}");
    }
    node.until("a notice", |node| node.has_noticed(NoticeCode::StateCopied)).await;
    assert_eq!(node.store.health().renewals.rewritten, 0, "the original is not disturbed");
    let subnet = node.subnet();
    node.store.close().await.expect("closed");

    copy.settings.node_name = Some("host1".into());
    let moved = copy.open().await;
    assert_eq!(moved.subnet(), subnet, "the same host, at another address");
    let options = GetOptions::new().with_prefix();
    let left = etcd.client().await.get(format!("{PREFIX}/overlay"), Some(options)).await.expect("read");
    assert!(left.kvs().is_empty(), "no question is left");
}

#[tokio::test]
async fn host_keeps_its_subnet_by_id_address_or_file() {
    let etcd = Etcd::with(NETWORK).await;
    let mut host = Host::new(&etcd, 1);
    let node = host.open().await;
    let (subnet, key) = (node.subnet(), node.key());
    node.store.close().await.expect("closed");

    host.address = "192.0.2.101".parse().expect("v4");
    let mut node = host.open().await;
    assert_eq!(node.subnet(), subnet, "by id, at another address");
    assert!(etcd.value(&key).await.expect("there").0.contains("192.0.2.101"));
    node.connected().await;
    node.store.readdress(&["192.0.2.102".parse().expect("v4")]);
    let moved = |node: &Node| node.rib.leases().any(|lease| lease.public.v4 == Some([192, 0, 2, 102].into()));
    node.until("the new address", moved).await;
    node.store.close().await.expect("closed");

    etcd.delete(&key).await;
    assert_eq!(host.open().await.subnet(), subnet, "by the map on disk");

    etcd.put("subnets/10.1.177.0-24", &flanneld("192.0.2.2")).await;
    let second = Host::new(&etcd, 2);
    assert_eq!(second.open().await.subnet(), "10.1.177.0/24", "by the address of the flanneld before it");

    let third = Host::new(&etcd, 3);
    std::fs::write(third.dir.path().join("subnet.env"), "FLANNEL_SUBNET=10.1.178.1/24\n").expect("written");
    assert_eq!(third.open().await.subnet(), "10.1.178.0/24", "by the file of the flanneld before it");
}

#[tokio::test]
async fn full_network_refuses_until_a_node_leaves() {
    let network =
        r#"{"Network":"10.1.0.0/16","SubnetLen":26,"SubnetMin":"10.1.4.64","SubnetMax":"10.1.4.192"}"#;
    let etcd = Etcd::with(network).await;
    let mut hosts: Vec<Host> = (1..=4).map(|number| Host::new(&etcd, number)).collect();
    hosts[2].settings.revoke_on_exit = true;
    let mut nodes = Vec::new();
    for host in &hosts[..3] {
        nodes.push(host.open().await);
    }
    let held: BTreeSet<String> = nodes.iter().map(Node::subnet).collect();
    assert_eq!(held, ["10.1.4.64/26", "10.1.4.128/26", "10.1.4.192/26"].map(str::to_owned).into());
    assert_eq!(nodes[2].store.health().subnets, [(3, 3)]);
    assert_eq!(hosts[3].refused().await.code, ErrorCode::NetworkFull);

    let leaving = nodes.pop().expect("the third");
    let subnet = leaving.subnet();
    leaving.store.close().await.expect("given back");
    assert_eq!(hosts[3].open().await.subnet(), subnet);
}

#[tokio::test]
async fn announced_lease_is_read_by_another_host() {
    let etcd = Etcd::with(NETWORK).await;
    let (one, two) = (Host::new(&etcd, 1).open().await, Host::new(&etcd, 2).open().await);
    let seen = two.rib.leases().find(|lease| lease.name == "host1").expect("by name").clone();
    // Only the store knows the key and its revisions.
    assert!(seen.origin.key.ends_with(&one.key()), "{:?}", seen.origin);
    assert_eq!(seen, Lease { origin: seen.origin.clone(), ..one.opened.lease.clone() });
    assert!(matches!(seen.dialect, Dialect::Hopsack(abilities) if abilities.ipv6));
    let (value, lease) = etcd.value(&one.key()).await.expect("there");
    let begins = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendData":{"NodeID":""#;
    assert!(value.starts_with(begins) && lease != 0, "{value}");
}

#[tokio::test]
async fn ipv6_only_lease_is_hidden_from_flanneld() {
    let etcd = Etcd::with(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:1::/48"}"#).await;
    let mut host = Host::new(&etcd, 1);
    host.address = "2001:db8::1".parse().expect("v6");
    let node = host.open().await;
    assert!(etcd.value(&format!("overlay/{}", node.key())).await.is_some());
    let options = GetOptions::new().with_prefix();
    let all = etcd.client().await.get(format!("{PREFIX}/subnets"), Some(options)).await.expect("read");
    assert!(all.kvs().is_empty());
}
