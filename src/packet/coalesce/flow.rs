//! Tells the flow of a packet.
//!
//! It keeps no table.
//!
//! Invariant: packets of one flow have the same hash.
#![forbid(unsafe_code)]

use super::super::header::{IPV4_HEADER, IPV6_HEADER, field};
use super::super::ip::{IpPacket, Transport};
use super::super::protocol;

/// The transport header of a packet and a hash of its flow; `None` if the flow is unknown. Two
/// flows with the same hash hide each other's runs, which costs merges but never reorders packets.
#[inline]
pub(super) fn flow(packet: &IpPacket<'_>) -> Option<(Transport, u64)> {
    let transport = packet.divisible_transport()?;
    let ports = match transport.protocol {
        protocol::TCP | protocol::UDP => *packet.bytes().get(transport.offset..)?.first_chunk()?,
        _ => [0; 4],
    };
    let start = u64::from(u32::from_ne_bytes(ports)) << 8 | u64::from(transport.protocol);
    let hash = addresses(packet.bytes()).chunks_exact(8).fold(start, |hash, chunk| {
        let mut octets = [0; 8];
        octets.copy_from_slice(chunk);
        // Multiplicative hashing (Knuth, TAOCP 6.4). The shift mixes the high bits into the low
        // ones.
        let mixed = (hash ^ u64::from_ne_bytes(octets)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ mixed >> 32
    });
    Some((transport, hash))
}

/// The bytes of source and destination address in a packet.
#[inline]
pub(super) fn addresses(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 {
        &packet[field::V4_SRC..IPV4_HEADER]
    } else {
        &packet[field::V6_SRC..IPV6_HEADER]
    }
}
