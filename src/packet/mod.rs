//! An IP packet as bytes: a checked, read-only view, and what can be computed from it alone.
//!
//! [`IpPacket::parse`] is the only door: whoever holds an `IpPacket` knows that the header is whole,
//! that its own length field equals the slice, and that no accessor can panic. It knows one header
//! deep: transport and extension headers are walked only by those who ask ([`IpPacket::transport`]).
//!
//! It does not edit packets, does not verify checksums (the kernel did before a TUN read and does after
//! a TUN write; whoever merges packets verifies for himself), and knows no device, route or clock.
//!
//! Invariant: for every accepted input, `total length == bytes.len()`; every accessor is total.
//! Sources: RFC 791 (IPv4), RFC 8200 (IPv6).
#![forbid(unsafe_code)]

pub mod bundle;
pub mod checksum;
pub mod coalesce;
pub mod ecn;
mod header;
pub mod icmp;
pub mod split;
#[cfg(test)]
mod testing;
mod train;
pub mod vnet;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

pub use train::Train;
pub use vnet::VnetHeader;

/// IP protocol numbers that this program gives a meaning to (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
}

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub const IPV6_HEADER: usize = 40;

/// What the overlay adds to an inner packet on an underlay of this family, in bytes: an IP header (20 or 40) and 8 bytes
/// of UDP.
#[must_use]
pub const fn outer_overhead(underlay: Family) -> u16 {
    match underlay {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

/// These bytes are not one whole IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are not one whole IP packet")]
pub struct Malformed;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A checked view of exactly one IPv4 or IPv6 packet.
#[derive(Debug, Clone, Copy)]
pub struct IpPacket<'a> {
    bytes: &'a [u8],
    family: Family,
    /// Bytes of the IPv4 header with its options, or 40.
    header_len: usize,
}

/// Where the transport header of a packet begins, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// IP protocol number.
    pub protocol: u8,
    /// Byte offset from the start of the IP header; at most the packet's length.
    pub offset: usize,
    /// `false` for a fragment other than the first: what stands at `offset` is payload from the middle.
    pub first_fragment: bool,
}

impl<'a> IpPacket<'a> {
    /// Accepts `bytes` if they are one whole IP packet: nothing missing, nothing behind it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (family, header_len, total_len) = match bytes.first().map(|b| b >> 4) {
            Some(4) => {
                let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| Malformed)?;
                (Family::V4, header.slice().len(), usize::from(header.total_len()))
            }
            Some(6) => {
                let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Malformed)?;
                (Family::V6, IPV6_HEADER, IPV6_HEADER + usize::from(header.payload_length()))
            }
            _ => return Err(Malformed),
        };
        if total_len != bytes.len() || header_len > total_len {
            return Err(Malformed);
        }
        Ok(Self { bytes, family, header_len })
    }

    /// The whole packet.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// IPv4 or IPv6.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Bytes of the IPv4 header with its options, or 40.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// The source address.
    #[must_use]
    pub fn src(&self) -> IpAddr {
        match self.family {
            Family::V4 => IpAddr::V4(self.v4_at(field::V4_SRC)),
            Family::V6 => IpAddr::V6(self.v6_at(field::V6_SRC)),
        }
    }

    /// The destination address.
    #[must_use]
    pub fn dst(&self) -> IpAddr {
        match self.family {
            Family::V4 => IpAddr::V4(self.v4_at(field::V4_DST)),
            Family::V6 => IpAddr::V6(self.v6_at(field::V6_DST)),
        }
    }

    /// The IPv4 protocol or IPv6 next-header field: what directly follows the first header.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self.family {
            Family::V4 => self.bytes[field::V4_PROTOCOL],
            Family::V6 => self.bytes[field::V6_NEXT_HEADER],
        }
    }

    /// Walks to the transport header, across IPv6 extension headers. `None` where the chain is cut short,
    /// or ends in "no next header" (59) or an encrypted payload (50).
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        self.walk().map(|(transport, _)| transport)
    }

    /// The transport header of a packet that may be cut into several or merged with others: `None` for a
    /// fragment, the first included, and for what an authentication header seals as a whole.
    #[must_use]
    pub fn divisible_transport(&self) -> Option<Transport> {
        self.walk().filter(|(_, divisible)| *divisible).map(|(transport, _)| transport)
    }

    /// The transport header, and whether the packet is divisible.
    fn walk(&self) -> Option<(Transport, bool)> {
        match self.family {
            Family::V4 => {
                let word = u16::from_be_bytes([self.bytes[6], self.bytes[7]]);
                let first_fragment = word & 0x1fff == 0;
                let more_fragments = word & 0x2000 != 0;
                let transport =
                    Transport { protocol: self.protocol(), offset: self.header_len, first_fragment };
                Some((transport, first_fragment && !more_fragments))
            }
            Family::V6 => self.walk_extensions(),
        }
    }

    /// RFC 8200 §4: each header names the next; lengths are in units of 8 bytes beyond the first 8, but for
    /// the authentication header (RFC 4302: units of 4 beyond the first 8).
    fn walk_extensions(&self) -> Option<(Transport, bool)> {
        let (mut next, mut offset, mut first_fragment) = (self.protocol(), IPV6_HEADER, true);
        let mut divisible = true;
        loop {
            let length = match next {
                extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {
                    8 + 8 * usize::from(*self.bytes.get(offset + 1)?)
                }
                extension::AUTHENTICATION => {
                    divisible = false;
                    8 + 4 * usize::from(*self.bytes.get(offset + 1)?)
                }
                extension::FRAGMENT => {
                    divisible = false;
                    let word =
                        u16::from_be_bytes([*self.bytes.get(offset + 2)?, *self.bytes.get(offset + 3)?]);
                    first_fragment &= word & 0xfff8 == 0;
                    8
                }
                extension::NONE | extension::ENCRYPTED => return None,
                protocol => return Some((Transport { protocol, offset, first_fragment }, divisible)),
            };
            let following = *self.bytes.get(offset)?;
            offset += length;
            if offset > self.bytes.len() {
                return None;
            }
            // What follows the header of a later fragment is payload, not another header.
            if !first_fragment {
                return Some((Transport { protocol: following, offset, first_fragment }, divisible));
            }
            next = following;
        }
    }

    fn v4_at(&self, at: usize) -> Ipv4Addr {
        let b = &self.bytes[at..at + 4];
        Ipv4Addr::new(b[0], b[1], b[2], b[3])
    }

    fn v6_at(&self, at: usize) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.bytes[at..at + 16]);
        Ipv6Addr::from(octets)
    }
}

/// Byte offsets of header fields, from the start of the IP header.
mod field {
    pub(super) const V4_LENGTH: usize = 2;
    pub(super) const V4_ID: usize = 4;
    pub(super) const V4_FRAGMENT: usize = 6;
    pub(super) const V4_CHECKSUM: usize = 10;
    pub(super) const V4_PROTOCOL: usize = 9;
    pub(super) const V4_SRC: usize = 12;
    pub(super) const V4_DST: usize = 16;
    pub(super) const V6_LENGTH: usize = 4;
    pub(super) const V6_NEXT_HEADER: usize = 6;
    pub(super) const V6_SRC: usize = 8;
    pub(super) const V6_DST: usize = 24;
}

/// IPv6 extension headers (RFC 8200 §4.1 and IANA "IPv6 Extension Header Types").
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const ENCRYPTED: u8 = 50;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const NONE: u8 = 59;
    pub(super) const DESTINATION: u8 = 60;
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn udp_v4(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ipv4([10, 1, 0, 2], [10, 1, 1, 2], 64)
            .udp(7, 9)
            .write(&mut out, payload)
            .expect("a Vec takes everything");
        out
    }

    #[test]
    fn ipv4_fields() {
        let bytes = udp_v4(b"hello");
        let packet = IpPacket::parse(&bytes).expect("well formed");
        assert_eq!(packet.src(), IpAddr::from([10, 1, 0, 2]));
        assert_eq!(packet.dst(), IpAddr::from([10, 1, 1, 2]));
        assert_eq!(packet.header_len(), 20);
        assert_eq!(
            packet.transport(),
            Some(Transport { protocol: protocol::UDP, offset: 20, first_fragment: true })
        );
    }

    #[test]
    fn length_must_equal_the_slice() {
        let mut bytes = udp_v4(b"hello");
        bytes.push(0);
        assert_eq!(IpPacket::parse(&bytes).err(), Some(Malformed), "one byte behind the packet");
        bytes.truncate(bytes.len() - 2);
        assert_eq!(IpPacket::parse(&bytes).err(), Some(Malformed), "one byte missing");
    }

    #[test]
    fn total_length_below_header_length_is_malformed() {
        // IHL 6 (24 bytes), total length 20, slice 20.
        let mut bytes = udp_v4(b"");
        bytes.truncate(20);
        bytes[0] = 0x46;
        bytes[2..4].copy_from_slice(&20u16.to_be_bytes());
        assert!(IpPacket::parse(&bytes).is_err());
    }

    #[test]
    fn ipv6_extension_headers_are_walked() {
        // hop-by-hop (8 bytes), then UDP.
        let mut bytes = vec![0u8; 40 + 8 + 8];
        bytes[0] = 0x60;
        bytes[4..6].copy_from_slice(&16u16.to_be_bytes());
        bytes[6] = extension::HOP_BY_HOP;
        bytes[40] = protocol::UDP;
        let packet = IpPacket::parse(&bytes).expect("well formed");
        assert_eq!(
            packet.transport(),
            Some(Transport { protocol: protocol::UDP, offset: 48, first_fragment: true })
        );
        // The header claims 2,048 bytes that are not there.
        bytes[41] = 255;
        assert_eq!(IpPacket::parse(&bytes).expect("well formed").transport(), None);
    }

    #[test]
    fn a_later_fragment_says_so() {
        let mut bytes = vec![0u8; 40 + 8 + 16];
        bytes[0] = 0x60;
        bytes[4..6].copy_from_slice(&24u16.to_be_bytes());
        bytes[6] = extension::FRAGMENT;
        bytes[40] = protocol::UDP;
        bytes[42..44].copy_from_slice(&(185u16 << 3).to_be_bytes());
        let transport = IpPacket::parse(&bytes).expect("well formed").transport();
        assert_eq!(transport, Some(Transport { protocol: protocol::UDP, offset: 48, first_fragment: false }));
    }
}
