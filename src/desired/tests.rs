//! Properties of the diff, over small sets of names and addresses so that rows of all kinds occur
//! together.

use std::path::PathBuf;

use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;

use super::*;

const OURS: [&str; 2] = ["hopsack0", "hopsack1"];
const ALL: [&str; 4] = ["hopsack0", "hopsack1", "eth0", "cni0"];

fn net() -> impl Strategy<Value = ipnet::IpNet> {
    const NETS: [&str; 6] =
        ["10.1.1.0/32", "10.1.1.0/24", "10.1.0.0/16", "fd00::/128", "fd00::/48", "0.0.0.0/0"];
    proptest::sample::select(&NETS).prop_map(|net| net.parse().expect("a prefix"))
}

fn source() -> impl Strategy<Value = Option<std::net::IpAddr>> {
    proptest::option::of(proptest::sample::select(vec![[10, 1, 1, 0].into(), [10, 1, 2, 0].into()]))
}

fn address(links: &'static [&'static str]) -> impl Strategy<Value = Address> {
    (proptest::sample::select(links), net()).prop_map(|(link, net)| Address { link: link.into(), net })
}

fn route(links: &'static [&'static str], protocols: &'static [u8]) -> impl Strategy<Value = Route> {
    (net(), proptest::sample::select(links), source(), proptest::sample::select(protocols)).prop_map(
        |(destination, link, source, protocol)| Route { destination, link: link.into(), source, protocol },
    )
}

fn link(name: &'static str, aliases: &'static [&'static str]) -> impl Strategy<Value = Link> {
    let kind = proptest::sample::select(&[LinkKind::Tun, LinkKind::Other]);
    (kind, proptest::sample::select(aliases), any::<bool>(), 1400..1403u32).prop_map(
        move |(kind, alias, up, mtu)| Link {
            name: name.into(),
            kind,
            alias: alias.into(),
            up,
            mtu,
            peer: String::new(),
        },
    )
}

fn file() -> impl Strategy<Value = File> {
    (0..3u8, 0..2u8, proptest::sample::select(&[0o644, 0o600])).prop_map(|(path, content, mode)| File {
        path: PathBuf::from(format!("/run/{path}")),
        content: vec![content],
        mode,
    })
}

/// At most one file a path, one route a destination and device, as parts of the program ask for
/// them.
fn desired() -> impl Strategy<Value = Desired> {
    let links = proptest::sample::subsequence(&OURS, 0..=2).prop_flat_map(|names| {
        let one = |name| (any::<bool>(), 1400..1403u32).prop_map(move |(up, mtu)| ours(name, up, mtu));
        names.into_iter().map(one).collect::<Vec<_>>()
    });
    const KEYS: [&str; 3] =
        ["net/ipv4/ip_forward", "net/ipv4/conf/hopsack0/accept_local", "net/ipv6/conf/x/addr_gen_mode"];
    let sysctls = btree_map(proptest::sample::select(&KEYS), (0..2u8, any::<bool>()), 0..3);
    let addresses = btree_set(address(&OURS), 0..4);
    let routes = btree_set(route(&OURS, &[ROUTE_PROTOCOL]), 0..4);
    (links, addresses, routes, sysctls, btree_set(file(), 0..3)).prop_map(
        |(links, addresses, routes, sysctls, files)| {
            let mut desired = Desired::default();
            links.into_iter().for_each(|link| desired.add_link(link));
            let named = |link: &str| desired.links.contains_key(link);
            let addresses = addresses.into_iter().filter(|row| named(&row.link)).collect();
            let mut keys = std::collections::BTreeSet::new();
            let routes = routes.into_iter().filter(|row| named(&row.link));
            let routes = routes.filter(|row| keys.insert((row.destination, row.link.clone()))).collect();
            let mut paths = std::collections::BTreeSet::new();
            let files = files.into_iter().filter(|file| paths.insert(file.path.clone())).collect();
            let sysctl = |(key, (value, required)): (&str, (u8, bool))| Sysctl {
                key: key.into(),
                value: value.to_string(),
                required,
            };
            let sysctls = sysctls.into_iter().map(sysctl).collect();
            Desired { addresses, routes, sysctls, files, ..desired }
        },
    )
}

fn ours(name: &str, up: bool, mtu: u32) -> Link {
    Link { name: name.into(), kind: LinkKind::Tun, alias: ALIAS.into(), up, mtu, peer: String::new() }
}

fn actual() -> impl Strategy<Value = Actual> {
    let aliases: &[&str] = &[ALIAS, ALIAS, ALIAS, "", "other"];
    let links = proptest::sample::subsequence(&ALL, 0..=4)
        .prop_flat_map(move |names| names.into_iter().map(|name| link(name, aliases)).collect::<Vec<_>>());
    const KEYS: [&str; 3] = ["net/ipv4/ip_forward", "net/ipv4/conf/hopsack0/accept_local", "kernel/other"];
    let sysctls = btree_map(proptest::sample::select(&KEYS), 0..2u8, 0..3);
    let routes = btree_set(route(&ALL, &[ROUTE_PROTOCOL, 2, 3]), 0..8);
    (links, btree_set(address(&ALL), 0..8), routes, sysctls, btree_set(file(), 0..3)).prop_map(
        |(links, addresses, routes, sysctls, files)| Actual {
            links: links.into_iter().map(|link| (link.name.clone(), link)).collect(),
            offloads: std::collections::BTreeSet::new(),
            addresses,
            routes,
            sysctls: sysctls.into_iter().map(|(key, value)| (key.to_owned(), value.to_string())).collect(),
            files: files.into_iter().map(|file| (file.path.clone(), file)).collect(),
        },
    )
}

fn after(mut actual: Actual, diff: &Diff) -> Actual {
    diff.steps.iter().for_each(|step| actual.take(step));
    actual
}

/// The devices of `desired` that can be shaped: they are there and ours.
fn reachable(actual: &Actual, desired: &Desired, link: &str) -> bool {
    let there = actual.links.get(link);
    desired.links.contains_key(link) && there.is_some_and(|there| there.is_ours())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn steps_lead_to_desired(before in actual(), desired in desired()) {
        let after = after(before.clone(), &diff(&before, &desired));
        let reachable = |link: &str| reachable(&before, &desired, link);
        for link in desired.links.values().filter(|link| reachable(&link.name)) {
            prop_assert_eq!(after.links.get(&link.name), Some(link));
        }
        let (wanted, there) = (&desired.addresses, &after.addresses);
        prop_assert_eq!(
            wanted.iter().filter(|row| reachable(&row.link)).collect::<Vec<_>>(),
            there.iter().filter(|row| reachable(&row.link)).collect::<Vec<_>>()
        );
        let ours = |row: &&Route| reachable(&row.link) && row.protocol == ROUTE_PROTOCOL;
        let keys = |row: &Route| (row.destination, row.link.clone(), row.source);
        prop_assert_eq!(
            desired.routes.iter().filter(|row| reachable(&row.link)).map(keys).collect::<Vec<_>>(),
            after.routes.iter().filter(ours).map(keys).collect::<Vec<_>>()
        );
        let is_blocked = |link: &str| desired.links.contains_key(link) && !reachable(link);
        let possible = desired.sysctls.iter().filter(|row| !row.link().is_some_and(is_blocked));
        for sysctl in possible.filter(|row| row.required || before.sysctls.contains_key(&row.key)) {
            prop_assert_eq!(after.sysctls.get(&sysctl.key), Some(&sysctl.value));
        }
        for file in &desired.files {
            prop_assert_eq!(after.files.get(&file.path), Some(file));
        }
    }

    #[test]
    fn second_diff_has_no_steps(before in actual(), desired in desired()) {
        let first = diff(&before, &desired);
        let second = diff(&after(before, &first), &desired);
        prop_assert!(second.steps.is_empty(), "{:?}", second.steps);
        prop_assert_eq!(second.unmet, first.unmet);
    }

    #[test]
    fn foreign_rows_are_never_touched(before in actual(), desired in desired()) {
        let after = after(before.clone(), &diff(&before, &desired));
        let reachable = |link: &str| reachable(&before, &desired, link);
        for link in before.links.values().filter(|link| !reachable(&link.name)) {
            prop_assert_eq!(after.links.get(&link.name), Some(link));
        }
        for row in before.addresses.iter().filter(|row| !reachable(&row.link)) {
            prop_assert!(after.addresses.contains(row), "{row:?}");
        }
        let foreign = |row: &&Route| row.protocol != ROUTE_PROTOCOL || !reachable(&row.link);
        for row in before.routes.iter().filter(foreign) {
            prop_assert!(after.routes.contains(row), "{row:?}");
        }
        for (key, value) in &before.sysctls {
            let named = desired.sysctls.iter().any(|row| row.key == *key);
            prop_assert!(named || after.sysctls.get(key) == Some(value), "{key}");
        }
        for (path, file) in &before.files {
            let named = desired.files.iter().any(|row| row.path == *path);
            prop_assert!(named || after.files.get(path) == Some(file), "{path:?}");
        }
    }

    #[test]
    fn removals_come_last(before in actual(), desired in desired()) {
        let steps = diff(&before, &desired).steps;
        let first = steps.iter().position(Step::is_removal).unwrap_or(steps.len());
        prop_assert!(steps[first..].iter().all(Step::is_removal), "{steps:?}");
    }

    #[test]
    fn unmet_links_are_missing_or_foreign(before in actual(), desired in desired()) {
        let unmet = diff(&before, &desired).unmet;
        for name in desired.links.keys() {
            let expected = match before.links.get(name) {
                None => Some(Obstacle::Missing),
                Some(link) if !link.is_ours() => Some(Obstacle::Foreign),
                Some(_) => None,
            };
            let found = unmet.iter().find(|unmet| unmet.link == *name).map(|unmet| unmet.obstacle);
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn settings_come_before_links_and_files_after_routes() {
    let route = Route {
        destination: "10.1.0.0/16".parse().expect("a prefix"),
        link: "hopsack0".into(),
        source: None,
        protocol: ROUTE_PROTOCOL,
    };
    let sysctl = Sysctl { key: "net/ipv4/ip_forward".into(), value: "1".into(), required: true };
    let file = File { path: "/run/subnet.env".into(), content: Vec::new(), mode: 0o644 };
    let address = Address { link: "hopsack0".into(), net: "10.1.1.0/32".parse().expect("a prefix") };
    let mut desired = Desired::default();
    desired.add_link(ours("hopsack0", true, 1472));
    desired.addresses.insert(address);
    desired.routes.insert(route);
    desired.sysctls.insert(sysctl);
    desired.files.insert(file);
    let mut actual = Actual::default();
    actual.links.insert("hopsack0".into(), ours("hopsack0", false, 1500));
    let objects: Vec<Object> = diff(&actual, &desired).steps.iter().map(Step::object).collect();
    assert_eq!(objects, [Object::Sysctl, Object::Link, Object::Address, Object::Route, Object::File]);
}

#[test]
fn settings_of_a_missing_device_are_no_steps() {
    let sysctl = |key: &str| Sysctl { key: key.into(), value: "1".into(), required: true };
    let mut desired = Desired::default();
    desired.add_link(ours("hop.0", true, 1472));
    desired.sysctls.insert(sysctl("net/ipv4/conf/hop.0/accept_local"));
    desired.sysctls.insert(sysctl("net/ipv4/ip_forward"));
    let diff = diff(&Actual::default(), &desired);
    assert_eq!(diff.steps, [Step::SetSysctl(sysctl("net/ipv4/ip_forward"))]);
    assert_eq!(diff.unmet, [Unmet { link: "hop.0".into(), obstacle: Obstacle::Missing }]);
}

#[test]
fn sysctl_name_keeps_dots_of_devices() {
    let key = "net/ipv4/conf/hop.0/accept_local".to_owned();
    let sysctl = Sysctl { key, value: "1".into(), required: true };
    assert_eq!(sysctl.name(), "net.ipv4.conf.hop/0.accept_local");
}

fn end(name: &str, peer: &str, up: bool) -> Link {
    let (kind, alias, peer) = (LinkKind::Veth, ALIAS.to_owned(), peer.to_owned());
    Link { name: name.to_owned(), kind, alias, up, mtu: 65535, peer }
}

/// A veth pair with a setting and an offload.
fn pair() -> Desired {
    let mut desired = Desired::default();
    desired.add_link(end("gro0", "gro1", true));
    desired.add_link(end("gro1", "gro0", true));
    let key = "net/ipv6/conf/gro1/addr_gen_mode".to_owned();
    desired.sysctls.insert(Sysctl { key, value: "1".into(), required: true });
    desired.offloads.insert(Offload { link: "gro1".into(), feature: Feature::Gro, on: true });
    desired
}

/// Applies diffs until nothing differs, and returns what was done in each.
fn converge(actual: &mut Actual, desired: &Desired) -> Vec<Vec<Object>> {
    let pass = || {
        let steps = diff(actual, desired).steps;
        steps.iter().for_each(|step| actual.take(step));
        (!steps.is_empty()).then(|| steps.iter().map(Step::object).collect())
    };
    std::iter::from_fn(pass).take(5).collect()
}

#[test]
fn veth_pair_is_made_then_set_then_brought_up() {
    let mut actual = Actual::default();
    let made = vec![Object::Link];
    let set = vec![Object::Sysctl, Object::Offload, Object::Link, Object::Link];
    assert_eq!(converge(&mut actual, &pair()), [made.clone(), set.clone()]);
    assert_eq!(actual.links, pair().links);
    // One end was renamed: what is left goes, and a new pair comes.
    let mut renamed = actual.links.remove("gro1").expect("made");
    renamed.name = "other".into();
    actual.links.get_mut("gro0").expect("made").peer = "other".into();
    actual.links.insert("other".into(), renamed);
    assert_eq!(converge(&mut actual, &pair()), [made, set]);
    // Another program undoes the offload, and sets one end down.
    actual.offloads.clear();
    actual.links.insert("gro0".into(), end("gro0", "gro1", false));
    assert_eq!(converge(&mut actual, &pair()), [[Object::Offload, Object::Link]]);
}

#[test]
fn unwanted_veth_pair_goes_if_it_is_ours() {
    let mut actual = Actual::default();
    converge(&mut actual, &pair());
    let names = ["gro0".to_owned(), "gro1".to_owned()];
    let unwanted = Desired { unwanted: names.into(), ..Desired::default() };
    assert_eq!(diff(&actual, &Desired::default()).steps, [], "only by name");
    assert_eq!(converge(&mut actual, &unwanted), [[Object::Link]]);
    assert!(actual.links.is_empty() && actual.offloads.is_empty());
    let foreign = Link { alias: String::new(), ..end("gro0", "gro1", true) };
    actual.links.insert("gro0".into(), foreign);
    assert_eq!(diff(&actual, &unwanted), Diff::default());
    // Nor is another program's device taken for an end.
    let wanted = diff(&actual, &pair());
    assert_eq!(wanted.steps, []);
    assert_eq!(wanted.unmet, [Unmet { link: "gro0".into(), obstacle: Obstacle::Foreign }]);
}
