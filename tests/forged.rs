//! Forged packets: what a pod and a stranger on the underlay can make hosts send, accept and log.

mod support;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::{Lab, Options};
use hopsack::packet::Family;
use hopsack::sys::netns::in_netns;
use support::encrypted::{self, ends_whole, flows, of_peer, reaches, started, stream, wait_keys};
use support::forge::{Forger, udp};
use support::{HOPSACK, Scrape, edit, eventually, run};

/// A lab of three hosts in clear. The third has the simple engine, the others that of the kernel's
/// choice.
fn lab(label: &str) -> Lab {
    let options = Options { hosts: 3, underlay: Family::V4, ..Options::unique(label, HOPSACK) };
    let lab =
        Lab::create(options).expect("these tests need root, /dev/net/tun, ip and ping: run scripts/test");
    edit(&lab.daemon(3).config_path(), "[overlay]", "[dataplane]\nengine = \"simple\"\n\n[overlay]");
    lab.start().expect("all daemons are ready");
    lab
}

fn dropped(lab: &Lab, host: usize, direction: &str, reason: &str) -> u64 {
    Scrape::of(&lab.host(host).netns).dropped(direction, reason)
}

fn is_whole(netns: &str, ping_to: Ping) -> bool {
    ping(netns, ping_to).expect("ping runs").is_whole()
}

/// A pod forges sources: of the receiver's subnet, of a third host's, and others. Its own host
/// drops the packets, and the receiver has nobody to accuse.
fn pod_sends_foreign_sources(lab: &Lab, host: usize) {
    let (forger, to) = (Forger::of(&lab.pod(host).netns), lab.pod(2));
    let third = lab.pod(4 - host);
    let before = dropped(lab, host, "egress", "foreign_source");
    let v4 = [to.v4, Ipv4Addr::new(10, 244, 2, 99), third.v4, Ipv4Addr::new(203, 0, 113, 9)].map(IpAddr::V4);
    let v6 = [to.v6, third.v6].map(IpAddr::V6);
    for from in v4 {
        (0..10).for_each(|_| forger.send(&udp((from, 7), (to.v4.into(), 7), b"forged")));
    }
    for from in v6 {
        (0..10).for_each(|_| forger.send(&udp((from, 7), (to.v6.into(), 7), b"forged")));
    }
    eventually("each is counted", || dropped(lab, host, "egress", "foreign_source") - before == 60);
}

#[test]
fn foreign_source_does_not_leave_its_host() {
    let lab = lab("foreign");
    for host in [1, 3] {
        pod_sends_foreign_sources(&lab, host);
    }
    for reason in ["own_source", "spoofed_source"] {
        assert_eq!(dropped(&lab, 2, "ingress", reason), 0, "{reason}");
    }
    let status = lab.daemon(2).status().expect("it answers");
    assert_eq!((&status["alarm"], &status["ready"]), (&serde_json::Value::Null, &true.into()), "{status}");

    // A node answers a pod with its node address, and speaks to pods with it.
    let node = lab.host(2).public;
    assert!(is_whole(&lab.pod(1).netns, Ping::to(node)), "the answer comes by the overlay");
    let from_node = ["ping", "-c", "2", "-W", "2", "-I", "192.0.2.1", "10.244.2.2"];
    run(&lab.host(1).netns, &from_node);
    run(&lab.host(3).netns, &["ping", "-c", "2", "-W", "2", "-I", "192.0.2.3", "10.244.2.2"]);
    assert!(is_whole(&lab.host(1).netns, Ping::to(lab.pod(2).v4)), "with the address of the device");

    // Another address of the node passes only if it is masqueraded.
    let netns = &lab.host(1).netns;
    run(netns, &["ip", "addr", "add", "198.51.100.7/32", "dev", "lo"]);
    let other = ["ping", "-c", "2", "-i", "0.1", "-W", "2", "-I", "198.51.100.7", "10.244.2.2"];
    let before = dropped(&lab, 1, "egress", "foreign_source");
    support::attempt(netns, &other);
    assert_eq!(dropped(&lab, 1, "egress", "foreign_source") - before, 2);
    for rule in [
        "add table ip nat",
        "add chain ip nat post { type nat hook postrouting priority srcnat; }",
        "add rule ip nat post oifname hopsack0 ip saddr 198.51.100.0/24 masquerade",
    ] {
        run(netns, &["nft", rule]);
    }
    run(netns, &other);
    assert_eq!(dropped(&lab, 2, "ingress", "spoofed_source"), 0);
}

/// A pod floods its host with packets that are too long, in its own name and in those of its
/// neighbours, and with packets that have no route. Its host still tells the MTU to other flows.
#[test]
fn forged_floods_do_not_silence_icmp_errors() {
    let lab = support::lab("silence", 2, Family::V4);
    let netns = &lab.pod(1).netns;
    // The path is narrower than the overlay device, so the daemon answers, and not the kernel.
    run(&lab.host(1).netns, &["ip", "route", "add", "192.0.2.2", "dev", "eth0", "mtu", "1300"]);
    eventually("the path is known", || of_peer(&lab, 1, 2, "mtu").as_u64().is_some_and(|mtu| mtu < 1300));
    // The flood goes on although the errors tell its own host the MTU too.
    run(netns, &["ip", "route", "add", "10.244.2.64/26", "via", "10.244.1.1", "mtu", "lock", "1472"]);
    let (ended, start) = (AtomicBool::new(false), Instant::now());
    let suppressed = || Scrape::of(&lab.host(1).netns).get("hopsack_icmp_suppressed_total");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let forger = Forger::of(netns);
            while !ended.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(30) {
                // Each worker has a limit of its own: so many flows come to all of them.
                for flow in 0..100 {
                    let from = (IpAddr::from([10, 244, 1, [2, 2, 3, 77][usize::from(flow % 4)]]), flow);
                    forger.send(&udp(from, (IpAddr::from([10, 244, 2, 99]), 7), &[0; 1372]));
                    forger.send(&udp(from, (IpAddr::from([10, 244, 99, 9]), 7), &[0; 10]));
                    // Faster, the queue of the device would be full.
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        });
        eventually("errors are suppressed", || suppressed() > 1000);
        let sent = Scrape::of(&lab.host(1).netns).get("hopsack_icmp_sent_total{type=\"too_big\"}");
        assert!(sent > 10, "{sent}: the daemon answers");
        // Each echo request is a flow of its own, since its checksum is in the place of ports.
        let to = lab.pod(2).v4.to_string();
        let longer = ["ping", "-M", "do", "-s", "1372", "-c", "8", "-i", "0.2", "-W", "1", &to];
        let output = support::attempt(netns, &longer);
        ended.store(true, Ordering::Relaxed);
        assert!(output.to_lowercase().contains("mtu"), "{output}");
    });
}

/// Datagrams that no host sends: every first nibble, with random bytes of many lengths, headers
/// that lie, and valid packets that are cut or damaged. None of them is a whole packet.
fn nonsense() -> Vec<Vec<u8>> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.to_be_bytes()[0]
    };
    let mut all = vec![Vec::new()];
    for nibble in 0..16_u8 {
        for length in [1, 2, 3, 4, 5, 8, 12, 16, 19, 20, 27, 28, 29, 40, 41, 48, 100, 576, 1280, 1472] {
            for _ in 0..3 {
                let mut bytes: Vec<u8> = (0..length).map(|_| next()).collect();
                bytes[0] = nibble << 4 | bytes[0] & 15;
                // The length field of an IPv4 packet must not happen to be right.
                bytes.iter_mut().skip(2).take(1).for_each(|byte| *byte |= 0x80);
                all.push(bytes);
            }
        }
    }
    let whole = udp((IpAddr::from([10, 244, 2, 2]), 1), (IpAddr::from([10, 244, 1, 2]), 9), &[7; 100]);
    all.extend((1..whole.len()).step_by(3).map(|length| whole[..length].to_vec()));
    // Bundles with every wrong length of their entry, and of themselves.
    for (entry, total) in
        [(0, 134), (1, 134), (127, 134), (129, 134), (0x7fff, 134), (0xffff, 134), (128, 135)]
    {
        let (entry, total) = (u16::to_be_bytes(entry), u16::to_be_bytes(total));
        all.push([&[0x31, 0], &total[..], &entry, &whole].concat());
    }
    // Sealed, of every epoch, with counters at the limits.
    for epoch in 0..=255 {
        for counter in [0, 1, u64::MAX] {
            all.push([&[0x10, epoch, 0, 0], &counter.to_be_bytes()[..], &[7; 60]].concat());
        }
    }
    all
}

/// TCP runs from a host that seals, one that uses QUIC and one in clear to the first host. The
/// attacker sends nonsense to its ports, in everybody's name.
#[test]
fn nonsense_changes_nothing() {
    let lab = encrypted::lab("nonsense", 4, Family::V4, "[security]\nmode = \"sealed\"\n");
    edit(&lab.daemon(3).config_path(), "\"sealed\"", "\"quic\"");
    edit(&lab.daemon(4).config_path(), "\"sealed\"", "\"none\"");
    let lab = started(lab);
    eventually("all reach the first", || (2..=4).all(|host| reaches(&lab, host, 1)));
    wait_keys(&lab, 2, 1);
    let transports = [2, 3, 4].map(|peer| of_peer(&lab, 1, peer, "transport"));
    assert_eq!(transports, ["sealed", "quic", "udp"]);

    let streams = [2, 3, 4].map(|host| stream(&lab, host, 1));
    let (pid, lines) = (lab.daemon(1).pid(), lab.daemon(1).log().lines().count());
    let handshakes = encrypted::handshakes(&lab, 1);
    let forger = Forger::of(&lab.underlay_netns());
    let to = lab.host(1).public;
    let names = [2, 3, 4].map(|host| lab.host(host).public).into_iter();
    for from in names.chain([IpAddr::from([192, 0, 2, 99])]) {
        for datagram in nonsense() {
            forger.send_datagram(from, to, &datagram);
            forger.send(&udp((from, 8286), (to, 8286), &datagram));
            // Without the pause, a full queue would lose packets of the test itself.
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    // The longest datagrams, which the kernel fragments, from a stranger and from a peer in clear.
    for netns in [lab.underlay_netns(), lab.host(4).netns.clone()] {
        let socket = in_netns(&netns, || UdpSocket::bind("0.0.0.0:0")).and_then(|socket| socket);
        let socket = socket.expect("a socket");
        for nibble in 0..16 {
            for port in [8285, 8286] {
                let bytes = vec![nibble << 4 | 5; 65_507];
                // A stranger has no address in this network, and then no route.
                let _ = socket.send_to(&bytes, (to, port));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    for stream in streams {
        flows(&stream);
        ends_whole(stream);
    }
    assert_eq!(lab.daemon(1).pid(), pid, "the daemon runs on");
    let status = lab.daemon(1).status().expect("it answers");
    assert_eq!((&status["ready"], &status["alarm"]), (&true.into(), &serde_json::Value::Null), "{status}");
    assert_eq!(encrypted::handshakes(&lab, 1), handshakes, "no connection broke");
    let log = lab.daemon(1).log();
    assert!(log.lines().count() <= lines + 3, "{log}");
    let scrape = Scrape::of(&lab.host(1).netns);
    for reason in ["malformed", "unknown_type", "unknown_peer", "no_key", "cleartext"] {
        assert!(scrape.dropped("ingress", reason) > 100, "{reason} was hardly tried");
    }
}
