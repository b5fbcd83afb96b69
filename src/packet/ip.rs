//! A checked, read-only view of one IP packet.
//!
//! [`IpPacket::parse`] is the only constructor. It checks that the header is whole and that the
//! packet's own length field equals the length of the slice, so that no accessor can panic. It
//! checks only the first header: transport and extension headers are walked on request
//! ([`IpPacket::transport`]).
//!
//! It does not edit packets and does not verify checksums: the kernel has verified them before a
//! TUN read and verifies them after a TUN write; code that merges packets verifies them itself.
//!
//! Invariant: for every accepted input, `total length == bytes.len()`; no accessor panics.
//! Sources: RFC 791 (IPv4), RFC 8200 (IPv6).
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

use super::family::Family;
use super::header::{IPV6_HEADER, field};
use super::malformed::Malformed;

/// A checked view of exactly one IPv4 or IPv6 packet.
#[derive(Debug, Clone, Copy)]
pub struct IpPacket<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) family: Family,
    /// Bytes of the IPv4 header with its options, or 40.
    pub(super) header_len: usize,
}

/// Position and protocol of a packet's transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// IP protocol number.
    pub protocol: u8,
    /// Byte offset from the start of the IP header; at most the packet's length.
    pub offset: usize,
    /// Whether the packet is unfragmented or the first fragment. In a later fragment the bytes at
    /// `offset` are payload.
    pub first_fragment: bool,
}

impl<'a> IpPacket<'a> {
    /// Accepts `bytes` if they are exactly one whole IP packet.
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

    /// Bytes of the IPv4 header with its options, or 40 for IPv6.
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

    /// The IPv4 protocol or IPv6 next-header field: it says what directly follows the first header.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self.family {
            Family::V4 => self.bytes[field::V4_PROTOCOL],
            Family::V6 => self.bytes[field::V6_NEXT_HEADER],
        }
    }

    /// Finds the transport header behind the IPv6 extension headers. `None` if the chain is cut
    /// short, or ends in "no next header" (59) or an encrypted payload (50).
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        self.walk().map(|(transport, _)| transport)
    }

    /// The transport header of a packet that may be split into several or merged with others.
    /// `None` for any fragment, the first included, and for a packet that an authentication header
    /// protects as a whole.
    #[must_use]
    pub fn divisible_transport(&self) -> Option<Transport> {
        self.walk().filter(|(_, divisible)| *divisible).map(|(transport, _)| transport)
    }

    /// The transport header, and whether the packet may be split or merged.
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

    /// Walks the extension headers. Each header names the next (RFC 8200 §4). Lengths are in units
    /// of 8 bytes beyond the first 8, except in the authentication header (RFC 4302: units of 4
    /// bytes beyond the first 8).
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
            // Payload follows the header of a later fragment, not another header.
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
mod tests;
