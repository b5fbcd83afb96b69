//! The same packets through the program and through `forward`.

use std::net::IpAddr;
use std::time::Duration;

use etherparse::{IpNumber, Ipv4HeaderSlice, PacketBuilder};
use hopsack::fastpath::{Counters, Reach, Reason, Trial, Verdict, Way, routes_of};
use hopsack::forward::VerifySource;

use crate::forged::{Random, Toward, datagram, inner, mutate};
use crate::oracle::{self, Expected, MTU, PORT, US, received, received_super, routes, sent, settings, table};

const NEEDS: &str = "these tests need root and a Linux from 6.6 on: run scripts/test";

fn trial(verify_source: bool) -> Trial {
    Trial::load(&settings(verify_source), &routes(&table())).expect(NEEDS)
}

/// What happened in the test itself, to be compared with the counters of the program.
#[derive(Default)]
struct Tally {
    runs: u64,
    accepted: u64,
    packets: u64,
    bytes: u64,
    dropped: u64,
    passed: u64,
}

impl Tally {
    fn add(&mut self, expected: &Expected) {
        self.runs += 1;
        match expected.verdict {
            Verdict::Accepted => {
                self.accepted += 1;
                self.packets += expected.packets.len() as u64;
                self.bytes += expected.packets.iter().map(|packet| packet.len() as u64).sum::<u64>();
            }
            Verdict::Dropped => self.dropped += 1,
            Verdict::Passed | Verdict::Unknown(_) => self.passed += 1,
        }
    }

    fn check(&self, way: Way, counters: Counters) {
        let direction = match way {
            Way::Egress => counters.egress,
            Way::Ingress => counters.ingress,
        };
        assert_eq!(direction.packets, self.packets);
        assert_eq!(direction.bytes, self.bytes);
        assert_eq!(direction.all_to_daemon(), self.passed);
        assert_eq!(self.accepted + self.dropped + self.passed, self.runs);
    }
}

/// Runs the program on a frame from the underlay, and compares.
fn receive(trial: &mut Trial, frame: &[u8], expected: &Expected) {
    let (verdict, out) = trial.run(Way::Ingress, frame, 0).expect("a test run");
    assert_eq!(verdict, expected.verdict, "{frame:02x?}");
    if verdict != Verdict::Accepted {
        assert_eq!(out, frame, "what is not accepted stays as it is");
        return;
    }
    // The frame keeps its Ethernet header.
    assert_eq!(out[14..], expected.packets[0], "{frame:02x?}");
}

/// Runs the program on a frame from the overlay device, and compares.
fn send(trial: &mut Trial, frame: &[u8], expected: &Expected) {
    let (verdict, out) = trial.run(Way::Egress, frame, 0).expect("a test run");
    assert_eq!(verdict, expected.verdict, "{frame:02x?}");
    if verdict != Verdict::Accepted {
        assert_eq!(out, frame, "what is not accepted stays as it is");
        return;
    }
    let (peer, ecn) = expected.peer.expect("the peer");
    let outer = Ipv4HeaderSlice::from_slice(&out[14..]).expect("an IPv4 header");
    let length = frame.len() - 14 + 28;
    assert_eq!((outer.source_addr(), IpAddr::V4(outer.destination_addr())), (US, peer));
    assert_eq!((outer.ihl(), outer.ttl(), outer.protocol()), (5, 64, IpNumber::UDP));
    assert_eq!((outer.slice()[1], usize::from(outer.total_len())), (ecn, length));
    assert!(outer.dont_fragment() && !outer.is_fragmenting_payload());
    assert_eq!(outer.header_checksum(), outer.to_header().calc_header_checksum());
    let udp = &out[34..42];
    let word = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    assert!((8285..=8287).contains(&word(0)), "a port of a worker");
    assert_eq!((word(2), usize::from(word(4)), word(6)), (PORT, length - 20, 0));
    assert_eq!(out[42..], frame[14..], "the inner packet is the same");
}

/// Whether the kernel takes no such frame for a test run: it wants the whole header of the protocol.
fn is_too_short(frame: &[u8]) -> bool {
    frame.len()
        < match frame.get(12..14) {
            Some([8, 0]) => 14 + 20,
            Some([0x86, 0xdd]) => 14 + 40,
            _ => 14 + 1,
        }
}

/// A packet from the overlay device, behind the Ethernet header of a test run.
fn from_device(random: &mut Random, most: usize) -> Vec<u8> {
    let mut packet = inner(random, Toward::Peers, most);
    let kind = if packet[0] >> 4 == 4 { 0x0800u16 } else { 0x86dd };
    mutate(random, &mut packet);
    let kind = if random.one_of(50) { random.pick(&[0x0800, 0x86dd, 0x0806]) } else { kind };
    let mut frame = vec![0; 12];
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame
}

#[test]
fn a_million_hostile_datagrams_have_the_same_fate_as_in_the_daemon() {
    let (table, mut trial, mut random) = (table(), trial(true), Random::new(1));
    let mut tally = Tally::default();
    let mut unmarkable = 0;
    while tally.runs < 1_000_000 {
        let mut content = inner(&mut random, Toward::Us, 200);
        mutate(&mut random, &mut content);
        let mut frame = datagram(&mut random, &content);
        if random.one_of(40) {
            mutate(&mut random, &mut frame);
        }
        if is_too_short(&frame) {
            continue;
        }
        let expected = received(&table, &frame);
        receive(&mut trial, &frame, &expected);
        tally.add(&expected);
        unmarkable += u64::from(expected.verdict == Verdict::Dropped);
    }
    let counters = trial.counters().expect("counters");
    tally.check(Way::Ingress, counters);
    assert_eq!(counters.ingress.unmarkable, unmarkable);
    // The test would say nothing if hardly any packet came through.
    assert!(tally.accepted > 50_000 && tally.dropped > 3_000 && tally.passed > 300_000);
    let never = [
        Reason::Off,
        Reason::NoRoute,
        Reason::TooBig,
        Reason::UdpTrain,
        Reason::SlowFlow,
        Reason::SuperPacket,
        Reason::Kernel,
    ];
    for reason in Reason::ALL {
        let count = counters.ingress.to_daemon(reason);
        assert_eq!(count == 0, never.contains(&reason), "{}: {count}", reason.label());
    }
}

#[test]
fn packets_from_the_overlay_device_have_the_same_fate_as_in_the_daemon() {
    for (verify, is_verified) in [(VerifySource::Subnet, true), (VerifySource::Off, false)] {
        let (table, mut trial, mut random) = (table(), trial(is_verified), Random::new(2));
        let mut tally = Tally::default();
        while tally.runs < 200_000 {
            let most = if random.one_of(4) { 1600 } else { 100 };
            let frame = from_device(&mut random, most);
            if is_too_short(&frame) {
                continue;
            }
            let expected = sent(&table, &frame, 0, verify);
            send(&mut trial, &frame, &expected);
            tally.add(&expected);
        }
        let counters = trial.counters().expect("counters");
        tally.check(Way::Egress, counters);
        assert!(tally.accepted > 20_000 && tally.passed > 20_000);
        for reason in [Reason::Malformed, Reason::NoRoute, Reason::NoPeer, Reason::TooBig] {
            assert_ne!(counters.egress.to_daemon(reason), 0, "{}", reason.label());
        }
        assert_eq!(counters.egress.to_daemon(Reason::Source) != 0, is_verified);
    }
}

/// What the program decides about a super packet. A test run gives it no GSO type, so the kernel
/// refuses to change the packet: what the program wants to accept is counted as `kernel`. The hosts
/// of `carried.rs` show that real ones arrive.
fn decide(trial: &mut Trial, way: Way, frame: &[u8], gso_size: u16) -> Verdict {
    let refused = |trial: &Trial| {
        let counters = trial.counters().expect("counters");
        [counters.egress, counters.ingress].map(|one| one.to_daemon(Reason::Kernel)).iter().sum::<u64>()
    };
    let before = refused(trial);
    let (verdict, out) = trial.run(way, frame, gso_size.into()).expect("a test run");
    assert_eq!(out, frame, "what is not accepted stays as it is");
    match refused(trial) - before {
        0 => verdict,
        1 if verdict == Verdict::Passed => Verdict::Accepted,
        count => panic!("{verdict:?} {count}"),
    }
}

#[test]
fn super_packets_have_the_fate_of_their_segments() {
    let (table, mut trial, mut random) = (table(), trial(true), Random::new(3));
    let (mut up, mut down) = (Tally::default(), Tally::default());
    while up.runs < 50_000 {
        let gso_size = random.pick(&[1, 48, 100, 536, 1400, 1432, 3000]);
        let mut frame = from_device(&mut random, 3000);
        if is_too_short(&frame) {
            continue;
        }
        // UDP super packets have a test of their own.
        let protocol = if frame[14] >> 4 == 4 { 14 + 9 } else { 14 + 6 };
        if frame.get(protocol) == Some(&17) {
            frame[protocol] = 6;
        }
        let expected = sent(&table, &frame, gso_size, VerifySource::Subnet);
        assert_eq!(decide(&mut trial, Way::Egress, &frame, gso_size), expected.verdict, "{frame:02x?}");
        up.add(&expected);

        let mut content = inner(&mut random, Toward::Us, 3000);
        mutate(&mut random, &mut content);
        let frame = datagram(&mut random, &content);
        if is_too_short(&frame) {
            continue;
        }
        let expected = received_super(&table, &frame, gso_size);
        assert_eq!(decide(&mut trial, Way::Ingress, &frame, gso_size), expected.verdict, "{frame:02x?}");
        down.add(&expected);
    }
    let seen = [up.accepted, down.accepted, down.dropped];
    assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
}

/// A UDP packet from a pod of ours to one of host 2, in an Ethernet frame.
fn udp(port: u16, length: usize) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([8, 0]);
    let builder = PacketBuilder::ipv4([10, 1, 1, 2], [10, 1, 2, 2], 63);
    builder.udp(7, port).write(&mut frame, &vec![9; length]).expect("it fits");
    frame
}

#[test]
fn udp_flow_with_a_super_packet_stays_with_the_daemon() {
    let mut trial = trial(true);
    let mut verdict = |frame: &[u8], gso_size: u32| trial.run(Way::Egress, frame, gso_size).expect("a run").0;
    let longest = usize::from(MTU) - 28;
    assert_eq!(verdict(&udp(1, longest), 0), Verdict::Accepted);
    assert_eq!(verdict(&udp(1, 3000), 1200), Verdict::Passed);
    assert_eq!(verdict(&udp(1, longest), 0), Verdict::Passed, "it would overtake the super packet");
    assert_eq!(verdict(&udp(2, longest), 0), Verdict::Accepted, "another flow");
    assert_eq!(verdict(&udp(2, longest + 1), 0), Verdict::Passed, "too long");
    let egress = trial.counters().expect("counters").egress;
    let reasons = [Reason::UdpTrain, Reason::SlowFlow, Reason::TooBig];
    assert_eq!(reasons.map(|reason| egress.to_daemon(reason)), [1, 1, 1]);
    assert_eq!((egress.packets, egress.all_to_daemon()), (2, 3));
}

#[test]
fn peer_that_cannot_receive_now_gets_its_packets_from_the_daemon() {
    let silent = routes_of(&table(), &oracle::local().subnets, |_| Reach::default());
    let mut trial = Trial::load(&settings(true), &silent).expect(NEEDS);
    assert_eq!(trial.run(Way::Egress, &udp(1, 100), 0).expect("a run").0, Verdict::Passed);
    let counters = trial.counters().expect("counters");
    assert_eq!(counters.egress.to_daemon(Reason::NoPeer), 1);
    // It may still send: its keep-alives may have been lost.
    let (table, mut random) = (table(), Random::new(5));
    while trial.counters().expect("counters").ingress.packets < 10 {
        let content = inner(&mut random, Toward::Us, 100);
        let frame = datagram(&mut random, &content);
        receive(&mut trial, &frame, &received(&table, &frame));
    }
}

#[test]
fn suspended_program_leaves_everything_to_the_daemon() {
    let mut trial = trial(true);
    let frame = udp(1, 100);
    trial.renew(Duration::ZERO).expect("renewed");
    let (verdict, out) = trial.run(Way::Egress, &frame, 0).expect("a run");
    assert_eq!((verdict, out), (Verdict::Passed, &frame[..]));
    assert_eq!(trial.run(Way::Ingress, &frame, 0).expect("a run").0, Verdict::Passed);
    trial.renew(Duration::from_secs(60)).expect("renewed");
    assert_eq!(trial.run(Way::Egress, &frame, 0).expect("a run").0, Verdict::Accepted);
    let counters = trial.counters().expect("counters");
    assert_eq!([counters.egress, counters.ingress].map(|one| one.to_daemon(Reason::Off)), [1, 1]);
}

#[test]
fn congestion_marks_are_carried_over_as_rfc_6040_says() {
    let (table, mut trial) = (table(), trial(true));
    for tos in 0..=255u8 {
        for outer in 0..4u8 {
            let mut random = Random::new(4);
            let mut content = udp(1, 10)[14..].to_vec();
            content[1] = tos;
            content[12..20].copy_from_slice(&[10, 1, 2, 2, 10, 1, 1, 2]);
            (content[10], content[11]) = (0, 0);
            let sum = hopsack::packet::checksum::checksum(&content[..20]);
            content[10..12].copy_from_slice(&sum);
            let frame = loop {
                let mut frame = datagram(&mut random, &content);
                frame[15] = outer;
                (frame[24], frame[25]) = (0, 0);
                let sum = hopsack::packet::checksum::checksum(&frame[14..34]);
                frame[24..26].copy_from_slice(&sum);
                if oracle::datagram(&frame).is_some_and(|(from, ..)| from == IpAddr::from([192, 0, 2, 2])) {
                    break frame;
                }
            };
            let expected = received(&table, &frame);
            let is_dropped = tos & 3 == 0 && outer == 3;
            assert_eq!(expected.verdict == Verdict::Dropped, is_dropped, "{tos} {outer}");
            receive(&mut trial, &frame, &expected);
        }
    }
}
