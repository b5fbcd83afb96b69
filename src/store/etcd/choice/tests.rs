//! Every case of joining, from lists.

use std::time::Duration;

use super::*;
use crate::route::{Abilities, Public};
use crate::store::flannel::{Identity, Keys};
use crate::store::watch::Kv;

fn node() -> NodeIdentity {
    NodeIdentity {
        keys: Keys::new("/p"),
        identity: Identity { id: "id-alpha".into(), name: "alpha".into(), abilities: Abilities::OURS },
        public: Public { v4: Some([192, 0, 2, 1].into()), v6: None },
        subnets: None,
        ttl: Duration::from_secs(86_400),
    }
}

fn network(text: &str) -> Network {
    Network::parse(text).expect("valid")
}

fn usual() -> Network {
    network(r#"{"Network":"10.1.0.0/16"}"#)
}

fn kv(name: &str, value: &str, lease: i64) -> Kv {
    Kv { key: format!("/p/subnets/{name}"), value: value.into(), create_revision: 2, mod_revision: 3, lease }
}

fn flanneld(name: &str, address: &str, lease: i64) -> Kv {
    kv(name, &format!(r#"{{"PublicIP":"{address}","PublicIPv6":null}}"#), lease)
}

fn hopsack(name: &str, address: &str, id: &str) -> Kv {
    let data = format!(r#"{{"NodeID":"{id}","Name":"{id}","Abilities":[]}}"#);
    kv(name, &format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendData":{data}}}"#), 1)
}

fn chosen(kvs: &[Kv], network: &Network, previous: &[&str]) -> Result<LeaseChoice, StoreError> {
    let holdings = Holdings::of(&Keys::new("/p"), kvs);
    let previous: Vec<Vec<IpNet>> =
        previous.iter().map(|text| vec![text.parse().expect("a prefix")]).collect();
    choose(&holdings, network, &node(), &previous, || 5)
}

fn adopted(choice: Result<LeaseChoice, StoreError>) -> String {
    match choice {
        Ok(LeaseChoice::Adopt(record)) => subnets_text(&record.subnets),
        other => panic!("{other:?}"),
    }
}

#[test]
fn own_lease_is_adopted_by_id_or_else_by_address() {
    let by_address = flanneld("10.1.9.0-24", "192.0.2.1", 1);
    let by_id = hopsack("10.1.7.0-24", "192.0.2.99", "id-alpha");
    assert_eq!(adopted(chosen(std::slice::from_ref(&by_address), &usual(), &["10.1.4.0/24"])), "10.1.9.0/24");
    assert_eq!(adopted(chosen(&[by_address, by_id], &usual(), &[])), "10.1.7.0/24");
}

#[test]
fn address_of_another_hopsack_is_refused_with_both_names() {
    let error =
        chosen(&[hopsack("10.1.9.0-24", "192.0.2.1", "id-beta")], &usual(), &[]).expect_err("refused");
    assert_eq!(error.code, ErrorCode::AddressTaken);
    for part in ["id-beta", "alpha (node id id-alpha)", "10.1.9.0/24", "192.0.2.1"] {
        assert!(error.text.contains(part), "{part}: {error}");
    }
}

#[test]
fn lease_that_does_not_fit_is_cleared_unless_reserved() {
    let is_cleared =
        |held: Kv, network: &Network| matches!(chosen(&[held], network, &[]), Ok(LeaseChoice::Clear(_)));
    let small = network(r#"{"Network":"10.1.0.0/16","SubnetMax":"10.1.8.0"}"#);
    assert!(is_cleared(flanneld("10.1.9.0-24", "192.0.2.1", 1), &small));
    let error = chosen(&[flanneld("10.1.9.0-24", "192.0.2.1", 0)], &small, &[]).expect_err("refused");
    assert_eq!(error.code, ErrorCode::ReservationOutside);
    assert!(is_cleared(flanneld("172.16.3.0-24", "192.0.2.1", 1), &usual()), "the network was changed");
    let dual = network(r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#);
    assert!(is_cleared(flanneld("10.1.9.0-24", "192.0.2.1", 1), &dual));
}

#[test]
fn previous_subnet_is_taken_again_if_it_is_free() {
    let created = |kvs: &[Kv], previous: &[&str]| match chosen(kvs, &usual(), previous) {
        Ok(LeaseChoice::Create(subnets)) => subnets_text(&subnets),
        other => panic!("{other:?}"),
    };
    assert_eq!(created(&[], &["10.1.44.0/24"]), "10.1.44.0/24");
    assert_eq!(created(&[], &["10.2.44.0/24", "10.1.45.0/24"]), "10.1.45.0/24");
    let taken = hopsack("10.1.44.0-24", "192.0.2.7", "id-beta");
    assert_eq!(created(&[taken], &["10.1.44.0/24"]), "10.1.6.0/24", "the sixth of the free ones");
    let garbage = kv("10.1.44.0-24", "garbage", 1);
    assert_eq!(created(&[garbage], &["10.1.44.0/24"]), "10.1.6.0/24", "an invalid value holds its key");
}

#[test]
fn full_network_is_refused() {
    let tiny = network(r#"{"Network":"10.1.0.0/28"}"#);
    let kvs: Vec<Kv> = [4, 8, 12]
        .map(|last| flanneld(&format!("10.1.0.{last}-30"), &format!("192.0.2.{}", last + 100), 1))
        .to_vec();
    let error = chosen(&kvs, &tiny, &[]).expect_err("full");
    assert!(error.code == ErrorCode::NetworkFull && !error.is_permanent());
}
