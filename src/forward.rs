//! Forwarding: the two straight lines that every engine calls, and the account they keep.
//!
//! [`egress`] takes what a TUN read brought and pushes it towards a peer; [`ingress`] takes what a UDP receive brought
//! and pushes it towards the TUN. Each packet ends in exactly one place: pushed, or counted under a [`DropReason`].
//! What leaves or enters goes through [`ToNet`] and [`ToTun`], which the engines implement by system calls or rings.
//!
//! Nothing here knows a descriptor, a clock, a thread, a log or, after construction, an allocator.
//!
//! Invariant, per direction: `packets in = packets out + sum of drops`, once the engine has counted what the kernel
//! took and what it refused.
#![forbid(unsafe_code)]

mod account;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use account::{Counter, Counters, Direction, DropReason, LastSeen};

pub use crate::packet::Train;
use crate::packet::ecn::{self, Ecn, Marker};
use crate::packet::icmp::{self, Limiter, MAX_ERROR, Problem};
use crate::packet::split::SplitPlan;
use crate::packet::{IpPacket, Malformed, VnetHeader, bundle};
use crate::route::{Fib, Hop, Peer, Protection};
use crate::seal::{self, OpenError};
use crate::time::Nanos;

/// What one read of the overlay device brought.
#[derive(Debug, Clone, Copy)]
pub enum Frame<'a> {
    /// One packet.
    Bare(&'a [u8]),
    /// A [`VnetHeader`], then one packet or a super packet.
    Virtio(&'a [u8]),
}

impl<'a> Frame<'a> {
    #[inline]
    fn plan(self) -> Result<(IpPacket<'a>, SplitPlan<'a>), Malformed> {
        let (vnet, bytes) = match self {
            Self::Bare(bytes) => (VnetHeader::default(), bytes),
            Self::Virtio(bytes) => VnetHeader::parse(bytes)?,
        };
        let packet = IpPacket::parse(bytes)?;
        Ok((packet, SplitPlan::of(vnet, packet)?))
    }
}

/// From so many bytes on, a packet or train is bulk, whose sender can be warned: nothing shorter is marked or dropped for a
/// queue that stands, since what is short waits for bulk and not the other way round.
pub const BULK: usize = 1024;

/// A train of packets that is to be written and sent.
#[derive(Debug, Clone, Copy)]
pub struct TrainMeta {
    /// Bytes of all packets.
    pub bytes: usize,
    /// Bytes of each, but for the last, which may be shorter.
    pub stride: usize,
    /// Their ECN field, for the outer header where the peer reads it.
    pub ecn: Ecn,
}

impl TrainMeta {
    /// The ECN field that the outer header bears on the way to `peer`: RFC 6040's normal mode, or its compatibility mode.
    #[must_use]
    pub fn outer_ecn(&self, peer: &Peer) -> Ecn {
        if peer.abilities.ecn { self.ecn } else { Ecn::NotEct }
    }
}

/// What one UDP receive brought.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The outer source address.
    pub from: IpAddr,
    /// The outer ECN field.
    pub ecn: Ecn,
    /// The datagrams.
    pub train: Train<'a>,
}

/// How a train leaves this host.
#[derive(Debug, Clone, Copy)]
pub enum Exit<'a> {
    /// The worker's own socket sends it to this peer.
    Socket(&'a Peer),
    /// The slow path carries it to this peer, and counts it.
    SlowPath(&'a Peer),
    /// It does not leave. It is written all the same, so that its sender gets an ICMP error that quotes a packet it knows.
    Refused,
}

/// Takes the trains that must leave by UDP. The implementor counts each packet as sent, or as dropped for
/// [`DropReason::SendFailed`].
///
/// A train is written where it will be sent from: the caller reserves room for it, writes it there and commits it. All that
/// an implementor knows about a reservation stands in the guard, so that dropping the guard forgets the reservation.
pub trait ToNet {
    /// The guard of a reservation.
    type Reservation<'a>: Reservation
    where
        Self: 'a;
    /// Reserves room for a train that leaves by `exit`.
    fn reserve<'a>(&'a mut self, exit: Exit<'a>, train: TrainMeta) -> Self::Reservation<'a>;
}

/// Room for one train. Dropping it forgets what was written.
pub trait Reservation {
    /// The room: as many bytes as the train has, or fewer if the implementor has no more.
    fn buffer(&mut self) -> &mut [u8];
    /// Queues or sends the first `bytes` bytes of the room, which are whole packets. The implementor decides how packets are
    /// framed, bare or in bundles, within what the peer announces.
    fn commit(self, bytes: usize);
}

/// Takes whole IP packets for the TUN. The implementor counts what it was given by [`ToTun::push`] as delivered, or as
/// dropped for [`DropReason::WriteFailed`].
pub trait ToTun {
    /// Queues or writes a packet that came from a peer.
    fn push(&mut self, packet: IpPacket<'_>);
    /// Queues or writes an ICMP error of our own making, about a packet that came from the TUN.
    fn reply(&mut self, error: &[u8]);
}

/// What an inner source address must prove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifySource {
    /// It lies in a subnet of the peer that sent the datagram.
    #[default]
    Subnet,
    /// Nothing, but the datagram comes from the address of a peer.
    Peer,
    /// Nothing, and datagrams from anywhere are taken, as flanneld does.
    Off,
}

/// What one worker keeps between packets: the rate limit of ICMP errors, and room to write one.
#[derive(Debug)]
pub struct EgressState {
    /// The next packet of bulk is to be marked or dropped.
    warning: bool,
    limiter: Limiter,
    scratch: Box<[u8; MAX_ERROR]>,
}

impl EgressState {
    /// `now` starts the ICMP rate limit.
    #[must_use]
    pub fn new(now: Nanos) -> Self {
        Self { warning: false, limiter: Limiter::new(now), scratch: Box::new([0; MAX_ERROR]) }
    }

    /// The TUN's queue stands: the next packet of bulk is to say so to its sender.
    pub fn warn(&mut self, is_standing: bool) {
        self.warning = is_standing;
    }

    /// Marks the last packet of the train in `room`, which comes from a queue that stands, or drops it if it cannot be
    /// marked. Returns how many bytes of the train go on.
    #[cold]
    fn warned(&mut self, room: &mut [u8], train: TrainMeta, counters: &Counters) -> usize {
        self.warning = false;
        let last = (train.bytes - 1) / train.stride * train.stride;
        if ecn::mark(&mut room[last..train.bytes]) {
            counters.queue_marks.add(1);
            return train.bytes;
        }
        counters.egress.drop(DropReason::StandingQueue);
        last
    }

    /// Drops the packets of a train, all of one flow, for `reason`, and tells their sender once, within the rate limit.
    pub fn refuse(
        &mut self,
        fib: &Fib,
        train: Train<'_>,
        (reason, problem): (DropReason, Problem),
        now: Nanos,
        counters: &Counters,
        to_tun: &mut impl ToTun,
    ) {
        counters.egress.drop_many(reason, train.count());
        let first = train.datagrams().next().and_then(|first| IpPacket::parse(first).ok());
        let Some(packet) = first else { return };
        let Some(from) = fib.device_address(packet.family()) else { return };
        let Some(error) = icmp::error(&mut self.scratch, from, &packet, problem) else { return };
        if !self.limiter.allow(packet.src(), now) {
            counters.icmp_suppressed.add(1);
            return;
        }
        match problem {
            Problem::NoRoute => counters.icmp_unreachable.add(1),
            Problem::TooBig { .. } => counters.icmp_too_big.add(1),
        }
        to_tun.reply(error);
    }
}

/// From the TUN to a peer: parse, look up, reserve, split, commit.
#[inline]
pub fn egress(
    fib: &Fib,
    frame: Frame<'_>,
    now: Nanos,
    forwarder: &mut EgressState,
    counters: &Counters,
    to_net: &mut impl ToNet,
    to_tun: &mut impl ToTun,
) {
    let Ok((packet, plan)) = frame.plan() else { return counters.egress.drop(DropReason::Malformed) };
    let dst = packet.dst();
    let hop = fib.lookup(dst);
    let exit = match hop {
        Some(Hop::Peer(peer)) if plan.stride() <= usize::from(peer.mtu) => {
            let is_ready = peer.protection == Protection::Clear || peer.can_seal();
            if is_ready { Exit::Socket(peer) } else { Exit::SlowPath(peer) }
        }
        _ => Exit::Refused,
    };
    let meta = TrainMeta { bytes: plan.len(), stride: plan.stride(), ecn: packet.ecn() };
    let mut reservation = to_net.reserve(exit, meta);
    let Ok(train) = plan.write(reservation.buffer()) else {
        return counters.egress.drop_many(DropReason::Malformed, plan.count());
    };
    match exit {
        Exit::Socket(_) => {
            let is_warned = forwarder.warning && meta.bytes >= BULK;
            let bytes =
                if is_warned { forwarder.warned(reservation.buffer(), meta, counters) } else { meta.bytes };
            if bytes > 0 {
                reservation.commit(bytes);
            }
        }
        Exit::SlowPath(_) => reservation.commit(meta.bytes),
        Exit::Refused => {
            let refusal = match hop {
                Some(Hop::Peer(peer)) => (DropReason::TooBig, Problem::TooBig { mtu: peer.mtu }),
                Some(Hop::Local) => (DropReason::OwnSubnet, Problem::NoRoute),
                None if dst.is_multicast() => (DropReason::Multicast, Problem::NoRoute),
                None => (DropReason::NoRoute, Problem::NoRoute),
            };
            forwarder.refuse(fib, train, refusal, now, counters, to_tun);
        }
    }
}

/// The way in, as one worker keeps it between packets: room for what was sealed, room to mark, and the time.
#[derive(Debug)]
pub struct IngressState {
    opened: Box<[u8]>,
    marker: Marker,
    /// The next packet of bulk is to be marked or dropped.
    warning: bool,
    now: Nanos,
}

impl Default for IngressState {
    fn default() -> Self {
        /// The longest UDP datagram.
        const ROOM: usize = 65_536;
        Self { opened: vec![0; ROOM].into(), marker: Marker::default(), warning: false, now: Nanos(0) }
    }
}

impl IngressState {
    /// What comes from here on comes at `now`: keys run out.
    pub fn at(&mut self, now: Nanos) {
        self.now = now;
    }

    /// The socket's queue stands: the next packet of bulk is to say so to its sender.
    pub fn warn(&mut self, is_standing: bool) {
        self.warning = is_standing;
    }
}

/// From a peer to the TUN: know the sender, open what is sealed, take each datagram out of its frame, admit each packet,
/// apply the outer ECN field, push.
#[inline]
pub fn ingress(
    fib: &Fib,
    Arrival { from, ecn, train }: Arrival<'_>,
    verify: VerifySource,
    gate: &mut IngressState,
    counters: &Counters,
    to_tun: &mut impl ToTun,
) {
    let IngressState { opened, marker, warning, now } = gate;
    let peer = fib.peer_by_address(from);
    if peer.is_none() && verify != VerifySource::Off {
        return turn_away(fib, from, train, counters);
    }
    let keys = peer.and_then(|peer| peer.session.as_ref()).map(|session| session.keys());
    let is_clear = peer.is_none_or(|peer| peer.protection == Protection::Clear);
    let mut take = |bytes: &[u8]| match admit(fib, peer, bytes, verify) {
        Ok(packet) if *warning && bytes.len() >= BULK => {
            *warning = false;
            match marker.apply(packet, Ecn::Ce) {
                Some(packet) => {
                    counters.queue_marks.add(1);
                    to_tun.push(packet);
                }
                None => counters.ingress.drop(DropReason::StandingQueue),
            }
        }
        Ok(packet) => match marker.apply(packet, ecn) {
            Some(packet) => to_tun.push(packet),
            None => counters.ingress.drop(DropReason::Unmarkable),
        },
        Err(reason) => counters.turned_away(reason, from),
    };
    for datagram in train.datagrams() {
        match nibble(datagram) {
            seal::NIBBLE => {
                let packet = match &keys {
                    Some(keys) => keys.open(datagram, opened, *now),
                    None => Err(OpenError::NoKey),
                };
                match packet {
                    Ok(bytes) => {
                        counters.opened.add(1);
                        unframe(bytes, counters, &mut take);
                    }
                    Err(error) => counters.ingress.drop(error.into()),
                }
            }
            4 | 6 | bundle::NIBBLE if !is_clear => counters.ingress.drop(DropReason::Cleartext),
            _ => unframe(datagram, counters, &mut take),
        }
    }
}

/// The first four bits say what a datagram is; an empty one is a bare packet that is malformed.
#[inline]
fn nibble(datagram: &[u8]) -> u8 {
    datagram.first().map_or(4, |byte| byte >> 4)
}

/// Takes the packets out of a datagram that is not sealed, or not any more.
#[inline]
fn unframe(datagram: &[u8], counters: &Counters, take: &mut impl FnMut(&[u8])) {
    match nibble(datagram) {
        4 | 6 => take(datagram),
        bundle::NIBBLE => unbundle(datagram, counters, take),
        // 2 will be control messages, sent only to hosts that announce them. Nothing is sealed twice.
        _ => counters.ingress.drop(DropReason::UnknownType),
    }
}

impl From<OpenError> for DropReason {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Malformed => Self::Malformed,
            OpenError::NoKey => Self::NoKey,
            OpenError::Replayed => Self::Replayed,
            OpenError::Unauthentic => Self::Unauthentic,
        }
    }
}

/// Drops what a stranger sent. It may be a host that holds our subnet for its own: one whose lease ran out while it was
/// away is no peer any more, and is just the one to look for.
#[cold]
fn turn_away(fib: &Fib, from: IpAddr, train: Train<'_>, counters: &Counters) {
    for datagram in train.datagrams() {
        // Of a bundle the first packet is looked at.
        let first = bundle::entries(datagram).ok().and_then(|mut entries| entries.next()?.ok());
        let packet = IpPacket::parse(first.unwrap_or(datagram));
        let source = packet.ok().and_then(|packet| fib.lookup(packet.src()));
        let reason = if source == Some(Hop::Local) { DropReason::OwnSource } else { DropReason::UnknownPeer };
        counters.turned_away(reason, from);
    }
}

/// Takes the packets out of a bundle. Where it lies, what was whole before has been taken, and the rest is one drop.
#[inline]
fn unbundle(datagram: &[u8], counters: &Counters, take: &mut impl FnMut(&[u8])) {
    counters.ingress_bundles.add(1);
    let Ok(entries) = bundle::entries(datagram) else { return counters.ingress.drop(DropReason::Malformed) };
    for entry in entries {
        match entry {
            Ok(packet) => take(packet),
            Err(Malformed) => counters.ingress.drop(DropReason::Malformed),
        }
    }
}

/// Admits a packet that came by a connection that has authenticated the peer at `from`. One that it refuses is counted.
#[inline]
pub fn admit_authenticated<'a>(
    fib: &Fib,
    from: IpAddr,
    packet: &'a [u8],
    counters: &Counters,
) -> Result<IpPacket<'a>, DropReason> {
    let peer = fib.peer_by_address(from);
    let admitted = match peer {
        Some(_) => admit(fib, peer, packet, VerifySource::Subnet),
        None => Err(DropReason::UnknownPeer),
    };
    admitted.inspect_err(|reason| counters.turned_away(*reason, from))
}

/// Everything that the bytes from a peer must be to become a packet on the TUN.
#[inline]
fn admit<'a>(
    fib: &Fib,
    peer: Option<&Peer>,
    bytes: &'a [u8],
    verify: VerifySource,
) -> Result<IpPacket<'a>, DropReason> {
    let packet = IpPacket::parse(bytes).map_err(|_| DropReason::Malformed)?;
    match (fib.lookup(packet.src()), peer) {
        (Some(Hop::Local), _) => return Err(DropReason::OwnSource),
        (Some(Hop::Peer(owner)), Some(sender)) if std::ptr::eq(owner, sender) => {}
        _ if verify == VerifySource::Subnet => return Err(DropReason::SpoofedSource),
        _ => {}
    }
    // What is not ours would leave by the network's route again, and circle until its TTL ends.
    if fib.lookup(packet.dst()) != Some(Hop::Local) {
        return Err(DropReason::Misrouted);
    }
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::route::{Abilities, Change, Dialect, Lease, Local, Networks, Policy, Public, Rib};

    #[derive(Default)]
    struct Sink {
        sent: Vec<(String, Vec<u8>)>,
        written: Vec<Vec<u8>>,
        replies: Vec<Vec<u8>>,
    }

    #[derive(Default)]
    struct Net {
        room: Vec<u8>,
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
            let (Exit::Socket(peer) | Exit::SlowPath(peer)) = exit else { panic!("it was refused") };
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
    }

    /// Host 1 is ourselves (10.1.1.0/24), hosts 2 and 3 are peers.
    fn fib() -> Fib {
        let leases = (1..=3u8)
            .map(|n| Lease {
                name: format!("h{n}"),
                subnets: vec![format!("10.1.{n}.0/24").parse().expect("a prefix")],
                public: Public { v4: Some([192, 0, 2, n].into()), v6: None },
                dialect: Dialect::Hopsack(Abilities::OURS),
                revision: 1,
            })
            .collect();
        let mut rib = Rib::default();
        rib.apply(Change::Snapshot { leases, revision: 1 });
        let local = Local {
            subnets: vec!["10.1.1.0/24".parse().expect("a prefix")],
            public: [192, 0, 2, 1].into(),
            port: 8285,
            mtu: 1472,
            policy: Policy::default(),
        };
        let networks = Networks { v4: Some(("10.1.0.0/16".parse().expect("a prefix"), 24)), v6: None };
        Fib::compile(1, &rib, &networks, &local)
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
        let mut forwarder = EgressState::new(Nanos(0));
        egress(&fib(), frame, Nanos(0), &mut forwarder, &counters, &mut net, &mut tun);
        (Sink { sent: net.sent, ..tun }, counters)
    }

    /// A UDP super packet behind its header.
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
    fn a_super_packet_leaves_as_many_and_is_refused_as_many() {
        let (sink, _) = send_frame(Frame::Virtio(&super_packet([10, 1, 3, 9], 2500, 1000)));
        let lengths: Vec<usize> = sink.sent.iter().map(|(_, packet)| packet.len()).collect();
        assert_eq!(lengths, [1028, 1028, 528]);

        let (sink, counters) = send_frame(Frame::Virtio(&super_packet([10, 1, 3, 9], 3000, 1445)));
        assert_eq!((sink.sent.len(), counters.egress.dropped(DropReason::TooBig)), (0, 3));
        let [reply] = &sink.replies[..] else { panic!("one answer: {:?}", sink.replies) };
        assert_eq!(reply[28 + 2..28 + 4], 1473u16.to_be_bytes(), "it quotes the first of the three");

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
        ingress(&fib(), arrival, verify, &mut IngressState::default(), &counters, &mut sink);
        let dropped: Vec<_> =
            DropReason::ALL.into_iter().filter(|reason| counters.ingress.dropped(*reason) > 0).collect();
        match (sink.written.as_slice(), dropped.as_slice()) {
            ([packet], []) if packet == bytes => Ok(()),
            ([], [reason]) => Err(*reason),
            other => panic!("neither one packet nor one drop: {other:?}"),
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
    fn egress_refuses_with_a_reason_and_an_answer() {
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
        assert_eq!(send(&udp([10, 1, 1, 2], [10, 1, 2, 9], 1444)).0.sent.len(), 1, "exactly the MTU");
        assert_eq!(send(&[0x45, 0]).1.egress.dropped(DropReason::Malformed), 1);
    }

    #[test]
    fn ingress_admits_what_its_sender_owns() {
        let good = udp([10, 1, 2, 9], [10, 1, 1, 2], 10);
        let foreign = udp([10, 1, 3, 9], [10, 1, 1, 2], 10);
        let ours = udp([10, 1, 1, 9], [10, 1, 1, 2], 10);
        let elsewhere = udp([10, 1, 2, 9], [10, 1, 3, 2], 10);
        use VerifySource::{Off, Peer, Subnet};
        for (from, bytes, verify, verdict) in [
            (2, &good[..], Subnet, Ok(())),
            (3, &good, Subnet, Err(DropReason::SpoofedSource)),
            (2, &foreign, Subnet, Err(DropReason::SpoofedSource)),
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
    fn who_uses_our_subnet_is_remembered() {
        let counters = Counters::default();
        assert_eq!(counters.own_source.last(), None);
        for from in ["192.0.2.2", "2001:db8::7", "192.0.2.9"] {
            let from: IpAddr = from.parse().expect("an address");
            let packet = udp([10, 1, 1, 9], [10, 1, 1, 2], 10);
            let train = Train::single(&packet);
            let arrival = Arrival { from, ecn: Ecn::NotEct, train };
            let mut sink = Sink::default();
            ingress(
                &fib(),
                arrival,
                VerifySource::Subnet,
                &mut IngressState::default(),
                &counters,
                &mut sink,
            );
            assert_eq!(counters.own_source.last(), Some(from));
        }
        assert_eq!(counters.ingress.dropped(DropReason::OwnSource), 3);
    }

    #[test]
    fn a_train_is_cut_by_its_stride() {
        let packet = udp([10, 1, 2, 9], [10, 1, 1, 2], 10);
        let short = udp([10, 1, 2, 9], [10, 1, 1, 2], 4);
        let bytes = [&packet[..], &packet, &short].concat();
        let train = Train { bytes: &bytes, stride: packet.len() };
        assert_eq!(train.count(), 3);
        let (mut sink, counters) = (Sink::default(), Counters::default());
        let verify = VerifySource::Subnet;
        ingress(&fib(), arrival(2, train), verify, &mut IngressState::default(), &counters, &mut sink);
        assert_eq!(sink.written, [packet.clone(), packet, short]);
    }

    #[test]
    fn a_mark_on_the_way_reaches_the_packet_or_drops_it() {
        let (mut datagram, plain) = (vec![0; 200], udp([10, 1, 2, 9], [10, 1, 1, 2], 10));
        let with = |ecn: Ecn| {
            let mut bytes = plain.clone();
            bytes[1] = ecn as u8;
            // The checksum is the complement of a sum that is larger by the field.
            let sum = u16::from_be_bytes([bytes[10], bytes[11]]) - u16::from(bytes[1]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes
        };
        let filled = [with(Ecn::Ect0), with(Ecn::NotEct), with(Ecn::Ce)]
            .iter()
            .fold(0, |filled, packet| bundle::append(&mut datagram, filled, packet).expect("it fits"));
        let (mut sink, counters) = (Sink::default(), Counters::default());
        let arrival = Arrival { ecn: Ecn::Ce, ..arrival(2, Train::single(&datagram[..filled])) };
        ingress(&fib(), arrival, VerifySource::Subnet, &mut IngressState::default(), &counters, &mut sink);
        assert_eq!(sink.written, [with(Ecn::Ce), with(Ecn::Ce)]);
        assert_eq!(counters.ingress.dropped(DropReason::Unmarkable), 1);
    }

    /// A full-size packet for host 2 or from it.
    fn bulk(src: [u8; 4], dst: [u8; 4], ecn: Ecn) -> Vec<u8> {
        let mut bytes = udp(src, dst, 1200);
        bytes[1] = ecn as u8;
        let sum = u16::from_be_bytes([bytes[10], bytes[11]]) - u16::from(bytes[1]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    #[test]
    fn where_a_queue_stands_one_packet_of_bulk_says_so_and_nothing_short_does() {
        let (ours, theirs) = ([10, 1, 1, 2], [10, 1, 2, 9]);
        let (fib, counters, mut sink) = (fib(), Counters::default(), Sink::default());
        let (mut net, mut forwarder) = (Net::default(), EgressState::new(Nanos(0)));
        let short = udp(ours, theirs, 100);
        let out = [Ecn::Ect0, Ecn::Ect0, Ecn::NotEct, Ecn::NotEct].map(|ecn| bulk(ours, theirs, ecn));
        for (index, packet) in [&short, &out[0], &out[1], &out[2], &out[3]].into_iter().enumerate() {
            forwarder.warn(index != 2 && index != 4);
            egress(&fib, Frame::Bare(packet), Nanos(0), &mut forwarder, &counters, &mut net, &mut sink);
        }
        let sent: Vec<_> = net.sent.into_iter().map(|(_, packet)| packet).collect();
        let marked = bulk(ours, theirs, Ecn::Ce);
        assert_eq!(sent, [short, marked, out[1].clone(), out[3].clone()]);
        assert_eq!((counters.egress.dropped(DropReason::StandingQueue), counters.queue_marks.get()), (1, 1));

        let (mut gate, short) = (IngressState::default(), udp(theirs, ours, 100));
        let into = [Ecn::Ect1, Ecn::Ect1, Ecn::NotEct, Ecn::NotEct].map(|ecn| bulk(theirs, ours, ecn));
        for (first, second) in [(&into[0], &into[1]), (&into[2], &into[3])] {
            gate.warn(true);
            for packet in [&short, first, second] {
                let arrival = arrival(2, Train::single(packet));
                ingress(&fib, arrival, VerifySource::Subnet, &mut gate, &counters, &mut sink);
            }
        }
        let marked = bulk(theirs, ours, Ecn::Ce);
        assert_eq!(sink.written, [&short, &marked, &into[1], &short, &into[3]].map(Clone::clone));
        assert_eq!((counters.ingress.dropped(DropReason::StandingQueue), counters.queue_marks.get()), (1, 2));
    }

    #[test]
    fn only_who_reads_the_outer_field_is_sent_marks() {
        let fib = fib();
        let Some(Hop::Peer(peer)) = fib.lookup([10, 1, 2, 9].into()) else { panic!("a peer") };
        let load = TrainMeta { bytes: 100, stride: 100, ecn: Ecn::Ect0 };
        assert_eq!(load.outer_ecn(peer), Ecn::Ect0);
        let flanneld = Peer { abilities: Abilities::default(), ..peer.clone() };
        assert_eq!(load.outer_ecn(&flanneld), Ecn::NotEct);
    }

    #[test]
    fn labels_and_order_are_those_of_the_array() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
