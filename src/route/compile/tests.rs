//! Tests of compiled routes: which prefix leads to which host, and which leases have no route.

use super::super::change::Change;
use super::super::encryption_policy::{Announced, Mode, Policy};
use super::super::fib::Target;
use super::super::fingerprint::Fingerprint;
use super::super::lease::{Origin, Public};
use super::*;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn routes(subnets: &[(&str, u8)]) -> Compiled {
    let leases = subnets
        .iter()
        .map(|(subnet, host)| Lease {
            name: format!("h{host}"),
            subnets: vec![net(subnet)],
            public: Public { v4: Some([192, 0, 2, *host].into()), v6: None },
            dialect: Dialect::Hopsack(Abilities::OURS),
            revision: u64::from(*host),
            // Leases of one host may overlap.
            origin: Origin { node: Some("id".into()), ..Origin::default() },
        })
        .collect();
    let mut rib = Rib::default();
    rib.apply(Change::Snapshot { leases, revision: 1000 });
    let networks = Networks {
        v4: Some(("10.1.0.0/16".parse().expect("net"), 24)),
        v6: Some(("fd00:1::/48".parse().expect("net"), 64)),
    };
    let local = Local {
        subnets: vec![net("10.1.1.0/24"), net("fd00:1:0:1::/64")],
        nets: Vec::new(),
        public: [192, 0, 2, 1].into(),
        port: 8285,
        mtu: 1472,
        policy: Policy::default(),
    };
    compile(&rib, &networks, &local)
}

fn name(routes: &Compiled, dst: &str) -> String {
    match routes.fib.lookup(dst.parse().expect("an address")) {
        None => "-".to_owned(),
        Some(Target::Local) => "local".to_owned(),
        Some(Target::Peer(number)) => routes.peers[number as usize].name.clone(),
    }
}

fn reasons(routes: &Compiled) -> Vec<UnreachableReason> {
    routes.unreachable.iter().map(|lease| lease.reason.clone()).collect()
}

#[test]
fn regular_subnets_are_indexed() {
    let routes = routes(&[("10.1.2.0/24", 2), ("10.1.255.0/24", 3), ("fd00:1:0:2::/64", 2)]);
    assert_eq!(name(&routes, "10.1.1.7"), "local");
    assert_eq!(name(&routes, "10.1.2.255"), "h2");
    assert_eq!(name(&routes, "10.1.255.1"), "h3");
    assert_eq!(name(&routes, "10.1.3.1"), "-");
    assert_eq!(name(&routes, "10.2.0.1"), "-");
    assert_eq!(name(&routes, "10.0.255.255"), "-");
    assert_eq!(name(&routes, "fd00:1:0:2::9"), "h2");
    assert_eq!(name(&routes, "fd00:1:0:1::9"), "local");
    assert!(!routes.fib.v4.needs_search() && !routes.fib.v6.needs_search(), "the array has all subnets");
    assert_eq!(routes.peers.len(), 2, "two leases of one host are one peer");
}

#[test]
fn irregular_prefixes_match_longest_first() {
    let routes =
        routes(&[("10.1.4.0/22", 2), ("10.1.5.0/24", 3), ("10.1.5.128/25", 4), ("172.16.0.0/12", 5)]);
    assert_eq!(name(&routes, "10.1.4.9"), "h2");
    assert_eq!(name(&routes, "10.1.5.9"), "h3");
    assert_eq!(name(&routes, "10.1.5.129"), "h4");
    assert_eq!(name(&routes, "10.1.7.255"), "h2");
    assert_eq!(name(&routes, "10.1.8.0"), "-");
    assert_eq!(name(&routes, "172.31.255.255"), "h5");
    assert_eq!(name(&routes, "172.32.0.0"), "-");
}

#[test]
fn an_unreachable_lease_is_reported() {
    let mut rib = Rib::default();
    let lease = |name: &str, subnet: &str, public| Lease {
        name: name.to_owned(),
        subnets: vec![net(subnet)],
        public,
        dialect: Dialect::Flannel,
        revision: 1,
        origin: Origin::default(),
    };
    let only_v6 = Public { v4: None, v6: Some("2001:db8::2".parse().expect("an address")) };
    let ours = Public { v4: Some([192, 0, 2, 1].into()), v6: None };
    rib.apply(Change::Snapshot {
        leases: vec![lease("six", "10.1.2.0/24", only_v6), lease("claimant", "10.1.3.0/24", ours)],
        revision: 1,
    });
    let local = Local {
        subnets: vec![net("10.1.1.0/24")],
        nets: Vec::new(),
        public: [192, 0, 2, 1].into(),
        port: 8285,
        mtu: 1472,
        policy: Policy::default(),
    };
    let networks = Networks { v4: Some(("10.1.0.0/16".parse().expect("net"), 24)), v6: None };
    let routes = compile(&rib, &networks, &local);
    assert_eq!(name(&routes, "10.1.2.1"), "-");
    assert_eq!(
        reasons(&routes),
        [
            UnreachableReason::NoPublicAddress([192, 0, 2, 1].into()),
            UnreachableReason::OwnPublicAddress([192, 0, 2, 1].into()),
        ]
    );
}

#[test]
fn flanneld_gets_no_ipv6_and_vxlan_nothing() {
    let mut rib = Rib::default();
    let lease = |name: &str, host: u8, dialect| Lease {
        name: name.to_owned(),
        subnets: vec![net(&format!("10.1.{host}.0/24")), net(&format!("fd00:1:0:{host}::/64"))],
        public: Public { v4: Some([192, 0, 2, host].into()), v6: None },
        dialect,
        revision: 1,
        origin: Origin::default(),
    };
    let leases = vec![
        lease("flanneld", 2, Dialect::Flannel),
        lease("hopsack", 3, Dialect::Hopsack(Abilities::OURS)),
        lease("vxlan", 4, Dialect::Other("vxlan".into())),
    ];
    rib.apply(Change::Snapshot { leases, revision: 1 });
    let networks = Networks {
        v4: Some(("10.1.0.0/16".parse().expect("net"), 24)),
        v6: Some(("fd00:1::/48".parse().expect("net"), 64)),
    };
    let local = Local {
        subnets: vec![net("10.1.1.0/24")],
        nets: Vec::new(),
        public: [192, 0, 2, 1].into(),
        port: 8285,
        mtu: 1472,
        policy: Policy::default(),
    };
    let routes = compile(&rib, &networks, &local);
    assert_eq!([name(&routes, "10.1.2.1"), name(&routes, "fd00:1:0:2::1")], ["flanneld", "-"]);
    assert_eq!([name(&routes, "10.1.3.1"), name(&routes, "fd00:1:0:3::1")], ["hopsack", "hopsack"]);
    assert_eq!([name(&routes, "10.1.4.1"), name(&routes, "fd00:1:0:4::1")], ["-", "-"]);
    let vxlan = UnreachableReason::OtherBackend("vxlan".into());
    assert_eq!(reasons(&routes), [UnreachableReason::NoIpv6, vxlan]);
}

/// A lease of 192.0.2.`host`, created at `created`. `certificate`: what it announces.
fn lease(subnet: &str, host: u8, created: u64, certificate: Option<u8>) -> Lease {
    let secure =
        certificate.map(|n| Announced { mode: Mode::Sealed, port: 8286, fingerprint: Fingerprint([n; 32]) });
    Lease {
        name: format!("h{host}"),
        subnets: vec![net(subnet)],
        public: Public { v4: Some([192, 0, 2, host].into()), v6: None },
        dialect: Dialect::Hopsack(Abilities { secure, ..Abilities::OURS }),
        revision: created,
        origin: Origin {
            key: subnet.to_owned(),
            node: Some(format!("id-{host}")),
            created,
            ..Origin::default()
        },
    }
}

fn flanneld(subnet: &str, host: u8, created: u64) -> Lease {
    let lease = lease(subnet, host, created, None);
    Lease { dialect: Dialect::Flannel, origin: Origin { node: None, ..lease.origin }, ..lease }
}

/// The routes of host 1, which holds 10.1.1.0/24.
fn routes_of(leases: Vec<Lease>, policy: Policy) -> Compiled {
    let mut rib = Rib::default();
    rib.apply(Change::Snapshot { leases, revision: 1000 });
    let networks = Networks { v4: Some(("10.1.0.0/16".parse().expect("net"), 24)), v6: None };
    let local = Local {
        subnets: vec![net("10.1.1.0/24")],
        nets: Vec::new(),
        public: [192, 0, 2, 1].into(),
        port: 8285,
        mtu: 1472,
        policy,
    };
    compile(&rib, &networks, &local)
}

fn protection(routes: &Compiled, dst: &str) -> Option<Protection> {
    match routes.fib.lookup(dst.parse().expect("an address")) {
        Some(Target::Peer(number)) => Some(routes.peers[number as usize].protection),
        None | Some(Target::Local) => None,
    }
}

const SEALED: Policy = Policy { mode: Mode::Sealed, require: false };

#[test]
fn lease_without_encryption_does_not_weaken_its_address() {
    for leftover in ["10.1.0.0/24", "10.1.9.0/24"] {
        let leases = vec![lease("10.1.2.0/24", 2, 1, Some(2)), flanneld(leftover, 2, 2)];
        let routes = routes_of(leases.clone(), SEALED);
        let inside = leftover.replace(".0/24", ".7");
        assert_eq!(protection(&routes, "10.1.2.7"), Some(Protection::Sealed));
        assert_eq!(protection(&routes, &inside), Some(Protection::Sealed));
        let [Remark { key, kind: RemarkKind::Unencrypted { other, .. } }] = routes.remarks.as_slice() else {
            panic!("{:?}", routes.remarks)
        };
        assert_eq!((key.as_str(), other.as_str()), (leftover, "10.1.2.0/24"));
        assert_eq!(routes.peers[0].name, "h2");
        let clear = routes_of(leases, Policy::default());
        assert_eq!(protection(&clear, "10.1.2.7"), Some(Protection::Clear), "a host that does not encrypt");
    }
}

#[test]
fn ignored_lease_still_protects_its_address() {
    // The lease that announces encryption overlaps our subnet, so it is not routed.
    let leases = vec![lease("10.1.1.128/25", 2, 1, Some(2)), flanneld("10.1.2.0/24", 2, 2)];
    let routes = routes_of(leases, SEALED);
    assert_eq!(protection(&routes, "10.1.2.7"), Some(Protection::Sealed));
}

#[test]
fn two_certificates_at_one_address_have_no_route() {
    let leases = vec![lease("10.1.2.0/24", 2, 1, Some(2)), lease("10.1.3.0/24", 2, 2, Some(3))];
    for policy in [SEALED, Policy::default()] {
        let routes = routes_of(leases.clone(), policy);
        assert!(routes.peers.is_empty() && routes.by_address.is_empty());
        assert_eq!([name(&routes, "10.1.2.1"), name(&routes, "10.1.3.1")], ["-", "-"]);
        let two = |key: &str| UnreachableReason::TwoCertificates(key.to_owned());
        assert_eq!(reasons(&routes).len(), 2);
        assert!(reasons(&routes).iter().all(|r| *r == two("10.1.2.0/24") || *r == two("10.1.3.0/24")));
        let keys: Vec<&str> = routes.remarks.iter().map(|remark| remark.key.as_str()).collect();
        assert_eq!(keys, ["10.1.2.0/24", "10.1.3.0/24"]);
        let text = routes.remarks[0].kind.to_string();
        assert!(text.contains("10.1.3.0/24"), "{text}");
    }
}

#[test]
fn unreadable_announcement_protects_its_address() {
    let unreadable = |subnet| Lease { dialect: Dialect::Unreadable, ..lease(subnet, 2, 1, None) };
    for other in [flanneld("10.1.2.0/24", 2, 2), lease("10.1.2.0/24", 2, 2, Some(2))] {
        let leases = vec![unreadable("10.1.3.0/24"), other, lease("10.1.4.0/24", 4, 3, Some(4))];
        let routes = routes_of(leases.clone(), SEALED);
        assert_eq!([name(&routes, "10.1.2.1"), name(&routes, "10.1.3.1")], ["-", "-"]);
        assert_eq!(protection(&routes, "10.1.4.1"), Some(Protection::Sealed), "another host");
        assert!(reasons(&routes).iter().all(|r| *r == UnreachableReason::Unreadable("10.1.3.0/24".into())));
        assert!(routes.remarks.iter().any(|remark| remark.kind == RemarkKind::Unreadable));
        let clear = routes_of(leases, Policy::default());
        assert_eq!(protection(&clear, "10.1.2.7"), Some(Protection::Clear), "a host that does not encrypt");
    }
    let alone = routes_of(vec![unreadable("10.1.3.0/24")], Policy::default());
    assert_eq!(reasons(&alone), [UnreachableReason::Unreadable("10.1.3.0/24".into())]);
}

#[test]
fn required_encryption_leaves_no_clear_route() {
    let require = Policy { mode: Mode::Sealed, require: true };
    let leases = vec![flanneld("10.1.2.0/24", 2, 1), lease("10.1.3.0/24", 3, 1, Some(3))];
    let routes = routes_of(leases, require);
    assert_eq!([name(&routes, "10.1.2.1"), name(&routes, "10.1.3.1")], ["-", "h3"]);
    assert_eq!(reasons(&routes), [UnreachableReason::NotEncrypted]);
    assert!(routes.peers.iter().all(|peer| peer.protection == Protection::Sealed));
    assert_eq!(routes.by_address.len(), 1, "datagrams of a clear host are those of a stranger");
}

#[test]
fn lease_in_our_own_subnet_is_ignored() {
    for (subnet, inside) in [("10.1.1.2/31", "10.1.1.2"), ("10.1.1.0/25", "10.1.1.9")] {
        let routes = routes_of(vec![lease(subnet, 2, 1, None)], Policy::default());
        assert_eq!(name(&routes, inside), "local");
        assert_eq!(reasons(&routes).len(), 1);
        assert!(matches!(routes.remarks[..], [Remark { kind: RemarkKind::Overlap { .. }, .. }]));
        assert!(routes.peers.is_empty());
    }
    let around = routes_of(vec![lease("10.1.0.0/22", 2, 1, None)], Policy::default());
    assert_eq!([name(&around, "10.1.1.1"), name(&around, "10.1.2.1")], ["local", "-"]);
}

#[test]
fn older_of_two_overlapping_leases_stays() {
    let leases = vec![
        lease("10.1.4.0/22", 2, 5, None),
        lease("10.1.5.0/24", 3, 4, None),
        // Ignored itself by h3, so it displaces nothing.
        lease("10.1.6.0/24", 4, 6, None),
    ];
    let routes = routes_of(leases, Policy::default());
    assert_eq!(
        ["10.1.4.1", "10.1.5.1", "10.1.6.1"].map(|dst| name(&routes, dst)),
        ["-", "h3", "h4"],
        "h2's lease is ignored as a whole"
    );
    assert_eq!(reasons(&routes), [UnreachableReason::Overlap("10.1.5.0/24".into())]);
}

#[test]
fn leases_of_one_host_may_overlap() {
    let mut wide = lease("10.1.4.0/23", 2, 1, None);
    wide.origin.node = Some("id-2".into());
    let same = routes_of(vec![wide.clone(), lease("10.1.5.0/24", 2, 2, None)], Policy::default());
    assert_eq!(["10.1.4.1", "10.1.5.1"].map(|dst| name(&same, dst)), ["h2", "h2"]);
    let by_address = routes_of(vec![wide, flanneld("10.1.5.0/24", 2, 2)], Policy::default());
    assert_eq!(["10.1.4.1", "10.1.5.1"].map(|dst| name(&by_address, dst)), ["h2", "h2"]);
}

#[test]
fn unusual_length_is_reported_and_routed() {
    let routes = routes_of(vec![lease("10.1.4.0/25", 2, 1, None)], Policy::default());
    assert_eq!(name(&routes, "10.1.4.1"), "h2");
    assert!(matches!(routes.remarks[..], [Remark { kind: RemarkKind::Length { .. }, .. }]));
}

#[test]
fn older_lease_of_this_host_is_no_conflict() {
    let mut rib = Rib::default();
    let mut dual = lease("10.1.1.0/24", 1, 9, None);
    dual.subnets.push(net("fd00:1:0:1::/64"));
    rib.apply(Change::Snapshot {
        leases: vec![dual.clone(), lease("10.1.1.0/24", 1, 1, None)],
        revision: 10,
    });
    let networks = Networks {
        v4: Some(("10.1.0.0/16".parse().expect("net"), 24)),
        v6: Some(("fd00:1::/48".parse().expect("net"), 64)),
    };
    let local = Local {
        subnets: dual.subnets,
        nets: Vec::new(),
        public: [192, 0, 2, 1].into(),
        port: 8285,
        mtu: 1472,
        policy: Policy::default(),
    };
    let routes = compile(&rib, &networks, &local);
    assert_eq!(name(&routes, "10.1.1.1"), "local");
    assert!(routes.unreachable.is_empty() && routes.remarks.is_empty());
}

#[test]
fn addresses_of_this_host_and_broadcasts_are_refused() {
    let mut rib = Rib::default();
    let leases = vec![
        lease("10.1.2.0/24", 2, 1, None),
        lease("10.1.3.0/24", 7, 1, None),
        lease("10.1.4.0/24", 255, 1, None),
        lease("10.1.5.0/24", 9, 1, None),
    ];
    rib.apply(Change::Snapshot { leases, revision: 1000 });
    let networks = Networks { v4: Some(("10.1.0.0/16".parse().expect("net"), 24)), v6: None };
    let local = Local {
        subnets: vec![net("10.1.1.0/24")],
        // A link of /31 has no broadcast address: 192.0.2.9 is the other end.
        nets: vec![
            net("192.0.2.1/24"),
            "192.0.2.7/32".parse().expect("net"),
            "192.0.2.8/31".parse().expect("net"),
        ],
        public: [192, 0, 2, 1].into(),
        port: 8285,
        mtu: 1472,
        policy: Policy::default(),
    };
    let routes = compile(&rib, &networks, &local);
    let own = UnreachableReason::OwnAddress([192, 0, 2, 7].into());
    let broadcast = UnreachableReason::Broadcast([192, 0, 2, 255].into());
    assert_eq!(reasons(&routes), [own, broadcast]);
    assert_eq!(["10.1.2.1", "10.1.5.1"].map(|dst| name(&routes, dst)), ["h2", "h9"]);
    let keys: Vec<&str> = routes.remarks.iter().map(|remark| remark.key.as_str()).collect();
    assert_eq!(keys, ["10.1.3.0/24", "10.1.4.0/24"]);
}
