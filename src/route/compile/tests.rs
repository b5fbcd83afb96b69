//! Tests of compiled routes: which prefix leads to which host, and which leases have no route.

use super::super::change::Change;
use super::super::encryption_policy::Policy;
use super::super::fib::Target;
use super::super::lease::Public;
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
    };
    let only_v6 = Public { v4: None, v6: Some("2001:db8::2".parse().expect("an address")) };
    let ours = Public { v4: Some([192, 0, 2, 1].into()), v6: None };
    rib.apply(Change::Snapshot {
        leases: vec![lease("six", "10.1.2.0/24", only_v6), lease("claimant", "10.1.3.0/24", ours)],
        revision: 1,
    });
    let local = Local {
        subnets: vec![net("10.1.1.0/24")],
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
    assert_eq!(reasons(&routes), [vxlan, UnreachableReason::NoIpv6]);
}
