//! Tests of merging: which packets form a run, and that splitting a run gives its packets back.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::coalescer::{MAX_MERGED, MAX_TCP_SEGMENTS, UDP_SEGMENTS};
use super::segment::DONT_FRAGMENT;
use super::*;
use crate::packet::header::{IPV4_HEADER, IPV6_HEADER, field, put, tcp, to_u16, udp, word};
use crate::packet::split::{SPLIT_BUFFER, split};
use crate::packet::testing::{TestPacket, checked_payload, pseudo_random};
use crate::packet::{Family, IpPacket, VnetHeader, protocol};

/// A finished run: its header, the IP packet, and the number of merged packets.
type Merged = (VnetHeader, Vec<u8>, u64);

fn drain(coalescer: &mut Coalescer) -> Vec<Merged> {
    let merged = coalescer
        .finish()
        .map(|run| {
            let (vnet, packet) = VnetHeader::parse(run.bytes).expect("the coalescer wrote a valid header");
            assert_eq!(packet, run.packet());
            (vnet, packet.to_vec(), run.packets)
        })
        .collect();
    coalescer.clear();
    merged
}

fn merge(packets: &[Vec<u8>]) -> Vec<Merged> {
    let mut coalescer = Coalescer::new(RUNS);
    for packet in packets {
        coalescer.push(IpPacket::parse(packet).expect("well formed")).expect("room");
    }
    drain(&mut coalescer)
}

/// The number of packets in each run, in order.
fn counts(packets: &[Vec<u8>]) -> Vec<u64> {
    merge(packets).iter().map(|(_, _, count)| *count).collect()
}

/// `count` consecutive packets of a flow, each changed by `edit`.
fn sequence(spec: &TestPacket, count: usize, edit: impl Fn(usize, &mut TestPacket)) -> Vec<Vec<u8>> {
    let mut next = spec.clone();
    (0..count)
        .map(|index| {
            let mut this = next.clone();
            next.sequence = next.sequence.wrapping_add(u32::from(to_u16(this.payload.len())));
            next.id = next.id.wrapping_add(1);
            edit(index, &mut this);
            this.build()
        })
        .collect()
}

fn all_layouts() -> [TestPacket; 4] {
    [
        TestPacket::tcp(Family::V4, 100),
        TestPacket::tcp(Family::V6, 100),
        TestPacket::udp(Family::V4, 100),
        TestPacket::udp(Family::V6, 100),
    ]
}

fn split_again(vnet: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut out = vec![0; SPLIT_BUFFER];
    let packet = IpPacket::parse(packet).expect("well formed");
    let train = split(vnet, packet, &mut out).expect("a merged packet can be split");
    train.datagrams().map(<[u8]>::to_vec).collect()
}

#[test]
fn a_train_of_44_becomes_one_super_packet() {
    for spec in [
        TestPacket::tcp(Family::V4, 1420),
        TestPacket::tcp(Family::V6, 1400),
        TestPacket::udp(Family::V4, 1444),
    ] {
        let packets = sequence(&spec, 44, |_, _| ());
        let merged = merge(&packets);
        let [(vnet, packet, 44)] = merged.as_slice() else { panic!("not one run of 44") };
        assert_eq!(usize::from(vnet.gso_size), spec.payload.len());
        assert_eq!(packet.len(), spec.header_len() + 44 * spec.payload.len());
        assert_eq!(split_again(vnet, packet), packets);
    }
}

#[test]
fn merging_restores_the_vnet_header() {
    for spec in all_layouts() {
        let (expected, bytes) = TestPacket { payload: pseudo_random(950, 3), ..spec }.partial(100);
        let packets = split_again(&expected, &bytes);
        assert_eq!(merge(&packets), [(expected, bytes, 10)]);
    }
}

#[test]
fn a_single_packet_is_unchanged() {
    for spec in all_layouts() {
        let packet = spec.build();
        assert_eq!(merge(std::slice::from_ref(&packet)), [(VnetHeader::default(), packet, 1)]);
    }
    let longest = TestPacket::tcp(Family::V6, 65_535 - 32).build();
    assert_eq!(merge(std::slice::from_ref(&longest)), [(VnetHeader::default(), longest, 1)]);
}

#[test]
fn a_shorter_packet_ends_a_run() {
    for spec in all_layouts() {
        let with_third = |length: usize| {
            let packets = sequence(&spec, 3, |index, this| {
                if index == 2 {
                    this.payload = pseudo_random(length, 5);
                }
            });
            let more = sequence(
                &TestPacket {
                    sequence: spec.sequence.wrapping_add(200 + u32::from(to_u16(length))),
                    id: spec.id.wrapping_add(3),
                    ..spec.clone()
                },
                2,
                |_, _| (),
            );
            counts(&[packets, more].concat())
        };
        assert_eq!(with_third(100), [5]);
        assert_eq!(with_third(99), [3, 2]);
        assert_eq!(with_third(1), [3, 2]);
        assert_eq!(with_third(101), [2, 2, 1], "100 after 101 ends the second run");
        assert_eq!(with_third(0), [2, 1, 2], "an empty packet is never merged");
    }
}

#[test]
fn differing_fields_end_a_run() {
    type Edit = fn(&mut TestPacket);
    let both: [(&str, Edit); 5] = [
        ("TOS", |this| this.tos ^= 0x20),
        ("ECN", |this| this.tos ^= 0x03),
        ("TTL", |this| this.ttl -= 1),
        ("source port", |this| this.ports.0 += 1),
        ("destination port", |this| this.ports.1 += 1),
    ];
    let tcp_only: [(&str, Edit); 6] = [
        ("sequence", |this| this.sequence = this.sequence.wrapping_add(1)),
        ("acknowledgment", |this| this.acknowledgment += 1),
        ("window", |this| this.window += 1),
        ("timestamp", |this| this.tcp_options[7] ^= 1),
        ("no timestamp", |this| this.tcp_options.clear()),
        ("more options", |this| this.tcp_options.extend([1, 1, 1, 1])),
    ];
    for spec in all_layouts() {
        let is_tcp = spec.protocol == protocol::TCP;
        for (what, edit) in both.iter().chain(tcp_only.iter().filter(|_| is_tcp)) {
            let packets = sequence(&spec, 4, |index, this| {
                if index == 2 {
                    edit(this)
                }
            });
            assert_eq!(counts(&packets).iter().sum::<u64>(), 4);
            // A UDP packet with another port is another flow, and the first flow continues. For TCP
            // the first flow has a gap in its sequence numbers then.
            let first = if what.ends_with("port") && !is_tcp { 3 } else { 2 };
            assert_eq!(counts(&packets)[0], first, "{what}");
        }
    }
    let labels = sequence(&TestPacket::udp(Family::V6, 100), 4, |index, this| {
        this.flow_label += u32::from(index == 2)
    });
    assert_eq!(counts(&labels), [2, 1, 1], "flow label");
}

#[test]
fn identification_matters_only_without_df() {
    let spec = TestPacket { dont_fragment: false, ..TestPacket::udp(Family::V4, 100) };
    assert_eq!(counts(&sequence(&spec, 4, |_, _| ())), [4], "consecutive, across the wrap");
    assert_eq!(counts(&sequence(&spec, 4, |_, this| this.id = 5)), [1, 1, 1, 1], "constant");
    let constant = sequence(&spec, 4, |_, this| (this.id, this.dont_fragment) = (5, true));
    assert_eq!(counts(&constant), [4], "constant, but without meaning");
    let mixed = sequence(&spec, 4, |index, this| this.dont_fragment = index == 2);
    assert_eq!(counts(&mixed), [2, 1, 1], "DF differs");
}

#[test]
fn only_ack_and_psh_are_merged() {
    let spec = TestPacket::tcp(Family::V4, 100);
    for flags in [tcp::ACK | tcp::FIN, tcp::SYN, tcp::RST, tcp::ACK | tcp::URG, 0x50, 0x90, 0, tcp::PSH] {
        let packets = sequence(&spec, 4, |index, this| {
            if index == 2 {
                this.flags = flags;
            }
        });
        assert_eq!(counts(&packets), [2, 1, 1], "{flags:#x}");
        let first = sequence(&spec, 3, |index, this| {
            if index == 0 {
                this.flags = flags;
            }
        });
        assert_eq!(counts(&first), [1, 2], "{flags:#x} first");
    }
    for (at, expected) in [(0, &[1, 3][..]), (1, &[2, 2]), (3, &[4])] {
        let packets = sequence(&spec, 4, |index, this| {
            if index == at {
                this.flags |= tcp::PSH;
            }
        });
        assert_eq!(counts(&packets), expected, "PSH at {at}");
        for (vnet, packet, _) in merge(&packets) {
            assert!(split_again(&vnet, &packet).iter().all(|segment| packets.contains(segment)));
        }
    }
}

#[test]
fn some_packets_are_never_merged() {
    let bare_acks = sequence(&TestPacket::tcp(Family::V4, 0), 3, |_, _| ());
    let empty = sequence(&TestPacket::udp(Family::V6, 0), 3, |_, _| ());
    let vxlan =
        sequence(&TestPacket { ports: (50_000, 4789), ..TestPacket::udp(Family::V4, 100) }, 3, |_, _| ());
    let options = TestPacket { ip_options: vec![148, 4, 0, 0], ..TestPacket::tcp(Family::V4, 100) };
    let hop_by_hop = TestPacket { hop_by_hop: true, ..TestPacket::udp(Family::V6, 100) };
    let fragments =
        TestPacket { more_fragments: true, dont_fragment: false, ..TestPacket::udp(Family::V4, 104) };
    let mut trailing = sequence(&TestPacket::udp(Family::V4, 100), 3, |_, _| ());
    let mut other_protocol = trailing.clone();
    // With its own checksum as payload, a datagram sums up to zero. Zero means "no checksum" here,
    // although it is also the correct value.
    let mut zero = TestPacket { payload: vec![0; 4], ..TestPacket::udp(Family::V4, 0) };
    let sum = word(&zero.build(), 20 + udp::CHECKSUM);
    put(&mut zero.payload, 0, sum.to_be_bytes());
    let mut without_sum = sequence(&zero, 3, |_, _| ());
    for packet in &mut without_sum {
        put(packet, 20 + udp::CHECKSUM, [0, 0]);
    }
    for packet in &mut trailing {
        put(packet, 20 + udp::LENGTH, 50u16.to_be_bytes());
    }
    for packet in &mut other_protocol {
        packet[field::V4_PROTOCOL] = 47;
    }
    for (packets, what) in [
        (bare_acks, "bare ACKs"),
        (empty, "empty datagrams"),
        (vxlan, "a tunnel"),
        (sequence(&options, 3, |_, _| ()), "IPv4 options"),
        (sequence(&hop_by_hop, 3, |_, _| ()), "extension headers"),
        (sequence(&fragments, 3, |_, _| ()), "fragments"),
        (without_sum, "no UDP checksum"),
        (trailing, "bytes after the UDP datagram"),
        (other_protocol, "GRE"),
    ] {
        let expected: Vec<Merged> =
            packets.iter().map(|packet| (VnetHeader::default(), packet.clone(), 1)).collect();
        assert_eq!(merge(&packets), expected, "{what}");
    }
}

#[test]
fn a_packet_with_a_wrong_checksum_stays_alone() {
    for spec in all_layouts() {
        for wrong in 0..4 {
            let mut packets = sequence(&spec, 4, |_, _| ());
            *packets[wrong].last_mut().expect("not empty") ^= 1;
            let merged = merge(&packets);
            let alone = merged.iter().find(|(_, packet, _)| *packet == packets[wrong]);
            assert_eq!(alone.map(|(vnet, _, count)| (*vnet, *count)), Some((VnetHeader::default(), 1)));
            let all: Vec<_> = merged.iter().flat_map(|(vnet, packet, _)| split_again(vnet, packet)).collect();
            assert_eq!(all, packets);
        }
    }
    let mut packets = sequence(&TestPacket::tcp(Family::V4, 100), 3, |_, _| ());
    packets[1][field::V4_CHECKSUM] ^= 1;
    assert_eq!(counts(&packets), [1, 1, 1], "IPv4 header checksum");
}

#[test]
fn runs_have_limits() {
    assert_eq!(counts(&sequence(&TestPacket::udp(Family::V4, 10), 130, |_, _| ())), [64, 64, 2]);
    assert_eq!(counts(&sequence(&TestPacket::tcp(Family::V4, 1), 1030, |_, _| ())), [1024, 6]);
    // 46 payloads and one header are 46 * 1420 + 52 = 65,372 bytes.
    assert_eq!(counts(&sequence(&TestPacket::tcp(Family::V4, 1420), 50, |_, _| ())), [46, 4]);
}

#[test]
fn a_full_table_refuses_only_new_flows() {
    let mut coalescer = Coalescer::new(2);
    let capacity = (coalescer.runs.capacity(), coalescer.flows.capacity());
    let packets: Vec<_> = (0..3)
        .map(|port| {
            sequence(&TestPacket { ports: (port, 9), ..TestPacket::udp(Family::V4, 100) }, 2, |_, _| ())
        })
        .collect();
    let mut push = |packet: &[u8]| coalescer.push(IpPacket::parse(packet).expect("well formed"));
    assert_eq!((push(&packets[0][0]), push(&packets[1][0])), (Ok(()), Ok(())));
    assert_eq!(push(&packets[2][0]), Err(Full));
    assert_eq!(push(&packets[0][1]), Ok(()));
    assert_eq!(drain(&mut coalescer).len(), 2);
    assert!(coalescer.is_empty());
    assert_eq!((coalescer.runs.capacity(), coalescer.flows.capacity()), capacity, "nothing was allocated");
    assert_eq!(coalescer.push(IpPacket::parse(&packets[2][0]).expect("well formed")), Ok(()));
}

#[test]
fn no_packet_overtakes_a_fragment() {
    let spec = TestPacket { dont_fragment: false, ..TestPacket::udp(Family::V4, 104) };
    let mut packets = sequence(&spec, 4, |index, this| this.more_fragments = index == 2);
    packets.extend(sequence(&TestPacket { ports: (1, 2), ..spec.clone() }, 1, |_, _| ()));
    assert_eq!(counts(&packets), [2, 1, 1, 1]);
    // A later fragment has no ports, so it ends the runs of all flows between its addresses.
    packets[2][field::V4_FRAGMENT + 1] = 13;
    packets.rotate_left(4);
    packets.push(
        sequence(&TestPacket { id: spec.id.wrapping_add(1), ports: (1, 2), ..spec }, 1, |_, _| ())[0].clone(),
    );
    assert_eq!(counts(&packets), [1, 2, 1, 1, 1]);
}

fn any_packet() -> impl Strategy<Value = TestPacket> {
    let headers = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let fields = (any::<u32>(), any::<u32>(), any::<u16>(), any::<u16>(), any::<u8>(), 1u8.., 0u32..1 << 20);
    (headers, fields).prop_map(|((v4, is_tcp, timestamps, push), fields)| {
        let family = if v4 { Family::V4 } else { Family::V6 };
        let base = if is_tcp { TestPacket::tcp(family, 0) } else { TestPacket::udp(family, 0) };
        let tcp_options = if timestamps { base.tcp_options.clone() } else { Vec::new() };
        let flags = if push { base.flags | tcp::PSH } else { base.flags };
        let (sequence, acknowledgment, window, id, tos, ttl, flow_label) = fields;
        let dont_fragment = id & 1 == 0;
        TestPacket {
            flags,
            sequence,
            acknowledgment,
            window,
            id,
            dont_fragment,
            tos,
            ttl,
            flow_label,
            tcp_options,
            ..base
        }
    })
}

/// One packet of the interleaving test: its flow, and how it differs from the expected next packet.
#[derive(Debug, Clone)]
struct Step {
    flow: usize,
    length: usize,
    flags: u8,
    oddity: u8,
}

fn any_step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![6 => Just(100usize), 1 => Just(99), 1 => Just(101), 1 => Just(1), 1 => Just(0)];
    let flags = prop_oneof![8 => Just(tcp::ACK), 2 => Just(tcp::ACK | tcp::PSH), 1 => any::<u8>()];
    let oddity = prop_oneof![6 => Just(0u8), 1 => 1u8..8];
    (0usize..6, length, flags, oddity).prop_map(|(flow, length, flags, oddity)| Step {
        flow,
        length,
        flags,
        oddity,
    })
}

/// Builds the packets of an interleaving.
fn build_steps(steps: &[Step]) -> Vec<Vec<u8>> {
    let mut flows: Vec<TestPacket> = (0..6u16)
        .map(|index| {
            let base = all_layouts()[usize::from(index) % 4].clone();
            TestPacket { ports: (1000 + index, 9), dont_fragment: index < 2, ..base }
        })
        .collect();
    let packet = |(seed, step): (u64, &Step)| {
        let flow = &mut flows[step.flow];
        flow.payload = pseudo_random(step.length, seed);
        if flow.protocol == protocol::TCP {
            flow.flags = step.flags;
        }
        match step.oddity {
            1 => flow.sequence = flow.sequence.wrapping_add(100),
            2 => flow.ttl ^= 1,
            3 => flow.tos ^= 3,
            4 => flow.window ^= 7,
            5 => flow.id = flow.id.wrapping_add(9),
            _ => {}
        }
        let is_fragment = step.oddity == 6 && flow.family == Family::V4;
        let mut bytes = TestPacket { more_fragments: is_fragment, ..flow.clone() }.build();
        if step.oddity == 7 {
            *bytes.last_mut().expect("not empty") ^= 0x10;
        }
        flow.sequence = flow.sequence.wrapping_add(u32::from(to_u16(step.length)));
        flow.id = flow.id.wrapping_add(1);
        bytes
    };
    (1u64..).zip(steps).map(packet).collect()
}

/// Packets by flow (source port), in order, without the identification of atomic datagrams (RFC
/// 6864).
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<(u8, u16), Vec<Vec<u8>>> {
    let mut flows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for packet in packets {
        let (family, l4) = if packet[0] >> 4 == 4 { (4, IPV4_HEADER) } else { (6, IPV6_HEADER) };
        let mut packet = packet.clone();
        if family == 4 && word(&packet, field::V4_FRAGMENT) & DONT_FRAGMENT != 0 {
            put(&mut packet, field::V4_ID, [0, 0]);
            put(&mut packet, field::V4_CHECKSUM, [0, 0]);
        }
        flows.entry((family, word(&packet, l4))).or_default().push(packet);
    }
    flows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn coalesce_undoes_split(spec in any_packet(), size in 64u16..1500, length in 0.0f64..1.0, seed: u64) {
        let segments = if spec.protocol == protocol::TCP { MAX_TCP_SEGMENTS } else { UDP_SEGMENTS };
        let most = (MAX_MERGED - spec.header_len()).min(usize::from(size) * segments as usize);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let length = usize::from(size) + 1 + (length * (most - usize::from(size) - 1) as f64) as usize;
        let (vnet, bytes) = TestPacket { payload: pseudo_random(length, seed), ..spec }.partial(size);
        let packets = split_again(&vnet, &bytes);
        let payload: Vec<u8> = packets.iter().flat_map(|packet| checked_payload(packet)).copied().collect();
        prop_assert_eq!(payload, pseudo_random(length, seed));
        prop_assert_eq!(merge(&packets), [(vnet, bytes, packets.len() as u64)]);
    }

    #[test]
    fn runs_split_into_their_packets(steps in proptest::collection::vec(any_step(), 0..150), room in 1usize..12) {
        let packets = build_steps(&steps);
        let mut coalescer = Coalescer::new(room);
        let mut runs = Vec::new();
        for packet in &packets {
            let packet = IpPacket::parse(packet).expect("well formed");
            if coalescer.push(packet).is_err() {
                runs.extend(drain(&mut coalescer));
                prop_assert_eq!(coalescer.push(packet), Ok(()));
            }
        }
        runs.extend(drain(&mut coalescer));
        let split_packets: Vec<Vec<u8>> = runs.iter().flat_map(|(vnet, packet, _)| split_again(vnet, packet)).collect();
        prop_assert_eq!(split_packets.len(), packets.len());
        prop_assert_eq!(runs.iter().map(|(_, _, count)| *count).sum::<u64>(), packets.len() as u64);
        prop_assert_eq!(by_flow(&split_packets), by_flow(&packets));
    }

    #[test]
    fn edited_packets_do_not_panic(
        steps in proptest::collection::vec(any_step(), 1..40),
        edits in proptest::collection::vec((0usize..40, 0usize..70, any::<u8>()), 0..40),
    ) {
        let mut packets = build_steps(&steps);
        for (index, at, value) in edits {
            if let Some(byte) = packets.get_mut(index).and_then(|packet| packet.get_mut(at)) {
                *byte = value;
            }
        }
        let mut coalescer = Coalescer::new(RUNS);
        let mut pushed = Vec::new();
        for packet in &packets {
            if let Ok(packet) = IpPacket::parse(packet) {
                prop_assert_eq!(coalescer.push(packet), Ok(()));
                pushed.push(packet.bytes().to_vec());
            }
        }
        let bytes: u64 = coalescer.finish().map(|run| run.packet_bytes).sum();
        prop_assert_eq!(bytes, pushed.iter().map(|packet| packet.len() as u64).sum::<u64>());
        drain(&mut coalescer);
    }
}
