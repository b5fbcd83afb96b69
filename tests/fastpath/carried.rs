//! What two hosts carry that have the program and no daemon.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hopsack::fastpath::{FastPath, Interfaces, Reason, Role};
use hopsack::lab::ping::{Ping, Pinger, ping};
use hopsack::lab::traffic::{Amount, Flow, tcp};
use hopsack::packet::Family;
use hopsack::sys::batch::Message;
use hopsack::sys::netns::in_netns;
use hopsack::sys::udp::send_many;

use crate::pair::{Pair, Side, Underlay};
use crate::support::{eventually, json, run, text};

/// Pings and TCP between the pods, both ways and in both families. Each byte is compared.
fn carries_everything(pair: &Pair) {
    let pods = [pair.lab.pod(1), pair.lab.pod(2)];
    for (from, to) in [(pods[0], pods[1]), (pods[1], pods[0])] {
        for family in [Family::V4, Family::V6] {
            let pinged = ping(&from.netns, Ping::to(to.address(family))).expect("ping runs");
            assert!(pinged.is_whole(), "{}", pinged.output);
            let amount = Amount::Bytes(32 << 20);
            let moved = tcp(Flow { from, to, family, amount, verify: true }).expect("all bytes arrive");
            assert_eq!(moved.bytes, 32 << 20);
        }
    }
}

#[test]
fn program_alone_carries_ping_and_tcp() {
    let pair = Pair::new("fast", Underlay::Whole);
    carries_everything(&pair);
    let [one, other] = pair.counters();
    for (sender, receiver) in [(one, other), (other, one)] {
        assert!(sender.egress.super_packets > 0, "TCP was sent in super packets");
        assert_eq!(sender.egress.packets, receiver.ingress.packets, "each packet arrived");
        assert_eq!(sender.egress.bytes, receiver.ingress.bytes);
        assert!(sender.egress.bytes > 2 * (32 << 20));
        assert_eq!(receiver.ingress.unmarkable, 0);
    }
    for (side, peer) in [(0, 2), (1, 1)] {
        let host = pair.lab.host(peer);
        let used =
            [host.subnet_v4.into(), host.subnet_v6.into()].map(|prefix| pair.sides[side].is_used(prefix));
        assert_eq!(used, [true, true], "the routes that were used are marked");
        assert!(!pair.sides[side].is_used("10.99.0.0/16".parse().expect("a prefix")));
    }
    for side in &pair.sides {
        assert!(side.left_to_daemon().iter().all(|frame| !is_of_pods(frame)), "the daemon was not needed");
    }
}

#[test]
fn segments_are_merged_by_the_veth_pair() {
    let pair = Pair::new("fast-gro", Underlay::Segments);
    carries_everything(&pair);
    let [one, other] = pair.counters();
    for (side, number) in [(one, 1), (other, 2)] {
        assert!(side.egress.super_packets > 0, "TCP was sent in super packets");
        assert_eq!(side.ingress.super_packets, 0, "and arrived in segments");
        let segments = side.ingress.segments;
        assert!(segments.long > 0 && segments.super_packets > 0, "{segments:?}");
        assert!(segments.merged < segments.to_pair / 2, "{segments:?}");
        assert!(segments.from_pair <= segments.to_pair, "{segments:?}");
        // The device of a pod counts a super packet once.
        let argv = ["ip", "-j", "-s", "link", "show", "eth0"];
        let received = json(&run(&pair.lab.pod(number).netns, &argv))[0]["stats64"]["rx"]["packets"].as_u64();
        let received = received.expect("a number");
        assert!(received < side.ingress.packets / 2, "{received} of {}", side.ingress.packets);
    }
}

/// Whether a frame of the overlay device is a packet between pods: not a multicast of the host.
fn is_of_pods(frame: &[u8]) -> bool {
    let packet = &frame[10..];
    match packet[0] >> 4 {
        4 => packet[12] == 10 && packet[16] == 10,
        _ => packet[8] == 0xfd && packet[24] == 0xfd,
    }
}

#[test]
fn next_process_takes_over_without_a_lost_packet() {
    let mut pair = Pair::new("fast-adopt", Underlay::Whole);
    let (from, to) = (pair.lab.pod(1).netns.clone(), pair.lab.pod(2).v4);
    let interval = Duration::from_millis(2);
    let pinger = Pinger::start(&from, Ping { count: 100_000, interval, ..Ping::to(to) }).expect("ping runs");
    eventually("the ping is under way", || pair.sides[0].counters().egress.packets > 10);
    let mut before = pair.sides[0].counters().egress.packets;
    for round in 0..10 {
        for side in &mut pair.sides {
            side.let_go();
            // Without a process, the program goes on.
            std::thread::sleep(Duration::from_millis(50));
            if round >= 5 {
                // The maps of another version: all of them are made anew.
                fs::remove_file(side.directory.join("slow_flows")).expect("a pin");
            }
            side.start();
            assert_eq!(side.fast().is_adopted(), round < 5);
        }
        let after = pair.sides[0].counters().egress.packets;
        assert!(round >= 5 || after > before, "counters go on, and packets were sent meanwhile");
        before = after;
    }
    let pinged = pinger.stop().expect("ping ends");
    assert!(pinged.is_whole() && pinged.sent > 300, "{}", pinged.output);
    for side in &mut pair.sides {
        let netns = side.netns.clone();
        let hooks = in_netns(&netns, || side.fast().hooks()).expect("netns").expect("hooks");
        let roles: Vec<Role> = hooks.iter().map(|hook| hook.role).collect();
        assert_eq!(roles, [Role::Underlay, Role::Overlay]);
        assert!(hooks.iter().all(|hook| hook.is_attached && hook.others.is_empty()), "{hooks:?}");
    }
}

/// Directory of the pins, for [`two_capabilities_suffice`] in a process with only these.
const PINS: &str = "HOPSACK_TEST_PINS";

#[test]
fn two_capabilities_suffice() {
    if let Some(directory) = std::env::var_os(PINS) {
        let mut fast = FastPath::open(Path::new(&directory)).expect("adopted");
        assert!(fast.is_adopted());
        fast.renew(Duration::from_secs(600)).expect("renewed");
        fast.apply(&fast.routes().clone()).expect("applied");
        let (overlay, underlays) = ("hopsack0".to_owned(), vec!["eth0".to_owned()]);
        fast.attach(&Interfaces { overlay, underlays, gro: None }).expect("attached");
        assert!(fast.hooks().expect("hooks").iter().all(|hook| hook.is_attached));
        println!("packets={}", fast.counters().expect("counters").egress.packets);
        return;
    }
    let mut pair = Pair::new("fast-caps", Underlay::Whole);
    let (from, to) = (pair.lab.pod(1).netns.clone(), pair.lab.pod(2).v4);
    assert!(ping(&from, Ping::to(to)).expect("ping runs").is_whole());
    let side = &mut pair.sides[0];
    side.let_go();
    let namespace = format!("--net={}", hopsack::sys::netns::path(&side.netns).display());
    let set = "-all,+bpf,+net_admin";
    let output = Command::new("nsenter")
        .args([&namespace, "setpriv", "--bounding-set", set, "--inh-caps", set])
        .arg(std::env::current_exe().expect("a path"))
        .args(["--exact", "carried::two_capabilities_suffice", "--nocapture"])
        .env(PINS, &side.directory)
        .output()
        .expect("util-linux is installed");
    let printed = text(&output);
    assert!(output.status.success() && printed.contains("packets="), "{printed}");
    assert!(ping(&from, Ping::to(to)).expect("ping runs").is_whole());
}

#[test]
fn programs_of_others_at_a_hook_are_named() {
    let mut pair = Pair::new("fast-other", Underlay::Whole);
    let (from, to) = (pair.lab.pod(1).netns.clone(), pair.lab.pod(2).v4);
    let side = &mut pair.sides[0];
    let (netns, elsewhere) = (side.netns.clone(), side.directory.join("other"));
    // Another copy of the program, which is suspended and so leaves all packets alone.
    let other = in_netns(&netns, || {
        let mut other = FastPath::open(&elsewhere)?;
        other.set(&side.settings)?;
        other.attach(&side.interfaces)?;
        Ok::<_, hopsack::fastpath::FastPathError>(other)
    });
    let other = other.expect("netns").expect("attached");
    let hooks = |side: &mut Side| in_netns(&netns, || side.fast().hooks()).expect("netns").expect("hooks");
    assert!(hooks(side).iter().all(|hook| hook.is_attached && hook.others.len() == 1));
    assert!(ping(&from, Ping::to(to)).expect("ping runs").is_whole());
    other.close().expect("closed");
    let side = &mut pair.sides[0];
    eventually("the other program is gone", || hooks(side).iter().all(|hook| hook.others.is_empty()));
    assert!(ping(&from, Ping::to(to)).expect("ping runs").is_whole());
}

#[test]
fn removal_leaves_no_program_and_no_pin() {
    let mut pair = Pair::new("fast-gone", Underlay::Whole);
    let side = &mut pair.sides[0];
    let netns = side.netns.clone();
    let other = hopsack::sys::bpf::Hook::Egress;
    let index = side.settings.overlay;
    let programs = |netns: &str| {
        in_netns(netns, || hopsack::sys::bpf::programs(index, other)).expect("netns").expect("a query")
    };
    assert_eq!(programs(&netns).len(), 1);
    FastPath::remove(&side.directory).expect("removed");
    eventually("the kernel has removed the link", || programs(&netns).is_empty());
    let hooks = in_netns(&netns, || side.fast().hooks()).expect("netns").expect("hooks");
    assert!(hooks.iter().all(|hook| !hook.is_attached), "the loss is noticed");
    // The kernel itself has files like maps.debug in a bpffs.
    let entries = fs::read_dir(&side.directory).expect("the bpffs stays");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
    assert_eq!(names.filter(|name| !name.contains('.')).collect::<Vec<_>>(), [""; 0]);
    FastPath::remove(&side.directory).expect("there is nothing to remove any more");
    let from = pair.lab.pod(1).netns.clone();
    let pinged = ping(&from, Ping::to(pair.lab.pod(2).v4)).expect("ping runs");
    assert_eq!(pinged.received, 0);
    assert!(pair.sides[0].left_to_daemon().iter().any(|frame| is_of_pods(frame)), "the daemon gets packets");
}

#[test]
fn udp_super_packets_and_their_flow_go_to_the_daemon() {
    let pair = Pair::new("fast-uso", Underlay::Whole);
    let (from, to) = (pair.lab.pod(1), pair.lab.pod(2));
    let bind = |netns: &str, at: SocketAddr| -> UdpSocket {
        in_netns(netns, move || UdpSocket::bind(at)).and_then(|socket| socket).expect("a socket")
    };
    let receiver = bind(&to.netns, SocketAddr::new(to.v4.into(), 7000));
    receiver.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let [fast, slow] = [0, 0].map(|port| bind(&from.netns, SocketAddr::new(from.v4.into(), port)));
    let at = receiver.local_addr().expect("an address");
    let arrives = |socket: &UdpSocket| {
        socket.send_to(b"one", at).expect("sent");
        let mut buffer = [0; 100];
        receiver.recv_from(&mut buffer).is_ok_and(|(length, _)| length == 3)
    };
    assert!(arrives(&fast) && arrives(&slow), "single datagrams are carried");
    pair.sides[0].left_to_daemon();

    let train = vec![7; 10 * 1000];
    send_many(&slow, &train, &[Message::train(0, train.len(), 1000, at)]).expect("UDP_SEGMENT");
    eventually("the daemon gets the train", || {
        pair.sides[0].counters().egress.to_daemon(Reason::UdpTrain) > 0
    });
    let frames = pair.sides[0].left_to_daemon();
    let whole: usize = frames.iter().filter(|frame| is_of_pods(frame)).map(|frame| frame.len() - 38).sum();
    assert_eq!(whole, train.len(), "in one piece or several, but no byte is lost");
    slow.send_to(b"one", at).expect("sent");
    eventually("the daemon gets the rest of the flow", || {
        pair.sides[0].left_to_daemon().iter().any(|frame| is_of_pods(frame))
    });
    assert!(arrives(&fast), "the other flow is carried as before");
    let egress = pair.sides[0].counters().egress;
    assert_eq!(egress.to_daemon(Reason::SlowFlow), 1);
}
