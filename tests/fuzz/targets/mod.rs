//! Fuzz targets: functions that take any bytes, must not panic, and assert what must hold for every
//! input.
//!
//! `tests/fuzz.rs` runs each target over its corpus and over seeded mutations of it, as part of
//! `scripts/test`. cargo-fuzz runs them for any length of time (tests/fuzz/README.md).

#[path = "../../support/sinks.rs"]
mod sinks;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::LazyLock;

use hopsack::api::{Request, is_name, is_unfit, shown, shown_lines};
use hopsack::forward::{
    Arrival, Counters, DropReason, EgressState, Frame, Hop, IngressState, Table, Train, VerifySource, egress,
    ingress,
};
use hopsack::packet::checksum::{Sum, checksum};
use hopsack::packet::coalesce::Coalescer;
use hopsack::packet::control::{self, Control, Kind};
use hopsack::packet::ecn::Ecn;
use hopsack::packet::split::{SPLIT_BUFFER, split};
use hopsack::packet::vnet::VnetHeader;
use hopsack::packet::{Family, IpPacket, Transport, bundle, protocol};
use hopsack::route::{
    Abilities, Change, Dialect, Lease, Local, Networks, Origin, Policy, Public, Rib, unfit,
};
use hopsack::seal::{Agreement, Hello, OVERHEAD, OpenError, Role, Secret, Session, Suite};
use hopsack::store::file::Map;
use hopsack::store::flannel::{Attributes, Key, Keys};
use hopsack::time::Nanos;
use sinks::{Sent, Sink};

/// Takes any bytes, and panics if an assertion about them fails.
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
    ("lease", fuzz_lease),
    ("name", fuzz_name),
    ("message", fuzz_message),
];

/// Input: the last byte of the outer source address, then a datagram.
pub fn fuzz_ingress(data: &[u8]) {
    let Some((from, datagram)) = data.split_first() else { return };
    let (table, counters, mut sink) = (&TABLE, Counters::default(), Sink::default());
    let from = IpAddr::from([192, 0, 2, *from]);
    let arrival = Arrival { from, ecn: Ecn::Ce, train: Train::single(datagram) };
    ingress(table, arrival, VerifySource::Subnet, &mut IngressState::default(), &counters, &mut sink);
    let dropped: u64 = DropReason::ALL.into_iter().map(|reason| counters.ingress.dropped(reason)).sum();
    let is_known = table.peer_by_address(from).is_some();
    let fates = if is_known { fates(datagram) } else { 1 };
    assert_eq!(sink.packets.len() as u64 + dropped, fates, "each packet has one fate");
    for packet in &sink.packets {
        let inner = IpPacket::parse(packet).expect("only whole packets pass");
        assert_eq!(inner.ecn(), Ecn::Ce, "a mark from the way is kept");
        match table.lookup(inner.src()) {
            Some(Hop::Peer(owner)) => {
                assert!(owner.endpoint.ip() == from || inner.src() == from, "another peer owns the source");
            }
            Some(Hop::Local) => panic!("the source is in our own subnet"),
            None => assert_eq!(inner.src(), from, "the source is not the peer's public address"),
        }
        assert_eq!(table.lookup(inner.dst()), Some(Hop::Local));
    }
}

/// The number of packets and drops that a datagram of a peer becomes.
fn fates(datagram: &[u8]) -> u64 {
    if matches!(Control::parse(datagram), Ok(Some(_))) {
        return 0;
    }
    bundle::entries(datagram).map_or(1, |entries| entries.count() as u64)
}

/// Input: a datagram. It is read as a control message, and one that is read is written as the same
/// bytes. From a peer it has one fate, whatever it is.
pub fn fuzz_message(data: &[u8]) {
    let mut datagram = data.to_vec();
    if let Some(first) = datagram.first_mut() {
        *first = 0x20 | *first & 0x0f;
    }
    let (counters, mut sink) = (Counters::default(), Sink::default());
    let arrival =
        Arrival { from: IpAddr::from([192, 0, 2, 2]), ecn: Ecn::NotEct, train: Train::single(&datagram) };
    ingress(&TABLE, arrival, VerifySource::Subnet, &mut IngressState::default(), &counters, &mut sink);
    let dropped: u64 = DropReason::ALL.into_iter().map(|reason| counters.ingress.dropped(reason)).sum();
    assert_eq!(counters.control_messages.get() + dropped, 1);
    assert!(sink.packets.is_empty(), "a control message is no packet");
    if let Ok(Some(message)) = Control::parse(&datagram) {
        // Flags of later versions are forgotten.
        let written = message.to_bytes();
        assert_eq!((written[0], &written[2..]), (datagram[0], &datagram[2..control::LEN]));
        assert_eq!(Control::parse(&message.reply(false).to_bytes()), Ok(Some(message.reply(false))));
        assert_eq!(counters.control_messages.get(), 1);
        assert_eq!(Control::parse(&message.reply(true).to_bytes()), Ok(Some(message.reply(true))));
        assert!(message.kind == Kind::Reply || usize::from(message.length) == datagram.len());
    }
}

/// Input: a datagram. Its first bytes are replaced by those of a bundle. Its packets lie inside
/// it, one after the other, and a new bundle of these packets returns the same packets.
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
        filled = bundle::append(&mut copy, filled, packet).expect("the datagram is as long as the original");
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

/// Input: a packet from a TUN.
pub fn fuzz_egress(data: &[u8]) {
    let counters = send(Frame::Bare(data), data);
    let dropped: u64 = DropReason::ALL.into_iter().map(|reason| counters.1.egress.dropped(reason)).sum();
    assert_eq!(counters.0 + dropped, 1, "each packet has one fate");
}

/// Input: a vnet header and a packet or super packet from a TUN with offloads.
pub fn fuzz_virtio(data: &[u8]) {
    send(Frame::Virtio(data), data.get(VnetHeader::LEN..).unwrap_or_default());
}

/// Sends a frame, and checks the datagrams and the ICMP errors. Returns the number of datagrams,
/// and the counters.
fn send(frame: Frame<'_>, packet: &[u8]) -> (u64, Counters) {
    let (counters, mut state) = (Counters::default(), EgressState::new(Nanos(0)));
    let (mut net, mut tun) = (Sent::default(), Sink::default());
    egress(&TABLE, frame, Nanos(0), &mut state, &counters, &mut net, &mut tun);
    for sent in &net.packets {
        let sent = IpPacket::parse(sent).expect("each datagram is one whole packet");
        assert!(TABLE.is_ours(sent.src()), "the source is not ours");
    }
    for reply in &tun.replies {
        let error = IpPacket::parse(reply).expect("an ICMP error is a whole packet");
        assert_eq!(error.dst(), IpPacket::parse(packet).expect("only a packet is answered").src());
    }
    (net.packets.len() as u64, counters)
}

/// Input: a vnet header and a packet. If they are accepted, they are split into whole packets of
/// one flow.
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

/// Input: packets, each after two bytes of length. If the top bit of the length is clear, the
/// checksums of the packet are corrected first, because a fuzzer would hardly ever find a packet
/// that can be merged. No packet is lost, and splitting the runs gives the packets back, flow by
/// flow.
pub fn fuzz_coalesce(data: &[u8]) {
    let mut coalescer = Coalescer::new(8);
    let (mut rest, mut pushed, mut finished) = (data, Flows::default(), Flows::default());
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let length = u16::from_be_bytes(*length);
        let (bytes, behind) = behind.split_at(usize::from(length & 0x7fff).min(behind.len()));
        rest = behind;
        let mut bytes = bytes.to_vec();
        if length & 0x8000 == 0 {
            correct_checksums(&mut bytes);
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
        let (vnet, bytes) = VnetHeader::parse(run.bytes).expect("the coalescer wrote a valid header");
        let packet = IpPacket::parse(bytes).expect("a run is one whole packet");
        let train = split(&vnet, packet, &mut out).expect("a run can be split");
        assert_eq!((train.count(), train.bytes.len() as u64), (run.packets, run.packet_bytes));
        for packet in train.datagrams() {
            note(flows, IpPacket::parse(packet).expect("each is a whole packet"));
        }
    }
    coalescer.clear();
}

/// Adds a packet to its flow, without what has no meaning: the identification of packets that are
/// never fragmented (RFC 6864), and the difference between the two zeros of one's complement.
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

/// Offset of the TCP or UDP checksum in a packet.
fn checksum_at(transport: Transport) -> Option<usize> {
    match transport.protocol {
        protocol::TCP => Some(transport.offset + 16),
        protocol::UDP => Some(transport.offset + 6),
        _ => None,
    }
}

/// Corrects the IPv4, TCP and UDP checksums of a packet.
fn correct_checksums(bytes: &mut [u8]) {
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

/// Input: a cluster file. If it is accepted, its subnets are disjoint.
pub fn fuzz_cluster(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(map) = Map::parse(text) else { return };
    let subnets: Vec<_> = map.leases.iter().flat_map(|lease| &lease.subnets).collect();
    for (n, one) in subnets.iter().enumerate() {
        assert!(subnets[n + 1..].iter().all(|other| !one.contains(*other) && !other.contains(*one)));
    }
}

/// Input: the key of a lease without the prefix, a line break, and a value. A key has one spelling.
/// What an accepted value says about its host can be shown.
pub fn fuzz_lease(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (key, value) = (String::from_utf8_lossy(&data[..at]), data.get(at + 1..).unwrap_or_default());
    let (keys, key) = (Keys::new("/p"), format!("/p/{key}"));
    let subnets = match keys.read(&key) {
        Key::Lease(subnets) => {
            assert_eq!(keys.of(&subnets), Some(key));
            subnets
        }
        Key::Invalid(error) => {
            assert!(!shown(&error.to_string()).chars().any(is_unfit));
            vec!["10.1.2.0/24".parse().expect("a prefix")]
        }
        Key::Config | Key::Other => vec!["10.1.2.0/24".parse().expect("a prefix")],
    };
    match Attributes::parse(value) {
        Ok(attributes) => {
            let lease = attributes.lease(&subnets, 1);
            assert!(is_name(&lease.name) && !attributes.writer().chars().any(is_unfit));
            assert!(lease.public.iter().all(|address| unfit(address).is_none()));
            assert_eq!(
                Attributes::parse(attributes.to_json().as_bytes()).map(|again| again.public),
                Ok(lease.public)
            );
        }
        Err(error) => assert!(!shown(&error.to_string()).chars().any(is_unfit)),
    }
}

/// Input: a text of others. It is shown without unfit characters, and as it is if it is a name.
pub fn fuzz_name(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let shown = shown(&text);
    assert!(!shown.chars().any(is_unfit) && shown.chars().count() < 2100);
    assert!(!is_name(&text) || shown == text);
    assert!(shown_lines(&text, false).chars().all(|c| c == '\n' || !is_unfit(c)));
    // JSON with raw characters of others stays JSON of the same value.
    let json = serde_json::to_string(&text).expect("a string");
    let back: String = serde_json::from_str(&shown_lines(&json, true)).expect("still JSON");
    assert_eq!(back, text);
}

/// Input: a line at the control socket.
pub fn fuzz_control(data: &[u8]) {
    // The line need not be a request, but parsing it must not panic.
    let _ = serde_json::from_slice::<Request>(data);
}

/// Input: if the first byte is 0, a datagram follows, which opens at most once. Otherwise three
/// bytes and a packet follow. The packet is sealed, and the third byte flips bits of the datagram
/// at the position in the first two. The datagram opens once if no bit was flipped, and never if
/// one was.
pub fn fuzz_open(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let suite = if kind & 2 == 0 { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 };
    let [here, there] = [Role::Initiator, Role::Responder].map(|role| {
        let session = Session::default();
        let agreement = Agreement { suite, epoch: 1, role, ours: 2, theirs: 2 };
        let secret = Secret::new(std::array::from_fn(|n| u8::try_from(n).expect("small")), [0; 32]);
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
            assert_eq!((opened, *flip), (packet, 0), "only an unchanged datagram opens");
            assert_eq!(length, packet.len() + OVERHEAD);
            assert_eq!(there.keys().open(&datagram, &mut out, Nanos(0)), Err(OpenError::Replayed));
        }
        Err(_) => assert_ne!(*flip, 0, "an unchanged datagram opens"),
    }
}

/// A table for host 1 with hosts 2 and 3 as peers, with IPv4 and IPv6. It is made once, because
/// that takes longer than most inputs.
static TABLE: LazyLock<Table> = LazyLock::new(|| {
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
            origin: Origin::default(),
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
        nets: Vec::new(),
        public: [192, 0, 2, 1].into(),
        port: 8285,
        mtu: 1472,
        policy: Policy::default(),
    };
    Table::compile(1, &rib, &networks, &local)
});
