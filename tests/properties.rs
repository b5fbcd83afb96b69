//! Property tests of the pure modules: comparison with slow models, and arbitrary input.

#[path = "support/sinks.rs"]
#[allow(unreachable_pub)]
mod sinks;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hopsack::fastpath::{Reach, Route, RouteKind, routes_of};
use hopsack::forward::{
    Arrival, Counters, DropReason, EgressState, Frame, Hop, IngressState, Table, Train, VerifySource, egress,
    ingress,
};
use hopsack::packet::ecn::Ecn;
use hopsack::packet::{Family, IpPacket, bundle};
use hopsack::route::{
    Abilities, Announced, Change, Dialect, Event, Fingerprint, Lease, Local, Mode, Networks, Origin, Policy,
    Protection, Public, Rib,
};
use hopsack::time::Nanos;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use sinks::{Sent, Sink};

fn networks() -> Networks {
    Networks {
        v4: Some((Ipv4Net::new_assert([10, 1, 0, 0].into(), 16), 24)),
        v6: Some((Ipv6Net::new_assert("fd00:1::".parse().expect("an address"), 48), 64)),
    }
}

fn local() -> Local {
    let subnets = ["10.1.1.0/24", "fd00:1:0:1::/64"].map(|net| net.parse().expect("a prefix"));
    Local {
        subnets: subnets.into(),
        nets: Vec::new(),
        public: [192, 0, 2, 1].into(),
        port: 8285,
        mtu: 1472,
        policy: Policy::default(),
    }
}

/// Mostly regular subnets, some of other lengths, and some elsewhere. They are close together, so
/// that they overlap.
fn subnet() -> impl Strategy<Value = IpNet> {
    let v4 = |first: [u8; 2], third: u8, fourth: u8, len: u8| {
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(first[0], first[1], third, fourth), len).trunc())
    };
    prop_oneof![
        4 => (0u8..20).prop_map(move |third| v4([10, 1], third, 0, 24)),
        2 => (0u8..20, any::<u8>(), 17u8..=32).prop_map(move |(third, fourth, len)| v4([10, 1], third, fourth, len)),
        1 => (any::<u8>(), 8u8..=32).prop_map(move |(third, len)| v4([172, 16], third, 0, len)),
        1 => (0u8..4).prop_map(move |len| v4([128, 0], 0, 0, len)),
        2 => (0u16..20, 44u8..=128).prop_map(|(fourth, len)| {
            let address = Ipv6Addr::new(0xfd00, 1, 0, fourth, 0, 0, 0, 7);
            IpNet::V6(Ipv6Net::new_assert(address, len).trunc())
        }),
    ]
}

/// A lease of one of a few hosts. A host may have several leases, and several hosts one address,
/// with different names, abilities and encryption. Some were written by a flanneld.
fn lease() -> impl Strategy<Value = Lease> {
    let writer = (2u8..20, 2u8..20, 0u8..8, 0u8..8);
    (subnet(), writer, 1u64..1000, 1u64..40).prop_map(|(subnet, writer, revision, created)| {
        let (host, other, chance, kind) = writer;
        // One lease of eight has the address of another host.
        let address = if chance == 0 { other } else { host };
        let secure = |mode| {
            let fingerprint = Fingerprint([if kind == 7 { other } else { host }; 32]);
            Some(Announced { mode, port: 8286, fingerprint })
        };
        let abilities = match kind {
            0 if matches!(subnet, IpNet::V4(_)) => Abilities::default(),
            0..=3 => Abilities::OURS,
            4 => Abilities { secure: secure(Mode::Quic), ..Abilities::OURS },
            _ => Abilities { secure: secure(Mode::Sealed), ..Abilities::OURS },
        };
        let is_flanneld = kind == 0 && matches!(subnet, IpNet::V4(_));
        Lease {
            name: if is_flanneld { format!("192.0.2.{address}") } else { format!("h{host}") },
            subnets: vec![subnet],
            public: Public { v4: Some([192, 0, 2, address].into()), v6: None },
            dialect: if is_flanneld { Dialect::Flannel } else { Dialect::Hopsack(abilities) },
            revision,
            origin: Origin {
                key: format!("/p/subnets/{subnet}"),
                node: (!is_flanneld).then(|| format!("id-{host}")),
                created,
                ..Origin::default()
            },
        }
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let mode = prop_oneof![Just(Mode::None), Just(Mode::Sealed), Just(Mode::Quic)];
    (mode, any::<bool>()).prop_map(|(mode, require)| Policy { mode, require: require && mode != Mode::None })
}

fn destination() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        6 => (0u8..22, any::<u8>()).prop_map(|(third, fourth)| IpAddr::from([10, 1, third, fourth])),
        1 => any::<[u8; 4]>().prop_map(IpAddr::from),
        3 => (0u16..22, any::<u64>()).prop_map(|(fourth, low)| {
            IpAddr::V6(((0xfd00_0001_u128 << 96) | (u128::from(fourth) << 64) | u128::from(low)).into())
        }),
        1 => any::<[u8; 16]>().prop_map(IpAddr::from),
    ]
}

/// The source of a packet from the device: often ours, as it should be.
fn source() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        3 => any::<u8>().prop_map(|fourth| IpAddr::from([10, 1, 1, fourth])),
        2 => any::<u64>().prop_map(|low| IpAddr::V6(((0xfd00_0001_0000_0001_u128 << 64) | u128::from(low)).into())),
        1 => Just(IpAddr::from([192, 0, 2, 1])),
        2 => destination(),
    ]
}

fn rib_of(leases: &[Lease]) -> Rib {
    let mut rib = Rib::default();
    rib.apply(Change::Snapshot { leases: leases.to_vec(), revision: 10_000 });
    rib
}

/// The slow model, as rules. Where a packet for an address goes:
/// * An address in our own subnets is ours, whatever else holds it.
/// * A lease that overlaps our own subnets, or an older lease of another host that is in use, is
///   not in use. Hosts are told apart by node id or, if one of them has none, by address.
/// * Of all leases in use that contain the address, the longest prefix wins; of equal prefixes, the
///   later revision wins.
/// * No lease of an address has a route if two of its leases announce different certificates, or
///   if this host requires encryption and none of them announces any.
/// * If any lease of an address announces encryption, it is not `Clear` unless this host does not
///   encrypt at all.
struct Rules {
    in_use: Vec<Lease>,
    all: Vec<Lease>,
    local: Local,
}

/// What the rules say about an address.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Local,
    Nowhere,
    /// Address of the host, and whether packets are clear.
    Host(IpAddr, bool),
}

impl Rules {
    fn new(rib: &Rib, local: &Local) -> Self {
        let overlaps = |one: &Lease, nets: &[IpNet]| {
            one.subnets.iter().any(|a| nets.iter().any(|b| a.contains(b) || b.contains(a)))
        };
        let is_same_host = |one: &Lease, other: &Lease| match (&one.origin.node, &other.origin.node) {
            (Some(one), Some(other)) => one == other,
            _ => one.public.v4 == other.public.v4,
        };
        let mut all: Vec<Lease> =
            rib.leases().filter(|lease| lease.subnets != local.subnets).cloned().collect();
        // Leases that were created at the same moment are taken in the order of their subnets.
        all.sort_by_key(|lease| lease.origin.created);
        let mut in_use: Vec<Lease> = Vec::new();
        for lease in &all {
            let has_rival =
                in_use.iter().any(|older| overlaps(older, &lease.subnets) && !is_same_host(older, lease));
            if !has_rival && !overlaps(lease, &local.subnets) {
                in_use.push(lease.clone());
            }
        }
        Self { in_use, all, local: local.clone() }
    }

    fn announced_at(&self, address: IpAddr) -> Vec<Announced> {
        let is_at = |lease: &&Lease| lease.public.v4.map(IpAddr::from) == Some(address);
        let secure = |lease: &Lease| match &lease.dialect {
            Dialect::Hopsack(abilities) => abilities.secure,
            Dialect::Flannel | Dialect::Unreadable | Dialect::Other(_) => None,
        };
        self.all.iter().filter(is_at).filter_map(secure).collect()
    }

    /// Fates that the rules allow: more than one if two hosts wrote one prefix at one revision.
    fn fates(&self, dst: IpAddr) -> Vec<Fate> {
        if self.local.subnets.iter().any(|net| net.contains(&dst)) {
            return vec![Fate::Local];
        }
        let routed = self.in_use.iter().filter_map(|lease| {
            let address = IpAddr::from(lease.public.v4?);
            let announced = self.announced_at(address);
            let is_clear = self.local.policy.mode == Mode::None || announced.is_empty();
            let is_torn = announced.iter().any(|one| one.fingerprint != announced[0].fingerprint);
            let is_refused = is_clear && self.local.policy.require;
            let net = lease.subnets.iter().find(|net| net.contains(&dst))?;
            let fate = Fate::Host(address, is_clear);
            (!is_torn && !is_refused).then_some((net.prefix_len(), lease.revision, fate))
        });
        let routed: Vec<_> = routed.collect();
        let best = routed.iter().map(|(length, revision, _)| (*length, *revision)).max();
        let is_best = |(length, revision, _): &(u8, u64, Fate)| Some((*length, *revision)) == best;
        let fates: Vec<Fate> = routed.into_iter().filter(is_best).map(|(_, _, fate)| fate).collect();
        if fates.is_empty() { vec![Fate::Nowhere] } else { fates }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fib_equals_a_linear_scan(
        leases in proptest::collection::vec(lease(), 0..60),
        destinations in proptest::collection::vec(destination(), 1..60),
        policy in policy(),
    ) {
        let (rib, local) = (rib_of(&leases), Local { policy, ..local() });
        let table = Table::compile(1, &rib, &networks(), &local);
        let rules = Rules::new(&rib, &local);
        for dst in destinations {
            let fast = match table.lookup(dst) {
                None => Fate::Nowhere,
                Some(Hop::Local) => Fate::Local,
                Some(Hop::Peer(peer)) => {
                    Fate::Host(peer.endpoint.ip(), peer.protection == Protection::Clear)
                }
            };
            let slow = rules.fates(dst);
            prop_assert!(slow.contains(&fast), "{}: table {:?}, rules {:?}", dst, fast, slow);
        }
        for peer in table.peers() {
            prop_assert!(!(policy.require && peer.protection == Protection::Clear), "{:?}", peer);
            let is_announced = !rules.announced_at(peer.endpoint.ip()).is_empty();
            let is_clear = policy.mode == Mode::None || !is_announced;
            prop_assert_eq!(peer.protection == Protection::Clear, is_clear, "{:?}", peer);
        }
    }

    /// The kernel program looks addresses up by longest prefix, too. It knows less than the table,
    /// and then leaves the packet to the daemon.
    #[test]
    fn fast_path_routes_follow_the_table(
        leases in proptest::collection::vec(lease(), 0..60),
        addresses in proptest::collection::vec(destination(), 1..60),
        policy in policy(),
    ) {
        let (rib, local) = (rib_of(&leases), Local { policy, ..local() });
        let table = Table::compile(1, &rib, &networks(), &local);
        let routes = routes_of(&table, &local.subnets, |_| Reach { underlay: 7, may_send: true });
        let hosts = (1..40).map(|host| IpAddr::from([192, 0, 2, host]));
        for address in addresses.into_iter().chain(hosts) {
            let matching = routes.iter().filter(|(prefix, _)| prefix.contains(&address));
            let found = matching.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, route)| *route);
            let found = found.unwrap_or(Route::DAEMON);
            let peer = match table.lookup(address) {
                Some(Hop::Local) => {
                    prop_assert_eq!(found.kind, RouteKind::Local, "{}", address);
                    continue;
                }
                Some(Hop::Peer(peer)) => Some(peer),
                None => None,
            };
            match (found.kind, peer) {
                (RouteKind::Local, _) => panic!("{address} is not ours"),
                (RouteKind::Peer, peer) => {
                    let peer = peer.expect("the table has no route");
                    let is_clear = peer.protection == Protection::Clear;
                    prop_assert_eq!(IpAddr::V4(found.peer), peer.endpoint.ip(), "{}", address);
                    prop_assert_eq!((found.is_clear, found.may_send), (is_clear, is_clear));
                    prop_assert_eq!(found.ecn, peer.abilities.ecn);
                    prop_assert!(found.mtu <= peer.mtu && found.mtu <= peer.longest(Family::of(address)));
                }
                // The address of a peer itself is an inner source of this peer alone.
                (RouteKind::Host, _) => {
                    let from = table.peer_by_address(found.peer.into()).expect("a peer");
                    prop_assert!(IpAddr::V4(found.peer) == address || from.public.contains(address));
                    prop_assert_eq!(found.is_clear, from.protection == Protection::Clear);
                }
                // Two addresses of one host may have the same subnet.
                (RouteKind::Daemon, Some(peer)) => {
                    let holders = table.peers().iter().filter(|other| {
                        other.subnets.iter().any(|subnet| subnet.contains(&address))
                    });
                    prop_assert!(holders.count() > 1, "{} has no route to {}", address, peer.name);
                }
                (RouteKind::Daemon, None) => {}
            }
        }
    }

    #[test]
    fn ingress_delivers_only_what_the_peer_owns(
        leases in proptest::collection::vec(lease(), 0..30),
        from in 0u8..40,
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        shape in 0u8..4,
        src in destination(),
        dst in destination(),
    ) {
        forge(&mut bytes, shape, src, dst);
        let (rib, local) = (rib_of(&leases), local());
        let table = Table::compile(1, &rib, &networks(), &local);
        let (counters, mut sink) = (Counters::default(), Sink::default());
        let from = IpAddr::from([192, 0, 2, from]);
        receive(&table, from, &bytes, &counters, &mut sink);
        let dropped: u64 = DropReason::ALL.into_iter().map(|reason| counters.ingress.dropped(reason)).sum();
        prop_assert_eq!(sink.packets.len() as u64 + dropped, fates(&table, from, &bytes), "each packet has one fate");
        for packet in sink.packets {
            let inner = IpPacket::parse(&packet).expect("only whole packets pass");
            match table.lookup(inner.src()) {
                Some(Hop::Peer(owner)) => prop_assert!(owner.endpoint.ip() == from || inner.src() == from),
                Some(Hop::Local) => panic!("a packet with a source of ours passed"),
                None => prop_assert_eq!(inner.src(), from, "only the public address is in no subnet"),
            }
            prop_assert_eq!(table.lookup(inner.dst()), Some(Hop::Local));
        }
    }

    /// A packet has the same fate at any place in a bundle as in a datagram of its own.
    #[test]
    fn packets_in_a_bundle_are_verified_one_by_one(
        leases in proptest::collection::vec(lease(), 0..30),
        from in 0u8..40,
        packets in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 1..100), 0u8..4, destination(), destination()),
            1..20,
        ),
        padding in 0usize..50,
    ) {
        let table = Table::compile(1, &rib_of(&leases), &networks(), &local());
        let from = IpAddr::from([192, 0, 2, from]);
        let packets: Vec<Vec<u8>> = packets
            .into_iter()
            .map(|(mut bytes, shape, src, dst)| {
                forge(&mut bytes, shape, src, dst);
                // A bundle must not contain a bundle.
                bytes[0] = if bytes[0] >> 4 == bundle::NIBBLE { 0x45 } else { bytes[0] };
                bytes
            })
            .collect();
        let (alone, bundled) = (Counters::default(), Counters::default());
        let (mut passed, mut unbundled) = (Sink::default(), Sink::default());
        for packet in &packets {
            receive(&table, from, packet, &alone, &mut passed);
        }
        let datagram = bundle_of(&packets, padding);
        receive(&table, from, &datagram, &bundled, &mut unbundled);
        prop_assert_eq!(passed.packets, unbundled.packets);
        // The bundle of an unknown sender is one drop.
        if table.peer_by_address(from).is_none() {
            let dropped: u64 = DropReason::ALL.into_iter().map(|reason| bundled.ingress.dropped(reason)).sum();
            prop_assert_eq!(dropped, 1);
            return Ok(());
        }
        // Bytes that are not an IP packet are malformed in a bundle. Alone they may be of an
        // unknown type, or sealed with an unknown key.
        let is_other = |reason: &DropReason| {
            ![DropReason::Malformed, DropReason::UnknownType, DropReason::NoKey].contains(reason)
        };
        for reason in DropReason::ALL.into_iter().filter(is_other) {
            let (alone, bundled) = (alone.ingress.dropped(reason), bundled.ingress.dropped(reason));
            prop_assert_eq!(alone, bundled, "{:?}", reason);
        }
    }

    #[test]
    fn bundles_return_their_packets(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..400), 1..40),
        most in 500usize..2000,
        padded: bool,
    ) {
        // The packets fill as many datagrams as they need.
        let (mut datagrams, mut filled) = (vec![vec![0xaa; most]], 0);
        for packet in &packets {
            let last = datagrams.last_mut().expect("one");
            if let Some(longer) = bundle::append(last, filled, packet) {
                filled = longer;
                continue;
            }
            if padded { bundle::pad(last, filled) } else { last.truncate(filled) }
            let mut next = vec![0xaa; most];
            filled = bundle::append(&mut next, 0, packet).expect("it fits into an empty bundle");
            datagrams.push(next);
        }
        datagrams.last_mut().expect("one").truncate(filled);
        let entries = datagrams.iter().flat_map(|datagram| bundle::entries(datagram).expect("a bundle"));
        let read: Vec<Vec<u8>> = entries.map(|entry| entry.expect("whole").to_vec()).collect();
        prop_assert_eq!(read, packets);
    }

    #[test]
    fn arbitrary_bundles_stay_inside(
        mut bytes in proptest::collection::vec(prop_oneof![2 => 0u8..3, 1 => any::<u8>()], 0..200),
        honest: bool,
    ) {
        if honest && bytes.len() >= 4 {
            let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
            bytes[..4].copy_from_slice(&[0x31, 0, length[0], length[1]]);
        }
        let Ok(entries) = bundle::entries(&bytes) else { return Ok(()) };
        let (mut sum, mut ended) = (bundle::HEADER, false);
        for entry in entries {
            prop_assert!(!ended, "an entry follows a malformed one");
            ended = entry.is_err();
            sum += entry.map_or(0, |packet| bundle::ENTRY + packet.len());
        }
        prop_assert!(sum > bundle::HEADER && sum <= bytes.len() || ended);
    }

    #[test]
    fn egress_gives_each_packet_one_fate(
        leases in proptest::collection::vec(lease(), 0..30),
        mut bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        shape in 0u8..4,
        src in source(),
        dst in destination(),
        vnet in any::<[u8; 10]>().prop_map(plausible),
        virtio: bool,
    ) {
        forge(&mut bytes, shape, src, dst);
        let framed = [&vnet[..], &bytes].concat();
        let frame = if virtio { Frame::Virtio(&framed) } else { Frame::Bare(&bytes) };
        let table = Table::compile(1, &rib_of(&leases), &networks(), &local());
        let (counters, mut state) = (Counters::default(), EgressState::new(Nanos(0)));
        let (mut net, mut tun) = (Sent::default(), Sink::default());
        egress(&table, frame, Nanos(0), &mut state, &counters, &mut net, &mut tun);
        let dropped: u64 = DropReason::ALL.into_iter().map(|reason| counters.egress.dropped(reason)).sum();
        // All segments of a super packet have the same fate.
        let sent = net.packets.len() as u64;
        if let Ok(packet) = IpPacket::parse(&bytes) {
            let (src, local) = (packet.src(), local());
            let is_ours = local.subnets.iter().any(|net| net.contains(&src)) || src == local.public;
            let foreign = counters.egress.dropped(DropReason::ForeignSource);
            prop_assert!(if is_ours { foreign == 0 } else { sent == 0 }, "{} sent from {}", sent, src);
        }
        prop_assert!(sent + dropped >= 1 && (sent == 0 || dropped == 0), "{} sent, {} dropped", sent, dropped);
        prop_assert!(virtio || sent + dropped == 1);
        for packet in &net.packets {
            let Some(Hop::Peer(_)) = table.lookup(IpPacket::parse(packet).expect("a whole packet").dst()) else {
                panic!("a packet was sent to no peer")
            };
        }
        for reply in tun.replies {
            let error = IpPacket::parse(&reply).expect("an ICMP error is a whole packet");
            prop_assert_eq!(error.dst(), IpPacket::parse(&bytes).expect("answered").src());
        }
    }

    /// The history of a store is delivered with repetitions, out of order and with snapshots in
    /// between. It ends in the state of the last list.
    #[test]
    fn rib_equals_a_fresh_list(
        history in proptest::collection::vec((lease(), any::<bool>()), 1..60),
        order in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..120),
    ) {
        // The history: one revision for each event, and the true list after it.
        let mut truth: BTreeMap<Vec<IpNet>, Lease> = BTreeMap::new();
        let (mut events, mut lists) = (Vec::new(), Vec::new());
        for (revision, (mut lease, delete)) in (1u64..).zip(history) {
            lease.revision = revision;
            if delete && truth.remove(&lease.subnets).is_some() {
                events.push(Event::Delete { subnets: lease.subnets, revision });
            } else {
                truth.insert(lease.subnets.clone(), lease.clone());
                events.push(Event::Put(lease));
            }
            lists.push(Change::Snapshot { leases: truth.values().cloned().collect(), revision });
        }
        // The delivery: any of the changes in any order, then all of them once more.
        let mut rib = Rib::default();
        for (index, list) in order {
            let change = match list {
                true => lists[index.index(lists.len())].clone(),
                false => Change::Delta(vec![events[index.index(events.len())].clone()]),
            };
            rib.apply(change);
        }
        rib.apply(Change::Delta(events));
        prop_assert!(rib.leases().eq(truth.values()));
    }
}

fn receive(table: &Table, from: IpAddr, datagram: &[u8], counters: &Counters, sink: &mut Sink) {
    let arrival = Arrival { from, ecn: Ecn::NotEct, train: Train::single(datagram) };
    ingress(table, arrival, VerifySource::Subnet, &mut IngressState::default(), counters, sink);
}

/// The number of packets and drops that a datagram becomes. A datagram of an unknown sender is one
/// drop.
fn fates(table: &Table, from: IpAddr, datagram: &[u8]) -> u64 {
    match bundle::entries(datagram) {
        Ok(entries) if table.peer_by_address(from).is_some() => entries.count() as u64,
        _ => 1,
    }
}

/// Bundles all `packets` in one datagram of any length, followed by some bytes of padding.
fn bundle_of(packets: &[Vec<u8>], padding: usize) -> Vec<u8> {
    let mut datagram = vec![0; 60_000];
    let fill = |filled, packet: &Vec<u8>| bundle::append(&mut datagram, filled, packet).expect("it fits");
    let filled = packets.iter().fold(0, fill);
    datagram.truncate(filled + padding);
    bundle::pad(&mut datagram, filled);
    datagram
}

/// Turns ten bytes into a vnet header, which in most cases a kernel might send.
fn plausible(mut bytes: [u8; 10]) -> [u8; 10] {
    let noise = bytes[2];
    bytes[0] &= 1;
    bytes[1] = [0, 0, 1, 4, 5, 5, 0x81, noise][usize::from(bytes[1] % 8)];
    let size = u16::from(bytes[4]) * u16::from(bytes[1] != 0);
    let start = [20, 40, 20, u16::from(noise)][usize::from(bytes[6] % 4)];
    let field = [6u16, 16][usize::from(bytes[8] % 2)];
    bytes[4..6].copy_from_slice(&size.to_ne_bytes());
    bytes[6..8].copy_from_slice(&start.to_ne_bytes());
    bytes[8..10].copy_from_slice(&field.to_ne_bytes());
    bytes
}

/// Makes `bytes` look like a packet from `src` to `dst`, unless `shape` is 0.
fn forge(bytes: &mut [u8], shape: u8, src: IpAddr, dst: IpAddr) {
    let length = bytes.len();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) if length >= 20 && shape > 0 => {
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&u16::try_from(length).expect("short").to_be_bytes());
            bytes[9] = [6, 17, 1][usize::from(bytes[9] % 3)];
            bytes[12..16].copy_from_slice(&src.octets());
            bytes[16..20].copy_from_slice(&dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) if length >= 40 && shape > 0 => {
            bytes[0] = 0x60;
            bytes[4..6].copy_from_slice(&u16::try_from(length - 40).expect("short").to_be_bytes());
            bytes[8..24].copy_from_slice(&src.octets());
            bytes[24..40].copy_from_slice(&dst.octets());
        }
        _ => {}
    }
}

#[test]
fn each_of_ten_thousand_leases_is_found() {
    let leases: Vec<Lease> = (0..10_000u32)
        .map(|n| Lease {
            name: format!("h{n}"),
            subnets: vec![IpNet::V4(Ipv4Net::new_assert((0x0a00_0000 + (n + 2) * 256).into(), 24))],
            public: Public { v4: Some((0xac10_0000 + n).into()), v6: None },
            dialect: Dialect::Hopsack(Abilities::OURS),
            revision: 1,
            origin: Origin::default(),
        })
        .collect();
    let networks = Networks { v4: Some((Ipv4Net::new_assert([10, 0, 0, 0].into(), 8), 24)), v6: None };
    let local = Local { subnets: vec!["10.0.1.0/24".parse().expect("a prefix")], ..local() };
    let table = Table::compile(1, &rib_of(&leases), &networks, &local);
    for (n, lease) in (0u32..).zip(&leases) {
        let dst = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + (n + 2) * 256 + 9));
        let Some(Hop::Peer(peer)) = table.lookup(dst) else { panic!("{dst} is not found") };
        assert_eq!(peer.name, lease.name);
        assert_eq!(table.peer_by_address(peer.endpoint.ip()).map(|peer| &peer.name), Some(&lease.name));
    }
    assert_eq!(table.lookup([10, 255, 255, 1].into()), None);
}
