//! Keys and values from Flannel's sources and documentation, and round trips.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::*;
use crate::route::{Abilities, Announced, Dialect, Fingerprint, Mode, Public, Unfit, unfit};

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

#[test]
fn keys_are_those_of_flannel() {
    let keys = Keys::new("/coreos.com/network/");
    assert_eq!(keys.config(), "/coreos.com/network/config");
    for (subnets, key) in [
        (vec![net("10.5.52.0/24")], "/coreos.com/network/subnets/10.5.52.0-24"),
        (
            vec![net("10.12.13.0/24"), net("fd00:12:13::/56")],
            "/coreos.com/network/subnets/10.12.13.0-24&fd00:12:13::-56",
        ),
        (vec![net("fd00:12:13::/56")], "/coreos.com/network/overlay/subnets/fd00:12:13::-56"),
    ] {
        assert_eq!(keys.of(&subnets).as_deref(), Some(key));
        assert_eq!(keys.read(key), Key::Lease(subnets));
    }
    assert_eq!(keys.of(&[]), None);
    assert_eq!(keys.of(&[net("fd00::/64"), net("10.0.0.0/24")]), None);
}

#[test]
fn other_keys_are_recognised() {
    let keys = Keys::new("/coreos.com/network");
    assert_eq!(keys.read("/coreos.com/network/config"), Key::Config);
    assert_eq!(keys.read("/coreos.com/network/overlay/nodes/7"), Key::Other);
    assert_eq!(keys.read("/coreos.com/networks/subnets/10.5.52.0-24"), Key::Other);
    for bad in [
        "subnets",
        "subnets-x/10.5.52.0-24",
        "subnets/",
        "subnets/x",
        "subnets/10.5.52.0",
        "subnets/10.5.52.0-33",
        "subnets/10.5.52.0-32",
        "subnets/10.5.52.7-24",
        "subnets/10.5.52.0-024",
        "subnets/010.5.52.0-24",
        "subnets/x10.5.52.0-24",
        "subnets/10.5.52.0-24&",
        "subnets/10.5.52.0-24&FD00::-64",
        "subnets/10.5.52.0-24&fd00::-128",
        "subnets/fd00::-64",
        "overlay/subnets/10.5.52.0-24",
    ] {
        let key = keys.read(&format!("/coreos.com/network/{bad}"));
        assert!(matches!(key, Key::Invalid(_)), "{bad}: {key:?}");
    }
}

#[test]
fn attributes_are_those_of_flannel_byte_for_byte() {
    let public = Public { v4: Some([192, 168, 64, 3].into()), v6: None };
    let plain = Attributes { public, backend: String::new(), identity: None, has_unreadable_security: false };
    assert_eq!(plain.to_json(), r#"{"PublicIP":"192.168.64.3","PublicIPv6":null}"#);
    let gw = Attributes { backend: "host-gw".into(), ..plain.clone() };
    assert_eq!(gw.to_json(), r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}"#);
    let abilities = Abilities { ipv6: true, bundles: true, link_mtu: Some(1500), ..Abilities::default() };
    let identity = Identity { id: "7".into(), name: "alpha".into(), abilities };
    let ours = Attributes::ours(Public { v6: Some("2001:db8::3".parse().expect("v6")), ..public }, &identity);
    assert_eq!(
        ours.to_json(),
        concat!(
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":"2001:db8::3","#,
            r#""BackendData":{"NodeID":"7","Name":"alpha","Abilities":["ipv6","bundles"],"LinkMTU":1500}}"#
        )
    );
    let six = Attributes { public: Public { v4: None, v6: ours.public.v6 }, ..plain };
    assert_eq!(six.to_json(), r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::3"}"#);
    assert_eq!(Attributes::parse(six.to_json().as_bytes()), Ok(six));
}

#[test]
fn null_is_no_announcement_of_encryption() {
    let value =
        r#"{"PublicIP":"192.0.2.3","BackendData":{"NodeID":"7","Abilities":["ipv6"],"Security":null}}"#;
    let read = Attributes::parse(value.as_bytes()).expect("a lease");
    assert!(!read.has_unreadable_security);
    assert_eq!(read.identity.expect("ours").abilities.secure, None);
}

#[test]
fn values_of_flanneld_are_read() {
    let read = |text: &str| Attributes::parse(text.as_bytes()).expect(text).lease(&[net("10.1.2.0/24")], 7);
    let udp = read(r#"{"PublicIP":"192.168.64.3","PublicIPv6":null}"#);
    assert_eq!((udp.name.as_str(), udp.dialect, udp.revision), ("192.168.64.3", Dialect::Flannel, 7));
    let vxlan = read(
        r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
    );
    assert_eq!(vxlan.dialect, Dialect::Other("vxlan".into()));
    let folded = read(r#"{"publicip":"192.168.64.3","later":[],"backendtype":"udp"}"#);
    assert_eq!((folded.public.v4, folded.dialect), (Some([192, 168, 64, 3].into()), Dialect::Flannel));
    let later = read(
        r#"{"PublicIP":"192.0.2.1","BackendData":{"NodeID":"a","Abilities":["ipv6","teleport"],"Later":1}}"#,
    );
    let Dialect::Hopsack(abilities) = later.dialect else { panic!("{later:?}") };
    assert_eq!(abilities, Abilities { ipv6: true, ..Abilities::default() });
    assert_eq!(later.name, "a", "a node without name is called by its id");
}

#[test]
fn impossible_link_mtu_is_ignored() {
    for (text, mtu) in [
        ("576", Some(576)),
        ("9000", Some(9000)),
        ("65536", Some(65535)),
        ("575", None),
        ("0", None),
        ("-1", None),
        ("1500.5", None),
        ("\"1500\"", None),
        ("null", None),
    ] {
        let value = format!(r#"{{"PublicIP":"192.0.2.1","BackendData":{{"NodeID":"a","LinkMTU":{text}}}}}"#);
        let identity = Attributes::parse(value.as_bytes()).expect("a lease").identity.expect("a hopsack");
        assert_eq!(identity.abilities.link_mtu, mtu, "{text}");
    }
}

#[test]
fn invalid_name_is_replaced_by_the_node_id() {
    for name in ["two words".to_owned(), "a\nb".to_owned(), "\u{1b}[2J".to_owned(), "x".repeat(70_000)] {
        let data = serde_json::json!({ "NodeID": "id-1", "Name": name });
        let value = serde_json::json!({ "PublicIP": "192.0.2.1", "BackendData": data }).to_string();
        let attributes = Attributes::parse(value.as_bytes()).expect("the lease stays in use");
        let lease = attributes.lease(&[net("10.1.2.0/24")], 7);
        assert_eq!((lease.name.as_str(), lease.origin.has_invalid_name), ("id-1", true));
        assert_eq!(attributes.writer(), "id-1 (node id id-1) at 192.0.2.1");
    }
    let refused = |text: &str| Attributes::parse(text.as_bytes()).expect_err(text);
    let id = r#"{"PublicIP":"192.0.2.1","BackendData":{"NodeID":"a\nb"}}"#;
    assert_eq!(refused(id), AttributesError::NotAName("NodeID"));
    let backend = r#"{"PublicIP":"192.0.2.1","BackendType":"a b"}"#;
    assert_eq!(refused(backend), AttributesError::NotAName("BackendType"));
}

#[test]
fn invalid_value_is_refused_with_its_reason() {
    use AttributesError as E;
    let refused = |text: &str| Attributes::parse(text.as_bytes()).expect_err(text);
    for text in ["", "null", "[]"] {
        assert!(matches!(refused(text), E::NotAnObject(_)), "{text}");
    }
    assert_eq!(refused("{}"), E::NoPublicIp);
    assert_eq!(refused(r#"{"PublicIP":"0.0.0.0"}"#), E::NoPublicIp);
    for address in ["fd00::1", "here"] {
        let text = format!(r#"{{"PublicIP":"{address}"}}"#);
        assert_eq!(refused(&text), E::NotAnAddress("PublicIP", address.to_owned()));
    }
    assert_eq!(refused(r#"{"PublicIP":7}"#), E::NotAString("PublicIP"));
    assert_eq!(refused(r#"{"PublicIP":"224.0.0.1"}"#), E::Unfit([224, 0, 0, 1].into(), Unfit::Multicast));
    assert_eq!(refused(r#"{"PublicIP":"127.0.0.1"}"#), E::Unfit([127, 0, 0, 1].into(), Unfit::Loopback));
    assert!(matches!(refused(r#"{"PublicIPv6":"::ffff:192.0.2.1"}"#), E::Unfit(_, Unfit::Mapped)));
    assert_eq!(refused(r#"{"PublicIP":"192.0.2.1","BackendType":1}"#), E::NotAString("BackendType"));
}

/// Its writer wants encryption. If the lease were ignored, an older lease of the same address would
/// decide that packets travel in clear.
#[test]
fn unreadable_announcement_of_encryption_is_kept() {
    let print = "ab".repeat(32);
    let nobodys = format!(r#"{{"Security":{{"Mode":"sealed","Port":8286,"Fingerprint":"{print}"}}}}"#);
    for data in [r#"{"NodeID":"a","Security":{"Mode":"rot13","Port":1}}"#, r#"{"Security":7}"#, &nobodys] {
        let value = format!(r#"{{"PublicIP":"192.0.2.1","BackendData":{data}}}"#);
        let attributes = Attributes::parse(value.as_bytes()).expect("a lease");
        assert!(attributes.has_unreadable_security);
        assert_eq!(attributes.lease(&[net("10.1.2.0/24")], 7).dialect, Dialect::Unreadable);
    }
}

fn subnets() -> impl Strategy<Value = Vec<IpNet>> {
    let v4 = (any::<u32>(), 0u8..=31)
        .prop_map(|(bits, len)| IpNet::V4(Ipv4Net::new(bits.into(), len).expect("a length").trunc()));
    let v6 = (any::<u128>(), 0u8..=127)
        .prop_map(|(bits, len)| IpNet::V6(Ipv6Net::new(bits.into(), len).expect("a length").trunc()))
        // An IPv4-mapped address is spelled with dots. No flanneld reads it and no overlay has it.
        .prop_filter("spelled with dots", |net| !net.to_string().contains('.'));
    (proptest::option::of(v4), proptest::option::of(v6))
        .prop_map(|(v4, v6)| v4.into_iter().chain(v6).collect::<Vec<_>>())
        .prop_filter("no subnet", |subnets: &Vec<IpNet>| !subnets.is_empty())
}

proptest! {
    #[test]
    fn keys_round_trip(subnets in subnets()) {
        let keys = Keys::new("/p");
        prop_assert_eq!(keys.read(&keys.of(&subnets).expect("a key")), Key::Lease(subnets));
    }

    #[test]
    fn key_has_one_spelling(text in "[0-9a-f.:&-]{0,24}") {
        let keys = Keys::new("/p");
        for key in [format!("/p/subnets/{text}"), format!("/p/overlay/subnets/{text}")] {
            if let Key::Lease(subnets) = keys.read(&key) {
                prop_assert_eq!(keys.of(&subnets), Some(key));
            }
        }
    }

    #[test]
    fn attributes_round_trip(
        v4 in proptest::option::of(1u32..0xe000_0000),
        v6 in proptest::option::of(1u128..0xff00 << 112),
        identity in proptest::option::of(("[a-z0-9-]{1,20}", ".{1,20}", any::<[bool; 6]>())),
        secure in proptest::option::of((any::<bool>(), 1u16.., any::<[u8; 32]>())),
        link_mtu in proptest::option::of(576u16..),
    ) {
        prop_assume!(v4.is_some() || v6.is_some());
        let public = Public { v4: v4.map(Ipv4Addr::from), v6: v6.map(Ipv6Addr::from) };
        prop_assume!(public.iter().all(|address| unfit(address).is_none()));
        let secure = secure.map(|(is_quic, port, print)| Announced {
            mode: if is_quic { Mode::Quic } else { Mode::Sealed },
            port,
            fingerprint: Fingerprint(print),
        });
        let identity = identity.map(|(id, name, [ipv6, control, bundles, sealed, ecn, fast])| {
            let abilities = Abilities {
                ipv6,
                control,
                bundles,
                sealed,
                ecn,
                fast,
                secure,
                link_mtu,
                is_assumed: false,
            };
            Identity { id, name, abilities }
        });
        let backend = String::new();
        let attributes = Attributes { public, backend, identity, has_unreadable_security: false };
        prop_assert_eq!(Attributes::parse(attributes.to_json().as_bytes()), Ok(attributes));
    }

    #[test]
    fn any_bytes_are_read_or_refused(value in any::<Vec<u8>>(), key in ".*") {
        let _ = Attributes::parse(&value);
        let _ = Keys::new("/p").read(&format!("/p/subnets/{key}"));
    }
}
