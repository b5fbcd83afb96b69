//! Packets through real daemons between namespaces: what pods see, on every engine and underlay.
//!
//! Each test has a lab of its own and runs at the same time as the others. No test asserts a speed.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum as _;
use hopsack::lab::bench::Underlay;
use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::lab::{Lab, Pod};
use hopsack::packet::Family;
use hopsack::sys::netns::in_netns;
use sha2::{Digest, Sha256};
use support::{Scrape, attempt, eventually, lab_on, run};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

on_every_engine! {
    pods_reach_each_other_over_ipv4
    pods_reach_each_other_over_ipv6
    gigabyte_each_way_arrives_unchanged
    smaller_path_mtu_is_reported_to_the_pod
}

mod fast {
    use super::support::FAST;

    #[test]
    fn pods_reach_each_other_over_ipv4() {
        super::pods_reach_each_other_over_ipv4(FAST);
    }

    #[test]
    fn gigabyte_each_way_arrives_unchanged() {
        super::gigabyte_each_way_arrives_unchanged(FAST);
    }

    #[test]
    fn smaller_path_mtu_is_reported_to_the_pod() {
        super::smaller_path_mtu_is_reported_to_the_pod(FAST);
    }
}

fn pods_reach_each_other_over_ipv4(engine: &str) {
    pods_reach_each_other(&lab_on(engine, "v4", 3, Family::V4), 1472);
}

fn pods_reach_each_other_over_ipv6(engine: &str) {
    pods_reach_each_other(&lab_on(engine, "v6", 3, Family::V6), 1452);
}

fn pods_reach_each_other(lab: &Lab, mtu: u16) {
    assert_eq!(lab.overlay_mtu(), mtu);
    every_pod_reaches_every_pod(lab);
    exactly_the_mtu_passes(lab, mtu);
    router_answers_senders_that_ignore_the_mtu(lab, mtu);
    large_datagrams_arrive_whole(lab);
    traceroute_shows_each_host_once(lab);
    address_without_lease_is_unreachable(lab);
}

fn every_pod_reaches_every_pod(lab: &Lab) {
    let pods: Vec<&Pod> = (1..=lab.hosts().len()).map(|number| lab.pod(number)).collect();
    for from in &pods {
        for to in &pods {
            for family in FAMILIES {
                let how =
                    Ping { count: 5, interval: Duration::from_millis(10), ..Ping::to(to.address(family)) };
                let pinged = ping(&from.netns, how).expect("ping runs");
                assert!(pinged.is_whole(), "{} -> {}: {}", from.name, to.name, pinged.output);
            }
        }
    }
}

/// Bytes of IP and ICMP header in a ping.
fn ping_headers(family: Family) -> u16 {
    match family {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

fn exactly_the_mtu_passes(lab: &Lab, mtu: u16) {
    for family in FAMILIES {
        let payload = mtu - ping_headers(family);
        let to = lab.pod(2).address(family);
        let how = Ping { count: 2, payload, dont_fragment: true, ..Ping::to(to) };
        let pinged = ping(&lab.pod(1).netns, how).expect("ping runs");
        assert!(pinged.is_whole(), "{}", pinged.output);
        let how = Ping { payload: payload + 1, ..how };
        let pinged = ping(&lab.pod(1).netns, how).expect("ping runs");
        assert_eq!(pinged.received, 0, "{}", pinged.output);
        assert!(pinged.output.contains("message too long"), "{}", pinged.output);
    }
}

/// The link of the pod takes more than the overlay: the answer must come from the router on its
/// host.
fn router_answers_senders_that_ignore_the_mtu(lab: &Lab, mtu: u16) {
    let (host, pod) = (lab.host(3), lab.pod(3));
    run(&host.netns, &["ip", "link", "set", "pod", "mtu", "1500"]);
    run(&host.netns, &["ip", "link", "set", "cni0", "mtu", "1500"]);
    run(&pod.netns, &["ip", "link", "set", "eth0", "mtu", "1500"]);
    for (family, says) in [(Family::V4, "Frag needed and DF set"), (Family::V6, "Packet too big")] {
        let payload = mtu - ping_headers(family) + 1;
        let how = Ping { count: 1, payload, dont_fragment: true, ..Ping::to(lab.pod(1).address(family)) };
        let pinged = ping(&pod.netns, how).expect("ping runs");
        assert!(
            pinged.output.contains(says) && pinged.output.contains(&mtu.to_string()),
            "{}",
            pinged.output
        );
    }
}

fn large_datagrams_arrive_whole(lab: &Lab) {
    for family in FAMILIES {
        let (from, to) = (lab.pod(1), lab.pod(2));
        let address = SocketAddr::new(to.address(family), 7000);
        let receiver = in_netns(&to.netns, move || UdpSocket::bind(address)).expect("netns").expect("bound");
        let any = SocketAddr::new(from.address(family), 0);
        let sender = in_netns(&from.netns, move || UdpSocket::bind(any)).expect("netns").expect("bound");
        let payload: Vec<u8> = (0..8000u32).map(|n| (n * 7 % 251) as u8).collect();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        sender.send_to(&payload, address).expect("sent");
        let mut buffer = vec![0; 65536];
        let length = receiver.recv(&mut buffer).expect("the datagram arrives");
        assert_eq!(&buffer[..length], &payload[..], "{family:?}");
    }
}

fn traceroute_shows_each_host_once(lab: &Lab) {
    for (family, option) in [(Family::V4, "-4"), (Family::V6, "-6")] {
        let to = lab.pod(2).address(family).to_string();
        // One probe at a time: of many at once the target's kernel answers the first few only
        // (icmp_ratelimit).
        let argv = ["traceroute", option, "-n", "-N", "1", "-q", "1", "-w", "2", &to];
        let output = run(&lab.pod(1).netns, &argv);
        let hops: Vec<&str> =
            output.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        let gateway = gateway(lab.pod(1), family).to_string();
        let device = base(lab.pod(2), family).to_string();
        assert_eq!(hops, [gateway.as_str(), &device, &to], "{output}");
    }
}

fn address_without_lease_is_unreachable(lab: &Lab) {
    let pod = &lab.pod(1).netns;
    for (option, unowned, says) in [
        ("-4", "10.244.250.9", "Destination Net Unreachable"),
        ("-6", "fd00:244:0:250::9", "Destination unreachable: No route"),
    ] {
        let output = attempt(pod, &["ping", option, "-n", "-c", "1", "-W", "2", unowned]);
        assert!(output.contains(says), "{output}");
    }
    // 500 pings within about a second are all dropped; the answers are limited in rate.
    let before = Scrape::of(&lab.host(1).netns);
    let output = attempt(pod, &["ping", "-n", "-f", "-c", "500", "-W", "1", "10.244.250.9"]);
    let after = Scrape::of(&lab.host(1).netns);
    let grown = |name: &str| after.get(name) - before.get(name);
    assert_eq!(after.dropped("egress", "no_route") - before.dropped("egress", "no_route"), 500, "{output}");
    let (sent, suppressed) =
        (grown("hopsack_icmp_sent_total{type=\"unreachable\"}"), grown("hopsack_icmp_suppressed_total"));
    assert_eq!(sent + suppressed, 500);
    assert!((1..=250).contains(&sent), "{sent} of 500 were answered");
}

/// The first address of the pod's subnet, which the bridge of its host has.
fn gateway(pod: &Pod, family: Family) -> IpAddr {
    match base(pod, family) {
        IpAddr::V4(base) => (base.to_bits() + 1).to_be_bytes().into(),
        IpAddr::V6(base) => (base.to_bits() + 1).to_be_bytes().into(),
    }
}

/// The base of the pod's subnet (/24 or /64), which the overlay device of its host has.
fn base(pod: &Pod, family: Family) -> IpAddr {
    match pod.address(family) {
        IpAddr::V4(v4) => (v4.to_bits() & !0xff).to_be_bytes().into(),
        IpAddr::V6(v6) => (v6.to_bits() & !u128::from(u64::MAX)).to_be_bytes().into(),
    }
}

/// HOPSACK_SOAK_GIB and HOPSACK_SOAK_UNDERLAYS (as in `hopsack lab bench`) make the test longer.
fn gigabyte_each_way_arrives_unchanged(engine: &str) {
    let gib = std::env::var("HOPSACK_SOAK_GIB").map_or(1, |gib| gib.parse().expect("a number of GiB"));
    let underlays = std::env::var("HOPSACK_SOAK_UNDERLAYS").unwrap_or_else(|_| "pass".into());
    for underlay in underlays.split(',') {
        let lab = lab_on(engine, "gib", 2, Family::V4);
        let cables = Underlay::from_str(underlay, false).expect("pass, noseg, noseg+gro or noseg+nocsum");
        cables.set(&lab).expect("ethtool: run scripts/test");
        let begin = Instant::now();
        let hashes = each_way_at_once(&lab, gib << 30);
        println!(
            "{engine}, {underlay}: {gib} GiB each way in {:.0?}, SHA-256 {}",
            begin.elapsed(),
            hashes.join(" ")
        );
    }
}

/// Moves so many bytes each way, and returns the two hashes, which are equal at both ends.
fn each_way_at_once(lab: &Lab, bytes: usize) -> [String; 2] {
    let address = SocketAddr::new(lab.pod(2).address(Family::V4), 7001);
    let listener =
        in_netns(&lab.pod(2).netns, move || TcpListener::bind(address)).expect("netns").expect("bound");
    let accept = thread::spawn(move || listener.accept().expect("a connection").0);
    let client =
        in_netns(&lab.pod(1).netns, move || TcpStream::connect(address)).expect("netns").expect("connected");
    let server = accept.join().expect("no panic");

    let send = |mut stream: TcpStream, seed: u64| {
        thread::spawn(move || {
            let (mut hash, mut state, mut block) = (Sha256::new(), seed, vec![0u8; 1 << 16]);
            for _ in 0..bytes / block.len() {
                for word in block.chunks_exact_mut(8) {
                    // xorshift64 is cheap, and no two blocks are equal.
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    word.copy_from_slice(&state.to_le_bytes());
                }
                hash.update(&block);
                stream.write_all(&block).expect("sent");
            }
            hash.finalize()
        })
    };
    let receive = |mut stream: TcpStream| {
        thread::spawn(move || {
            let (mut hash, mut left, mut block) = (Sha256::new(), bytes, vec![0u8; 1 << 16]);
            while left > 0 {
                let length = stream.read(&mut block).expect("received");
                assert!(length > 0, "the stream ended {left} bytes early");
                hash.update(&block[..length]);
                left -= length;
            }
            hash.finalize()
        })
    };
    let clone = |stream: &TcpStream| stream.try_clone().expect("a second descriptor");
    let there = (send(clone(&client), 1), receive(clone(&server)));
    let back = (send(server, 2), receive(client));
    let hashes = [there, back].map(|(sent, received)| {
        let (sent, received) = (sent.join().expect("no panic"), received.join().expect("no panic"));
        assert_eq!(sent, received);
        sent.iter().map(|byte| format!("{byte:02x}")).collect()
    });
    let scrape = Scrape::of(&lab.host(1).netns);
    let by_engine = scrape.get("hopsack_ingress_bytes_total");
    let by_kernel = scrape.get("hopsack_fast_bytes_total{direction=\"ingress\"}");
    assert!(
        by_engine.max(by_kernel) > bytes as u64,
        "{by_engine} bytes by the engine, {by_kernel} by the kernel"
    );
    hashes
}

/// Many streams keep queues from ever being empty, and a ping would wait there. The streams that
/// fill them get drops, or marks if they use ECN.
fn many_streams_get_congestion_signals(engine: &str) {
    let lab = lab_on(engine, "standing", 2, Family::V4);
    let signals = || {
        let [one, two] = [1, 2].map(|number| Scrape::of(&lab.host(number).netns));
        let drops = one.dropped("egress", "standing_queue") + two.dropped("ingress", "standing_queue");
        [drops, one.get("hopsack_queue_marks_total") + two.get("hopsack_queue_marks_total")]
    };
    for uses_ecn in [false, true] {
        for number in [1, 2] {
            let sysctl = format!("net.ipv4.tcp_ecn={}", u8::from(uses_ecn));
            run(&lab.pod(number).netns, &["sysctl", "-qw", &sysctl]);
        }
        let before = signals();
        let amount = Amount::Time(Duration::from_secs(600));
        let flow = Flow { from: lab.pod(1), to: lab.pod(2), family: Family::V4, amount, verify: true };
        let streams: Vec<_> = (0..16).map(|_| Transfer::start(flow).expect("connected")).collect();
        eventually("a stream gets a signal", || {
            signals()[usize::from(uses_ecn)] > before[usize::from(uses_ecn)]
        });
        streams.iter().for_each(Transfer::finish);
        for stream in streams {
            stream.wait().expect("every byte right");
        }
        // With ECN some are dropped as well: a retransmission must not be marked (RFC 3168 §6.1.5).
        assert!(uses_ecn || signals()[1] == 0);
    }
}

mod many_streams {
    #[test]
    fn batch() {
        super::many_streams_get_congestion_signals("batch");
    }

    #[test]
    fn uring() {
        super::many_streams_get_congestion_signals("uring");
    }
}

fn smaller_path_mtu_is_reported_to_the_pod(engine: &str) {
    for (underlay, route, outer) in [(Family::V4, "192.0.2.2", 28), (Family::V6, "2001:db8:64::2", 48)] {
        let lab = lab_on(engine, "pmtu", 2, underlay);
        run(&lab.host(1).netns, &["ip", "route", "add", route, "dev", "eth0", "mtu", "1400"]);
        for (family, says) in [(Family::V4, "Frag needed"), (Family::V6, "Packet too big")] {
            let inner = 1400 - outer;
            let payload = inner - ping_headers(family);
            let how = Ping { count: 1, dont_fragment: true, ..Ping::to(lab.pod(2).address(family)) };
            // The daemon looks at the route once a second.
            eventually("the pod is told", || {
                let pinged = ping(&lab.pod(1).netns, Ping { payload: payload + 1, ..how });
                let output = pinged.expect("ping runs").output;
                output.contains(says) && output.contains(&inner.to_string())
            });
            let pinged = ping(&lab.pod(1).netns, Ping { payload, ..how }).expect("ping runs");
            assert!(pinged.is_whole(), "over {underlay:?}: {}", pinged.output);
        }
        let scrape = Scrape::of(&lab.host(1).netns);
        assert!(scrape.dropped("egress", "too_big") >= 2);
    }
}
