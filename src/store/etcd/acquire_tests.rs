//! Every case of joining, from lists.

use super::*;
use crate::route::Abilities;

fn node() -> Node {
    Node {
        keys: Keys::new("/p"),
        identity: Identity { id: "id-alpha".into(), name: "alpha".into(), abilities: Abilities::OURS },
        public: Public { v4: Some([192, 0, 2, 1].into()), v6: None },
        ttl: Duration::from_secs(86_400),
    }
}

fn network(text: &str) -> Network {
    Network::parse(text).expect("good")
}

fn usual() -> Network {
    network(r#"{"Network":"10.1.0.0/16"}"#)
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn kv(name: &str, value: &str, lease: i64) -> Kv {
    Kv { key: format!("/p/subnets/{name}"), value: value.into(), mod_revision: 3, lease }
}

fn flanneld(name: &str, address: &str, lease: i64) -> Kv {
    kv(name, &format!(r#"{{"PublicIP":"{address}","PublicIPv6":null}}"#), lease)
}

fn hopsack(name: &str, address: &str, id: &str) -> Kv {
    let data = format!(r#"{{"NodeID":"{id}","Name":"{id}","Abilities":[]}}"#);
    kv(name, &format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendData":{data}}}"#), 1)
}

fn planned(kvs: &[Kv], network: &Network, previous: &[&str]) -> Result<Plan, StoreError> {
    let holdings = Holdings::of(&Keys::new("/p"), kvs);
    let previous: Vec<Vec<IpNet>> = previous.iter().map(|text| vec![net(text)]).collect();
    plan(&holdings, network, &node(), &previous, || 5)
}

fn adopted(plan: Result<Plan, StoreError>) -> String {
    match plan {
        Ok(Plan::Adopt(record)) => name(&record.subnets),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_ours_is_adopted_by_id_or_else_by_address() {
    let by_address = flanneld("10.1.9.0-24", "192.0.2.1", 1);
    let by_id = hopsack("10.1.7.0-24", "192.0.2.99", "id-alpha");
    assert_eq!(
        adopted(planned(std::slice::from_ref(&by_address), &usual(), &["10.1.4.0/24"])),
        "10.1.9.0/24"
    );
    assert_eq!(adopted(planned(&[by_address, by_id], &usual(), &[])), "10.1.7.0/24");
}

#[test]
fn an_address_that_another_node_holds_is_refused_with_both_names() {
    let error =
        planned(&[hopsack("10.1.9.0-24", "192.0.2.1", "id-beta")], &usual(), &[]).expect_err("refused");
    assert_eq!(error.code, ErrorCode::AddressTaken);
    for part in ["id-beta", "alpha (node id id-alpha)", "10.1.9.0/24", "192.0.2.1"] {
        assert!(error.text.contains(part), "{part}: {error}");
    }
}

#[test]
fn what_does_not_fit_is_cleared_but_for_reservations() {
    let small = network(r#"{"Network":"10.1.0.0/16","SubnetMax":"10.1.8.0"}"#);
    let held = flanneld("10.1.9.0-24", "192.0.2.1", 1);
    assert!(matches!(planned(&[held], &small, &[]), Ok(Plan::Clear(_))));
    let error = planned(&[flanneld("10.1.9.0-24", "192.0.2.1", 0)], &small, &[]).expect_err("refused");
    assert_eq!(error.code, ErrorCode::ReservationOutside);
    let elsewhere = flanneld("172.16.3.0-24", "192.0.2.1", 1);
    assert!(matches!(planned(&[elsewhere], &usual(), &[]), Ok(Plan::Clear(_))), "the network was changed");
    let dual = network(r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#);
    assert!(matches!(planned(&[flanneld("10.1.9.0-24", "192.0.2.1", 1)], &dual, &[]), Ok(Plan::Clear(_))));
}

#[test]
fn the_previous_subnet_is_taken_again_if_nobody_has_it() {
    let create = |kvs: &[Kv], previous: &[&str]| match planned(kvs, &usual(), previous) {
        Ok(Plan::Create(subnets)) => name(&subnets),
        other => panic!("{other:?}"),
    };
    assert_eq!(create(&[], &["10.1.44.0/24"]), "10.1.44.0/24");
    assert_eq!(create(&[], &["10.2.44.0/24", "10.1.45.0/24"]), "10.1.45.0/24");
    let taken = hopsack("10.1.44.0-24", "192.0.2.7", "id-beta");
    assert_eq!(create(&[taken], &["10.1.44.0/24"]), "10.1.6.0/24", "the sixth of the free ones");
    let garbage = kv("10.1.44.0-24", "garbage", 1);
    assert_eq!(create(&[garbage], &["10.1.44.0/24"]), "10.1.6.0/24", "a bad value holds its key");
}

#[test]
fn a_full_network_is_refused_with_the_mend() {
    let tiny = network(r#"{"Network":"10.1.0.0/28"}"#);
    let kvs: Vec<Kv> = [4, 8, 12]
        .map(|last| flanneld(&format!("10.1.0.{last}-30"), &format!("192.0.2.{}", last + 100), 1))
        .to_vec();
    let error = planned(&kvs, &tiny, &[]).expect_err("full");
    assert_eq!(error.code, ErrorCode::NetworkFull);
}

#[test]
fn a_network_that_is_missing_wrong_or_not_udp_says_so() {
    let keys = Keys::new("/p");
    let of = |text: Option<&str>| {
        let config =
            |text: &str| Kv { key: "/p/config".into(), value: text.into(), mod_revision: 1, lease: 0 };
        let kvs = text.map(config).into_iter().collect();
        network_of(&keys, &Listing { revision: 1, kvs }).map_err(|error| error.code)
    };
    assert_eq!(of(None).err(), Some(ErrorCode::NetworkMissing));
    assert_eq!(of(Some("{}")).err(), Some(ErrorCode::NetworkInvalid));
    let vxlan = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#;
    assert_eq!(of(Some(vxlan)).err(), Some(ErrorCode::BackendUnsupported));
    assert!(of(Some(r#"{"Network":"10.1.0.0/16"}"#)).is_ok());
}
