//! QUIC connections between hosts, as packets see them: both hosts dial at once, a host is killed,
//! a connection is idle, the path MTU falls.

mod support;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use hopsack::sys::netns::in_netns;
use support::encrypted::{flows, hang_up, stream, within};
use support::initials::initials;
use support::wire::Forger;
use support::{HOPSACK, Scrape, edit, eventually, run};

const READY: Duration = Duration::from_secs(15);

/// Two running hosts in QUIC mode. `more` is added to `[security]`.
fn lab(label: &str, more: &str) -> Lab {
    let extra_config = format!("[security]\nmode = \"quic\"\n{more}\n");
    let store = Store::Etcd { members: 1 };
    let options = Options { hosts: 2, extra_config, store, ..Options::unique(label, HOPSACK) };
    let lab = Lab::create(options)
        .expect("these tests need root, /dev/net/tun, etcd, ip and ping: run scripts/test");
    lab.start().expect("all daemons are ready");
    eventually("pods reach each other", || reaches(&lab, 1, 2) && reaches(&lab, 2, 1));
    lab
}

fn reaches(lab: &Lab, from: usize, to: usize) -> bool {
    ping(&lab.pod(from).netns, Ping::to(lab.pod(to).v4)).expect("ping runs").is_whole()
}

fn scrape(lab: &Lab, host: usize) -> Scrape {
    Scrape::of(&lab.host(host).netns)
}

fn handshakes(lab: &Lab, host: usize) -> u64 {
    scrape(lab, host).get("hopsack_quic_handshakes_total{result=\"authenticated\"}")
}

fn connections(lab: &Lab, host: usize) -> u64 {
    scrape(lab, host).get("hopsack_quic_connections")
}

/// Reasons for which a connection ends, as the metric names them.
const END_REASONS: [&str; 5] = ["closed_here", "closed_by_peer", "reset", "timed_out", "error"];

/// Connections that have ended while they were in use, for one reason.
fn ended(lab: &Lab, host: usize, reason: &str) -> u64 {
    scrape(lab, host).get(&format!("hopsack_quic_connections_ended_total{{reason=\"{reason}\"}}"))
}

/// Connections that have ended while they were in use, for any reason, on both hosts.
fn all_ended(lab: &Lab) -> [u64; 2] {
    [1, 2].map(|host| END_REASONS.iter().map(|reason| ended(lab, host, reason)).sum())
}

/// Checks the drop reasons of connections only: a new pod sends multicast, which the overlay drops.
fn nothing_was_dropped(lab: &Lab, host: usize) {
    let scrape = scrape(lab, host);
    for reason in ["unconnected", "congested", "too_big"] {
        assert_eq!(scrape.dropped("egress", reason) + scrape.dropped("ingress", reason), 0, "{reason}");
    }
}

/// Numbered datagrams from one pod to another, one each millisecond, and a record of which arrived.
struct Numbered {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u32>,
    receiver: JoinHandle<Vec<u32>>,
}

impl Numbered {
    fn start(lab: &Lab, from: usize, to: usize) -> Self {
        let (source, sink) = (lab.pod(from).v4, lab.pod(to).v4);
        let open = |netns: &str, address| {
            in_netns(netns, || UdpSocket::bind((address, 0))).and_then(|bound| bound).expect("bound")
        };
        let (out, input) = (open(&lab.pod(from).netns, source), open(&lab.pod(to).netns, sink));
        out.connect(input.local_addr().expect("bound")).expect("connected");
        input.set_read_timeout(Some(Duration::from_millis(500))).expect("set");
        let stop = Arc::new(AtomicBool::new(false));
        let sender = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut number = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    out.send(&number.to_be_bytes()).expect("sent");
                    number += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                number
            }
        });
        let receiver = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let (mut numbers, mut datagram) = (Vec::new(), [0; 4]);
                loop {
                    match input.recv(&mut datagram) {
                        Ok(_) => numbers.push(u32::from_be_bytes(datagram)),
                        Err(_) if stop.load(Ordering::Relaxed) => return numbers,
                        Err(_) => {}
                    }
                }
            }
        });
        Self { stop, sender, receiver }
    }

    /// Number of datagrams sent, and the numbers of those that arrived, in ascending order.
    fn end(self) -> (u32, Vec<u32>) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender has not panicked");
        let mut arrived = self.receiver.join().expect("the receiver has not panicked");
        arrived.sort_unstable();
        (sent, arrived)
    }
}

#[test]
fn simultaneous_dials_lose_no_packet() {
    /// Each round makes both hosts dial at the same moment.
    const ROUNDS: u32 = 20;
    let lab = lab("cross", "");
    let ended_before = all_ended(&lab);
    let flows = [Numbered::start(&lab, 1, 2), Numbered::start(&lab, 2, 1)];
    let pids = [1, 2].map(|host| lab.daemon(host).pid().expect("the daemon runs").to_string());
    for _ in 0..ROUNDS {
        let before = [1, 2].map(|host| handshakes(&lab, host));
        run(&lab.host(1).netns, &["kill", "-HUP", &pids[0], &pids[1]]);
        eventually("each host has made a handshake", || {
            [1, 2].iter().zip(before).all(|(host, before)| handshakes(&lab, *host) > before)
        });
    }
    eventually("one connection is left", || {
        [1, 2].iter().all(|host| {
            let open = run(&lab.host(*host).netns, &["ss", "-Hun", "sport", "=", ":8286"]);
            open.lines().count() <= 1 && connections(&lab, *host) == 1
        })
    });
    for flow in flows {
        let (sent, arrived) = flow.end();
        assert!(sent > 0 && arrived.iter().copied().eq(0..sent), "{} of {sent} arrived", arrived.len());
    }
    // On neither host has a connection ended while it was in use.
    assert_eq!(all_ended(&lab), ended_before);
    for host in [1, 2] {
        nothing_was_dropped(&lab, host);
    }
}

#[test]
fn hosts_that_start_at_once_agree_on_a_connection() {
    const ROUNDS: usize = 20;
    let lab = lab("twins", "");
    let amount = Amount::Time(Duration::from_secs(300));
    let flow = Flow { from: lab.pod(1), to: lab.pod(2), family: Family::V4, amount, verify: true };
    let transfer = Transfer::start(flow).expect("TCP connects");
    for _ in 0..ROUNDS {
        for host in [1, 2] {
            lab.daemon(host).kill9().expect("killed");
        }
        for host in [1, 2] {
            lab.daemon(host).start().expect("started");
        }
        for host in [1, 2] {
            lab.daemon(host).wait_ready(READY).expect("ready");
        }
        eventually("both are connected", || connections(&lab, 1) == 1 && connections(&lab, 2) == 1);
    }
    let before = transfer.received();
    eventually("bytes flow again", || transfer.received() > before + 1_000_000);
    // If the hosts had chosen different connections, one would end a second later.
    let ended_before = all_ended(&lab);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(all_ended(&lab), ended_before);
    transfer.finish();
    transfer.wait().expect("no connection was reset, and every byte is right");
}

#[test]
fn restarted_peer_is_noticed_before_a_timeout() {
    let lab = lab("back", "");
    for host in [2, 1] {
        let other = 3 - host;
        lab.daemon(host).kill9().expect("killed");
        lab.daemon(host).start().expect("started");
        lab.daemon(host).wait_ready(READY).expect("ready");
        lab.daemon(host).wait_peers(1, READY).expect("the host knows the other");
        // The restarted host dials, or answers packets of the old connection with a reset.
        eventually("the host has dialled", || connections(&lab, host) == 1);
        assert!(reaches(&lab, other, host) && reaches(&lab, host, other));
        assert_eq!(ended(&lab, other, "timed_out"), 0, "{}", lab.daemon(other).log());
        assert_eq!(scrape(&lab, other).dropped("egress", "unconnected"), 0);
    }
}

#[test]
fn packet_reopens_an_idle_connection() {
    let lab = lab("idle", "idle_seconds = 1");
    for (from, to) in [(1, 2), (2, 1), (1, 2)] {
        eventually("no host is connected", || connections(&lab, 1) == 0 && connections(&lab, 2) == 0);
        let one = Ping { count: 1, ..Ping::to(lab.pod(to).v4) };
        assert!(
            ping(&lab.pod(from).netns, one).expect("ping runs").is_whole(),
            "the packet waits for the connection"
        );
    }
    for host in [1, 2] {
        nothing_was_dropped(&lab, host);
    }
    // Host 2 is away: the packets that wait for it are bounded in time and bytes, and counted.
    eventually("no host is connected", || connections(&lab, 1) == 0);
    lab.daemon(2).kill9().expect("killed");
    let (source, sink) = (lab.pod(1).v4, lab.pod(2).v4);
    let out =
        in_netns(&lab.pod(1).netns, || UdpSocket::bind((source, 0))).and_then(|bound| bound).expect("bound");
    for _ in 0..2000 {
        out.send_to(&[0; 1200], (sink, 9)).expect("sent");
    }
    eventually("all packets are counted", || {
        let scrape = scrape(&lab, 1);
        scrape.all_dropped("egress") + scrape.dropped("egress", "device_queue_full") >= 2000
    });
}

#[test]
fn lower_path_mtu_is_told_to_the_senders() {
    let lab = lab("narrow", "");
    let pod = &lab.pod(1).netns;
    let whole = Ping { payload: lab.overlay_mtu() - 28, dont_fragment: true, ..Ping::to(lab.pod(2).v4) };
    assert!(ping(pod, whole).expect("ping runs").is_whole());
    // A bridge silently drops packets that are longer than its port takes, but not trains. So the
    // sender's kernel must split trains.
    run(&lab.host(1).netns, &["ethtool", "-K", "eth0", "tx-udp-segmentation", "off"]);
    run(&lab.underlay_netns(), &["ip", "link", "set", "h2", "mtu", "1400"]);
    let amount = Amount::Bytes(20_000_000);
    let flow = Flow { from: lab.pod(1), to: lab.pod(2), family: Family::V4, amount, verify: true };
    let moved = Transfer::start(flow).expect("TCP connects").wait().expect("every byte is right");
    assert_eq!(moved.bytes, 20_000_000);
    eventually("the sender is told", || {
        let answer = ping(pod, whole).expect("ping runs");
        answer.received == 0 && answer.output.to_lowercase().contains("mtu")
    });
    assert!(scrape(&lab, 1).get("hopsack_icmp_sent_total{type=\"too_big\"}") >= 1);
    let peers = lab.daemon(1).ask(r#"{"command":"peers"}"#).expect("the daemon answers");
    assert!(peers[0]["mtu"].as_u64().is_some_and(|mtu| mtu < 1400), "{peers}");
}

/// Resident memory of a host's daemon, in KiB.
fn memory(lab: &Lab, host: usize) -> u64 {
    let pid = lab.daemon(host).pid().expect("the daemon runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it exists");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

/// CPU time of one of a daemon's threads, in nanoseconds.
fn cpu_time(lab: &Lab, host: usize, thread: &str) -> u64 {
    let pid = lab.daemon(host).pid().expect("the daemon runs");
    // The kernel cuts names off after 15 characters.
    let name = thread.get(..15).unwrap_or(thread);
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it exists");
    let of_task = |task: std::path::PathBuf| {
        let is_it = std::fs::read_to_string(task.join("comm")).ok()?.trim() == name;
        let schedstat = std::fs::read_to_string(task.join("schedstat")).ok()?;
        is_it.then(|| schedstat.split(' ').next()?.parse::<u64>().ok()).flatten()
    };
    tasks.filter_map(|task| of_task(task.ok()?.path())).sum()
}

/// An attacker sends the beginnings of thousands of handshakes with the address and port of host 1.
#[test]
fn flood_of_handshakes_is_bounded() {
    let lab = lab("flood", "");
    let transfer = stream(&lab, 1, 2);
    flows(&transfer);
    let (flood, forger) = (initials(1000, 8286), Forger::of(&lab, 1, 2, 8286));
    let metric = |name: &str| scrape(&lab, 2).get(name);
    let result = |result: &str| metric(&format!("hopsack_quic_handshakes_total{{result=\"{result}\"}}"));
    let (memory_before, received, begin) = (memory(&lab, 2), transfer.received(), Instant::now());
    let (mut sent, mut most_open, mut most_memory) = (0, 0, 0);
    let before = handshakes(&lab, 1);
    let mut asked = false;
    while begin.elapsed() < Duration::from_secs(5) {
        // Each Initial packet that is repeated begins a handshake again once the first is forgotten.
        for initial in flood.iter().cycle().skip(sent).take(250) {
            forger.send(initial);
            sent += 1;
        }
        most_open = most_open.max(metric("hopsack_quic_open_handshakes"));
        most_memory = most_memory.max(memory(&lab, 2));
        if !asked && begin.elapsed() > Duration::from_secs(2) {
            // Host 1 itself validates its address and gets in.
            hang_up(&lab, 1);
            asked = true;
        }
    }
    let cpu_time = cpu_time(&lab, 2, "hopsack-handshake");
    println!(
        "{sent} Initials in 5 s, {} MB by TCP; most open {most_open}; RSS {memory_before} -> {most_memory} KiB; \
         validations {}, ignored {}",
        (transfer.received() - received) / 1_000_000,
        result("address_validation"),
        result("ignored")
    );
    assert!(sent > 2000, "{sent}");
    assert!((1..=16).contains(&most_open), "{most_open}");
    assert!(most_memory < memory_before + 32_000, "{memory_before} KiB -> {most_memory} KiB");
    assert!(result("address_validation") > 500, "{}", result("address_validation"));
    assert!(cpu_time > 0, "handshakes have a thread of their own");
    flows(&transfer);
    within(20, "host 1 makes a handshake", || handshakes(&lab, 1) > before);
    transfer.finish();
    transfer.wait().expect("no connection was reset");
}

/// A host that reads its certificate again dials its peers once. If that attempt is lost, it tries
/// again, although the connection that it has still works.
#[test]
fn lost_attempt_with_a_new_certificate_is_made_again() {
    let lab = lab("again", "");
    let transfer = stream(&lab, 1, 2);
    flows(&transfer);
    let netns = lab.host(2).netns.clone();
    // The filter sees only the first datagram of a train.
    run(&lab.host(1).netns, &["ethtool", "-K", "eth0", "tx-udp-segmentation", "off"]);
    run(&netns, &["ethtool", "-K", "eth0", "gro", "off"]);
    // Only the packets of handshakes have a long header (RFC 9000 section 17.2).
    let deaf = "nft add table inet t; nft 'add chain inet t in { type filter hook input priority 0; }'; \
                nft add rule inet t in udp dport 8286 @th,64,1 == 1 drop";
    run(&netns, &["sh", "-c", deaf]);
    // Both hosts may have dialled at the start, and the second answer may be under way.
    std::thread::sleep(Duration::from_secs(1));
    let before = handshakes(&lab, 1);
    hang_up(&lab, 1);
    // An attempt lasts 3 s.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(handshakes(&lab, 1), before, "no handshake passes the filter");
    run(&netns, &["nft", "delete", "table", "inet", "t"]);
    within(60, "host 1 makes a handshake", || handshakes(&lab, 1) > before);
    flows(&transfer);
    transfer.finish();
    transfer.wait().expect("no connection was reset");
}

/// While the host is at the other address, no packet reaches its QUIC socket.
#[test]
fn host_returns_to_an_address_that_it_had() {
    let lab = lab("return", "");
    edit(&lab.daemon(1).config_path(), "\"192.0.2.1\"", "\"auto\"");
    lab.daemon(1).terminate().expect("it ends");
    lab.daemon(1).start().expect("started");
    lab.daemon(1).wait_ready(READY).expect("ready");
    let (netns, status) = (lab.host(1).netns.clone(), || lab.daemon(1).status().expect("it answers"));
    let moves = |from: u8, to: u8| {
        let script =
            format!("ip addr del 192.0.2.{from}/24 dev eth0 && ip addr add 192.0.2.{to}/24 dev eth0");
        run(&netns, &["sh", "-c", &script]);
        eventually("it has moved", || status()["public_ip"] == format!("192.0.2.{to}"));
        // The QUIC thread follows.
        std::thread::sleep(Duration::from_secs(1));
    };
    let deaf = "nft add table inet t; nft 'add chain inet t in { type filter hook input priority 0; }'; \
                nft add rule inet t in udp dport 8286 drop";
    run(&netns, &["sh", "-c", deaf]);
    moves(1, 101);
    moves(101, 1);
    run(&netns, &["nft", "delete", "table", "inet", "t"]);
    eventually("pods reach each other", || reaches(&lab, 1, 2) && reaches(&lab, 2, 1));
}
