//! The plan of a split: checks the input, counts the segments, and writes them.
//!
//! It does not allocate: the caller gives the room.
//!
//! Invariant: [`SplitPlan::write`] fills exactly [`SplitPlan::len`] bytes.
#![forbid(unsafe_code)]

use super::super::checksum::Sum;
use super::super::family::Family;
use super::super::header::{tcp, to_u16, udp};
use super::super::ip::{IpPacket, Transport};
use super::super::malformed::Malformed;
use super::super::protocol;
use super::super::train::Train;
use super::super::vnet::VnetHeader;
use super::segments::{SegmentPosition, SharedFields, checksum_field, never_zero, vary_tcp, vary_udp};

/// How a packet is split, known before a byte is written: the number of segments, and the room that
/// they need.
#[derive(Debug, Clone, Copy)]
pub struct SplitPlan<'a> {
    vnet: VnetHeader,
    packet: IpPacket<'a>,
    action: Action,
    count: usize,
    stride: usize,
    length: usize,
}

/// What is done with the packet.
#[derive(Debug, Clone, Copy)]
enum Action {
    /// The packet is sent unchanged.
    Copy,
    /// The packet stays one, but its checksum is partial.
    Complete,
    /// The packet is a super packet, with headers of this length.
    Split { transport: Transport, header_len: usize },
}

impl<'a> SplitPlan<'a> {
    /// Plans the split. [`Malformed`] if the header contradicts the packet, or if the packet must
    /// not be split.
    pub fn of(vnet: VnetHeader, packet: IpPacket<'a>) -> Result<Self, Malformed> {
        let expected = match vnet.gso_type {
            VnetHeader::GSO_NONE => return Self::whole(vnet, packet),
            VnetHeader::GSO_UDP_L4 => (packet.family(), protocol::UDP),
            other => match other & !VnetHeader::GSO_ECN {
                VnetHeader::GSO_TCPV4 => (Family::V4, protocol::TCP),
                VnetHeader::GSO_TCPV6 => (Family::V6, protocol::TCP),
                _ => return Err(Malformed),
            },
        };
        let transport = packet.divisible_transport().ok_or(Malformed)?;
        if (packet.family(), transport.protocol) != expected {
            return Err(Malformed);
        }
        Self::segments(vnet, packet, transport)
    }

    /// Plans a packet that stays one.
    fn whole(vnet: VnetHeader, packet: IpPacket<'a>) -> Result<Self, Malformed> {
        let length = packet.bytes().len();
        let field = usize::from(vnet.csum_start) + usize::from(vnet.csum_offset);
        let field_is_outside = usize::from(vnet.csum_start) < packet.header_len() || field + 2 > length;
        if vnet.needs_csum() && field_is_outside {
            return Err(Malformed);
        }
        let action = if vnet.needs_csum() { Action::Complete } else { Action::Copy };
        Ok(Self { vnet, packet, action, count: 1, stride: length, length })
    }

    /// Plans a super packet. Its transport header begins at `transport.offset`.
    fn segments(vnet: VnetHeader, packet: IpPacket<'a>, transport: Transport) -> Result<Self, Malformed> {
        let bytes = packet.bytes();
        let is_tcp = transport.protocol == protocol::TCP;
        let header_len = transport.offset
            + if is_tcp {
                tcp::header_len(&bytes[transport.offset..]).ok_or(Malformed)?
            } else {
                udp::HEADER
            };
        let (header, payload) = bytes.split_at_checked(header_len).ok_or(Malformed)?;

        let checksum_is_elsewhere = usize::from(vnet.csum_start) != transport.offset
            || usize::from(vnet.csum_offset) != checksum_field(transport);
        if vnet.gso_size == 0 || (vnet.needs_csum() && checksum_is_elsewhere) {
            return Err(Malformed);
        }
        let size = usize::from(vnet.gso_size);
        let count = payload.len().div_ceil(size).max(1);
        // Each flag belongs to one segment. Only the sender knows which one.
        let indivisible = tcp::SYN | tcp::RST | tcp::URG;
        if is_tcp && count > 1 && header[transport.offset + tcp::FLAGS] & indivisible != 0 {
            return Err(Malformed);
        }
        let (stride, length) = (header_len + payload.len().min(size), count * header_len + payload.len());
        Ok(Self { vnet, packet, action: Action::Split { transport, header_len }, count, stride, length })
    }

    /// The number of packets after the split.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count as u64
    }

    /// Bytes of the first packet, which is the longest.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Bytes of all packets; at most [`SPLIT_BUFFER`](super::SPLIT_BUFFER) for a super packet of
    /// the local TCP.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a packet is never empty")]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Writes the packets to the start of `out`. [`Malformed`] if `out` is shorter than
    /// [`SplitPlan::len`].
    pub fn write<'o>(&self, out: &'o mut [u8]) -> Result<Train<'o>, Malformed> {
        let out = out.get_mut(..self.length).ok_or(Malformed)?;
        match self.action {
            Action::Copy => out.copy_from_slice(self.packet.bytes()),
            Action::Complete => self.complete(out),
            Action::Split { transport, header_len } => self.split(transport, header_len, out),
        }
        Ok(Train { bytes: out, stride: self.stride })
    }

    /// Copies a packet that stays one, and completes its partial checksum.
    fn complete(&self, out: &mut [u8]) {
        let bytes = self.packet.bytes();
        let start = usize::from(self.vnet.csum_start);
        let field = start + usize::from(self.vnet.csum_offset);
        out[..start].copy_from_slice(&bytes[..start]);
        let sum = Sum::default().add_copied(&bytes[start..], &mut out[start..]).finish();
        // Only UDP has its checksum at this offset.
        let is_udp = usize::from(self.vnet.csum_offset) == udp::CHECKSUM;
        out[field..field + 2].copy_from_slice(&if is_udp { never_zero(sum) } else { sum });
    }

    /// Writes the segments of a super packet.
    fn split(&self, transport: Transport, header_len: usize, out: &mut [u8]) {
        let (header, payload) = self.packet.bytes().split_at(header_len);
        let is_tcp = transport.protocol == protocol::TCP;
        let (checksum, size) = (checksum_field(transport), usize::from(self.vnet.gso_size));
        let shared =
            SharedFields::of(&self.vnet, &self.packet, transport, &header[transport.offset..], checksum);
        for (index, segment) in out.chunks_mut(self.stride).enumerate() {
            let offset = index * size;
            let part = &payload[offset..payload.len().min(offset + size)];
            let (head, body) = segment.split_at_mut(header_len);
            head.copy_from_slice(header);
            let (network, l4) = head.split_at_mut(transport.offset);
            let last = index + 1 == self.count;
            let position = SegmentPosition { index: to_u16(index), offset: to_u16(offset), last };
            shared.write_network(network, l4.len() + part.len(), position);
            let varying = if is_tcp { vary_tcp(l4, position) } else { vary_udp(l4, part.len()) };
            let sum = shared.l4.add_word(to_u16(l4.len() + part.len())).add_sum(varying);
            let sum = sum.add_copied(part, body).finish();
            l4[checksum..checksum + 2].copy_from_slice(&if is_tcp { sum } else { never_zero(sum) });
        }
    }
}
