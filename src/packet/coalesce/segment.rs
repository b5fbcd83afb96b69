//! A packet that can be merged, and the rules by which it continues a run.
//!
//! It does not change a packet.
//!
//! Invariant: two packets are merged only if the kernel, splitting the result, gives both back.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::super::checksum::checksum;
use super::super::family::Family;
use super::super::header::{IPV4_HEADER, IPV6_HEADER, field, tcp, to_u16, udp, word};
use super::super::ip::{IpPacket, Transport};
use super::super::protocol;
use super::layout::Layout;

/// UDP destination ports of tunnels. A tunnel takes one datagram at a time, often in a kernel that
/// would have to split the super packet again. Its datagrams also hold packets of many flows, none
/// of which should wait for another.
const TUNNEL_PORTS: [u16; 11] = [
    1701,  // L2TP
    2152,  // GTP-U
    3544,  // Teredo
    4500,  // IPsec through NAT
    4754,  // GRE in UDP
    4789,  // VXLAN
    6081,  // Geneve
    6635,  // MPLS in UDP
    8285,  // Flannel and hopsack
    8472,  // VXLAN in Linux and Flannel
    51820, // WireGuard
];

/// The DF bit of the IPv4 fragment word.
pub(super) const DONT_FRAGMENT: u16 = 0x4000;

/// What the packet after the last one of a run must have.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpectedNext {
    /// TCP sequence number.
    sequence: u32,
    /// IPv4 identification.
    id: u16,
}

/// A packet that can be merged with others of its flow.
#[derive(Debug)]
pub(super) struct Segment<'a> {
    pub(super) layout: Layout,
    /// Network and transport header.
    pub(super) header: &'a [u8],
    /// The payload, which is never empty.
    pub(super) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Views a packet as a segment. `None` if it must never be merged.
    #[inline]
    pub(super) fn of(packet: &IpPacket<'a>, transport: Transport) -> Option<Self> {
        let bytes = packet.bytes();
        let layout = match transport.protocol {
            protocol::TCP => Layout { family: packet.family(), is_tcp: true },
            protocol::UDP => Layout { family: packet.family(), is_tcp: false },
            _ => return None,
        };
        let l4 = &bytes[transport.offset..];
        let l4_header = if layout.is_tcp { tcp::header_len(l4)? } else { udp::HEADER };
        if transport.offset != layout.l4() || l4.len() <= l4_header {
            return None;
        }
        let is_plain = if layout.is_tcp {
            l4[tcp::FLAGS] & !tcp::PSH == tcp::ACK
        } else {
            let is_whole = usize::from(word(l4, udp::LENGTH)) == l4.len();
            let has_checksum = word(l4, udp::CHECKSUM) != 0;
            is_whole && has_checksum && !TUNNEL_PORTS.contains(&word(l4, udp::DST_PORT))
        };
        let network_is_valid = layout.family == Family::V6 || checksum(&bytes[..IPV4_HEADER]) == [0, 0];
        let (header, payload) = bytes.split_at(transport.offset + l4_header);
        (is_plain && network_is_valid).then_some(Self { layout, header, payload })
    }

    /// Whether this packet's header continues a run. `first` is the first packet of the run, and
    /// `next` is what its next packet must have.
    #[inline]
    pub(super) fn continues(&self, first: &[u8], next: ExpectedNext) -> bool {
        let header = self.header;
        let equal = |range: Range<usize>| first[range.clone()] == header[range];
        let network_continues = match self.layout.family {
            // These ranges are version, length and TOS; fragment word, TTL and protocol; addresses.
            Family::V4 => {
                let id_continues = word(header, field::V4_FRAGMENT) & DONT_FRAGMENT != 0
                    || word(header, field::V4_ID) == next.id;
                equal(0..field::V4_LENGTH)
                    && equal(field::V4_FRAGMENT..field::V4_CHECKSUM)
                    && equal(field::V4_SRC..IPV4_HEADER)
                    && id_continues
            }
            // These ranges are version, traffic class and flow label; next header, hop limit and
            // addresses.
            Family::V6 => equal(0..field::V6_LENGTH) && equal(field::V6_NEXT_HEADER..IPV6_HEADER),
        };
        let l4 = self.layout.l4();
        let ports_are_equal = equal(l4..l4 + 4);
        // `Segment::of` has checked that of the flags only PSH can differ. An equal data offset
        // means options of equal length.
        let transport_continues = !self.layout.is_tcp
            || (tcp::sequence(&header[l4..]) == next.sequence
                && equal(l4 + tcp::ACK_NUMBER..l4 + tcp::FLAGS)
                && equal(l4 + tcp::WINDOW..l4 + tcp::CHECKSUM)
                && equal(l4 + tcp::URGENT..header.len()));
        network_continues && ports_are_equal && transport_continues
    }

    /// Copies the payload to `to`. Returns whether the transport checksum is correct.
    #[inline]
    pub(super) fn is_valid_copied(&self, to: &mut [u8]) -> bool {
        let l4 = self.layout.l4();
        let l4_len = to_u16(self.header.len() - l4 + self.payload.len());
        let sum = self.layout.pseudo_header(self.header, l4_len).add_bytes(&self.header[l4..]);
        sum.add_copied(self.payload, to).finish() == [0, 0]
    }

    /// Whether PSH is set: the sender has sent all its data, and the receiver should deliver it.
    #[inline]
    pub(super) fn is_pushed(&self) -> bool {
        self.layout.is_tcp && self.header[self.layout.l4() + tcp::FLAGS] & tcp::PSH != 0
    }

    /// What the packet after this one must have.
    #[inline]
    pub(super) fn expected_next(&self) -> ExpectedNext {
        let sequence = if self.layout.is_tcp {
            tcp::sequence(&self.header[self.layout.l4()..])
                .wrapping_add(u32::from(to_u16(self.payload.len())))
        } else {
            0
        };
        ExpectedNext { sequence, id: word(self.header, field::V4_ID).wrapping_add(1) }
    }
}
