//! The header layouts that can be merged, and where their fields stand.
//!
//! It does not check a packet.
//!
//! Invariant: every packet with a given layout has its transport header at the same offset.
#![forbid(unsafe_code)]

use super::super::checksum::Sum;
use super::super::family::Family;
use super::super::header::{IPV4_HEADER, IPV6_HEADER, field, tcp, udp};
use super::super::protocol;
use super::super::vnet::VnetHeader;
use super::flow::addresses;

/// The headers of a packet that can be merged: IPv4 without options or IPv6 without extension
/// headers, then TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) family: Family,
    pub(super) is_tcp: bool,
}

impl Layout {
    /// The layout of a packet that can be merged; the caller has checked that.
    #[inline]
    pub(super) fn of(packet: &[u8]) -> Self {
        let (family, protocol) = if packet[0] >> 4 == 4 {
            (Family::V4, packet[field::V4_PROTOCOL])
        } else {
            (Family::V6, packet[field::V6_NEXT_HEADER])
        };
        Self { family, is_tcp: protocol == protocol::TCP }
    }

    /// Offset of the transport header.
    #[inline]
    pub(super) fn l4(self) -> usize {
        match self.family {
            Family::V4 => IPV4_HEADER,
            Family::V6 => IPV6_HEADER,
        }
    }

    /// Bytes of the transport header.
    #[inline]
    pub(super) fn l4_header_len(self, packet: &[u8]) -> usize {
        if self.is_tcp { usize::from(packet[self.l4() + tcp::DATA_OFFSET] >> 4) * 4 } else { udp::HEADER }
    }

    /// Offset of the checksum in the transport header.
    #[inline]
    pub(super) fn checksum(self) -> usize {
        if self.is_tcp { tcp::CHECKSUM } else { udp::CHECKSUM }
    }

    /// The super packet type for the [`VnetHeader`].
    #[inline]
    pub(super) fn gso_type(self) -> u8 {
        match (self.is_tcp, self.family) {
            (true, Family::V4) => VnetHeader::GSO_TCPV4,
            (true, Family::V6) => VnetHeader::GSO_TCPV6,
            (false, _) => VnetHeader::GSO_UDP_L4,
        }
    }

    /// The sum of the pseudo-header for a transport header and payload of `l4_len` bytes.
    #[inline]
    pub(super) fn pseudo_header(self, packet: &[u8], l4_len: u16) -> Sum {
        let protocol = if self.is_tcp { protocol::TCP } else { protocol::UDP };
        Sum::default().add_bytes(addresses(packet)).add_word(u16::from(protocol)).add_word(l4_len)
    }
}
