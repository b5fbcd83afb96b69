//! The engines in labs: all carry the same packets, flows keep their order, one system call moves
//! many packets, and packets still pass when the kernel refuses an offload.
//!
//! No test asserts a speed.

mod support;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, tcp};
use hopsack::lab::{Lab, Options};
use hopsack::packet::{Family, VnetHeader};
use hopsack::sys::batch::{Batch, Message};
use hopsack::sys::cpu;
use hopsack::sys::netns::in_netns;
use hopsack::sys::ring::{Buffers, MAX_FRAMES, Ring};
use hopsack::sys::tun::{Offload, Queue};
use hopsack::sys::udp;
use socket2::{Domain, Protocol, Socket, Type};
use support::{HOPSACK, Scrape, edit, eventually, lab_on, lab_with, run};

const ENGINES: [&str; 3] = ["simple", "batch", "uring"];

fn socket(netns: &str, address: SocketAddr) -> UdpSocket {
    in_netns(netns, move || UdpSocket::bind(address)).expect("netns").expect("bound")
}

fn packets_pass(lab: &Lab) -> bool {
    ping(&lab.pod(1).netns, Ping { count: 3, ..Ping::to(lab.pod(2).v4) }).expect("ping runs").is_whole()
}

/// Each engine gets the same packets of all lengths, singly and as super packets. Each delivers the
/// same bytes, over an underlay of either family.
#[test]
fn all_engines_carry_the_same_packets() {
    let all = [
        ("simple", Family::V4),
        ("batch", Family::V4),
        ("uring", Family::V4),
        ("batch", Family::V6),
        ("uring", Family::V6),
    ];
    let received = all
        .map(|(engine, underlay)| {
            thread::spawn(move || {
                let lab = lab_on(engine, &format!("same-{underlay:?}").to_lowercase(), 2, underlay);
                let packets = (raw_packets(&lab), datagrams(&lab));
                let bundles = Scrape::of(&lab.host(2).netns).get("hopsack_ingress_bundles_total");
                assert_eq!(bundles > 0, engine != "simple", "{engine}: {bundles} bundles");
                packets
            })
        })
        .map(|thread| thread.join().expect("no panic"));
    assert_eq!((received[0].0.len(), received[0].1.len()), (500, 1000));
    for (other, packets) in all.iter().zip(&received) {
        assert!(*packets == received[0], "{other:?} and simple differ");
    }
}

/// Sends whole IP packets of an experimental protocol, and returns them as they arrive: no field of
/// the header may change.
fn raw_packets(lab: &Lab) -> Vec<Vec<u8>> {
    const EXPERIMENT: i32 = 253;
    let (from, to) = (lab.pod(1), lab.pod(2));
    let raw = || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(EXPERIMENT))).expect("root");
        socket.set_recv_buffer_size(4 << 20).expect("room");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        socket
    };
    let receiver = in_netns(&to.netns, raw).expect("netns");
    let sender = in_netns(&from.netns, raw).expect("netns");
    sender.set_header_included_v4(true).expect("IP_HDRINCL");
    let mut received = Vec::new();
    for n in 0..500u16 {
        // The longest packet has the MTU of an IPv6 underlay.
        let length = 20 + usize::from(n * 7) % 1433;
        let mut packet = vec![n.to_le_bytes()[0]; length];
        packet[..20].fill(0);
        (packet[0], packet[1]) = (0x45, n.to_le_bytes()[0] & 0xfc);
        packet[4..6].copy_from_slice(&(n + 1).to_be_bytes());
        packet[6] = if n % 2 == 0 { 0x40 } else { 0 };
        (packet[8], packet[9]) = (64 - n.to_le_bytes()[0] % 32, 253);
        packet[12..16].copy_from_slice(&from.v4.octets());
        packet[16..20].copy_from_slice(&to.v4.octets());
        sender.send_to(&packet, &SocketAddr::from((to.v4, 0)).into()).expect("sent");
        if n % 50 == 49 {
            let mut buffer = [MaybeUninit::uninit(); 2000];
            for _ in 0..50 {
                let length = receiver.recv(&mut buffer).expect("it arrives");
                // SAFETY: the kernel has written `length` bytes.
                received.push(buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect());
            }
        }
    }
    received
}

/// The underlay marks packets that may be marked. The packet that the pod gets has the mark, and no
/// other packet has.
#[test]
fn ecn_mark_of_the_underlay_reaches_the_pod() {
    const EXPERIMENT: i32 = 253;
    for engine in ENGINES {
        let lab = lab_on(engine, "ecn", 2, Family::V4);
        let (from, to) = (lab.pod(1), lab.pod(2));
        // The rule marks only outer headers that say ECT(0), so the field must have been copied
        // there.
        let rules = "table ip marks { chain out { type filter hook postrouting priority 0; \
                     udp dport 8285 ip ecn ect0 ip ecn set ce; }; }";
        run(&lab.host(1).netns, &["nft", rules]);
        let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(EXPERIMENT))).expect("root");
        let receiver = in_netns(&to.netns, raw).expect("netns");
        receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let sender = in_netns(&from.netns, raw).expect("netns");
        for (sent, arrives) in [(0b1010_0010, 0b1010_0011), (0b1010_0000, 0b1010_0000), (1, 1), (3, 3)] {
            sender.set_tos_v4(sent).expect("IP_TOS");
            sender.send_to(&[7; 100], &SocketAddr::from((to.v4, 0)).into()).expect("sent");
            let mut buffer = [MaybeUninit::uninit(); 2000];
            assert_eq!(receiver.recv(&mut buffer).expect("it arrives"), 120);
            // SAFETY: the kernel has written 120 bytes.
            let tos = unsafe { buffer[1].assume_init() };
            assert_eq!(u32::from(tos), arrives, "{engine}: sent with {sent:#b}");
        }
        assert_eq!(Scrape::of(&lab.host(2).netns).all_dropped("ingress"), 0, "{engine}");
    }
}

/// Sends UDP super packets of many sizes, and returns the datagrams that the application gets.
fn datagrams(lab: &Lab) -> Vec<Vec<u8>> {
    let address = SocketAddr::from((lab.pod(2).v4, 7000));
    let receiver = socket(&lab.pod(2).netns, address);
    receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let sender = socket(&lab.pod(1).netns, (lab.pod(1).v4, 7000).into());
    let memory: Vec<u8> = (0..70_000u32).map(|n| (n * 31 % 251) as u8).collect();
    let mut received = Vec::new();
    for (index, stride) in (1..=50).map(|n| n * 28).enumerate() {
        // 20 datagrams, of which the last is shorter.
        let message = Message::train(index, 20 * stride - stride / 2, stride, address);
        assert_eq!(udp::send_many(&sender, &memory, &[message]).expect("sent"), 1);
        for _ in 0..20 {
            let mut buffer = vec![0; 2000];
            let length = receiver.recv(&mut buffer).expect("it arrives");
            buffer.truncate(length);
            received.push(buffer);
        }
    }
    received
}

/// Numbered datagrams of many flows, singly and as super packets, over several workers: each flow
/// keeps its order.
#[test]
fn packets_of_a_flow_keep_their_order() {
    // All threads run on one CPU, where they still interrupt each other. A veth has a queue for
    // each CPU, so a sender that moves to another CPU can reorder its own packets, without any
    // engine.
    cpu::pin(cpu::allowed().expect("asked")[0]).expect("pinned");
    for (engine, workers, port) in [
        ("simple", 1, "spread"),
        ("batch", 1, "spread"),
        ("batch", 2, "spread"),
        ("batch", 4, "spread"),
        ("uring", 1, "spread"),
        ("uring", 2, "spread"),
        ("uring", 4, "spread"),
        ("uring", 4, "fixed"),
    ] {
        let label = format!("order-{engine}-{workers}-{port}");
        let config = format!("[dataplane]\nengine = \"{engine}\"\nworkers = {workers}\n");
        let lab = lab_with(&config, &label, 2, Family::V4);
        let fixed = port == "fixed";
        for number in [1, 2].into_iter().filter(|_| fixed) {
            let daemon = lab.daemon(number);
            edit(&daemon.config_path(), "[overlay]\n", "[overlay]\nsource_port = \"fixed\"\n");
            daemon.terminate().expect("it ends");
            daemon.start().expect("started");
            daemon.wait_ready(Duration::from_secs(10)).expect("ready");
        }
        let (reordered, received, sent) = numbered_flows(&lab);
        assert_eq!(reordered, 0, "{label}");
        assert!(received * 10 > sent * 9, "{label}: only {received} of {sent} arrived");
        let bundles = Scrape::of(&lab.host(2).netns).get("hopsack_ingress_bundles_total");
        assert_eq!(bundles > 0, engine != "simple", "{label}: {bundles} bundles");
        let busy = |host: usize| busy_workers(&lab.host(host).netns);
        // With one port at each host there is one path, and so one worker at each end.
        if workers > 1 && !fixed {
            assert!(busy(1) > 1, "{label}: one worker sent all flows");
            assert!(busy(2) > 1, "{label}: one worker received all flows");
        }
    }
}

fn busy_workers(netns: &str) -> usize {
    let text = support::http(netns, "/metrics");
    let count = |line: &str| line.rsplit_once(' ').and_then(|(_, n)| n.parse::<u64>().ok()).unwrap_or(0);
    let reads = text.lines().filter(|line| {
        let is_reads =
            line.starts_with("hopsack_tun_reads_total{") || line.starts_with("hopsack_udp_receives_total{");
        is_reads && count(line) > 100
    });
    let workers: std::collections::BTreeSet<_> = reads.filter_map(|line| line.split('"').nth(1)).collect();
    workers.len()
}

/// Returns how many datagrams were reordered, received and sent.
fn numbered_flows(lab: &Lab) -> (u64, u64, u64) {
    const FLOWS: u16 = 16;
    const ROUNDS: u32 = 400;
    let (from, to) = (lab.pod(1), lab.pod(2));
    let arrived = Arc::new(AtomicU64::new(0));
    let receivers: Vec<_> = (0..FLOWS)
        .map(|flow| {
            let arrived = arrived.clone();
            let receiver = socket(&to.netns, (to.v4, 7000 + flow).into());
            receiver.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
            thread::spawn(move || {
                let (mut last, mut reordered, mut received) = (BTreeMap::new(), 0, 0);
                let mut buffer = [0; 2000];
                loop {
                    match receiver.recv_from(&mut buffer) {
                        Ok((_, sender)) => {
                            let number = u32::from_le_bytes(*buffer.first_chunk().expect("four bytes"));
                            let before = last.insert(sender, number);
                            reordered += u64::from(before.is_some_and(|before| before >= number));
                            received += 1;
                            arrived.fetch_add(1, Ordering::Relaxed);
                            // A TUN sends a flow to the queue that its answers come from, which
                            // must be the same queue.
                            if number % 8 == 0 {
                                receiver.send_to(&buffer[..4], sender).expect("answered");
                            }
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return (reordered, received),
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    let senders: Vec<UdpSocket> =
        (0..FLOWS).map(|flow| socket(&from.netns, (from.v4, 9000 + flow).into())).collect();
    let (mut sent, mut memory) = (0, vec![0u8; 20 * 500]);
    let mut numbers = [0u32; FLOWS as usize];
    for round in 0..ROUNDS {
        for ((flow, sender), number) in (0u16..).zip(&senders).zip(&mut numbers) {
            // A single datagram and a super packet of five in turn; small ones are bundled, long
            // ones are not.
            let count = if (round + u32::from(flow)) % 2 == 0 { 1 } else { 5 };
            let size = [64, 500, 200, 1200][(round / 2 % 4) as usize];
            for slot in memory.chunks_exact_mut(size).take(count) {
                slot[..4].copy_from_slice(&number.to_le_bytes());
                *number += 1;
            }
            let message = Message::train(0, count * size, size, (to.v4, 7000 + flow).into());
            udp::send_many(sender, &memory, &[message]).expect("sent");
            sent += count as u64;
        }
        // The test is about order, not about speed: at most one queue length of datagrams is on the
        // way.
        for _ in 0..50 {
            if arrived.load(Ordering::Relaxed) + 200 > sent {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
    let counts = receivers.into_iter().map(|thread| thread.join().expect("no panic"));
    let (reordered, received) = counts.fold((0, 0), |sum, (r, n)| (sum.0 + r, sum.1 + n));
    (reordered, received, sent)
}

/// Counts packets in each system call of a bulk transfer, at the sender and at the receiver.
/// `tests/syscalls.rs` does so for small packets. On the ring engine too, a single super packet
/// passes by plain calls.
#[test]
fn one_system_call_moves_many_packets() {
    const MIN_PACKETS: u64 = 8;
    for engine in ["batch", "uring"] {
        let lab = lab_on(engine, "calls", 2, Family::V4);
        let flow = Flow {
            from: lab.pod(1),
            to: lab.pod(2),
            family: Family::V4,
            amount: Amount::Bytes(300 << 20),
            verify: true,
        };
        tcp(flow).expect("every byte right");
        for (number, direction) in [(1, "egress"), (2, "ingress")] {
            let scrape = Scrape::of(&lab.host(number).netns);
            let packets = scrape.get(&format!("hopsack_{direction}_packets_total"));
            let calls = scrape.get("hopsack_system_calls_total");
            assert!(packets > (300 << 20) / 1472, "{engine}, {direction}: {packets} packets");
            assert!(
                packets > calls * MIN_PACKETS,
                "{engine}, {direction}: {packets} packets in {calls} calls"
            );
            let bad =
                scrape.get("hopsack_send_fallbacks_total") + scrape.get("hopsack_write_fallbacks_total");
            assert_eq!((bad, scrape.refused("ingress")), (0, 0), "{engine}");
        }
    }
}

/// Each engine with each other one, in both directions. On the wire the simple engine does what
/// flanneld does: each datagram is one packet, and all come from the cluster's port.
#[test]
fn different_engines_work_together() {
    for (one, other) in [("uring", "simple"), ("batch", "uring"), ("simple", "batch")] {
        let lab = lab_on(one, "mixed", 2, Family::V4);
        let daemon = lab.daemon(2);
        let engine = |name: &str| format!("engine = \"{name}\"");
        edit(&daemon.config_path(), &engine(one), &engine(other));
        daemon.terminate().expect("it ends");
        daemon.start().expect("started");
        daemon.wait_ready(Duration::from_secs(10)).expect("ready");
        for (from, to) in [(1, 2), (2, 1)] {
            let (amount, family) = (Amount::Bytes(30 << 20), Family::V4);
            let flow = Flow { from: lab.pod(from), to: lab.pod(to), family, amount, verify: true };
            tcp(flow).expect("every byte right");
        }
        for number in [1, 2] {
            let scrape = Scrape::of(&lab.host(number).netns);
            assert_eq!(scrape.refused("ingress"), 0, "{one} and {other}, host {number}");
        }
    }
}

/// An administrator's MTU of a route is told to senders. The offload, which is not the cause, stays
/// on.
#[test]
fn bulk_transfer_passes_a_narrow_path() {
    for engine in ["batch", "uring"] {
        let lab = lab_on(engine, "narrow", 2, Family::V4);
        let netns = &lab.host(1).netns;
        run(netns, &["ip", "route", "add", "192.0.2.2", "dev", "eth0", "mtu", "1400"]);
        support::eventually("the route's MTU is in force", || {
            lab.daemon(1).ask(r#"{"command":"peers"}"#).expect("the daemon answers")[0]["mtu"] == 1372
        });
        for family in [Family::V4, Family::V6] {
            let amount = Amount::Bytes(30 << 20);
            let flow = Flow { from: lab.pod(1), to: lab.pod(2), family, amount, verify: true };
            tcp(flow).expect("every byte right");
        }
        let scrape = Scrape::of(netns);
        let refused = scrape.dropped("egress", "too_big");
        assert!((1..2000).contains(&refused), "{engine}: {refused} packets were too big");
        assert_eq!(scrape.get("hopsack_send_fallbacks_total"), 0, "{engine}: a train was refused");
        let (packets, sends) =
            (scrape.get("hopsack_egress_packets_total"), scrape.get("hopsack_egress_sends_total"));
        assert!(packets > sends * 8, "{engine}: {packets} packets in {sends} messages");
    }
}

#[test]
fn bulk_transfer_passes_without_offloads() {
    for engine in ["batch", "uring"] {
        let config = format!("[dataplane]\nengine = \"{engine}\"\noffload = false\nworkers = 1\n");
        let lab = lab_with(&config, "plain", 2, Family::V4);
        let flow = Flow {
            from: lab.pod(1),
            to: lab.pod(2),
            family: Family::V6,
            amount: Amount::Bytes(20 << 20),
            verify: true,
        };
        tcp(flow).expect("every byte right");
        let status = lab.daemon(1).status().expect("it answers");
        assert_eq!(status["workers"], 1);
        let scrape = Scrape::of(&lab.host(1).netns);
        let (packets, sends) =
            (scrape.get("hopsack_egress_packets_total"), scrape.get("hopsack_egress_sends_total"));
        assert_eq!(packets, sends, "{engine}: each message is one packet");
    }
}

#[test]
fn device_of_another_engine_is_replaced() {
    let lab = lab_on("simple", "kind", 2, Family::V4);
    let daemon = lab.daemon(1);
    // The batch and the ring engine need the same kind of device.
    for (from, to, is_replaced) in
        [("simple", "batch", true), ("batch", "uring", false), ("uring", "simple", true)]
    {
        let before = device_index(&lab);
        daemon.kill9().expect("killed");
        let engine = |name: &str| format!("engine = \"{name}\"");
        edit(&daemon.config_path(), &engine(from), &engine(to));
        daemon.start().expect("started");
        daemon.wait_ready(Duration::from_secs(10)).expect("ready");
        assert_eq!(daemon.status().expect("it answers")["engine"], to);
        eventually("packets pass again", || packets_pass(&lab));
        assert_eq!(device_index(&lab) != before, is_replaced, "from {from} to {to}");
    }
}

/// The interface index of the first host's overlay device: a new device has a new one.
fn device_index(lab: &Lab) -> u64 {
    let links = run(&lab.host(1).netns, &["ip", "-j", "link", "show", "hopsack0"]);
    let links: serde_json::Value = serde_json::from_str(&links).expect("JSON");
    links[0]["ifindex"].as_u64().expect("an index")
}

/// A host without a daemon, to test the kernel itself.
fn bare(label: &str) -> Lab {
    Lab::create(Options { hosts: 1, ..Options::unique(label, HOPSACK) })
        .expect("these tests need root (or a user namespace), /dev/net/tun, ip and ping: run scripts/test")
}

fn tun(netns: &str) -> Queue {
    let queue = in_netns(netns, || Queue::open("t0")).expect("netns").expect("a queue");
    run(netns, &["ip", "addr", "add", "10.9.0.1/24", "dev", "t0"]);
    run(netns, &["ip", "link", "set", "t0", "up"]);
    queue
}

/// Kernel contract: the UDP offload can be turned on, and a super packet that is written arrives as
/// single datagrams.
#[test]
fn tun_takes_udp_super_packets() {
    let lab = bare("uso");
    let netns = &lab.host(1).netns;
    let queue = tun(netns);
    assert_eq!(queue.set_offload(Offload::TcpAndUdp).expect("Linux 6.2"), Offload::TcpAndUdp);
    let receiver = socket(netns, "10.9.0.1:7000".parse().expect("an address"));
    receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");

    let mut packet = Vec::new();
    let builder = etherparse::PacketBuilder::ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64).udp(9, 7000);
    builder.write(&mut packet, &[7; 250]).expect("fits");
    // The partial checksum is the sum of the pseudo-header.
    let sum = [10 * 256 + 9, 2, 10 * 256 + 9, 1, 17, 258u16].iter().map(|word| u32::from(*word)).sum::<u32>();
    packet[26..28].copy_from_slice(&u16::try_from(sum).expect("no carry").to_be_bytes());
    let vnet = |gso_size, flags| VnetHeader {
        flags,
        gso_type: VnetHeader::GSO_UDP_L4,
        hdr_len: 28,
        gso_size,
        csum_start: 20,
        csum_offset: 6,
    };
    let frame = |vnet: VnetHeader| [&vnet.to_bytes()[..], &packet].concat();
    queue.write(&frame(vnet(100, VnetHeader::NEEDS_CSUM))).expect("written");
    let lengths = [(); 3].map(|()| receiver.recv(&mut [0; 2000]).expect("it arrives"));
    assert_eq!(lengths, [100, 100, 50]);
    let refused = queue.write(&frame(vnet(100, 0))).expect_err("no partial checksum");
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    let refused = queue.write(&frame(vnet(0, VnetHeader::NEEDS_CSUM))).expect_err("no size");
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
}

/// Kernel contract: reads of a TUN that may not wait return every frame, whole and in order. The
/// device is free after the ring was dropped.
#[test]
fn ring_reads_tun_in_order() {
    let lab = bare("ring");
    let netns = lab.host(1).netns.clone();
    let queue = tun(&netns);
    let sender = socket(&netns, "10.9.0.1:7000".parse().expect("an address"));
    let other = socket(&netns, "10.9.0.1:7001".parse().expect("an address"));
    let mut ring = Ring::new([queue.as_fd(), other.as_fd(), other.as_fd()]).expect("io_uring");
    let mut buffers = Buffers::new(2000);
    for number in 0..100u32 {
        sender.send_to(&number.to_le_bytes(), "10.9.0.2:7").expect("sent");
    }
    let (mut seen, mut turns) = (0u32, 0);
    while seen < 100 {
        ring.receive(&mut buffers, [MAX_FRAMES, 1]).expect("a turn");
        turns += 1;
        for frame in buffers.frames_read() {
            let packet = &frame.expect("read")[VnetHeader::LEN..];
            if packet[0] == 0x45 && packet[9] == 17 {
                assert_eq!(packet[28..32], seen.to_le_bytes(), "in order");
                seen += 1;
            }
        }
        assert_eq!(buffers.messages_received().count(), 0);
    }
    assert!(turns < 10, "{turns} system calls for 100 frames that were there already");
    drop((ring, queue));
    eventually("the device is gone", || {
        !support::attempt(&netns, &["ip", "link", "show", "t0"]).contains("mtu")
    });
}

/// A send queue is full, because its datagrams wait for a neighbour that never answers. The ring
/// reports that at once, for each message that the kernel did not take.
#[test]
fn full_send_queue_is_reported() {
    let lab = bare("full");
    let netns = lab.host(1).netns.clone();
    let queue = tun(&netns);
    let sender = socket(&netns, "0.0.0.0:7000".parse().expect("an address"));
    socket2::SockRef::from(&sender).set_send_buffer_size(1).expect("the least there is");
    let mut ring = Ring::new([queue.as_fd(), sender.as_fd(), sender.as_fd()]).expect("io_uring");
    let (bytes, nobody) = ([7; 1000], "192.0.2.77:7".parse().expect("an address"));
    let mut messages = [Message::train(0, 1000, 1000, nobody); 20];
    ring.submit(Batch { memory: &bytes, messages: &mut messages }, Batch::default()).expect("submitted");
    let errors = messages.map(|message| message.errno);
    let taken = errors.iter().take_while(|errno| **errno == 0).count();
    assert!((1..20).contains(&taken), "{errors:?}");
    assert!(errors[taken..].iter().all(|errno| *errno == libc::EAGAIN), "{errors:?}");
}
