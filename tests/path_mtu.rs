//! Path MTU: what narrows a path, what only claims to, and what pods see of either.

mod support;

use std::net::UdpSocket;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::lab::{Lab, Options};
use hopsack::packet::Family;
use hopsack::sys::netns::in_netns;
use support::encrypted::{READY, explain, keys, of_peer, pair, started, wait_keys, within};
use support::narrow::{NarrowPath, forge_frag_needed};
use support::{HOPSACK, Scrape, attempt, edit, eventually, lab_with, run};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const SOME_BYTES: Amount = Amount::Bytes(3_000_000);

/// Sends some megabytes by TCP from a pod to another. A TCP connection that hangs fails the test.
fn tcp_passes(lab: &Lab, [from, to]: [usize; 2], family: Family) {
    let flow = Flow { from: lab.pod(from), to: lab.pod(to), family, amount: SOME_BYTES, verify: true };
    let transfer = Transfer::start(flow).expect("TCP connects");
    eventually("all bytes arrive", || transfer.received() >= 3_000_000);
    transfer.wait().expect("every byte is right");
}

/// The MTU that the kernel of a pod has learned for the way to another pod, if it has.
fn learned_mtu(lab: &Lab, from: usize, to: usize, family: Family) -> Option<u64> {
    let address = lab.pod(to).address(family).to_string();
    let route = run(&lab.pod(from).netns, &["ip", "-j", "route", "get", &address]);
    support::json(&route)[0]["metrics"][0]["mtu"].as_u64()
}

/// One message from anywhere claims that the path takes 68 bytes. Nothing becomes smaller.
fn forged_icmp_changes_nothing(lab: &Lab) {
    for family in FAMILIES {
        tcp_passes(lab, [1, 2], family);
    }
    let mtu = of_peer(lab, 1, 2, "mtu");
    let whole = |family| Ping {
        payload: mtu.as_u64().and_then(|mtu| u16::try_from(mtu).ok()).expect("a number") - headers(family),
        dont_fragment: true,
        count: 1,
        ..Ping::to(lab.pod(2).address(family))
    };
    // The kernel takes no MTU from messages to the daemon's own sockets, but it does from messages
    // to an ordinary socket, for all packets to that host.
    let victim = in_netns(&lab.host(1).netns, || UdpSocket::bind("192.0.2.1:9999"));
    let victim = victim.expect("a namespace").expect("a socket");
    for port in [8285, 8286, 9999] {
        forge_frag_needed(lab, [1, 2], port, 68);
    }
    eventually("the kernel believes it", || {
        let route = run(&lab.host(1).netns, &["ip", "-j", "route", "get", "192.0.2.2"]);
        support::json(&route)[0]["metrics"][0]["mtu"].as_u64().is_some_and(|mtu| mtu < 600)
    });
    drop(victim);
    for family in FAMILIES {
        tcp_passes(lab, [1, 2], family);
        let answer = ping(&lab.pod(1).netns, whole(family)).expect("ping runs");
        assert!(answer.is_whole(), "{}", answer.output);
        assert_eq!(learned_mtu(lab, 1, 2, family), None);
    }
    assert_eq!(of_peer(lab, 1, 2, "mtu"), mtu);
    if of_peer(lab, 1, 2, "transport") != "quic" {
        within(20, "probes confirm it", || of_peer(lab, 1, 2, "mtu_source") == "probe");
        assert!(of_peer(lab, 1, 2, "rtt_ms").is_number());
        assert_eq!(of_peer(lab, 1, 2, "mtu"), mtu);
    }
    assert_eq!(Scrape::of(&lab.host(1).netns).dropped("egress", "too_big"), 0);
}

fn headers(family: Family) -> u16 {
    match family {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

#[test]
fn forged_icmp_changes_nothing_in_clear() {
    forged_icmp_changes_nothing(&support::lab("forged", 2, Family::V4));
}

#[test]
fn forged_icmp_changes_nothing_sealed() {
    let lab = pair("forged", "sealed", "");
    wait_keys(&lab, 1, 2);
    forged_icmp_changes_nothing(&lab);
}

#[test]
fn forged_icmp_changes_nothing_by_quic() {
    forged_icmp_changes_nothing(&pair("forged", "quic", ""));
}

/// A path that really is narrow carries TCP of both families, and pods are told no MTU that they
/// cannot use.
fn narrow_path_carries_tcp(engine: &str, underlay: Family, mtu: u16) {
    let lab = lab_with(
        &format!("[dataplane]\nengine = \"{engine}\"\n"),
        &format!("nar{mtu}-{engine}"),
        2,
        underlay,
    );
    let _path = NarrowPath::before_host_2(&lab, mtu);
    for family in FAMILIES {
        tcp_passes(&lab, [1, 2], family);
        tcp_passes(&lab, [2, 1], family);
    }
    let outer = if underlay == Family::V4 { 28 } else { 48 };
    for (from, to) in [(1, 2), (2, 1)] {
        within(20, "the path is found by probes", || {
            of_peer(&lab, from, to, "mtu_source") == "probe" && of_peer(&lab, from, to, "mtu") == mtu - outer
        });
    }
    for family in FAMILIES {
        tcp_passes(&lab, [1, 2], family);
    }
    for family in FAMILIES {
        let floor = if family == Family::V4 { 576 } else { 1280 };
        let learned = [learned_mtu(&lab, 1, 2, family), learned_mtu(&lab, 2, 1, family)];
        assert!(learned.into_iter().flatten().all(|mtu| mtu >= floor), "{learned:?}");
    }
}

#[test]
fn path_of_1300_bytes_over_ipv4() {
    narrow_path_carries_tcp("uring", Family::V4, 1300);
}

#[test]
fn path_of_1280_bytes_over_ipv6() {
    narrow_path_carries_tcp("uring", Family::V6, 1280);
}

/// The inner MTU is near 552, the least that Linux accepts from ICMP.
#[test]
fn path_of_580_bytes_over_ipv4() {
    narrow_path_carries_tcp("batch", Family::V4, 580);
}

/// The inner MTU is near 1280, on both sides of it.
#[test]
fn path_of_1310_bytes_over_ipv4() {
    narrow_path_carries_tcp("simple", Family::V4, 1310);
}

/// QUIC cannot fragment, so a path that is too narrow for IPv6 carries none, and says so.
#[test]
fn quic_over_a_narrow_path_has_no_ipv6() {
    let lab = pair("narrow6", "quic", "");
    let pinged = |family| {
        let one = Ping { count: 1, ..Ping::to(lab.pod(2).address(family)) };
        ping(&lab.pod(1).netns, one).expect("ping runs").is_whole()
    };
    assert!(FAMILIES.into_iter().all(pinged));
    run(&lab.host(1).netns, &["ip", "route", "add", "192.0.2.2", "dev", "eth0", "mtu", "1300"]);
    eventually("the path is known", || of_peer(&lab, 1, 2, "mtu").as_u64().is_some_and(|mtu| mtu < 1280));
    assert!(pinged(Family::V4) && !pinged(Family::V6));
    assert!(of_peer(&lab, 1, 2, "trouble").is_string());
    assert_eq!(explain(&lab, 1, 2)["mtu_source"], "route");
    let request = format!(r#"{{"command":"explain","address":"{}"}}"#, lab.pod(2).v6);
    let explained = lab.daemon(1).ask(&request).expect("the daemon answers");
    assert_eq!((&explained["outcome"], &explained["drop"]), (&"dropped".into(), &"narrow_path".into()));
    let problem = || {
        let status = lab.daemon(1).status().expect("the daemon answers");
        status["problems"].as_array().is_some_and(|list| list.iter().any(|one| one["code"] == "narrow_path"))
    };
    eventually("there is a problem", problem);
    assert!(Scrape::of(&lab.host(1).netns).dropped("egress", "narrow_path") >= 1);
    run(&lab.host(1).netns, &["ip", "route", "del", "192.0.2.2", "dev", "eth0"]);
    eventually("the problem is over", || !problem());
    eventually("IPv6 passes again", || pinged(Family::V6));
}

/// A switch on the way drops long datagrams, and no router says so.
#[test]
fn silently_narrow_path_is_found() {
    let lab = pair("silent", "sealed", "");
    wait_keys(&lab, 1, 2);
    within(20, "the wide path is known", || of_peer(&lab, 1, 2, "mtu_source") == "probe");
    run(&lab.underlay_netns(), &["ip", "link", "set", "h2", "mtu", "1400"]);
    let one = Ping { count: 1, ..Ping::to(lab.pod(2).v4) };
    within(15, "the narrow path is found", || {
        // Only paths with traffic are probed often.
        let _ = ping(&lab.pod(1).netns, one);
        of_peer(&lab, 1, 2, "mtu") == 1400 - 28 - 28
    });
    assert_eq!(explain(&lab, 1, 2)["mtu_source"], "probe");
    for family in FAMILIES {
        tcp_passes(&lab, [1, 2], family);
    }
    run(&lab.underlay_netns(), &["ip", "link", "set", "h2", "mtu", "1450"]);
    within(20, "it is found that the path is wider, but less than the links", || {
        let _ = ping(&lab.pod(1).netns, one);
        of_peer(&lab, 1, 2, "mtu") == 1450 - 28 - 28
    });
}

/// A path that silently drops what is longer than 1,000 bytes has no way for IPv6, because nothing
/// on it fragments. The host says so, until the path is wider.
#[test]
fn silently_narrow_path_has_no_ipv6() {
    let lab = support::lab("silent6", 2, Family::V4);
    within(20, "the wide path is known", || of_peer(&lab, 1, 2, "mtu_source") == "probe");
    run(&lab.underlay_netns(), &["ip", "link", "set", "h2", "mtu", "1000"]);
    // A bridge fragments where packet filters see its packets.
    let _ = attempt(&lab.underlay_netns(), &["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0"]);
    let one = |family| Ping { count: 1, ..Ping::to(lab.pod(2).address(family)) };
    let pinged = |family| ping(&lab.pod(1).netns, one(family)).expect("ping runs").is_whole();
    within(40, "the problem is told", || {
        pinged(Family::V4);
        has_problem(&lab, 1, "narrow_path")
    });
    assert!(of_peer(&lab, 1, 2, "trouble").as_str().is_some_and(|text| text.contains("fragments")));
    let explained = || {
        let request = format!(r#"{{"command":"explain","address":"{}"}}"#, lab.pod(2).v6);
        lab.daemon(1).ask(&request).expect("the daemon answers")
    };
    assert_eq!(explained()["drop"], "narrow_path");
    assert!(explained()["mtu"].as_u64().is_some_and(|mtu| mtu < 1000));
    assert!(!pinged(Family::V6));
    tcp_passes(&lab, [1, 2], Family::V4);
    run(&lab.underlay_netns(), &["ip", "link", "set", "h2", "mtu", "1500"]);
    within(30, "the problem is over", || {
        pinged(Family::V4);
        !has_problem(&lab, 1, "narrow_path")
    });
    tcp_passes(&lab, [1, 2], Family::V6);
    within(60, "the whole length is in force", || explained()["mtu"] == 1472);
}

/// All datagrams leave by the port of the cluster, the probes too.
fn fixed_port_is_probed(engine: &str) {
    let options = Options::unique(&format!("fixed-{engine}"), HOPSACK);
    let extra_config = format!("[dataplane]\nengine = \"{engine}\"\n");
    let lab = Lab::create(Options { hosts: 2, extra_config, ..options }).expect("a lab");
    for host in 1..=2 {
        edit(&lab.daemon(host).config_path(), "[overlay]\n", "[overlay]\nsource_port = \"fixed\"\n");
    }
    let lab = started(lab);
    let rules = "table inet fixed { chain c { type filter hook input priority 0; \
                 udp dport 8285 udp sport != 8285 drop; }; }";
    (1..=2).for_each(|host| drop(run(&lab.host(host).netns, &["nft", rules])));
    within(20, "the path is probed", || of_peer(&lab, 1, 2, "mtu_source") == "probe");
    for family in FAMILIES {
        tcp_passes(&lab, [1, 2], family);
        tcp_passes(&lab, [2, 1], family);
    }
    assert_eq!(Scrape::of(&lab.host(2).netns).dropped("ingress", "socket_queue_full"), 0);
}

#[test]
fn fixed_port_is_probed_by_the_batch_engine() {
    fixed_port_is_probed("batch");
}

#[test]
fn fixed_port_is_probed_by_the_simple_engine() {
    fixed_port_is_probed("simple");
}

/// A stranger fills the queue before host 2, which then drops most long datagrams, and few short
/// ones. That says nothing about the MTU.
#[test]
fn congested_path_is_not_taken_for_a_narrow_one() {
    let lab = support::lab("congested", 2, Family::V4);
    within(20, "the wide path is known", || of_peer(&lab, 1, 2, "mtu_source") == "probe");
    let queue = "tc qdisc add dev h2 root tbf rate 10mbit burst 1600 limit 8000";
    run(&lab.underlay_netns(), &queue.split(' ').collect::<Vec<_>>());
    let stranger = in_netns(&lab.host(1).netns, || UdpSocket::bind("192.0.2.1:0"));
    let stranger = stranger.expect("a namespace").expect("a socket");
    let one = Ping { count: 1, ..Ping::to(lab.pod(2).v4) };
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(15) {
        let _ = ping(&lab.pod(1).netns, one);
        let wave = Instant::now();
        while wave.elapsed() < Duration::from_millis(500) {
            // About 90 Mbit/s: one of nine long datagrams passes.
            (0..2).for_each(|_| drop(stranger.send_to(&[0; 1472], "192.0.2.2:9")));
            sleep(Duration::from_micros(200));
        }
        assert_eq!(of_peer(&lab, 1, 2, "mtu"), 1472, "after {:?}", begin.elapsed());
    }
}

fn has_problem(lab: &Lab, host: usize, code: &str) -> bool {
    let status = lab.daemon(host).status().expect("the daemon answers");
    status["problems"].as_array().expect("a list").iter().any(|problem| problem["code"] == code)
}

/// A peer that does not answer is named, whatever the reason, until it answers again.
#[test]
fn unreachable_peer_is_named_until_it_answers() {
    let lab = support::lab("mute", 2, Family::V4);
    within(20, "the peer answers", || of_peer(&lab, 1, 2, "rtt_ms").is_number());
    assert_eq!(of_peer(&lab, 1, 2, "loss_percent"), 0);
    let filter = |host: usize, hook: &str| {
        let rules = format!(
            "table inet mute {{ chain c {{ type filter hook {hook} priority 0; udp dport 8285 drop; }}; }}"
        );
        run(&lab.host(host).netns, &["nft", &rules]);
    };
    let open = |host: usize| run(&lab.host(host).netns, &["nft", "delete table inet mute"]);

    filter(2, "input");
    within(30, "the silence is a problem", || has_problem(&lab, 1, "peer_silent"));
    assert!(of_peer(&lab, 1, 2, "silent_seconds").as_u64().is_some_and(|seconds| seconds >= 3));
    assert!(of_peer(&lab, 1, 2, "trouble").is_string() && explain(&lab, 1, 2)["trouble"].is_string());
    assert!(Scrape::of(&lab.host(1).netns).get("hopsack_silent_peers") == 1);
    open(2);
    within(20, "the problem is over", || !has_problem(&lab, 1, "peer_silent"));

    filter(1, "output");
    within(20, "our own packet filter is a problem", || has_problem(&lab, 1, "send_refused"));
    open(1);
    within(20, "the problem is over", || !has_problem(&lab, 1, "send_refused"));

    lab.daemon(2).kill9().expect("killed");
    within(20, "the closed port is a problem", || has_problem(&lab, 1, "send_refused"));
    lab.daemon(2).start().expect("started");
    lab.daemon(2).wait_ready(READY).expect("ready");
    within(20, "all is well again", || {
        !has_problem(&lab, 1, "send_refused") && !has_problem(&lab, 1, "peer_silent")
    });
}

/// A host that encrypts, and cannot be reached, is named. The keys expire meanwhile, and nothing
/// ends the problem but the way back.
fn unreachable_peer_that_encrypts_is_named(mode: &str) {
    let lab = pair("mute", mode, "rekey_seconds = 4\n");
    let one = Ping { count: 1, ..Ping::to(lab.pod(2).v4) };
    within(20, "packets pass", || ping(&lab.pod(1).netns, one).expect("ping runs").is_whole());
    // An idle peer may be without a connection: this one has packets.
    let rules = "table inet mute { chain c { type filter hook input priority 0; iifname eth0 meta l4proto udp drop; }; }";
    run(&lab.host(2).netns, &["nft", rules]);
    within(40, "the silence is a problem", || {
        let _ = ping(&lab.pod(1).netns, one);
        has_problem(&lab, 1, "peer_silent")
    });
    assert!(of_peer(&lab, 1, 2, "silent_seconds").is_number());
    assert_eq!(Scrape::of(&lab.host(1).netns).get("hopsack_silent_peers"), 1);
    within(40, "the keys have expired", || keys(&lab, 1, 2).is_none());
    let trouble = || of_peer(&lab, 1, 2, "trouble").as_str().map(str::to_owned);
    within(5, "the reason is named", || trouble().is_some_and(|why| why.contains("no encrypted connection")));
    for _ in 0..8 {
        assert!(has_problem(&lab, 1, "peer_silent"), "the cause lasts");
        sleep(Duration::from_millis(500));
    }
    run(&lab.host(2).netns, &["nft", "delete table inet mute"]);
    within(40, "the problem is over", || {
        let _ = ping(&lab.pod(1).netns, one);
        !has_problem(&lab, 1, "peer_silent")
    });
}

#[test]
fn unreachable_peer_that_seals_is_named() {
    unreachable_peer_that_encrypts_is_named("sealed");
}

#[test]
fn unreachable_peer_by_quic_is_named() {
    unreachable_peer_that_encrypts_is_named("quic");
}
