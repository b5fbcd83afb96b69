//! Tests of ICMP errors: their bytes, their checksums, and when there is none.

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket, TransportSlice, icmpv4, icmpv6};

use super::*;

fn udp_v4(src: [u8; 4], dst: [u8; 4], len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ipv4(src, dst, 64).udp(1, 2).write(&mut out, &vec![7; len]).expect("fits");
    out
}

fn udp_v6(len: usize) -> Vec<u8> {
    let mut src = [0; 16];
    src[..2].copy_from_slice(&[0xfd, 0]);
    src[15] = 2;
    let mut dst = src;
    dst[14] = 9;
    let mut out = Vec::new();
    PacketBuilder::ipv6(src, dst, 64).udp(1, 2).write(&mut out, &vec![7; len]).expect("fits");
    out
}

fn from_v4() -> IpAddr {
    IpAddr::from([10, 1, 0, 0])
}

#[test]
fn unreachable_v4_quotes_up_to_576_bytes() {
    for (payload, total) in [(4, 60), (1400, 576)] {
        let bytes = udp_v4([10, 1, 0, 2], [10, 1, 9, 9], payload);
        let packet = IpPacket::parse(&bytes).expect("well formed");
        let mut out = [0xaa; MAX_ERROR];
        let reply = error(&mut out, from_v4(), &packet, Problem::NoRoute).expect("an answer is allowed");
        assert_eq!(reply.len(), total);
        assert_eq!(checksum(&reply[..20]), [0, 0], "header checksum");
        let sliced = SlicedPacket::from_ip(reply).expect("etherparse agrees");
        let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("not ICMP") };
        assert!(matches!(
            icmp.icmp_type(),
            Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Network)
        ));
        assert_eq!(checksum(icmp.slice()), [0, 0], "ICMP checksum");
        assert_eq!(icmp.payload(), &bytes[..total - 28]);
    }
}

#[test]
fn too_big_contains_the_mtu() {
    let bytes = udp_v4([10, 1, 0, 2], [10, 1, 9, 9], 1400);
    let packet = IpPacket::parse(&bytes).expect("well formed");
    let mut out = [0; MAX_ERROR];
    let reply =
        error(&mut out, from_v4(), &packet, Problem::TooBig { mtu: 1300 }).expect("an answer is allowed");
    assert_eq!((reply[20], reply[21], &reply[26..28]), (3, 4, &1300u16.to_be_bytes()[..]));

    let bytes = udp_v6(1400);
    let packet = IpPacket::parse(&bytes).expect("well formed");
    let from: IpAddr = "fd00::".parse().expect("an address");
    let reply = error(&mut out, from, &packet, Problem::TooBig { mtu: 1300 }).expect("an answer is allowed");
    assert_eq!(reply.len(), 1280);
    let sliced = SlicedPacket::from_ip(reply).expect("etherparse agrees");
    let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("not ICMPv6") };
    assert!(matches!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1300 }));
    let (src, dst) = (packet.src(), packet.dst());
    let (IpAddr::V6(from), IpAddr::V6(src), IpAddr::V6(_)) = (from, src, dst) else { panic!("v6") };
    assert!(icmp.is_checksum_valid(from.octets(), src.octets()));
}

#[test]
fn no_route_v6_is_type_1_code_0() {
    let bytes = udp_v6(8);
    let packet = IpPacket::parse(&bytes).expect("well formed");
    let mut out = [0; MAX_ERROR];
    let reply = error(&mut out, "fd00::".parse().expect("an address"), &packet, Problem::NoRoute);
    let sliced = SlicedPacket::from_ip(reply.expect("an answer is allowed")).expect("etherparse agrees");
    let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("not ICMPv6") };
    assert!(matches!(
        icmp.icmp_type(),
        Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::NoRoute)
    ));
}

#[test]
fn no_error_about_errors_fragments_or_groups() {
    let mut out = [0; MAX_ERROR];
    let mut silent = |bytes: &[u8]| {
        let packet = IpPacket::parse(bytes).expect("well formed");
        error(&mut out, from_v4(), &packet, Problem::NoRoute).is_none()
    };
    // An error about our own error is forbidden.
    let bytes = udp_v4([10, 1, 0, 2], [10, 1, 9, 9], 8);
    let mut nested = [0; MAX_ERROR];
    let packet = IpPacket::parse(&bytes).expect("well formed");
    let first =
        error(&mut nested, from_v4(), &packet, Problem::NoRoute).expect("an answer is allowed").to_vec();
    assert!(silent(&first), "ICMP error");
    let mut echo = first;
    echo[20] = 8;
    assert!(!silent(&echo), "an echo request is not an error");
    let mut fragment = bytes.clone();
    fragment[7] = 1;
    assert!(silent(&fragment), "later fragment");
    assert!(silent(&udp_v4([10, 1, 0, 2], [224, 0, 0, 1], 8)), "multicast destination");
    assert!(silent(&udp_v4([10, 1, 0, 2], [255; 4], 8)), "broadcast");
    assert!(silent(&udp_v4([0; 4], [10, 1, 9, 9], 8)), "no source");
    assert!(silent(&udp_v4([127, 0, 0, 1], [10, 1, 9, 9], 8)), "loopback source");
    assert!(silent(&udp_v4([224, 0, 0, 1], [10, 1, 9, 9], 8)), "multicast source");
}

#[test]
fn no_error_about_any_kind_of_error() {
    let is_silent = |packet: &[u8]| {
        let packet = IpPacket::parse(packet).expect("well formed");
        let from = if packet.src().is_ipv4() { from_v4() } else { "fd00::".parse().expect("an address") };
        error(&mut [0; MAX_ERROR], from, &packet, Problem::TooBig { mtu: 1280 }).is_none()
    };
    for kind in 0..=255 {
        let mut v4 = udp_v4([10, 1, 0, 2], [10, 1, 9, 9], 8);
        (v4[9], v4[20]) = (1, kind);
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        assert_eq!(is_silent(&v4), [3, 4, 5, 11, 12].contains(&kind), "ICMP type {kind}");
        let mut v6 = udp_v6(8);
        (v6[6], v6[40]) = (58, kind);
        // Every error, and redirect.
        assert_eq!(is_silent(&v6), kind < 128 || kind == 137, "ICMPv6 type {kind}");
    }
}
