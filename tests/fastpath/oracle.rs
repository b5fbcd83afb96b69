//! What `forward` says about a packet, as the verdict that the program must give.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::Ipv4HeaderSlice;
use hopsack::fastpath::{Reach, Routes, Settings, Verdict, routes_of};
use hopsack::forward::{
    Arrival, Counters, DropReason, EgressState, Exit, Frame, IngressState, Reservation, Table, ToNet, Train,
    TrainMeta, VerifySource, egress, ingress,
};
use hopsack::packet::checksum::checksum;
use hopsack::packet::ecn::Ecn;
use hopsack::packet::split::{SPLIT_BUFFER, split};
use hopsack::packet::{IpPacket, VnetHeader};
use hopsack::route::{
    Abilities, Announced, Change, Dialect, Fingerprint, Lease, Local, Mode, Networks, Origin, Policy,
    Protection, Public, Rib,
};
use hopsack::time::Nanos;
use ipnet::IpNet;

use crate::support::sinks::Sink;

pub const US: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const PORT: u16 = 8285;
pub const MTU: u16 = 1472;
pub const UNDERLAY: u32 = 1;

/// The host 192.0.2.1 with 10.1.1.0/24 and fd00:1:0:1::/64, and its peers 2 to 5. Host 3 is a
/// flanneld, host 4 encrypts, host 5 has a link of MTU 1400.
pub fn local() -> Local {
    let subnets = ["10.1.1.0/24", "fd00:1:0:1::/64"].map(|net| net.parse().expect("a prefix"));
    Local {
        subnets: subnets.into(),
        nets: Vec::new(),
        public: US.into(),
        port: PORT,
        mtu: MTU,
        policy: Policy { mode: Mode::Sealed, require: false },
    }
}

pub fn table() -> Table {
    let secure = Announced { mode: Mode::Sealed, port: 8286, fingerprint: Fingerprint([4; 32]) };
    let lease = |n: u8| {
        let abilities = match n {
            4 => Abilities { secure: Some(secure), ..Abilities::OURS },
            5 => Abilities { link_mtu: Some(1400), ..Abilities::OURS },
            _ => Abilities::OURS,
        };
        let mut subnets: Vec<IpNet> = vec![format!("10.1.{n}.0/24").parse().expect("a prefix")];
        if n != 3 {
            subnets.push(format!("fd00:1:0:{n}::/64").parse().expect("a prefix"));
        }
        let v6 = (n <= 2).then(|| format!("2001:db8::{n}").parse().expect("an address"));
        Lease {
            name: format!("h{n}"),
            subnets,
            public: Public { v4: Some([192, 0, 2, n].into()), v6 },
            dialect: if n == 3 { Dialect::Flannel } else { Dialect::Hopsack(abilities) },
            revision: 1,
            origin: Origin::default(),
        }
    };
    // A second lease of host 2, inside its first one and of the same host.
    let inside = Lease { subnets: vec!["10.1.2.128/26".parse().expect("a prefix")], ..lease(2) };
    let mut rib = Rib::default();
    let leases = (1..6).map(lease).chain([inside]).collect();
    rib.apply(Change::Snapshot { leases, revision: 1 });
    let networks = Networks {
        v4: Some(("10.1.0.0/16".parse().expect("a prefix"), 24)),
        v6: Some(("fd00:1::/48".parse().expect("a prefix"), 64)),
    };
    let mut table = Table::compile(1, &rib, &networks, &local());
    table.limit_to_links(0);
    assert_eq!(table.peers().len(), 4);
    table
}

pub fn routes(table: &Table) -> Routes {
    routes_of(table, &local().subnets, |_| Reach { underlay: UNDERLAY, may_send: true })
}

pub fn settings(verify_source: bool) -> Settings {
    Settings {
        address: US,
        port: PORT,
        verify_source,
        overlay: 1,
        gro: None,
        ports: Settings::spread(&[8285, 8286, 8287]),
        public_v4: Some(US),
        public_v6: Some("2001:db8::1".parse().expect("an address")),
    }
}

/// What the program must do with a frame, and the inner packet that it sends on.
#[derive(Debug, PartialEq, Eq)]
pub struct Expected {
    pub verdict: Verdict,
    pub packets: Vec<Vec<u8>>,
    /// To which peer, and with which ECN field, on egress.
    pub peer: Option<(IpAddr, u8)>,
}

impl Expected {
    fn passed() -> Self {
        Self { verdict: Verdict::Passed, packets: Vec::new(), peer: None }
    }
}

/// Outer source, outer ECN field and content of a frame that is a fast-path datagram to us.
pub fn datagram(frame: &[u8]) -> Option<(IpAddr, Ecn, &[u8])> {
    let (ethernet, packet) = frame.split_at_checked(14)?;
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let udp = packet.get(20..28)?;
    let word = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    let is_plain = ethernet[..6] == [0; 6]
        && ethernet[12..] == [8, 0]
        && ip.ihl() == 5
        && ip.protocol().0 == 17
        && ip.destination_addr() == US
        && !ip.more_fragments()
        && ip.fragments_offset().value() == 0
        && checksum(ip.slice()) == [0, 0];
    let lengths_agree =
        usize::from(ip.total_len()) == packet.len() && usize::from(word(4)) + 20 == packet.len();
    let is_fast = word(2) == PORT && word(6) == 0;
    let from = IpAddr::V4(ip.source_addr());
    (is_plain && lengths_agree && is_fast).then(|| (from, Ecn::of(packet[1]), &packet[28..]))
}

/// What must happen to a frame from the underlay that is no super packet.
pub fn received(table: &Table, frame: &[u8]) -> Expected {
    let Some((from, ecn, content)) = datagram(frame) else { return Expected::passed() };
    if !matches!(content.first().map(|byte| byte >> 4), Some(4 | 6)) {
        return Expected::passed();
    }
    admitted(table, from, ecn, &[content])
}

fn admitted(table: &Table, from: IpAddr, ecn: Ecn, packets: &[&[u8]]) -> Expected {
    let (counters, mut sink) = (Counters::default(), Sink::default());
    let mut state = IngressState::default();
    for packet in packets {
        let train = Train { bytes: packet, stride: packet.len() };
        let arrival = Arrival { from, ecn, train };
        ingress(table, arrival, VerifySource::Subnet, &mut state, &counters, &mut sink);
    }
    let unmarkable = counters.ingress.dropped(DropReason::Unmarkable);
    let count = packets.len() as u64;
    if sink.packets.len() as u64 == count {
        return Expected { verdict: Verdict::Accepted, packets: sink.packets, peer: None };
    }
    assert!(sink.packets.is_empty(), "the segments of one packet have one fate");
    if unmarkable == count {
        return Expected { verdict: Verdict::Dropped, ..Expected::passed() };
    }
    Expected::passed()
}

/// What must happen to a super packet from the underlay. The daemon receives its segments.
pub fn received_super(table: &Table, frame: &[u8], gso_size: u16) -> Expected {
    let Some((from, ecn, content)) = datagram(frame) else { return Expected::passed() };
    let Some(segments) = segments(content, gso_size) else { return Expected::passed() };
    let segments: Vec<&[u8]> = segments.iter().map(Vec::as_slice).collect();
    admitted(table, from, ecn, &segments)
}

/// The segments of a TCP super packet without extension headers, which are the only kind that the
/// program accepts.
pub fn segments(packet: &[u8], gso_size: u16) -> Option<Vec<Vec<u8>>> {
    let packet = IpPacket::parse(packet).ok()?;
    if packet.protocol() != 6 {
        return None;
    }
    let mut out = vec![0; SPLIT_BUFFER];
    let train = split(&vnet(&packet, gso_size)?, packet, &mut out).ok()?;
    Some(train.datagrams().map(<[u8]>::to_vec).collect())
}

fn vnet(packet: &IpPacket<'_>, gso_size: u16) -> Option<VnetHeader> {
    let v4 = packet.src().is_ipv4();
    let gso_type = if v4 { VnetHeader::GSO_TCPV4 } else { VnetHeader::GSO_TCPV6 };
    let csum_start = u16::try_from(packet.header_len()).ok()?;
    Some(VnetHeader { gso_type, gso_size, csum_start, csum_offset: 16, ..VnetHeader::default() })
}

/// Where `forward` sends packets.
#[derive(Default)]
struct Network {
    room: Vec<u8>,
    exit: Option<(IpAddr, u8, Protection)>,
    packets: Vec<Vec<u8>>,
}

struct Room<'a>(&'a mut Network, TrainMeta);

impl ToNet for Network {
    type Reservation<'a> = Room<'a>;
    fn reserve<'a>(&'a mut self, exit: Exit<'a>, train: TrainMeta) -> Room<'a> {
        self.exit = match exit {
            Exit::Socket(peer) | Exit::SlowPath(peer) => {
                Some((peer.endpoint.ip(), train.outer_ecn(peer) as u8, peer.protection))
            }
            Exit::Refused => None,
        };
        self.room.resize(train.bytes, 0);
        Room(self, train)
    }
}

impl Reservation for Room<'_> {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.0.room
    }
    fn commit(self, bytes: usize) {
        let train = Train { bytes: &self.0.room[..bytes], stride: self.1.stride };
        let packets = train.datagrams().map(<[u8]>::to_vec).collect();
        self.0.packets = packets;
    }
}

/// What must happen to a packet from the overlay device. `gso_size` is 0 for a single packet.
pub fn sent(table: &Table, frame: &[u8], gso_size: u16, verify: VerifySource) -> Expected {
    let Some((ethernet, packet)) = frame.split_at_checked(14) else { return Expected::passed() };
    let version = match ethernet[12..] {
        [8, 0] => 4,
        [0x86, 0xdd] => 6,
        _ => return Expected::passed(),
    };
    if packet.first().map(|byte| byte >> 4) != Some(version) {
        return Expected::passed();
    }
    let mut bytes = Vec::new();
    if gso_size != 0 {
        let Ok(parsed) = IpPacket::parse(packet) else { return Expected::passed() };
        let Some(header) = vnet(&parsed, gso_size).filter(|_| parsed.protocol() == 6) else {
            return Expected::passed();
        };
        bytes.extend(header.to_bytes());
    } else {
        bytes.extend(VnetHeader::default().to_bytes());
    }
    bytes.extend(packet);
    let mut state = EgressState::new(Nanos::ZERO);
    state.verify(verify);
    let (mut network, mut tun) = (Network::default(), Sink::default());
    let counters = Counters::default();
    egress(table, Frame::Virtio(&bytes), Nanos::ZERO, &mut state, &counters, &mut network, &mut tun);
    match network.exit {
        Some((peer, ecn, Protection::Clear)) if !network.packets.is_empty() => {
            Expected { verdict: Verdict::Accepted, packets: network.packets, peer: Some((peer, ecn)) }
        }
        _ => Expected::passed(),
    }
}
