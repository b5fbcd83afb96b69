//! QUIC connections between hosts, as packets see them: both hosts dial at once, a host is killed,
//! a connection is idle, the path MTU falls.

mod support;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use hopsack::sys::netns::in_netns;
use support::{HOPSACK, Scrape, eventually, run};

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
