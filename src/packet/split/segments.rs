//! The headers of segments: the fields that all segments share, and those that differ.
//!
//! It does not decide where a packet is split.
//!
//! Invariant: the sums that it returns cover exactly the bytes that it wrote.
#![forbid(unsafe_code)]

use super::super::checksum::Sum;
use super::super::family::Family;
use super::super::header::{IPV6_HEADER, field, put, tcp, to_u16, udp, word};
use super::super::ip::{IpPacket, Transport};
use super::super::protocol;
use super::super::vnet::VnetHeader;

/// Offset of the checksum in the transport header of a super packet.
#[inline]
pub(super) fn checksum_field(transport: Transport) -> usize {
    if transport.protocol == protocol::TCP { tcp::CHECKSUM } else { udp::CHECKSUM }
}

/// Position of a segment in its super packet.
#[derive(Clone, Copy)]
pub(super) struct SegmentPosition {
    pub(super) index: u16,
    /// Payload bytes before the segment.
    pub(super) offset: u16,
    pub(super) last: bool,
}

/// The header fields that all segments share, summed once.
pub(super) struct SharedFields {
    family: Family,
    /// Sum of the IPv4 header without length, identification and checksum.
    network: Sum,
    /// Sum of the pseudo-header without the length, and of the fields that are equal in all
    /// transport headers.
    pub(super) l4: Sum,
    identification: u16,
}

impl SharedFields {
    #[inline]
    pub(super) fn of(
        vnet: &VnetHeader,
        packet: &IpPacket<'_>,
        transport: Transport,
        l4: &[u8],
        checksum: usize,
    ) -> Self {
        let bytes = packet.bytes();
        // The partial sum is the sender's sum of the pseudo-header. With a routing header it is the
        // only source of that sum, since the IPv6 header does not hold the final destination then.
        // A merged packet that a network card has verified has no partial sum.
        let pseudo = if vnet.needs_csum() {
            let total = to_u16(bytes.len() - transport.offset);
            Sum::default().add_bytes(&l4[checksum..checksum + 2]).sub_word(total)
        } else {
            Sum::default().add_pseudo_header(packet.src(), packet.dst(), transport.protocol, 0)
        };
        let ports = pseudo.add_bytes(&l4[..4]);
        let l4 = if transport.protocol == protocol::TCP {
            ports
                .add_bytes(&l4[tcp::ACK_NUMBER..tcp::DATA_OFFSET])
                .add_bytes(&l4[tcp::WINDOW..tcp::CHECKSUM])
                .add_bytes(&l4[tcp::URGENT..])
        } else {
            ports
        };
        let (network, identification) = match packet.family() {
            Family::V4 => {
                let sum = Sum::default()
                    .add_bytes(&bytes[..field::V4_LENGTH])
                    .add_bytes(&bytes[field::V4_FRAGMENT..field::V4_CHECKSUM])
                    .add_bytes(&bytes[field::V4_SRC..packet.header_len()]);
                (sum, word(bytes, field::V4_ID))
            }
            Family::V6 => (Sum::default(), 0),
        };
        Self { family: packet.family(), network, l4, identification }
    }

    /// Writes the network header fields that differ: lengths, and for IPv4 identification and
    /// checksum.
    #[inline]
    pub(super) fn write_network(&self, network: &mut [u8], l4_len: usize, position: SegmentPosition) {
        match self.family {
            Family::V4 => {
                let length = to_u16(network.len() + l4_len);
                let id = self.identification.wrapping_add(position.index);
                let sum = self.network.add_word(length).add_word(id).finish();
                put(network, field::V4_LENGTH, length.to_be_bytes());
                put(network, field::V4_ID, id.to_be_bytes());
                put(network, field::V4_CHECKSUM, sum);
            }
            Family::V6 => {
                let length = to_u16(network.len() - IPV6_HEADER + l4_len);
                put(network, field::V6_LENGTH, length.to_be_bytes());
            }
        }
    }
}

/// Writes the TCP fields that differ: the sequence number, FIN and PSH on the last segment only,
/// CWR on the first only. Returns the sum of these fields.
#[inline]
pub(super) fn vary_tcp(l4: &mut [u8], position: SegmentPosition) -> Sum {
    let sequence = tcp::sequence(l4).wrapping_add(u32::from(position.offset));
    put(l4, tcp::SEQUENCE, sequence.to_be_bytes());
    if !position.last {
        l4[tcp::FLAGS] &= !(tcp::FIN | tcp::PSH);
    }
    if position.index > 0 {
        l4[tcp::FLAGS] &= !tcp::CWR;
    }
    Sum::default()
        .add_bytes(&l4[tcp::SEQUENCE..tcp::ACK_NUMBER])
        .add_bytes(&l4[tcp::DATA_OFFSET..tcp::WINDOW])
}

/// Writes the length of the UDP datagram. Returns its sum.
#[inline]
pub(super) fn vary_udp(l4: &mut [u8], payload: usize) -> Sum {
    let length = to_u16(udp::HEADER + payload);
    put(l4, udp::LENGTH, length.to_be_bytes());
    Sum::default().add_word(length)
}

/// Turns a computed UDP checksum of zero into all ones, since zero means "no checksum" (RFC 768).
#[inline]
pub(super) fn never_zero(sum: [u8; 2]) -> [u8; 2] {
    if sum == [0, 0] { [0xff, 0xff] } else { sum }
}
