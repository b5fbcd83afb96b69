//! Tests of the IP packet view.

use etherparse::PacketBuilder;

use super::super::protocol;
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
fn ipv4_fields_are_read() {
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
fn the_length_field_must_equal_the_slice() {
    let mut bytes = udp_v4(b"hello");
    bytes.push(0);
    assert_eq!(IpPacket::parse(&bytes).err(), Some(Malformed), "one byte follows the packet");
    bytes.truncate(bytes.len() - 2);
    assert_eq!(IpPacket::parse(&bytes).err(), Some(Malformed), "one byte is missing");
}

#[test]
fn a_total_length_below_the_header_is_malformed() {
    // The header has IHL 6 (24 bytes), total length 20, slice 20.
    let mut bytes = udp_v4(b"");
    bytes.truncate(20);
    bytes[0] = 0x46;
    bytes[2..4].copy_from_slice(&20u16.to_be_bytes());
    assert!(IpPacket::parse(&bytes).is_err());
}

#[test]
fn ipv6_extension_headers_are_walked() {
    // A hop-by-hop header of 8 bytes, then UDP.
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
fn a_later_fragment_is_recognised() {
    let mut bytes = vec![0u8; 40 + 8 + 16];
    bytes[0] = 0x60;
    bytes[4..6].copy_from_slice(&24u16.to_be_bytes());
    bytes[6] = extension::FRAGMENT;
    bytes[40] = protocol::UDP;
    bytes[42..44].copy_from_slice(&(185u16 << 3).to_be_bytes());
    let transport = IpPacket::parse(&bytes).expect("well formed").transport();
    assert_eq!(transport, Some(Transport { protocol: protocol::UDP, offset: 48, first_fragment: false }));
}
