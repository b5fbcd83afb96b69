//! Histories as etcd would tell them, told badly.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::route::{Public, Rib};

fn keys() -> Keys {
    Keys::new("/p")
}

fn networks() -> Networks {
    Networks { v4: Some(("10.1.0.0/16".parse().expect("net"), 24)), v6: None }
}

fn kv(key: &str, value: &str, mod_revision: i64) -> Kv {
    Kv { key: key.to_owned(), value: value.as_bytes().to_vec(), mod_revision, lease: 1 }
}

fn listing(kvs: &[Kv], revision: i64) -> Listing {
    Listing { revision, kvs: kvs.to_vec() }
}

#[test]
fn a_bad_key_costs_itself_and_is_named_once() {
    let mut map = Map::new(&keys(), networks());
    let good = kv("/p/subnets/10.1.2.0-24", r#"{"PublicIP":"192.0.2.2","PublicIPv6":null}"#, 3);
    let bad = [
        kv("/p/subnets/nonsense", "{}", 4),
        kv("/p/subnets/10.1.3.0-24", "not json", 5),
        kv("/p/subnets/10.9.3.0-24", r#"{"PublicIP":"192.0.2.2"}"#, 6),
        kv("/p/subnets/10.0.0.0-8", r#"{"PublicIP":"192.0.2.2"}"#, 6),
    ];
    let all: Vec<Kv> = bad.iter().chain([&good]).cloned().collect();
    assert_eq!(map.list(&listing(&all, 6)).len(), 4);
    assert_eq!(map.list(&listing(&all, 7)), [], "the same again is no news");
    assert_eq!((map.len(), map.bad().len()), (1, 4));

    let (event, reason) = map.put(&kv(&good.key, "garbage", 8));
    assert!(matches!(event, Some(Event::Delete { revision: 8, .. })) && reason.is_some());
    let (event, reason) = map.put(&Kv { mod_revision: 9, ..good });
    assert!(matches!(event, Some(Event::Put(_))) && reason.is_none());
    assert_eq!(map.bad().len(), 4);
    assert_eq!(map.delete("/p/subnets/nonsense", 10), None);
    assert_eq!(map.bad().len(), 3);
}

#[test]
fn a_store_that_lost_its_history_is_followed() {
    let (mut map, mut rib) = (Map::new(&keys(), networks()), Rib::default());
    let value = r#"{"PublicIP":"192.0.2.2"}"#;
    map.list(&listing(&[kv("/p/subnets/10.1.2.0-24", value, 900)], 1000));
    rib.apply(map.snapshot());
    map.list(&listing(&[kv("/p/subnets/10.1.7.0-24", value, 5)], 7));
    assert!(rib.apply(map.snapshot()), "a lower revision, and yet news");
    let (event, _) = map.put(&kv("/p/subnets/10.1.8.0-24", value, 8));
    assert!(rib.apply(Change::Delta(event.into_iter().collect())));
    let subnets: Vec<String> = rib.leases().map(|lease| lease.subnets[0].to_string()).collect();
    assert_eq!(subnets, ["10.1.7.0/24", "10.1.8.0/24"]);
    assert_eq!(map.revision(), 7, "what etcd would say");
}

/// What a key may be written to, or `None`: deleted.
fn values() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        1 => Just(None),
        3 => (1u8..4).prop_map(|host| Some(format!(r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":null}}"#))),
        1 => Just(Some("garbage".to_owned())),
    ]
}

/// How a stretch of history reaches us.
#[derive(Debug, Clone)]
enum Delivery {
    /// The watch tells it, beginning this many revisions before where we are.
    Watch(usize),
    /// It was compacted: a list.
    List,
}

fn deliveries() -> impl Strategy<Value = Delivery> {
    prop_oneof![3 => (0usize..4).prop_map(Delivery::Watch), 1 => Just(Delivery::List)]
}

proptest! {
    #[test]
    fn any_history_ends_in_a_fresh_list(
        writes in prop::collection::vec((0u8..6, values()), 1..60),
        deliveries in prop::collection::vec((1usize..8, deliveries()), 1..40),
        order in prop::collection::vec(any::<u16>(), 60),
    ) {
        let names = ["10.1.1.0-24", "10.1.2.0-24", "10.1.3.0-24", "10.7.0.0-24", "nonsense", "10.1.4.0-24"];
        let key = |n: u8| format!("/p/subnets/{}", names[usize::from(n)]);
        let state = |upto: usize| {
            let mut state: BTreeMap<String, Kv> = BTreeMap::new();
            for (at, (n, value)) in writes[..upto].iter().enumerate() {
                let revision = i64::try_from(at).expect("small") + 1;
                match value {
                    Some(value) => drop(state.insert(key(*n), kv(&key(*n), value, revision))),
                    None => drop(state.remove(&key(*n))),
                }
            }
            listing(&state.into_values().collect::<Vec<_>>(), i64::try_from(upto).expect("small"))
        };
        let mut map = Map::new(&keys(), networks());
        let (mut rib, mut late) = (Rib::default(), Rib::default());
        map.list(&state(0));
        let (mut at, mut sent) = (0, vec![map.snapshot()]);
        for (count, delivery) in deliveries.into_iter().chain([(60, Delivery::Watch(2))]) {
            let to = (at + count).min(writes.len());
            match delivery {
                Delivery::List => {
                    map.list(&state(to));
                    sent.push(map.snapshot());
                }
                Delivery::Watch(back) => {
                    let mut events = Vec::new();
                    let from = at.saturating_sub(back);
                    for (index, (n, value)) in writes.iter().enumerate().take(to).skip(from) {
                        let revision = i64::try_from(index).expect("small") + 1;
                        events.extend(match value {
                            Some(value) => map.put(&kv(&key(*n), value, revision)).0,
                            None => map.delete(&key(*n), revision),
                        });
                        if index >= at {
                            map.reached(revision);
                        }
                    }
                    sent.push(Change::Delta(events));
                }
            }
            at = to;
        }
        let mut fresh = Map::new(&keys(), networks());
        fresh.list(&state(writes.len()));
        prop_assert_eq!(map.differences(&fresh), Vec::<&str>::new());
        prop_assert_eq!(map.bad(), fresh.bad());
        let mut wanted = Rib::default();
        wanted.apply(fresh.snapshot());

        for change in &sent {
            rib.apply(change.clone());
        }
        prop_assert!(rib.leases().eq(wanted.leases()));
        // The same in any order, and some of it twice.
        let mut shuffled: Vec<(u16, Change)> = order.iter().copied().zip(sent.iter().chain(&sent).cloned()).collect();
        shuffled.sort_by_key(|(order, _)| *order);
        if shuffled.len() >= sent.len() {
            for (_, change) in shuffled {
                late.apply(change);
            }
            prop_assert!(late.leases().eq(wanted.leases()));
        }
    }
}

#[test]
fn leases_claim_addresses_of_either_family() {
    let six = kv("/p/subnets/10.1.2.0-24", r#"{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::2"}"#, 1);
    let Reading::Lease(record) = read(&keys(), None, &six) else { panic!("a lease") };
    let public = |v4: Option<[u8; 4]>, v6: Option<&str>| Public {
        v4: v4.map(Into::into),
        v6: v6.map(|text| text.parse().expect("v6")),
    };
    assert!(record.claims(&public(Some([192, 0, 2, 2]), None)));
    assert!(record.claims(&public(None, Some("2001:db8::2"))));
    assert!(!record.claims(&public(Some([192, 0, 2, 3]), Some("2001:db8::3"))));
    assert!(!record.claims(&Public::default()));
}
