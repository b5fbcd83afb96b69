//! The verdict about our key, for everything that can be found in it.

use std::time::Duration;

use super::*;
use crate::route::{Abilities, Public};
use crate::store::flannel::{Identity, Keys};

fn node() -> NodeIdentity {
    NodeIdentity {
        keys: Keys::new("/p"),
        identity: Identity { id: "id-alpha".into(), name: "alpha".into(), abilities: Abilities::OURS },
        public: Public { v4: Some([192, 0, 2, 1].into()), v6: None },
        subnets: None,
        ttl: Duration::from_secs(60),
    }
}

fn own(node: &NodeIdentity) -> OwnLease {
    OwnLease {
        key: "/p/subnets/10.1.2.0-24".into(),
        subnets: vec!["10.1.2.0/24".parse().expect("net")],
        value: node.value(),
        created: 5,
        mod_revision: 7,
        lease: 1,
        granted: node.ttl,
        expires: None,
    }
}

fn found(value: &str, mod_revision: i64) -> Verdict {
    let node = node();
    let own = own(&node);
    let kv = Kv { key: own.key.clone(), value: value.into(), create_revision: 5, mod_revision, lease: 2 };
    judge(&node, &own, Some(&kv))
}

fn hopsack(id: &str, address: &str) -> String {
    format!(
        r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendData":{{"NodeID":"{id}","Name":"n-{id}"}}}}"#
    )
}

#[test]
fn key_with_our_value_is_ours() {
    assert_eq!(judge(&node(), &own(&node()), None), Verdict::Gone);
    assert_eq!(found(&node().value(), 7), Verdict::Ours);
    assert_eq!(
        found(&node().value(), 99),
        Verdict::Ours,
        "the answer to our write was lost, or an operator wrote it again"
    );
    let before = hopsack("id-alpha", "192.0.2.77");
    assert_eq!(found(&before, 7), Verdict::Rewrite(None), "we wrote it before our address changed");
}

#[test]
fn key_of_another_node_is_stolen() {
    for (value, theirs) in [
        (hopsack("id-beta", "192.0.2.2"), "n-id-beta (node id id-beta) at 192.0.2.2"),
        (hopsack("id-beta", "192.0.2.1"), "n-id-beta (node id id-beta) at 192.0.2.1"),
        (r#"{"PublicIP":"192.0.2.2","PublicIPv6":null}"#.to_owned(), "flanneld at 192.0.2.2"),
        (hopsack("id-alpha", "192.0.2.2"), "n-id-alpha (node id id-alpha) at 192.0.2.2"),
    ] {
        let Verdict::Stolen(lost) = found(&value, 9) else { panic!("{value}") };
        let is_copy = theirs.contains("id-alpha");
        assert_eq!(lost.cause == LostCause::StateCopied, is_copy, "{lost:?}");
        assert_eq!(
            (lost.ours.as_str(), lost.theirs.as_str()),
            ("alpha (node id id-alpha) at 192.0.2.1", theirs)
        );
        let named = [&lost.ours, &lost.theirs].iter().all(|name| lost.reason.contains(*name));
        assert!(named && lost.reason.contains("10.1.2.0/24"), "{}", lost.reason);
    }
}

#[test]
fn key_that_no_other_host_can_have_is_rewritten() {
    for (value, code) in [
        (r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#.to_owned(), NoticeCode::WrittenByFlanneld),
        (hopsack("id-alpha", "192.0.2.1"), NoticeCode::WrittenByTwin),
        ("garbage".to_owned(), NoticeCode::WrittenInvalid),
    ] {
        let Verdict::Rewrite(Some(notice)) = found(&value, 9) else { panic!("{value}") };
        assert_eq!(notice.code, code, "{notice}");
    }
}
