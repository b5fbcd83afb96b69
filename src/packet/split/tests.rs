//! Tests of splitting: what becomes of each header field, and which inputs are refused.

use proptest::prelude::*;

use super::*;
use crate::packet::Family;
use crate::packet::header::{field, put, tcp, to_u16, udp, word};
use crate::packet::testing::{TestPacket, checked_payload, pseudo_random};

fn split_into(vnet: &VnetHeader, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut out = vec![0xaa; SPLIT_BUFFER];
    let train = split(vnet, IpPacket::parse(bytes)?, &mut out)?;
    Ok(train.datagrams().map(<[u8]>::to_vec).collect())
}

/// Splits a packet, and checks what must hold for every segment.
fn segments(spec: &TestPacket, gso_size: u16) -> Vec<Vec<u8>> {
    let (vnet, bytes) = spec.partial(gso_size);
    let segments = split_into(&vnet, &bytes).expect("the packet may be split");
    let payload: Vec<u8> = segments.iter().flat_map(|segment| checked_payload(segment)).copied().collect();
    assert_eq!(payload, spec.payload);
    segments
}

fn tcp_flags(spec: &TestPacket, segments: &[Vec<u8>]) -> Vec<u8> {
    let l4 = spec.header_len() - 20 - spec.tcp_options.len();
    segments.iter().map(|segment| segment[l4 + tcp::FLAGS]).collect()
}

#[test]
fn segments_count_id_and_sequence_on() {
    let spec = TestPacket::tcp(Family::V4, 3001);
    let segments = segments(&spec, 1000);
    assert_eq!(
        segments.iter().map(Vec::len).collect::<Vec<_>>(),
        [1052, 1052, 1052, 53],
        "the last segment has one byte of payload"
    );
    for (index, segment) in segments.iter().enumerate() {
        let index = u16::try_from(index).expect("few");
        assert_eq!(word(segment, field::V4_ID), 0xfffe_u16.wrapping_add(index), "identification wraps");
        assert_eq!(
            tcp::sequence(&segment[20..]),
            0xffff_f000_u32.wrapping_add(u32::from(index) * 1000),
            "sequence"
        );
        assert_eq!(segment[40..52], crate::packet::testing::TIMESTAMPS, "options");
    }
}

#[test]
fn payload_is_split_at_gso_size() {
    for (payload, gso_size, count) in
        [(1000, 1000, 1), (999, 1000, 1), (1, 1000, 1), (0, 1000, 1), (2000, 1000, 2), (1001, 1000, 2)]
    {
        for family in [Family::V4, Family::V6] {
            assert_eq!(segments(&TestPacket::tcp(family, payload), gso_size).len(), count, "TCP {payload}");
            assert_eq!(segments(&TestPacket::udp(family, payload), gso_size).len(), count, "UDP {payload}");
        }
    }
}

#[test]
fn the_longest_packets_are_split() {
    for family in [Family::V4, Family::V6] {
        for (spec, gso_size) in [(TestPacket::tcp(family, 0), 1420), (TestPacket::udp(family, 0), 1444)] {
            let longest = 65_535 - spec.header_len();
            segments(&TestPacket { payload: pseudo_random(longest, 1), ..spec.clone() }, gso_size);
            segments(&TestPacket { payload: pseudo_random(longest, 1), ..spec }, 36);
        }
    }
    // The IPv6 length field does not count the header.
    segments(&TestPacket { payload: pseudo_random(65_535 - 32, 1), ..TestPacket::tcp(Family::V6, 0) }, 1420);
}

#[test]
fn fin_and_psh_stay_last_and_cwr_first() {
    for (flags, expected) in [
        (tcp::ACK, [0x10, 0x10, 0x10]),
        (tcp::ACK | tcp::PSH, [0x10, 0x10, 0x18]),
        (tcp::ACK | tcp::FIN, [0x10, 0x10, 0x11]),
        (tcp::ACK | tcp::CWR, [0x90, 0x10, 0x10]),
        (tcp::ACK | tcp::CWR | 0x40 | tcp::PSH, [0xd0, 0x50, 0x58]),
    ] {
        let spec = TestPacket { flags, ..TestPacket::tcp(Family::V6, 2500) };
        assert_eq!(tcp_flags(&spec, &segments(&spec, 1000)), expected, "{flags:#x}");
        let single = TestPacket { payload: pseudo_random(700, 1), ..spec };
        assert_eq!(tcp_flags(&single, &segments(&single, 1000)), [flags], "alone: {flags:#x}");
    }
}

#[test]
fn syn_rst_and_urg_are_never_split() {
    for flag in [tcp::SYN, tcp::RST, tcp::URG] {
        let spec = TestPacket { flags: tcp::ACK | flag, ..TestPacket::tcp(Family::V4, 2500) };
        let (vnet, bytes) = spec.partial(1000);
        assert_eq!(split_into(&vnet, &bytes), Err(Malformed), "{flag:#x}");
        segments(&spec, 2500);
    }
}

#[test]
fn ecn_bits_are_copied() {
    for segment in segments(&TestPacket { tos: 0b1011_1010, ..TestPacket::tcp(Family::V4, 2500) }, 1000) {
        assert_eq!(segment[1], 0b1011_1010);
    }
}

#[test]
fn all_segments_keep_options_and_extensions() {
    let options = TestPacket { ip_options: vec![148, 4, 0, 0], ..TestPacket::tcp(Family::V4, 2500) };
    for segment in segments(&options, 1000) {
        assert_eq!(segment[20..24], [148, 4, 0, 0], "router alert");
    }
    for spec in [TestPacket::tcp(Family::V6, 2500), TestPacket::udp(Family::V6, 2500)] {
        for segment in segments(&TestPacket { hop_by_hop: true, ..spec.clone() }, 1000) {
            assert_eq!((segment[6], segment[40]), (0, spec.protocol));
        }
    }
}

#[test]
fn a_single_packet_is_copied_or_completed() {
    let mut out = vec![0; SPLIT_BUFFER];
    for spec in [
        TestPacket::tcp(Family::V4, 700),
        TestPacket::tcp(Family::V6, 701),
        TestPacket::udp(Family::V4, 0),
        TestPacket::udp(Family::V6, 333),
    ] {
        let whole = spec.build();
        let packet = IpPacket::parse(&whole).expect("well formed");
        let train = split(&VnetHeader::default(), packet, &mut out).expect("the packet stays one");
        assert_eq!((train.bytes, train.count()), (&whole[..], 1), "the packet is unchanged");
        let (vnet, partial) = spec.partial(0);
        assert_eq!(split_into(&vnet, &partial), Ok(vec![whole]));
    }
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ones() {
    for gso_size in [0, 4] {
        let mut spec = TestPacket::udp(Family::V4, 4);
        // With its own checksum as payload, the packet sums up to zero.
        spec.payload = vec![0; 4];
        let sum = word(&spec.build(), 20 + udp::CHECKSUM);
        spec.payload[..2].copy_from_slice(&sum.to_be_bytes());
        let (vnet, bytes) = spec.partial(gso_size);
        let segments = split_into(&vnet, &bytes).expect("the packet may be split");
        assert_eq!(word(&segments[0], 20 + udp::CHECKSUM), 0xffff);
        assert_eq!(segments[0], spec.build());
    }
}

#[test]
fn a_verified_super_packet_is_split() {
    let spec = TestPacket::tcp(Family::V6, 2500);
    let (vnet, _) = spec.partial(1000);
    let verified = VnetHeader { flags: VnetHeader::DATA_VALID, csum_start: 0, csum_offset: 0, ..vnet };
    assert_eq!(split_into(&verified, &spec.build()), Ok(segments(&spec, 1000)));
}

#[test]
fn hdr_len_is_ignored() {
    let spec = TestPacket::tcp(Family::V4, 2500);
    let (vnet, bytes) = spec.partial(1000);
    for hdr_len in [0, 20, 1052, u16::MAX] {
        assert_eq!(split_into(&VnetHeader { hdr_len, ..vnet }, &bytes), split_into(&vnet, &bytes));
    }
}

#[test]
fn contradicting_headers_are_refused() {
    let spec = TestPacket::tcp(Family::V4, 2500);
    let (vnet, bytes) = spec.partial(1000);
    let whole = VnetHeader { gso_type: VnetHeader::GSO_NONE, gso_size: 0, ..vnet };
    for (vnet, what) in [
        (VnetHeader { gso_size: 0, ..vnet }, "gso_size 0"),
        (VnetHeader { gso_type: VnetHeader::GSO_TCPV6, ..vnet }, "family"),
        (VnetHeader { gso_type: VnetHeader::GSO_UDP_L4, ..vnet }, "protocol"),
        (VnetHeader { gso_type: 9, ..vnet }, "type"),
        (VnetHeader { csum_start: 24, ..vnet }, "csum_start"),
        (VnetHeader { csum_offset: 6, ..vnet }, "csum_offset"),
        (VnetHeader { csum_start: 10, ..whole }, "checksum in the IP header"),
        (VnetHeader { csum_start: 2551, csum_offset: 0, ..whole }, "checksum after the packet"),
        (
            VnetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..whole },
            "checksum far after the packet",
        ),
    ] {
        assert_eq!(split_into(&vnet, &bytes), Err(Malformed), "{what}");
    }
    let mut short_offset = bytes.clone();
    short_offset[20 + tcp::DATA_OFFSET] = 0x40;
    assert_eq!(split_into(&vnet, &short_offset), Err(Malformed), "TCP header of 16 bytes");
    let fragment = TestPacket { more_fragments: true, ..spec.clone() }.partial(1000);
    assert_eq!(split_into(&fragment.0, &fragment.1), Err(Malformed), "a fragment");
    let mut small = [0; 2600];
    let packet = IpPacket::parse(&bytes).expect("well formed");
    assert!(split(&vnet, packet, &mut small).is_err(), "the buffer is too short");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn edited_packets_do_not_panic(
        spec in (any::<bool>(), any::<bool>(), 0usize..3000).prop_map(|(v4, is_tcp, payload)| {
            let family = if v4 { Family::V4 } else { Family::V6 };
            if is_tcp { TestPacket::tcp(family, payload) } else { TestPacket::udp(family, payload) }
        }),
        gso_size in 0u16..1500,
        edits in proptest::collection::vec((0usize..100, any::<u8>()), 0..6),
        header in proptest::option::of(any::<[u8; 10]>()),
        room in 0usize..8000,
    ) {
        let (mut vnet, mut bytes) = spec.partial(gso_size);
        if let Some([flags, gso_type, a, b, c, d, e, f, g, h]) = header {
            let word = |high: u8, low: u8| u16::from_be_bytes([high & 0x0f, low]);
            vnet = VnetHeader {
                flags, gso_type: gso_type % 8, hdr_len: word(a, b), gso_size: word(c, d),
                csum_start: word(e, f), csum_offset: word(g, h),
            };
        }
        for (at, value) in edits {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let mut out = vec![0; room];
        if let Ok(packet) = IpPacket::parse(&bytes)
            && let Ok(train) = split(&vnet, packet, &mut out)
        {
            for segment in train.datagrams() {
                prop_assert!(IpPacket::parse(segment).is_ok());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        version in 0usize..2,
    ) {
        let Ok((vnet, rest)) = VnetHeader::parse(&bytes) else { return Ok(()) };
        let mut packet = rest.to_vec();
        if packet.len() >= 40 {
            packet[0] = [0x45, 0x60][version];
            let (at, length) = [(2, packet.len()), (4, packet.len() - 40)][version];
            put(&mut packet, at, to_u16(length).to_be_bytes());
        }
        let _ = split_into(&vnet, &packet);
    }
}
