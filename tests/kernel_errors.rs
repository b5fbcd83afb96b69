//! Errors of the kernel: rings that cannot be made or that break, full queues, and super packets
//! and bundles that are too long. Packets that can pass in another way do, and errors are reported.

#[path = "support/seccomp.rs"]
mod seccomp;
mod support;

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use etherparse::PacketBuilder;
use hopsack::engine::{Engine, Io, Op};
use hopsack::forward::DropReason;
use hopsack::lab::Lab;
use hopsack::lab::ping::{Ping, ping};
use hopsack::packet::{Family, bundle};
use hopsack::sys::batch::Message;
use hopsack::sys::netns::in_netns;
use hopsack::sys::udp;
use seccomp::{When, refuse};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use support::host::{Host, OPTIONS, host, table};
use support::{HOPSACK, attempt, eventually, lab, lab_on, run};

fn packets_pass(lab: &Lab) -> bool {
    ping(&lab.pod(1).netns, Ping { count: 3, ..Ping::to(lab.pod(2).v4) }).expect("ping runs").is_whole()
}

/// Runs `test` on a new thread for which the kernel refuses a system call.
fn with_refused(call: libc::c_long, when: When, errno: i32, test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let refused = || {
            refuse(call, when, errno);
            test();
        };
        scope.spawn(refused).join().expect("no panic");
    });
}

#[test]
fn batch_engine_runs_if_io_uring_is_forbidden() {
    with_refused(libc::SYS_io_uring_setup, When::Always, libc::EPERM, || {
        let lab = lab_on("auto", "seccomp", 2, Family::V4);
        assert!(packets_pass(&lab));
        let status = lab.daemon(1).status().expect("it answers");
        let reason = status["engine_reason"].as_str().expect("text");
        assert_eq!(status["engine"], "batch", "{reason}");
        assert!(reason.contains("kernel.io_uring_disabled"), "the reason names the setting: {reason}");
        let config = lab.daemon(1).config_path().to_string_lossy().into_owned();
        let check = run(&lab.host(1).netns, &[HOPSACK, "check", "--config", &config]);
        assert!(check.contains("io_uring"), "the check names it and succeeds: {check}");
    });
}

/// systemd and container runtimes do not permit bpf(2) unless they are told to.
#[test]
fn engine_carries_packets_if_bpf_is_forbidden() {
    with_refused(libc::SYS_bpf, When::Always, libc::EPERM, || {
        let lab = lab("no-bpf", 2, Family::V4);
        assert!(packets_pass(&lab));
        let fast = lab.daemon(1).status().expect("it answers")["fast_path"].clone();
        let reason = fast["reason"].as_str().expect("text");
        assert!(fast["is_on"] == false && reason.contains("CAP_BPF"), "{fast}");
        let config = lab.daemon(1).config_path().to_string_lossy().into_owned();
        let check = run(&lab.host(1).netns, &[HOPSACK, "check", "--config", &config]);
        assert!(check.contains("needs CAP_BPF"), "the check names it and succeeds: {check}");
    });
}

/// The probe finds all that a ring needs, but then the ring cannot be made, for example because too
/// little memory may be locked.
#[test]
fn batch_engine_runs_if_ring_cannot_be_made() {
    const IORING_REGISTER_FILES: u32 = 2;
    let files = When::Is(1, IORING_REGISTER_FILES);
    with_refused(libc::SYS_io_uring_register, files, libc::ENOMEM, || {
        let lab = lab_on("uring", "no-ring", 2, Family::V4);
        assert!(packets_pass(&lab));
        let status = lab.daemon(1).status().expect("it answers");
        assert_eq!(status["engine"], "batch", "{}", status["engine_reason"]);
        let log = lab.daemon(1).log();
        assert_eq!(log.matches("code=\"io_uring_failed\"").count(), 1, "it is reported once: {log}");
    });
}

/// The ring of a running daemon breaks: the kernel refuses submissions of more than eight requests.
#[test]
fn broken_ring_ends_the_daemon_with_code_1() {
    const TO_SUBMIT: u32 = 1;
    let lab = lab_on("uring", "broken-ring", 2, Family::V4);
    let daemon = lab.daemon(1);
    daemon.terminate().expect("it ends");
    with_refused(libc::SYS_io_uring_enter, When::Above(TO_SUBMIT, 8), libc::EIO, || {
        daemon.start().expect("started");
        daemon.wait_ready(Duration::from_secs(10)).expect("ready");
    });
    eventually("packets pass in short turns", || packets_pass(&lab));
    let sender = in_netns(&lab.pod(1).netns, || UdpSocket::bind("0.0.0.0:0"));
    let sender = sender.expect("netns").expect("bound");
    let (many, to) = (vec![7; 100 * 64], SocketAddr::from((lab.pod(2).v4, 9)));
    eventually("it has ended", || {
        let message = Message::train(0, 64, 64, to);
        let _ = udp::send_many(&sender, &many, &[message; 64]);
        daemon.pid().is_none()
    });
    let status = daemon.terminate().expect("it has ended").expect("it was our child");
    let log = daemon.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("io_uring_enter"), "the log names the call: {log}");
    assert!(!daemon.control_path().exists(), "a control socket was left");
    let left = attempt(&lab.host(1).netns, &["ip", "link", "show", "hopsack0"]);
    assert!(left.contains("mtu"), "the device stays for the next start: {left}");
    daemon.start().expect("started");
    daemon.wait_ready(Duration::from_secs(10)).expect("it starts again");
    eventually("packets pass again", || packets_pass(&lab));
}

/// Starts an engine with the descriptors of a host.
fn engine(name: &str, host: &Host) -> Engine {
    let (queue_io, failed) = (host.queue_io(), |error| panic!("{error}"));
    let io = if name == "batch" {
        Io::Batch(vec![queue_io])
    } else {
        let ring = host.queue_io.ring().expect("io_uring");
        Io::Uring(vec![(queue_io, ring)])
    };
    Engine::start(io, OPTIONS, table(), failed).expect("started")
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> usize {
    let mut length = None;
    eventually("a datagram arrives", || match socket.recv(buffer) {
        Ok(received) => {
            length = Some(received);
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
            false
        }
    });
    length.expect("it arrived")
}

/// The send queue is as short as possible and the link is slow, so the kernel returns EAGAIN again
/// and again. The engine waits for room, sends all packets in order and drops none: packets that
/// are not bulk are never dropped for a full queue.
#[test]
fn engine_waits_for_room_in_send_queue() {
    for name in ["batch", "uring"] {
        let host = host(&format!("eagain-{name}"));
        let slow = "tc qdisc add dev lo root tbf rate 100mbit burst 70kb limit 4mb";
        run(&host.netns, &slow.split(' ').collect::<Vec<_>>());
        SockRef::from(&host.queue_io.send).set_send_buffer_size(1).expect("the least there is");
        let mut payload = [7; 900];
        for number in 0..480u32 {
            payload[..4].copy_from_slice(&number.to_be_bytes());
            host.pods.send_to(&payload, SocketAddr::from(([10, 1, 2, 9], 7))).expect("sent");
        }
        let engine = engine(name, &host);
        let mut buffer = [0; 2000];
        let numbers: Vec<u32> = (0..480)
            .map(|_| {
                assert_eq!(receive(&host.peer, &mut buffer), 28 + 900);
                u32::from_be_bytes(*buffer[28..].first_chunk().expect("four bytes"))
            })
            .collect();
        assert_eq!(numbers, (0..480).collect::<Vec<_>>(), "{name}");
        let view = engine.view();
        engine.stop();
        let account = &view.accounts()[0];
        let refused = account.errors();
        assert!(matches!(refused[..], [(Op::UdpSend, libc::EAGAIN, 1..)]), "{name}: {refused:?}");
        let egress = &account.counters.egress;
        assert_eq!((egress.packets.get(), egress.dropped(DropReason::SendFailed)), (480, 0), "{name}");
    }
}

/// A train of a peer is written as one UDP super packet, as long as this kernel can split. If the
/// kernel refuses it, its packets are written singly.
#[test]
fn long_udp_super_packet_reaches_the_pod() {
    for name in ["batch", "uring"] {
        let host = host(&format!("uso-{name}"));
        udp::receive_trains(&host.queue_io.receive).expect("UDP_GRO");
        let inner: Vec<u8> = (0..128u8)
            .flat_map(|number| {
                let (mut packet, builder) =
                    (Vec::new(), PacketBuilder::ipv4([10, 1, 2, 9], [10, 1, 1, 1], 64).udp(7, 7000));
                builder.write(&mut packet, &[number; 100]).expect("fits");
                packet
            })
            .collect();
        let (most, engine) = (udp::max_segments(), engine(name, &host));
        for at in (0..128).step_by(most) {
            let train = Message::train(at * 128, most * 128, 128, SocketAddr::from(([127, 0, 0, 1], 8285)));
            assert_eq!(udp::send_many(&host.peer, &inner, &[train]).expect("sent"), 1);
        }
        let mut buffer = [0; 2000];
        for number in 0..128 {
            assert_eq!(receive(&host.pods, &mut buffer), 100, "{name}");
            assert_eq!(buffer[..100], [number; 100], "{name}");
        }
        let view = engine.view();
        engine.stop();
        let counters = &view.accounts()[0].counters;
        assert_eq!(counters.ingress.packets.get(), 128);
        let (writes, cut) = (counters.ingress_writes.get(), counters.write_fallbacks.get());
        assert!(writes == (128 / most) as u64 || cut > 0, "{name}: {writes} writes, {cut} of them refused");
    }
}

/// The path is too narrow for bundles of the usual length. The kernel refuses the first ones and
/// their packets pass bare; the later ones fit. The path becomes narrower in steps, until no bundle
/// is worth making.
#[test]
fn bundles_fit_a_narrow_path() {
    const PACKETS: u8 = 60;
    for name in ["batch", "uring"] {
        let host = host(&format!("bundles-{name}"));
        let engine = in_netns(&host.netns, || engine(name, &host)).expect("netns");
        let view = engine.view();
        let account = &view.accounts()[0];
        let burst = |number: u8| -> usize {
            let payloads: Vec<u8> =
                (0..PACKETS).flat_map(|n| [&[number, n][..], &[7; 62]].concat()).collect();
            let message = Message::train(0, payloads.len(), 64, SocketAddr::from(([10, 1, 2, 9], 7)));
            assert_eq!(udp::send_many(&host.pods, &payloads, &[message]).expect("sent"), 1);
            let (mut buffer, mut received, mut longest) = ([0; 2000], Vec::<u8>::new(), 0);
            while received.len() < payloads.len() {
                let length = receive(&host.peer, &mut buffer);
                match bundle::entries(&buffer[..length]) {
                    Ok(entries) => {
                        longest = longest.max(length);
                        entries.for_each(|entry| received.extend(&entry.expect("whole")[28..]));
                    }
                    Err(_) => received.extend(&buffer[28..length]),
                }
            }
            assert!(received == payloads, "{name}: the packets or their order differ");
            longest
        };
        let counts = || {
            let refused: u64 = account.errors().iter().map(|(.., count)| count).sum();
            let counters = &account.counters;
            [counters.bundle_fallbacks.get(), counters.send_fallbacks.get(), refused]
        };
        assert!(burst(0) > 1300 && counts() == [0; 3], "{name}: {:?}", counts());
        for (mtu, fits) in [("1000", 600..=972), ("600", 300..=572), ("130", 0..=0)] {
            run(&host.netns, &["ip", "link", "set", "lo", "mtu", mtu]);
            let before = counts()[0];
            // Each refusal halves the length.
            (0..5).for_each(|_| {
                burst(1);
            });
            let (refused, bundles) = (counts(), account.counters.egress_bundles.get());
            assert!(refused[0] > before, "{name}, {mtu}: no bundle was refused");
            for number in 2..12 {
                let longest = burst(number);
                assert!(fits.contains(&longest), "{name}, {mtu}: a bundle of {longest} bytes");
            }
            assert_eq!(counts(), refused, "{name}, {mtu}: more bundles were refused");
            let bundles = account.counters.egress_bundles.get() - bundles;
            assert_eq!(bundles > 0, mtu != "130", "{name}, {mtu}: {bundles} bundles");
        }
        let egress = &account.counters.egress;
        let lost = egress.dropped(DropReason::SendFailed) + egress.dropped(DropReason::TooBig);
        assert_eq!((egress.packets.get(), lost), ((1 + 3 * 15) * u64::from(PACKETS), 0), "{name}");
        engine.stop();
    }
}

/// Pure TCP acknowledgements of a transfer leave in bundles, and come out of bundles byte by byte.
#[test]
fn acknowledgements_travel_in_bundles() {
    for name in ["batch", "uring"] {
        let host = host(&format!("acks-{name}"));
        let acks = |src: [u8; 4], dst: [u8; 4]| -> Vec<Vec<u8>> {
            let ack = |number: u16| {
                let builder =
                    PacketBuilder::ipv4(src, dst, 64).tcp(7, 7000, 1, 500).ack(u32::from(number) * 2896);
                let builder = builder.options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]).expect("12 bytes");
                let mut packet = Vec::new();
                builder.write(&mut packet, &[]).expect("fits");
                // The kernel replaces an identification of zero when a raw socket sends.
                packet[4..6].copy_from_slice(&(number + 1).to_be_bytes());
                packet[10..12].fill(0);
                let sum = hopsack::packet::checksum::checksum(&packet[..20]);
                packet[10..12].copy_from_slice(&sum);
                packet
            };
            (0..100).map(ack).collect()
        };
        let raw = |protocol| move || Socket::new(Domain::IPV4, Type::RAW, Some(protocol)).expect("root");
        let sender = in_netns(&host.netns, raw(Protocol::from(libc::IPPROTO_RAW))).expect("netns");
        let sent = acks([10, 1, 1, 1], [10, 1, 2, 9]);
        for packet in &sent {
            sender.send_to(packet, &SocketAddr::from(([10, 1, 2, 9], 0)).into()).expect("sent");
        }
        let engine = engine(name, &host);
        let (mut buffer, mut received) = ([0; 2000], Vec::<Vec<u8>>::new());
        while received.len() < sent.len() {
            let length = receive(&host.peer, &mut buffer);
            match bundle::entries(&buffer[..length]) {
                Ok(entries) => received.extend(entries.map(|entry| entry.expect("whole").to_vec())),
                Err(_) => received.push(buffer[..length].to_vec()),
            }
        }
        assert!(received == sent, "{name}: the packets differ");
        let view = engine.view();
        let counters = &view.accounts()[0].counters;
        let bundles = counters.egress_bundles.get();
        assert!((4..=50).contains(&bundles), "{name}: {bundles} bundles for 100 packets");

        // The other direction: a raw socket for TCP sees each packet, and no other socket answers.
        let drop =
            "table ip quiet { chain out { type filter hook output priority 0; tcp flags rst drop; }; }";
        run(&host.netns, &["nft", drop]);
        let listener = in_netns(&host.netns, raw(Protocol::TCP)).expect("netns");
        listener.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let back = acks([10, 1, 2, 9], [10, 1, 1, 1]);
        for some in back.chunks(20) {
            let mut datagram = vec![0; 1472];
            let append = |at, packet: &Vec<u8>| bundle::append(&mut datagram, at, packet).expect("it fits");
            let length = some.iter().fold(0, append);
            host.peer.send_to(&datagram[..length], "127.0.0.1:8285").expect("sent");
        }
        for packet in &back {
            let mut bytes = [MaybeUninit::uninit(); 2000];
            let length = listener.recv(&mut bytes).expect("it arrives");
            // SAFETY: the kernel has written that many bytes.
            let bytes: Vec<u8> = bytes[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
            assert_eq!(bytes, *packet, "{name}");
        }
        assert_eq!(counters.ingress_bundles.get(), 5);
        engine.stop();
    }
}
