//! Fuzz targets: functions of bytes that must not panic, and say what must hold of any input.
//!
//! `tests/fuzz.rs` runs each over its corpus and over seeded mutations of it, with every `scripts/test`; cargo-fuzz runs them
//! without end (tests/fuzz/README.md).

#[path = "../../support/sinks.rs"]
mod sinks;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::LazyLock;

use hopsack::api::Request;
use hopsack::forward::{
    Arrival, Counters, DropReason, EgressState, Frame, IngressState, Train, VerifySource, egress, ingress,
};
use hopsack::packet::checksum::{Sum, checksum};
use hopsack::packet::coalesce::Coalescer;
use hopsack::packet::ecn::Ecn;
use hopsack::packet::split::{SPLIT_BUFFER, split};
use hopsack::packet::vnet::VnetHeader;
use hopsack::packet::{Family, IpPacket, Transport, bundle, protocol};
use hopsack::route::{Abilities, Change, Dialect, Fib, Hop, Lease, Local, Networks, Policy, Public, Rib};
use hopsack::seal::{Agreement, Hello, OVERHEAD, OpenError, Role, Secret, Session, Suite};
use hopsack::store::file::Map;
use hopsack::time::Nanos;
use sinks::{Sent, Sink};

/// Takes any bytes, and panics if what must hold does not.
pub type Target = fn(&[u8]);

/// Every target, by the name of its corpus folder.
pub const TARGETS: &[(&str, Target)] = &[
    ("ingress", fuzz_ingress),
    ("bundle", fuzz_bundle),
    ("egress", fuzz_egress),
    ("virtio", fuzz_virtio),
    ("split", fuzz_split),
    ("coalesce", fuzz_coalesce),
    ("cluster", fuzz_cluster),
    ("control", fuzz_control),
    ("open", fuzz_open),
];

/// First byte: the last of the outer source address. The rest: a datagram.
pub fn fuzz_ingress(data: &[u8]) {
    let Some((from, datagram)) = data.split_first() else { return };
    let (fib, counters, mut sink) = (&FIB, Counters::default(), Sink::default());
    let from = IpAddr::from([192, 0, 2, *from]);
    let arrival = Arrival { from, ecn: Ecn::Ce, train: Train::single(datagram) };
    ingress(fib, arrival, VerifySource::Subnet, &mut IngressState::default(), &counters, &mut sink);
    let dropped: u64 = DropReason::ALL.into_iter().map(|reason| counters.ingress.dropped(reason)).sum();
    let is_known = fib.peer_by_address(from).is_some();
    let fates = if is_known { fates(datagram) } else { 1 };
    assert_eq!(sink.packets.len() as u64 + dropped, fates, "one packet, one fate");
    for packet in &sink.packets {
        let inner = IpPacket::parse(packet).expect("only whole packets pass");
        assert_eq!(inner.ecn(), Ecn::Ce, "what was marked on the way stays marked");
        let Some(Hop::Peer(owner)) = fib.lookup(inner.src()) else { panic!("a source that no peer owns") };
        assert_eq!(owner.endpoint.ip(), from, "a source that another peer owns");
        assert_eq!(fib.lookup(inner.dst()), Some(Hop::Local));
    }
}

/// How many packets a datagram brings, and drops besides them.
fn fates(datagram: &[u8]) -> u64 {
    bundle::entries(datagram).map_or(1, |entries| entries.count() as u64)
}

/// A datagram, whose first bytes are made those of a bundle. What comes out lies in it, one piece behind the other, and
/// what was written into another one is what comes out of that.
pub fn fuzz_bundle(data: &[u8]) {
    let _ = bundle::entries(data);
    let mut datagram = data.to_vec();
    let length = u16::try_from(datagram.len()).unwrap_or(u16::MAX).to_be_bytes();
    if let Some(header) = datagram.first_chunk_mut::<4>() {
        *header = [0x31, header[1], length[0], length[1]];
    }
    let Ok(entries) = bundle::entries(&datagram) else { return };
    let (mut at, mut copy, mut filled) = (bundle::HEADER, vec![0xaa; datagram.len()], 0);
    for entry in entries.clone() {
        let Ok(packet) = entry else { break };
        at += bundle::ENTRY;
        assert!(!packet.is_empty() && std::ptr::eq(packet, &raw const datagram[at..at + packet.len()]));
        at += packet.len();
        filled = bundle::append(&mut copy, filled, packet).expect("it came from as long a datagram");
    }
    if filled > 0 {
        assert_eq!(filled, at);
        bundle::pad(&mut copy, filled);
        let packets = |datagram| bundle::entries(datagram).expect("a bundle").flatten().collect::<Vec<_>>();
        assert_eq!(packets(&copy), packets(&datagram));
        assert_eq!(bundle::contents(&copy).0, packets(&copy).len() as u64);
    }
    fuzz_ingress(&[&[2], &datagram[..]].concat());
}

/// A packet from a TUN.
pub fn fuzz_egress(data: &[u8]) {
    let counters = send(Frame::Bare(data), data);
    let dropped: u64 = DropReason::ALL.into_iter().map(|reason| counters.1.egress.dropped(reason)).sum();
    assert_eq!(counters.0 + dropped, 1, "one packet, one fate");
}

/// A vnet header and a packet or super packet from a TUN with offloads.
pub fn fuzz_virtio(data: &[u8]) {
    send(Frame::Virtio(data), data.get(VnetHeader::LEN..).unwrap_or_default());
}

/// Sends, and checks what is answered: packets for the network, and the account.
fn send(frame: Frame<'_>, packet: &[u8]) -> (u64, Counters) {
    let (counters, mut forwarder) = (Counters::default(), EgressState::new(Nanos(0)));
    let (mut net, mut tun) = (Sent::default(), Sink::default());
    egress(&FIB, frame, Nanos(0), &mut forwarder, &counters, &mut net, &mut tun);
    for sent in &net.packets {
        assert!(IpPacket::parse(sent).is_ok(), "each datagram is one whole packet");
    }
    for reply in &tun.replies {
        let error = IpPacket::parse(reply).expect("our own errors are whole packets");
        assert_eq!(error.dst(), IpPacket::parse(packet).expect("only packets are answered").src());
    }
    (net.packets.len() as u64, counters)
}

/// A vnet header and a packet. Whatever is accepted is cut into whole packets of one flow.
pub fn fuzz_split(data: &[u8]) {
    let Ok((vnet, bytes)) = VnetHeader::parse(data) else { return };
    let Ok(packet) = IpPacket::parse(bytes) else { return };
    let mut out = vec![0; SPLIT_BUFFER];
    let Ok(train) = split(&vnet, packet, &mut out) else { return };
    for segment in train.datagrams() {
        let segment = IpPacket::parse(segment).expect("each segment is a whole packet");
        assert_eq!((segment.src(), segment.dst()), (packet.src(), packet.dst()));
    }
}

/// Packets, each behind two bytes of length, whose top bit says that its checksums are to stay as they are; else they are made
/// right, or a fuzzer would hardly ever see a merge. None is lost, and what comes out is cut into what went in, flow by flow.
pub fn fuzz_coalesce(data: &[u8]) {
    let mut coalescer = Coalescer::new(8);
    let (mut rest, mut pushed, mut finished) = (data, Flows::default(), Flows::default());
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let length = u16::from_be_bytes(*length);
        let (bytes, behind) = behind.split_at(usize::from(length & 0x7fff).min(behind.len()));
        rest = behind;
        let mut bytes = bytes.to_vec();
        if length & 0x8000 == 0 {
            mend(&mut bytes);
        }
        let Ok(packet) = IpPacket::parse(&bytes) else { continue };
        note(&mut pushed, packet);
        if coalescer.push(packet).is_err() {
            finish(&mut coalescer, &mut finished);
            coalescer.push(packet).expect("an empty coalescer takes any packet");
        }
    }
    finish(&mut coalescer, &mut finished);
    assert_eq!(finished, pushed);
}

/// Packets by flow: addresses, protocol and ports.
type Flows = BTreeMap<(IpAddr, IpAddr, u8, Vec<u8>), Vec<Vec<u8>>>;

fn finish(coalescer: &mut Coalescer, flows: &mut Flows) {
    let mut out = vec![0; SPLIT_BUFFER];
    for run in coalescer.finish() {
        let (vnet, bytes) = VnetHeader::parse(run.bytes).expect("a header of ours");
        let packet = IpPacket::parse(bytes).expect("a run is one whole packet");
        let train = split(&vnet, packet, &mut out).expect("a run may be cut");
        assert_eq!((train.count(), train.bytes.len() as u64), (run.packets, run.packet_bytes));
        for packet in train.datagrams() {
            note(flows, IpPacket::parse(packet).expect("each is a whole packet"));
        }
    }
    coalescer.clear();
}

/// Adds a packet to those of its flow, without what means nothing: the identification of what is never cut (RFC 6864), and
/// which of the two zeros of one's complement a sum is.
fn note(flows: &mut Flows, packet: IpPacket<'_>) {
    let (mut bytes, transport) = (packet.bytes().to_vec(), packet.divisible_transport());
    let mut zero = |at: usize| match bytes.get_mut(at..at + 2) {
        Some(sum) if sum == [0xff, 0xff] => sum.fill(0),
        _ => {}
    };
    let ports = |transport: Transport| packet.bytes().get(transport.offset..transport.offset + 4);
    if let Some(transport) = transport
        && let Some(at) = checksum_at(transport)
    {
        zero(at);
    }
    if packet.family() == Family::V4 {
        zero(10);
        if bytes[6] & 0x40 != 0 {
            bytes[4..6].fill(0);
            bytes[10..12].fill(0);
        }
    }
    let ports = transport.and_then(ports).unwrap_or_default().to_vec();
    let key = (packet.src(), packet.dst(), packet.protocol(), ports);
    flows.entry(key).or_default().push(bytes);
}

/// Where the checksum of TCP and UDP stands in a packet.
fn checksum_at(transport: Transport) -> Option<usize> {
    match transport.protocol {
        protocol::TCP => Some(transport.offset + 16),
        protocol::UDP => Some(transport.offset + 6),
        _ => None,
    }
}

/// Makes the checksums of a packet right, those of IPv4, TCP and UDP.
fn mend(bytes: &mut [u8]) {
    let Ok(packet) = IpPacket::parse(bytes) else { return };
    let (family, header) = (packet.family(), packet.header_len());
    let [src, dst] = [packet.src(), packet.dst()];
    if let Some(transport) = packet.divisible_transport()
        && let Some(at) = checksum_at(transport)
        && at + 2 <= bytes.len()
    {
        bytes[at..at + 2].fill(0);
        let l4 = &bytes[transport.offset..];
        let sum = Sum::default().add_pseudo_header(src, dst, transport.protocol, l4.len()).add_bytes(l4);
        bytes[at..at + 2].copy_from_slice(&sum.finish());
    }
    if family == Family::V4 {
        bytes[10..12].fill(0);
        let sum = checksum(&bytes[..header]);
        bytes[10..12].copy_from_slice(&sum);
    }
}

/// A cluster file. What is accepted has disjoint subnets.
pub fn fuzz_cluster(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(map) = Map::parse(text) else { return };
    let subnets: Vec<_> = map.leases.iter().flat_map(|lease| &lease.subnets).collect();
    for (n, one) in subnets.iter().enumerate() {
        assert!(subnets[n + 1..].iter().all(|other| !one.contains(*other) && !other.contains(*one)));
    }
}

/// A line at the control socket.
pub fn fuzz_control(data: &[u8]) {
    // Whether it is a request does not matter; that it is looked at without harm does.
    let _ = serde_json::from_slice::<Request>(data);
}

/// First byte 0: the rest is a datagram, which opens once at most. Else: two bytes say where in a datagram of ours a third flips
/// bits, and the rest is its packet; it opens, once, if none was flipped.
pub fn fuzz_open(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let suite = if kind & 2 == 0 { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 };
    let [here, there] = [Role::Initiator, Role::Responder].map(|role| {
        let session = Session::default();
        let agreement = Agreement { suite, epoch: 1, role, ours: 2, theirs: 2 };
        let secret = Secret::new(std::array::from_fn(|n| u8::try_from(n).expect("small")));
        session.install(agreement, &secret, Nanos(0)).expect("new");
        session.activate(1, Nanos(0));
        session
    });
    let _ = Hello::decode(rest);
    let mut out = vec![0; data.len()];
    if *kind == 0 {
        if there.keys().open(rest, &mut out, Nanos(0)).is_ok() {
            assert_eq!(there.keys().open(rest, &mut out, Nanos(0)), Err(OpenError::Replayed));
        }
        return;
    }
    let Some(([high, low, flip], packet)) = rest.split_first_chunk::<3>() else { return };
    let mut datagram = vec![0; packet.len() + OVERHEAD];
    here.keys().seal(usize::from(kind & 1), Train::single(packet), &mut datagram, Nanos(0)).expect("keys");
    let length = datagram.len();
    datagram[usize::from(u16::from_be_bytes([*high, *low])) % length] ^= flip;
    match there.keys().open(&datagram, &mut out, Nanos(0)) {
        Ok(opened) => {
            assert_eq!((opened, *flip), (packet, 0), "only what is whole opens");
            assert_eq!(length, packet.len() + OVERHEAD);
            assert_eq!(there.keys().open(&datagram, &mut out, Nanos(0)), Err(OpenError::Replayed));
        }
        Err(_) => assert_ne!(*flip, 0, "what is whole opens"),
    }
}

/// Host 1 is ourselves, 2 and 3 are peers; IPv4 and IPv6. Made once: it takes longer than most inputs.
static FIB: LazyLock<Fib> = LazyLock::new(|| {
    let subnets = |n: u8| {
        let v4 = format!("10.1.{n}.0/24").parse().expect("a prefix");
        let v6 = format!("fd00:1:0:{n}::/64").parse().expect("a prefix");
        vec![v4, v6]
    };
    let leases = (1..=3u8)
        .map(|n| Lease {
            name: format!("h{n}"),
            subnets: subnets(n),
            public: Public { v4: Some([192, 0, 2, n].into()), v6: None },
            dialect: Dialect::Hopsack(Abilities::OURS),
            revision: 1,
        })
        .collect();
    let mut rib = Rib::default();
    rib.apply(Change::Snapshot { leases, revision: 1 });
    let networks = Networks {
        v4: Some(("10.1.0.0/16".parse().expect("a prefix"), 24)),
        v6: Some(("fd00:1::/48".parse().expect("a prefix"), 64)),
    };
    let local = Local {
        subnets: subnets(1),
        public: [192, 0, 2, 1].into(),
        port: 8285,
        mtu: 1472,
        policy: Policy::default(),
    };
    Fib::compile(1, &rib, &networks, &local)
});
