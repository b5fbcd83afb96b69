//! Histories of etcd, delivered out of order, twice, or as lists.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::route::{Networks, Public, Rib};
use crate::store::etcd::record::{Reading, read};
use crate::store::flannel::Keys;
use crate::store::watch::{Kv, Listing, PutResult};

fn keys() -> Keys {
    Keys::new("/p")
}

fn networks() -> Networks {
    Networks { v4: Some(("10.1.0.0/16".parse().expect("net"), 24)), v6: None }
}

fn kv(key: &str, value: &str, mod_revision: i64) -> Kv {
    Kv { key: key.to_owned(), value: value.as_bytes().to_vec(), create_revision: 1, mod_revision, lease: 1 }
}

fn listing(kvs: &[Kv], revision: i64) -> Listing {
    Listing { revision, kvs: kvs.to_vec() }
}

fn cache() -> LeaseCache {
    LeaseCache::new(LeaseDecoder::new(&keys(), networks()))
}

/// Events of a written key, and whether an invalid key is news.
fn put(cache: &mut LeaseCache, kv: &Kv) -> (Vec<Event>, bool) {
    match cache.put(kv) {
        PutResult::Known | PutResult::Other => (Vec::new(), false),
        PutResult::Object(record) => (vec![event(cache, Changed::Put(record))], false),
        PutResult::Invalid { removed, news } => {
            (removed.into_iter().map(|changed| event(cache, changed)).collect(), news.is_some())
        }
    }
}

fn delete(cache: &mut LeaseCache, key: &str, revision: i64) -> Vec<Event> {
    let changed = cache.delete(key, revision);
    changed.into_iter().map(|changed| event(cache, changed)).collect()
}

#[test]
fn invalid_key_is_ignored_and_reported_once() {
    let mut cache = cache();
    let valid = kv("/p/subnets/10.1.2.0-24", r#"{"PublicIP":"192.0.2.2","PublicIPv6":null}"#, 3);
    let invalid = [
        kv("/p/subnets/nonsense", "{}", 4),
        kv("/p/subnets/10.1.3.0-24", "not json", 5),
        kv("/p/subnets/10.9.3.0-24", r#"{"PublicIP":"192.0.2.2"}"#, 6),
        kv("/p/subnets/10.1.4.0-24", r#"{"PublicIP":"10.1.9.9"}"#, 6),
        kv("/p/subnets/10.1.5.0-24", r#"{"PublicIP":"127.0.0.1"}"#, 6),
        kv("/p/subnets/10.0.0.0-8", r#"{"PublicIP":"192.0.2.2"}"#, 6),
    ];
    let all: Vec<Kv> = invalid.iter().chain([&valid]).cloned().collect();
    assert_eq!(cache.replace(&listing(&all, 6)).len(), 6);
    assert_eq!(cache.replace(&listing(&all, 7)), [], "the same list again is no news");
    assert_eq!((cache.len(), cache.invalid().len()), (1, 6));

    let (events, is_news) = put(&mut cache, &kv(&valid.key, "garbage", 8));
    assert!(matches!(events[..], [Event::Delete { revision: 8, .. }]) && is_news);
    let (events, is_news) = put(&mut cache, &Kv { mod_revision: 9, ..valid });
    assert!(matches!(events[..], [Event::Put(_)]) && !is_news);
    assert_eq!(cache.invalid().len(), 6);
    assert_eq!(delete(&mut cache, "/p/subnets/nonsense", 10), []);
    assert_eq!(cache.invalid().len(), 5);
}

#[test]
fn revisions_never_decrease_after_a_restore() {
    let (mut cache, mut rib) = (cache(), Rib::default());
    let value = r#"{"PublicIP":"192.0.2.2"}"#;
    cache.replace(&listing(&[kv("/p/subnets/10.1.2.0-24", value, 900)], 1000));
    rib.apply(snapshot(&cache));
    cache.replace(&listing(&[kv("/p/subnets/10.1.7.0-24", value, 5)], 7));
    assert!(rib.apply(snapshot(&cache)), "a lower revision is news as well");
    let (events, _) = put(&mut cache, &kv("/p/subnets/10.1.8.0-24", value, 8));
    assert!(rib.apply(Change::Delta(events)));
    let subnets: Vec<String> = rib.leases().map(|lease| lease.subnets[0].to_string()).collect();
    assert_eq!(subnets, ["10.1.7.0/24", "10.1.8.0/24"]);
    assert_eq!(cache.revision(), 7, "etcd's own revision");
}

/// A value that a key may be given; `None` deletes it.
fn values() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        1 => Just(None),
        3 => (1u8..4).prop_map(|host| Some(format!(r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":null}}"#))),
        1 => Just(Some("garbage".to_owned())),
    ]
}

/// How a part of the history is delivered.
#[derive(Debug, Clone)]
enum Delivery {
    /// By the watch, which begins this many revisions before our position.
    Watch(usize),
    /// By a list, because it was compacted.
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
        let mut map = cache();
        let (mut rib, mut late) = (Rib::default(), Rib::default());
        map.replace(&state(0));
        let (mut at, mut sent) = (0, vec![snapshot(&map)]);
        for (count, delivery) in deliveries.into_iter().chain([(60, Delivery::Watch(2))]) {
            let to = (at + count).min(writes.len());
            match delivery {
                Delivery::List => {
                    map.replace(&state(to));
                    sent.push(snapshot(&map));
                }
                Delivery::Watch(back) => {
                    let mut events = Vec::new();
                    let from = at.saturating_sub(back);
                    for (index, (n, value)) in writes.iter().enumerate().take(to).skip(from) {
                        let revision = i64::try_from(index).expect("small") + 1;
                        events.extend(match value {
                            Some(value) => put(&mut map, &kv(&key(*n), value, revision)).0,
                            None => delete(&mut map, &key(*n), revision),
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
        let mut fresh = cache();
        fresh.replace(&state(writes.len()));
        prop_assert_eq!(map.differences(&fresh), Vec::<&str>::new());
        prop_assert_eq!(map.invalid(), fresh.invalid());
        let mut wanted = Rib::default();
        wanted.apply(snapshot(&fresh));

        for change in &sent {
            rib.apply(change.clone());
        }
        prop_assert!(rib.leases().eq(wanted.leases()));
        // The same changes in any order, and some of them twice.
        let mut shuffled: Vec<(u16, Change)> = order.iter().copied().zip(sent.iter().chain(&sent).cloned()).collect();
        shuffled.sort_by_key(|(order, _)| *order);
        prop_assert!(shuffled.len() >= sent.len(), "the order is too short for every change");
        for (_, change) in shuffled {
            late.apply(change);
        }
        prop_assert!(late.leases().eq(wanted.leases()));
    }
}

#[test]
fn lease_claims_addresses_of_either_family() {
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
