//! Packets for the tests of [`split`](super::split) and [`coalesce`](super::coalesce), and checks
//! of the results with etherparse, an independent parser.
#![forbid(unsafe_code)]

use etherparse::{
    IpDscp, IpEcn, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FlowLabel,
    Ipv6Header, Ipv6RawExtHeader, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice,
    UdpHeader,
};

use super::checksum::Sum;
use super::header::{put, tcp, udp};
use super::{Family, IpPacket, VnetHeader, protocol};

/// The fields of a packet to build.
#[derive(Debug, Clone)]
pub(super) struct TestPacket {
    pub(super) family: Family,
    pub(super) protocol: u8,
    /// Source and destination port.
    pub(super) ports: (u16, u16),
    pub(super) flags: u8,
    pub(super) sequence: u32,
    pub(super) acknowledgment: u32,
    pub(super) window: u16,
    pub(super) tcp_options: Vec<u8>,
    pub(super) id: u16,
    pub(super) dont_fragment: bool,
    pub(super) more_fragments: bool,
    /// IPv4 TOS byte or IPv6 traffic class.
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) flow_label: u32,
    pub(super) ip_options: Vec<u8>,
    pub(super) hop_by_hop: bool,
    pub(super) payload: Vec<u8>,
}

/// `length` pseudo-random bytes, the same for each `seed`.
pub(super) fn pseudo_random(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        })
        .collect()
}

/// TCP options with timestamps (NOP, NOP, kind 8, length 10), as Linux sends them.
pub(super) const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0x30, 0x39, 0, 0, 0xd4, 0x31];

impl TestPacket {
    pub(super) fn tcp(family: Family, payload: usize) -> Self {
        Self {
            family,
            protocol: protocol::TCP,
            ports: (40_000, 5201),
            flags: tcp::ACK,
            sequence: 0xffff_f000,
            acknowledgment: 7,
            window: 501,
            tcp_options: TIMESTAMPS.to_vec(),
            id: 0xfffe,
            dont_fragment: true,
            more_fragments: false,
            tos: 0,
            ttl: 63,
            flow_label: 0x12345,
            ip_options: Vec::new(),
            hop_by_hop: false,
            payload: pseudo_random(payload, 7),
        }
    }

    pub(super) fn udp(family: Family, payload: usize) -> Self {
        Self { protocol: protocol::UDP, flags: 0, tcp_options: Vec::new(), ..Self::tcp(family, payload) }
    }

    fn ip_headers(&self) -> IpHeaders {
        match self.family {
            Family::V4 => {
                let mut header = Ipv4Header {
                    dscp: IpDscp::try_new(self.tos >> 2).expect("six bits"),
                    ecn: IpEcn::try_new(self.tos & 3).expect("two bits"),
                    identification: self.id,
                    dont_fragment: self.dont_fragment,
                    more_fragments: self.more_fragments,
                    time_to_live: self.ttl,
                    source: [10, 1, 2, 9],
                    destination: [10, 1, 1, 2],
                    ..Ipv4Header::default()
                };
                header.options = self.ip_options.as_slice().try_into().expect("at most 40 bytes");
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
            Family::V6 => {
                let header = Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Ipv6FlowLabel::try_new(self.flow_label).expect("twenty bits"),
                    hop_limit: self.ttl,
                    source: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 9],
                    destination: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2],
                    ..Ipv6Header::default()
                };
                let mut extensions = Ipv6Extensions::default();
                if self.hop_by_hop {
                    let padding = [1, 4, 0, 0, 0, 0];
                    extensions.hop_by_hop_options =
                        Some(Ipv6RawExtHeader::new_raw(IpNumber::TCP, &padding).expect("eight bytes"));
                }
                IpHeaders::Ipv6(header, extensions)
            }
        }
    }

    /// Builds the packet with correct checksums.
    pub(super) fn build(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let builder = PacketBuilder::ip(self.ip_headers());
        if self.protocol == protocol::UDP {
            builder.udp(self.ports.0, self.ports.1).write(&mut out, &self.payload).expect("fits");
            return out;
        }
        let has = |flag: u8| self.flags & flag != 0;
        let mut header = TcpHeader::new(self.ports.0, self.ports.1, self.sequence, self.window);
        header.acknowledgment_number = self.acknowledgment;
        (header.fin, header.syn, header.rst) = (has(tcp::FIN), has(tcp::SYN), has(tcp::RST));
        (header.psh, header.ack, header.urg) = (has(tcp::PSH), has(tcp::ACK), has(tcp::URG));
        (header.ece, header.cwr) = (has(0x40), has(tcp::CWR));
        header.set_options_raw(&self.tcp_options).expect("at most 40 bytes");
        builder.tcp_header(header).write(&mut out, &self.payload).expect("fits");
        out
    }

    /// Bytes of all headers.
    pub(super) fn header_len(&self) -> usize {
        self.build().len() - self.payload.len()
    }

    /// Builds the packet as a TUN read delivers it: with a partial checksum, to be split at
    /// `gso_size` (0: not at all).
    pub(super) fn partial(&self, gso_size: u16) -> (VnetHeader, Vec<u8>) {
        let mut bytes = self.build();
        let packet = IpPacket::parse(&bytes).expect("well formed");
        let start = packet.transport().expect("TCP or UDP").offset;
        let offset = if self.protocol == protocol::TCP { tcp::CHECKSUM } else { udp::CHECKSUM };
        let sum = Sum::default()
            .add_pseudo_header(packet.src(), packet.dst(), self.protocol, bytes.len() - start)
            .partial();
        put(&mut bytes, start + offset, sum);
        let gso_type = match (gso_size, self.protocol, self.family) {
            (0, _, _) => VnetHeader::GSO_NONE,
            (_, protocol::UDP, _) => VnetHeader::GSO_UDP_L4,
            (_, _, Family::V4) => VnetHeader::GSO_TCPV4,
            (_, _, Family::V6) => VnetHeader::GSO_TCPV6,
        };
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: u16::try_from(self.header_len()).expect("short"),
            gso_size,
            csum_start: u16::try_from(start).expect("short"),
            csum_offset: u16::try_from(offset).expect("short"),
        };
        (header, bytes)
    }
}

/// Asserts that etherparse accepts a packet and its checksums, and returns the payload.
pub(super) fn checked_payload(bytes: &[u8]) -> &[u8] {
    let sliced = SlicedPacket::from_ip(bytes).expect("etherparse accepts the packet");
    if let Some(NetSlice::Ipv4(ip)) = &sliced.net {
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum(), "header checksum");
    }
    let net = sliced.net.as_ref();
    match sliced.transport.as_ref() {
        Some(TransportSlice::Tcp(segment)) => {
            let expected = match net {
                Some(NetSlice::Ipv4(ip)) => segment
                    .calc_checksum_ipv4(ip.header().source(), ip.header().destination())
                    .expect("short"),
                Some(NetSlice::Ipv6(ip)) => segment
                    .calc_checksum_ipv6(ip.header().source(), ip.header().destination())
                    .expect("short"),
                other => panic!("not an IP packet: {other:?}"),
            };
            assert_eq!(segment.checksum(), expected, "TCP checksum");
            segment.payload()
        }
        Some(TransportSlice::Udp(datagram)) => {
            let header: UdpHeader = datagram.to_header();
            let expected = match net {
                Some(NetSlice::Ipv4(ip)) => {
                    header.calc_checksum_ipv4(&ip.header().to_header(), datagram.payload()).expect("short")
                }
                Some(NetSlice::Ipv6(ip)) => {
                    header.calc_checksum_ipv6(&ip.header().to_header(), datagram.payload()).expect("short")
                }
                other => panic!("not an IP packet: {other:?}"),
            };
            assert_eq!(header.checksum, expected, "UDP checksum");
            assert_eq!(usize::from(header.length), 8 + datagram.payload().len(), "UDP length");
            datagram.payload()
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    }
}
