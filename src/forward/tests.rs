//! Tests of both directions: what becomes of each packet, and under which reason it is dropped.

use etherparse::PacketBuilder;

use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::packet::control::{Control, Kind};
use crate::packet::ecn::Ecn;
use crate::packet::{IpPacket, VnetHeader, bundle};
use crate::route::{
    Abilities, Announced, Change, Dialect, Fingerprint, Lease, Local, Mode, Networks, Origin, Policy,
    Protection, Public, Rib,
};
use crate::seal::{Agreement, Lifetime, Role, Secret, Session};
use crate::time::Nanos;

#[derive(Default)]
struct Sink {
    sent: Vec<(String, Vec<u8>)>,
    written: Vec<Vec<u8>>,
    replies: Vec<Vec<u8>>,
    control: Vec<(IpAddr, Control)>,
}

#[derive(Default)]
struct Net {
    room: Vec<u8>,
    /// Trains for the slow path.
    diverted: u64,
    sent: Vec<(String, Vec<u8>)>,
}
struct Room<'a>(&'a mut Net, Exit<'a>, TrainMeta);
impl ToNet for Net {
    type Reservation<'a> = Room<'a>;
    fn reserve<'a>(&'a mut self, exit: Exit<'a>, train: TrainMeta) -> Room<'a> {
        self.room.resize(train.bytes, 0);
        Room(self, exit, train)
    }
}
impl Reservation for Room<'_> {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.0.room
    }
    fn commit(self, bytes: usize) {
        let Self(net, exit, train) = self;
        let (Exit::Socket(peer) | Exit::SlowPath(peer)) = exit else {
            panic!("a refused train was committed")
        };
        net.diverted += u64::from(matches!(exit, Exit::SlowPath(_)));
        for datagram in (Train { bytes: &net.room[..bytes], stride: train.stride }).datagrams() {
            net.sent.push((peer.name.clone(), datagram.to_vec()));
        }
    }
}
impl ToTun for Sink {
    fn push(&mut self, packet: IpPacket<'_>) {
        self.written.push(packet.bytes().to_vec());
    }
    fn reply(&mut self, error: &[u8]) {
        self.replies.push(error.to_vec());
    }
    fn control(&mut self, from: IpAddr, message: Control) {
        self.control.push((from, message));
    }
}

/// A table for host 1 (10.1.1.0/24), with hosts 2 and 3 as peers.
fn table() -> Table {
    table_of((1..=3).map(lease).collect())
}

fn lease(n: u8) -> Lease {
    Lease {
        name: format!("h{n}"),
        subnets: vec![format!("10.1.{n}.0/24").parse().expect("a prefix")],
        public: Public { v4: Some([192, 0, 2, n].into()), v6: None },
        dialect: Dialect::Hopsack(Abilities::OURS),
        revision: 1,
        origin: Origin::default(),
    }
}

fn table_of(leases: Vec<Lease>) -> Table {
    table_with(leases, Policy::default())
}

fn table_with(leases: Vec<Lease>, policy: Policy) -> Table {
    let mut rib = Rib::default();
    rib.apply(Change::Snapshot { leases, revision: 1 });
    let local = Local {
        subnets: vec!["10.1.1.0/24".parse().expect("a prefix")],
        nets: Vec::new(),
        public: [192, 0, 2, 1].into(),
        port: 8285,
        mtu: 1472,
        policy,
    };
    let networks = Networks { v4: Some(("10.1.0.0/16".parse().expect("a prefix"), 24)), v6: None };
    Table::compile(1, &rib, &networks, &local)
}

fn udp(src: [u8; 4], dst: [u8; 4], len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ipv4(src, dst, 64).udp(1, 2).write(&mut out, &vec![7; len]).expect("fits");
    out
}

fn send(bytes: &[u8]) -> (Sink, Counters) {
    send_frame(Frame::Bare(bytes))
}

fn send_frame(frame: Frame<'_>) -> (Sink, Counters) {
    let (mut net, mut tun, counters) = (Net::default(), Sink::default(), Counters::default());
    let mut egress_state = EgressState::new(Nanos(0));
    egress(&table(), frame, Nanos(0), &mut egress_state, &counters, &mut net, &mut tun);
    (Sink { sent: net.sent, ..tun }, counters)
}

/// A UDP super packet after its [`VnetHeader`].
fn super_packet(dst: [u8; 4], len: usize, gso_size: u16) -> Vec<u8> {
    let vnet = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_UDP_L4,
        hdr_len: 0,
        gso_size,
        csum_start: 20,
        csum_offset: 6,
    };
    [&vnet.to_bytes()[..], &udp([10, 1, 1, 2], dst, len)].concat()
}

#[test]
fn a_super_packet_is_sent_or_refused_as_segments() {
    let (sink, _) = send_frame(Frame::Virtio(&super_packet([10, 1, 3, 9], 2500, 1000)));
    let lengths: Vec<usize> = sink.sent.iter().map(|(_, packet)| packet.len()).collect();
    assert_eq!(lengths, [1028, 1028, 528]);

    let (sink, counters) = send_frame(Frame::Virtio(&super_packet([10, 1, 3, 9], 3000, 1445)));
    assert_eq!((sink.sent.len(), counters.egress.dropped(DropReason::TooBig)), (0, 3));
    let [reply] = &sink.replies[..] else { panic!("not one answer: {:?}", sink.replies) };
    assert_eq!(reply[28 + 2..28 + 4], 1473u16.to_be_bytes(), "the error quotes the first of the three");

    let (sink, counters) = send_frame(Frame::Virtio(&super_packet([10, 1, 9, 9], 3000, 1000)));
    assert_eq!((sink.replies.len(), counters.egress.dropped(DropReason::NoRoute)), (1, 3));
    assert_eq!(send_frame(Frame::Virtio(&[0; 9])).1.egress.dropped(DropReason::Malformed), 1);
}

fn arrival(from: u8, train: Train<'_>) -> Arrival<'_> {
    Arrival { from: [192, 0, 2, from].into(), ecn: Ecn::NotEct, train }
}

fn receive(from: u8, bytes: &[u8], verify: VerifySource) -> Result<(), DropReason> {
    let (mut sink, counters) = (Sink::default(), Counters::default());
    let arrival = arrival(from, Train::single(bytes));
    ingress(&table(), arrival, verify, &mut IngressState::default(), &counters, &mut sink);
    let dropped: Vec<_> =
        DropReason::ALL.into_iter().filter(|reason| counters.ingress.dropped(*reason) > 0).collect();
    match (sink.written.as_slice(), dropped.as_slice()) {
        ([packet], []) if packet == bytes => Ok(()),
        ([], [reason]) => Err(*reason),
        other => panic!("not one packet and not one drop: {other:?}"),
    }
}

#[test]
fn egress_sends_to_the_owner() {
    let packet = udp([10, 1, 1, 2], [10, 1, 3, 9], 100);
    let (sink, _) = send(&packet);
    assert_eq!(sink.sent, [("h3".to_owned(), packet)]);
    assert!(sink.replies.is_empty());
}

#[test]
fn egress_drops_with_a_reason_and_an_answer() {
    for (dst, len, reason, answers) in [
        ([10, 1, 9, 9], 10, DropReason::NoRoute, 1),
        ([10, 1, 1, 9], 10, DropReason::OwnSubnet, 1),
        ([10, 1, 2, 9], 1445, DropReason::TooBig, 1),
        ([224, 0, 0, 5], 10, DropReason::Multicast, 0),
    ] {
        let (sink, counters) = send(&udp([10, 1, 1, 2], dst, len));
        assert_eq!(counters.egress.dropped(reason), 1, "{reason:?}");
        assert_eq!((sink.sent.len(), sink.replies.len()), (0, answers), "{reason:?}");
    }
    assert_eq!(
        send(&udp([10, 1, 1, 2], [10, 1, 2, 9], 1444)).0.sent.len(),
        1,
        "the packet has exactly the MTU"
    );
    assert_eq!(send(&[0x45, 0]).1.egress.dropped(DropReason::Malformed), 1);
}

#[test]
fn egress_sends_only_sources_of_ours() {
    let (to, v6) = ([10, 1, 3, 9], Some("2001:db8::1".parse().expect("an address")));
    for (src, verify, dropped, sent) in [
        ([10, 1, 1, 0], VerifySource::Subnet, 0, 1), // the address of the overlay device
        ([192, 0, 2, 1], VerifySource::Subnet, 0, 1), // our public address
        ([192, 0, 2, 3], VerifySource::Subnet, 1, 0), // the public address of a peer
        ([10, 1, 3, 8], VerifySource::Subnet, 1, 0), // the destination's own subnet
        ([10, 1, 2, 9], VerifySource::Subnet, 1, 0),
        ([8, 8, 8, 8], VerifySource::Subnet, 1, 0),
        ([0, 0, 0, 0], VerifySource::Subnet, 1, 0),
        ([10, 1, 2, 9], VerifySource::Peer, 0, 1),
        ([8, 8, 8, 8], VerifySource::Off, 0, 1),
    ] {
        let (mut net, mut tun, counters) = (Net::default(), Sink::default(), Counters::default());
        let mut state = EgressState::new(Nanos(0));
        state.verify(verify);
        let packet = udp(src, to, 10);
        egress(&table(), Frame::Bare(&packet), Nanos(0), &mut state, &counters, &mut net, &mut tun);
        let results = (counters.egress.dropped(DropReason::ForeignSource), net.sent.len(), tun.replies.len());
        assert_eq!(results, (dropped, sent, 0), "{src:?} {verify:?}");
    }
    // Each packet of a train is counted; a multicast packet is multicast whatever its source.
    let mut foreign = super_packet([10, 1, 3, 9], 2500, 1000);
    foreign[10 + 12..10 + 16].copy_from_slice(&[8; 4]);
    assert_eq!(send_frame(Frame::Virtio(&foreign)).1.egress.dropped(DropReason::ForeignSource), 3);
    let (sink, counters) = send(&udp([8; 4], [224, 0, 0, 5], 10));
    assert_eq!((counters.egress.dropped(DropReason::Multicast), sink.replies.len()), (1, 0));
    // The sender of a packet without a route is told only if it is one of ours.
    let (sink, counters) = send(&udp([8; 4], [10, 1, 9, 9], 10));
    assert_eq!((counters.egress.dropped(DropReason::ForeignSource), sink.replies.len()), (1, 0));

    // The other public address of our lease, and of a peer's.
    let dual = |n: u8| Lease {
        public: Public { v4: Some([192, 0, 2, n].into()), v6: v6.filter(|_| n == 1) },
        ..lease(n)
    };
    let table = table_of((1..=3).map(dual).collect());
    assert!(table.is_ours("2001:db8::1".parse().expect("an address")));
    assert!(!table.is_ours("2001:db8::2".parse().expect("an address")));
    assert!(!Table::default().has_own_subnet() && table.has_own_subnet());
}

#[test]
fn ingress_verifies_source_and_destination() {
    let good = udp([10, 1, 2, 9], [10, 1, 1, 2], 10);
    let foreign = udp([10, 1, 3, 9], [10, 1, 1, 2], 10);
    let ours = udp([10, 1, 1, 9], [10, 1, 1, 2], 10);
    let elsewhere = udp([10, 1, 2, 9], [10, 1, 3, 2], 10);
    let node = udp([192, 0, 2, 2], [10, 1, 1, 2], 10);
    let own_node = udp([192, 0, 2, 1], [10, 1, 1, 2], 10);
    use VerifySource::{Off, Peer, Subnet};
    for (from, bytes, verify, verdict) in [
        (2, &good[..], Subnet, Ok(())),
        (3, &good, Subnet, Err(DropReason::SpoofedSource)),
        (2, &foreign, Subnet, Err(DropReason::SpoofedSource)),
        (2, &node, Subnet, Ok(())),
        (3, &node, Subnet, Err(DropReason::SpoofedSource)),
        (9, &node, Subnet, Err(DropReason::UnknownPeer)),
        (2, &own_node, Subnet, Err(DropReason::SpoofedSource)),
        (2, &ours, Subnet, Err(DropReason::OwnSource)),
        (2, &ours, Peer, Err(DropReason::OwnSource)),
        (9, &ours, Subnet, Err(DropReason::OwnSource)),
        (9, &ours, Off, Err(DropReason::OwnSource)),
        (2, &foreign, Peer, Ok(())),
        (9, &good, Subnet, Err(DropReason::UnknownPeer)),
        (9, &good, Peer, Err(DropReason::UnknownPeer)),
        (9, &good, Off, Ok(())),
        (2, &elsewhere, Subnet, Err(DropReason::Misrouted)),
        (2, &good[..good.len() - 1], Subnet, Err(DropReason::Malformed)),
        (2, &[], Subnet, Err(DropReason::Malformed)),
        (2, &[0x20, 1, 2], Subnet, Err(DropReason::UnknownType)),
        (2, &[0x10, 1, 2], Subnet, Err(DropReason::NoKey)),
        (2, &[0xff; 40], Subnet, Err(DropReason::UnknownType)),
    ] {
        assert_eq!(receive(from, bytes, verify), verdict, "from {from}, {verify:?}, {bytes:02x?}");
    }
}

#[test]
fn control_messages_come_from_peers_only() {
    let message = Control { kind: Kind::Request, is_fast: false, length: 12, nonce: 9 };
    for (from, taken, reason) in [(2, 1, None), (9, 0, Some(DropReason::UnknownPeer))] {
        let (mut sink, counters) = (Sink::default(), Counters::default());
        let datagram = message.to_bytes();
        let (table, arrival) = (table(), arrival(from, Train::single(&datagram)));
        ingress(&table, arrival, VerifySource::Off, &mut IngressState::default(), &counters, &mut sink);
        assert_eq!(sink.control, vec![([192, 0, 2, 2].into(), message); taken]);
        assert_eq!(counters.control_messages.get(), taken as u64);
        assert!(reason.is_none_or(|reason| counters.ingress.dropped(reason) == 1) && sink.written.is_empty());
    }
}

#[test]
fn packets_are_traffic_of_their_peer() {
    let (table, counters, mut state) = (table(), Counters::default(), EgressState::new(Nanos(0)));
    let (mut net, mut tun, packet) = (Net::default(), Sink::default(), udp([10, 1, 1, 2], [10, 1, 3, 9], 10));
    egress(&table, Frame::Bare(&packet), Nanos(0), &mut state, &counters, &mut net, &mut tun);
    let used: Vec<bool> = table.peers().iter().map(Peer::take_traffic).collect();
    assert_eq!(used, [false, true]);
    assert!(!table.peers()[1].take_traffic(), "it was taken");
}

#[test]
fn the_sender_with_our_subnet_is_stored() {
    let counters = Counters::default();
    assert_eq!(counters.own_source.last(), None);
    for from in ["192.0.2.2", "2001:db8::7", "192.0.2.9"] {
        let from: IpAddr = from.parse().expect("an address");
        let packet = udp([10, 1, 1, 9], [10, 1, 1, 2], 10);
        let train = Train::single(&packet);
        let arrival = Arrival { from, ecn: Ecn::NotEct, train };
        let mut sink = Sink::default();
        ingress(&table(), arrival, VerifySource::Subnet, &mut IngressState::default(), &counters, &mut sink);
        // Only a peer is stored: anybody can send from an address that no lease has.
        let peer = IpAddr::from([192, 0, 2, 2]);
        assert_eq!((counters.own_source.last(), counters.own_source.times()), (Some(peer), 1));
    }
    assert_eq!(counters.ingress.dropped(DropReason::OwnSource), 3);
    let packet = udp([10, 1, 1, 9], [10, 1, 1, 2], 10);
    let arrival = arrival(9, Train::single(&packet));
    ingress(
        &table(),
        arrival,
        VerifySource::Off,
        &mut IngressState::default(),
        &counters,
        &mut Sink::default(),
    );
    assert_eq!((counters.ingress.dropped(DropReason::OwnSource), counters.own_source.times()), (4, 1));
}

#[test]
fn a_train_is_split_by_its_stride() {
    let packet = udp([10, 1, 2, 9], [10, 1, 1, 2], 10);
    let short = udp([10, 1, 2, 9], [10, 1, 1, 2], 4);
    let bytes = [&packet[..], &packet, &short].concat();
    let train = Train { bytes: &bytes, stride: packet.len() };
    assert_eq!(train.count(), 3);
    let (mut sink, counters) = (Sink::default(), Counters::default());
    let verify = VerifySource::Subnet;
    ingress(&table(), arrival(2, train), verify, &mut IngressState::default(), &counters, &mut sink);
    assert_eq!(sink.written, [packet.clone(), packet, short]);
}

#[test]
fn an_outer_mark_reaches_the_inner_packet() {
    let (mut datagram, plain) = (vec![0; 200], udp([10, 1, 2, 9], [10, 1, 1, 2], 10));
    let with = |ecn: Ecn| {
        let mut bytes = plain.clone();
        bytes[1] = ecn as u8;
        // The sum grows by the field, and the checksum is its complement.
        let sum = u16::from_be_bytes([bytes[10], bytes[11]]) - u16::from(bytes[1]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    let filled = [with(Ecn::Ect0), with(Ecn::NotEct), with(Ecn::Ce)]
        .iter()
        .fold(0, |filled, packet| bundle::append(&mut datagram, filled, packet).expect("it fits"));
    let (mut sink, counters) = (Sink::default(), Counters::default());
    let arrival = Arrival { ecn: Ecn::Ce, ..arrival(2, Train::single(&datagram[..filled])) };
    ingress(&table(), arrival, VerifySource::Subnet, &mut IngressState::default(), &counters, &mut sink);
    assert_eq!(sink.written, [with(Ecn::Ce), with(Ecn::Ce)]);
    assert_eq!(counters.ingress.dropped(DropReason::Unmarkable), 1);
}

/// A full-size packet with this ECN field.
fn bulk(src: [u8; 4], dst: [u8; 4], ecn: Ecn) -> Vec<u8> {
    let mut bytes = udp(src, dst, 1200);
    bytes[1] = ecn as u8;
    let sum = u16::from_be_bytes([bytes[10], bytes[11]]) - u16::from(bytes[1]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn a_standing_queue_marks_one_bulk_packet() {
    let (ours, theirs) = ([10, 1, 1, 2], [10, 1, 2, 9]);
    let (table, counters, mut sink) = (table(), Counters::default(), Sink::default());
    let (mut net, mut egress_state) = (Net::default(), EgressState::new(Nanos(0)));
    let short = udp(ours, theirs, 100);
    let out = [Ecn::Ect0, Ecn::Ect0, Ecn::NotEct, Ecn::NotEct].map(|ecn| bulk(ours, theirs, ecn));
    for (index, packet) in [&short, &out[0], &out[1], &out[2], &out[3]].into_iter().enumerate() {
        egress_state.mark_next_bulk(index != 2 && index != 4);
        egress(&table, Frame::Bare(packet), Nanos(0), &mut egress_state, &counters, &mut net, &mut sink);
    }
    let sent: Vec<_> = net.sent.into_iter().map(|(_, packet)| packet).collect();
    let marked = bulk(ours, theirs, Ecn::Ce);
    assert_eq!(sent, [short, marked, out[1].clone(), out[3].clone()]);
    assert_eq!((counters.egress.dropped(DropReason::StandingQueue), counters.queue_marks.get()), (1, 1));

    let (mut ingress_state, short) = (IngressState::default(), udp(theirs, ours, 100));
    let into = [Ecn::Ect1, Ecn::Ect1, Ecn::NotEct, Ecn::NotEct].map(|ecn| bulk(theirs, ours, ecn));
    for (first, second) in [(&into[0], &into[1]), (&into[2], &into[3])] {
        ingress_state.mark_next_bulk(true);
        for packet in [&short, first, second] {
            let arrival = arrival(2, Train::single(packet));
            ingress(&table, arrival, VerifySource::Subnet, &mut ingress_state, &counters, &mut sink);
        }
    }
    let marked = bulk(theirs, ours, Ecn::Ce);
    assert_eq!(sink.written, [&short, &marked, &into[1], &short, &into[3]].map(Clone::clone));
    assert_eq!((counters.ingress.dropped(DropReason::StandingQueue), counters.queue_marks.get()), (1, 2));
}

#[test]
fn only_peers_that_read_ecn_are_sent_marks() {
    let table = table();
    let Some(Hop::Peer(peer)) = table.lookup([10, 1, 2, 9].into()) else { panic!("a peer") };
    let meta = TrainMeta { bytes: 100, stride: 100, ecn: Ecn::Ect0 };
    assert_eq!(meta.outer_ecn(peer), Ecn::Ect0);
    let flanneld = Peer { abilities: Abilities::default(), ..peer.clone() };
    assert_eq!(meta.outer_ecn(&flanneld), Ecn::NotEct);
}

/// A table in which this host seals packets to each other host.
fn sealed_table(leases: Vec<Lease>) -> Table {
    encrypted_table(leases, Mode::Sealed)
}

fn encrypted_table(leases: Vec<Lease>, mode: Mode) -> Table {
    let announced = |n: u8| Announced { mode, port: 8286, fingerprint: Fingerprint([n; 32]) };
    let sealed = |(n, lease): (u8, Lease)| {
        let abilities = Abilities { sealed: true, secure: Some(announced(n)), ..Abilities::OURS };
        Lease { dialect: Dialect::Hopsack(abilities), ..lease }
    };
    table_with((1..).zip(leases).map(sealed).collect(), Policy { mode, ..Policy::default() })
}

/// What a worker's socket sends for a peer without keys would be in clear.
#[test]
fn packets_without_a_key_take_the_slow_path() {
    let packet = udp([10, 1, 1, 2], [10, 1, 2, 9], 10);
    let diverted = |table: &Table| {
        let (mut net, mut tun, counters) = (Net::default(), Sink::default(), Counters::default());
        let mut state = EgressState::new(Nanos(0));
        egress(table, Frame::Bare(&packet), Nanos(0), &mut state, &counters, &mut net, &mut tun);
        assert_eq!(net.sent.len(), 1);
        net.diverted
    };
    let leases = || (1..=3).map(lease).collect();
    let mut sealed = sealed_table(leases());
    assert_eq!(diverted(&sealed), 1, "without a session");
    sealed.equip(&mut Sessions::new(Lifetime::default()));
    assert_eq!(diverted(&sealed), 1, "without a key");
    assert_eq!(diverted(&encrypted_table(leases(), Mode::Quic)), 1, "by QUIC");
    assert_eq!(diverted(&table()), 0, "in clear");
}

#[test]
fn session_is_forgotten_with_its_peer() {
    let mut sessions = Sessions::new(Lifetime::default());
    let mut equipped = |leases: Vec<Lease>| {
        let mut table = sealed_table(leases);
        table.equip(&mut sessions);
        table
    };
    let session = |table: &Table, n: u8| {
        table.peer_by_address([192, 0, 2, n].into()).and_then(|peer| peer.session.clone()).expect("sealed")
    };
    let before = equipped((1..=3).map(lease).collect());
    for peer in before.peers() {
        let (ours, theirs) = (session(&before, 2).hello(1), Session::default().hello(1));
        let agreement = Agreement::of(&ours, &theirs, Role::Initiator);
        let session = peer.session.as_ref().expect("sealed");
        session.install(agreement, &Secret::new([7; 32], [0; 32]), Nanos(1)).expect("new");
        session.activate(agreement.epoch, Nanos(1));
        assert!(peer.can_seal());
    }
    // Host 3 is gone. Workers may still use the old table, but its key must not seal or open.
    let after = equipped((1..=2).map(lease).collect());
    assert_eq!(session(&after, 2), session(&before, 2), "sessions outlive tables");
    assert!(after.peers()[0].can_seal());
    let gone = session(&before, 3);
    assert!(gone.keys().sealing().is_none() && gone.hello(1).epochs.is_empty());
    // A host that comes back begins without keys.
    let back = equipped((1..=3).map(lease).collect());
    assert!(session(&back, 3) != gone && !back.peers()[1].can_seal());
}

#[test]
fn peers_mtu_fits_the_link_that_it_announces() {
    let mtu = |link_mtu, protection| {
        let adjacency = crate::route::Adjacency {
            name: "h2".into(),
            endpoint: SocketAddr::from(([192, 0, 2, 2], 8285)),
            public: Public::default(),
            subnets: Vec::new(),
            abilities: Abilities { link_mtu, ..Abilities::OURS },
            protection,
        };
        let mut peers = Peers::new(vec![adjacency], Box::default(), 8972);
        peers.limit_to_links(38);
        peers.all()[0].mtu
    };
    let (clear, sealed) = (Protection::Clear, Protection::Sealed);
    assert_eq!(mtu(None, clear), 8972, "our own link limits packets to a host that announces nothing");
    assert_eq!(mtu(Some(1500), clear), 1472);
    assert_eq!(mtu(Some(1500), sealed), 1434);
    assert_eq!(mtu(Some(9000), clear), 8972);
    assert_eq!(mtu(Some(576), clear), 1280, "never below what IPv6 needs");
}

#[test]
fn outer_addresses_find_their_peer() {
    let table = table();
    let peer = table.peer_by_address([192, 0, 2, 3].into()).expect("host 3 is a peer");
    assert_eq!(peer.endpoint, SocketAddr::from(([192, 0, 2, 3], 8285)));
    assert_eq!(table.peer_by_address([192, 0, 2, 4].into()), None);
    assert_eq!(table.peer_by_address([192, 0, 2, 1].into()), None, "we are not our own peer");
}
