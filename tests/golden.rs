//! Leases and datagrams of version 0.1, kept as files: what a host of that version writes and sends
//! is read by this one.
//!
//! The files never change. A new version adds files of its own.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

#[path = "support/sinks.rs"]
#[allow(unreachable_pub, dead_code)]
mod sinks;

use hopsack::forward::{Arrival, Counters, IngressState, Table, Train, VerifySource, ingress};
use hopsack::packet::ecn::Ecn;
use hopsack::packet::{IpPacket, bundle};
use hopsack::route::{
    Abilities, Announced, Change, Dialect, Fingerprint, Lease, Local, Mode, Networks, Policy, Rib,
};
use hopsack::seal::{Agreement, OpenError, Role, Secret, Session, Suite};
use hopsack::store::file::Map;
use hopsack::store::flannel::{Attributes, Key, Keys};
use hopsack::time::Nanos;
use ipnet::IpNet;
use sinks::Sink;

const ID: &str = "2f1d6c1e-8d0b-4f0e-9c55-6a7a5f4d9b10";

fn file(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v0.1").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A datagram: hexadecimal digits, with line breaks anywhere.
fn datagram(name: &str) -> Vec<u8> {
    let text: Vec<u8> = file(name).into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).expect("a digit")).expect("small");
    text.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// A lease: its key in the first line, its value in the second.
fn lease(name: &str) -> Lease {
    let text = String::from_utf8(file(name)).expect("text");
    let (key, value) = text.trim_end().split_once('\n').expect("two lines");
    let Key::Lease(subnets) = Keys::new("/coreos.com/network").read(key) else { panic!("{name}: {key}") };
    Attributes::parse(value.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}")).lease(&subnets, 1)
}

/// What a host of version 0.1 announces.
fn announced(mode: Option<Mode>) -> Dialect {
    let announced = |mode| Announced { mode, port: 8286, fingerprint: Fingerprint([0xab; 32]) };
    Dialect::Hopsack(Abilities {
        ipv6: true,
        bundles: true,
        ecn: true,
        secure: mode.map(announced),
        ..Abilities::default()
    })
}

fn addresses(lease: &Lease) -> Vec<String> {
    lease.public.iter().map(|address| address.to_string()).collect()
}

#[test]
fn leases_are_read() {
    for (name, subnets, public, mode) in [
        ("lease-v4", vec!["10.244.1.0/24"], vec!["192.0.2.1"], None),
        ("lease-v6", vec!["fd00:244:0:1::/64"], vec!["2001:db8::1"], None),
        ("lease-dual", vec!["10.244.1.0/24", "fd00:244:0:1::/64"], vec!["192.0.2.1", "2001:db8::1"], None),
        ("lease-v4-sealed", vec!["10.244.1.0/24"], vec!["192.0.2.1"], Some(Mode::Sealed)),
        ("lease-v6-quic", vec!["fd00:244:0:1::/64"], vec!["2001:db8::1"], Some(Mode::Quic)),
        (
            "lease-dual-sealed",
            vec!["10.244.1.0/24", "fd00:244:0:1::/64"],
            vec!["192.0.2.1", "2001:db8::1"],
            Some(Mode::Sealed),
        ),
    ] {
        let lease = lease(name);
        let subnets: Vec<IpNet> = subnets.iter().map(|text| text.parse().expect("a prefix")).collect();
        assert_eq!((lease.name.as_str(), &lease.subnets), ("alpha", &subnets), "{name}");
        assert_eq!(addresses(&lease), public, "{name}");
        assert_eq!(lease.dialect, announced(mode), "{name}");
        assert_eq!(lease.origin.node.as_deref(), Some(ID), "{name}");
    }
}

#[test]
fn cluster_file_is_read() {
    let map = Map::parse(&String::from_utf8(file("cluster.toml")).expect("text")).expect("valid");
    let names: Vec<&str> = map.leases.iter().map(|lease| lease.name.as_str()).collect();
    assert_eq!(names, ["alpha", "beta"]);
    assert_eq!(addresses(&map.leases[0]), ["192.0.2.1", "2001:db8::1"]);
    let secure = |lease: &Lease| match &lease.dialect {
        Dialect::Hopsack(abilities) => abilities.secure.map(|announced| (announced.mode, announced.port)),
        Dialect::Flannel | Dialect::Unreadable | Dialect::Other(_) => None,
    };
    assert_eq!(secure(&map.leases[0]), None);
    assert_eq!(secure(&map.leases[1]), Some((Mode::Quic, 9000)));
}

/// A table for 10.244.2.0/24, with the host of `lease-dual` as its peer.
fn table() -> Table {
    let mut rib = Rib::default();
    rib.apply(Change::Snapshot { leases: vec![lease("lease-dual")], revision: 1 });
    let networks = Networks {
        v4: Some(("10.244.0.0/16".parse().expect("a prefix"), 24)),
        v6: Some(("fd00:244::/48".parse().expect("a prefix"), 64)),
    };
    let local = Local {
        subnets: ["10.244.2.0/24", "fd00:244:0:2::/64"].map(|net| net.parse().expect("a prefix")).into(),
        nets: Vec::new(),
        public: [192, 0, 2, 2].into(),
        port: 8285,
        mtu: 1472,
        policy: Policy::default(),
    };
    Table::compile(1, &rib, &networks, &local)
}

/// The packets that a datagram of the peer brings to our pods.
fn received(datagram: &[u8]) -> Vec<Vec<u8>> {
    let (counters, mut sink) = (Counters::default(), Sink::default());
    let arrival =
        Arrival { from: IpAddr::from([192, 0, 2, 1]), ecn: Ecn::NotEct, train: Train::single(datagram) };
    ingress(&table(), arrival, VerifySource::Subnet, &mut IngressState::default(), &counters, &mut sink);
    sink.packets
}

#[test]
fn bare_packets_and_bundles_are_received() {
    let (v4, v6) = (datagram("bare-v4"), datagram("bare-v6"));
    for packet in [&v4, &v6] {
        assert_eq!(received(packet).len(), 1);
        assert!(IpPacket::parse(packet).is_ok());
    }
    let bundled = datagram("bundle");
    let inside: Vec<Vec<u8>> =
        bundle::entries(&bundled).expect("a bundle").map(|entry| entry.expect("whole").to_vec()).collect();
    assert_eq!(inside, [v4, v6]);
    assert_eq!(received(&bundled).len(), 2);
}

#[test]
fn sealed_packets_are_opened() {
    for (name, suite) in
        [("sealed-aes256gcm", Suite::Aes256Gcm), ("sealed-chacha20poly1305", Suite::ChaCha20Poly1305)]
    {
        let session = Session::default();
        let agreement = Agreement { suite, epoch: 1, role: Role::Responder, ours: 2, theirs: 2 };
        let secret = Secret::new(std::array::from_fn(|n| u8::try_from(n).expect("small")), [0; 32]);
        session.install(agreement, &secret, Nanos(0)).expect("new");
        session.activate(1, Nanos(0));
        let (datagram, mut out) = (datagram(name), vec![0; 2000]);
        let opened = session.keys().open(&datagram, &mut out, Nanos(0)).expect(name).to_vec();
        assert_eq!(opened, self::datagram("bare-v4"), "{name}");
        assert_eq!(session.keys().open(&datagram, &mut out, Nanos(0)), Err(OpenError::Replayed));
    }
}
