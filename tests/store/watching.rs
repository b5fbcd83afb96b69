//! Watching: many leases, invalid keys, dropped futures.

use super::*;

#[tokio::test]
async fn five_thousand_leases_cost_one_range_read() {
    let etcd = Etcd::with(r#"{"Network":"10.0.0.0/8"}"#).await;
    let mut client = etcd.client().await;
    let lease = client.lease_grant(86_400, None).await.expect("granted").id();
    for chunk in (0u32..5000).collect::<Vec<_>>().chunks(100) {
        let puts: Vec<TxnOp> = chunk
            .iter()
            .map(|n| {
                let key = format!("{PREFIX}/subnets/10.{}.{}.0-24", 1 + n / 256, n % 256);
                let value = flanneld(&format!("172.16.{}.{}", n / 256, n % 256));
                TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
            })
            .collect();
        client.txn(Txn::new().and_then(puts)).await.expect("written");
    }
    let before = etcd.calls();
    let host = Host::new(&etcd, 1);
    let started = Instant::now();
    let mut node = host.open().await;
    println!("5,000 leases: first snapshot after {:?}", started.elapsed());
    assert_eq!(node.subnets().len(), 5001);
    node.connected().await;
    let joined = etcd.calls();
    assert_eq!(grown(&before, &joined), [("Range", 1), ("Txn", 1), ("LeaseGrant", 1), ("Watch", 1)]);

    client.put(format!("{PREFIX}/subnets/10.200.0.0-24"), flanneld("198.51.100.7"), None).await.expect("put");
    node.sees("10.200.0.0/24").await;
    assert_eq!(grown(&joined, &etcd.calls()), [("Put", 1)], "only the call of this test");
}

#[tokio::test]
async fn hundred_invalid_keys_are_ignored_and_reported() {
    let etcd = Etcd::with(NETWORK).await;
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.7")).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    let mut client = etcd.client().await;
    for n in 0..100u8 {
        let (name, value): (String, Vec<u8>) = match n % 5 {
            0 => (format!("nonsense{n}"), flanneld("198.51.100.7").into()),
            1 => (format!("10.1.{n}.7-24"), flanneld("198.51.100.7").into()),
            2 => (format!("10.77.{n}.0-24"), flanneld("198.51.100.7").into()),
            3 => (format!("10.1.0.{n}-33"), b"{}".to_vec()),
            _ => (format!("bytes{n}"), vec![0xff, n]),
        };
        client.put(format!("{PREFIX}/subnets/{name}"), value, None).await.expect("written");
    }
    // A valid lease that becomes invalid is removed, as a fresh list would do.
    etcd.put("subnets/10.1.200.0-24", "garbage").await;
    etcd.put("subnets/10.1.201.0-24", &flanneld("198.51.100.8")).await;
    let expected: BTreeSet<String> = [node.subnet(), "10.1.201.0/24".into()].into();
    node.until("the good leases", |node| node.subnets() == expected).await;
    node.until("the bad keys", |node| node.store.health().bad_keys.len() == 101).await;
    let named = |node: &Node| node.notices.iter().any(|notice| notice.text.contains("/subnets/nonsense0 "));
    node.until("a notice with the key", named).await;

    let mut fresh = Host::new(&etcd, 2).open().await;
    node.until("the other node", |node| node.subnets().len() == 3).await;
    assert_eq!(fresh.subnets(), node.subnets());
    assert_eq!(fresh.store.health().bad_keys, node.store.health().bad_keys);
    fresh.until("one notice for all", |node| node.has_noticed(NoticeCode::InvalidKeys)).await;
    assert_eq!(fresh.notices.len(), 1, "{:?}", fresh.notices);
}

#[tokio::test]
async fn dropped_future_loses_no_update() {
    let etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    // They begin at 10.1.120.0, because our own is one of the first hundred.
    for n in 0..100u8 {
        etcd.put(&format!("subnets/10.1.{}.0-24", 120 + n), &flanneld("198.51.100.7")).await;
        // The future is dropped while an update may be on its way.
        let next = tokio::time::timeout(Duration::from_micros(50), node.store.next()).await;
        if let Ok(Update::Change(change, _)) = next {
            node.rib.apply(change);
        }
    }
    node.until("all of them", |node| node.subnets().len() == 101).await;
    node.store.reload();
    node.until("a list", |node| node.store.health().resyncs.asked == 1).await;
    assert_eq!(node.subnets().len(), 101);
}
