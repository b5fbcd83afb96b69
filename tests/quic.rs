//! Connections between hosts as their packets meet them: both dial at once, one comes back from the dead, nobody has anything
//! to say for a while, the path gets narrower.

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

/// Two hosts that talk by QUIC, with more below `[security]`.
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

fn said(lab: &Lab, host: usize, words: &str) -> usize {
    lab.daemon(host).log().lines().filter(|line| line.contains(words)).count()
}

/// Of what a connection carries: a new pod's first words to everybody are not for the overlay.
fn nothing_was_dropped(lab: &Lab, host: usize) {
    let scrape = scrape(lab, host);
    for reason in ["unconnected", "congested", "too_big"] {
        assert_eq!(scrape.dropped("egress", reason) + scrape.dropped("ingress", reason), 0, "{reason}");
    }
}

/// Numbered datagrams from one pod to another, one a millisecond, and which of them arrived.
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

    /// How many were sent, and those that arrived, in the order of their numbers.
    fn end(self) -> (u32, Vec<u32>) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("it sent to the end");
        let mut arrived = self.receiver.join().expect("it listened to the end");
        arrived.sort_unstable();
        (sent, arrived)
    }
}

#[test]
fn both_dial_at_once_and_no_packet_is_lost() {
    /// Each makes both hosts dial in the same moment.
    const ROUNDS: u32 = 20;
    let lab = lab("cross", "");
    let ended = [1, 2].map(|host| said(&lab, host, "a connection ended"));
    let flows = [Numbered::start(&lab, 1, 2), Numbered::start(&lab, 2, 1)];
    let pids = [1, 2].map(|host| lab.daemon(host).pid().expect("it runs").to_string());
    for _ in 0..ROUNDS {
        let before = [1, 2].map(|host| handshakes(&lab, host));
        run(&lab.host(1).netns, &["kill", "-HUP", &pids[0], &pids[1]]);
        eventually("a handshake at each end", || {
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
    // None that was in use has ended, at either end.
    assert_eq!([1, 2].map(|host| said(&lab, host, "a connection ended")), ended);
    for host in [1, 2] {
        nothing_was_dropped(&lab, host);
    }
}

#[test]
fn two_that_start_at_once_agree_on_a_connection() {
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
    // A connection that one of them had not kept would have ended a second after.
    let ended = [1, 2].map(|host| said(&lab, host, "a connection ended"));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!([1, 2].map(|host| said(&lab, host, "a connection ended")), ended);
    transfer.finish();
    transfer.wait().expect("not one reset, not one wrong byte");
}

#[test]
fn a_peer_that_came_back_is_not_waited_for() {
    let lab = lab("back", "");
    for host in [2, 1] {
        let other = 3 - host;
        lab.daemon(host).kill9().expect("killed");
        lab.daemon(host).start().expect("started");
        lab.daemon(host).wait_ready(READY).expect("ready");
        lab.daemon(host).wait_peers(1, READY).expect("it knows the other");
        // By its own dial, or by the reset that answers what the old connection carries; not by anybody's patience.
        eventually("it has dialled", || connections(&lab, host) == 1);
        assert!(reaches(&lab, other, host) && reaches(&lab, host, other));
        assert_eq!(said(&lab, other, "timed out"), 0, "{}", lab.daemon(other).log());
        assert_eq!(scrape(&lab, other).dropped("egress", "unconnected"), 0);
    }
}

#[test]
fn an_idle_connection_ends_and_the_first_packet_brings_it_back() {
    let lab = lab("idle", "idle_seconds = 1");
    for (from, to) in [(1, 2), (2, 1), (1, 2)] {
        eventually("nobody is connected", || connections(&lab, 1) == 0 && connections(&lab, 2) == 0);
        let one = Ping { count: 1, ..Ping::to(lab.pod(to).v4) };
        assert!(
            ping(&lab.pod(from).netns, one).expect("ping runs").is_whole(),
            "it waits for the connection"
        );
    }
    for host in [1, 2] {
        nothing_was_dropped(&lab, host);
    }
    // Nobody there: what waits is bounded, in time and bytes, and counted.
    eventually("nobody is connected", || connections(&lab, 1) == 0);
    lab.daemon(2).kill9().expect("killed");
    let (source, sink) = (lab.pod(1).v4, lab.pod(2).v4);
    let out =
        in_netns(&lab.pod(1).netns, || UdpSocket::bind((source, 0))).and_then(|bound| bound).expect("bound");
    for _ in 0..2000 {
        out.send_to(&[0; 1200], (sink, 9)).expect("sent");
    }
    eventually("all are counted", || {
        let scrape = scrape(&lab, 1);
        scrape.all_dropped("egress") + scrape.dropped("egress", "device_queue_full") >= 2000
    });
}

#[test]
fn a_path_that_narrows_is_told_to_the_senders() {
    let lab = lab("narrow", "");
    let pod = &lab.pod(1).netns;
    let whole = Ping { payload: lab.overlay_mtu() - 28, dont_fragment: true, ..Ping::to(lab.pod(2).v4) };
    assert!(ping(pod, whole).expect("ping runs").is_whole());
    // A bridge drops what its port does not take, and tells nobody; what is not cut by the sender's kernel passes it.
    run(&lab.host(1).netns, &["ethtool", "-K", "eth0", "tx-udp-segmentation", "off"]);
    run(&lab.underlay_netns(), &["ip", "link", "set", "h2", "mtu", "1400"]);
    let amount = Amount::Bytes(20_000_000);
    let flow = Flow { from: lab.pod(1), to: lab.pod(2), family: Family::V4, amount, verify: true };
    let moved = Transfer::start(flow).expect("TCP connects").wait().expect("not one wrong byte");
    assert_eq!(moved.bytes, 20_000_000);
    eventually("the sender is told", || {
        let told = ping(pod, whole).expect("ping runs");
        told.received == 0 && told.output.to_lowercase().contains("mtu")
    });
    assert!(scrape(&lab, 1).get("hopsack_icmp_sent_total{type=\"too_big\"}") >= 1);
    assert!(said(&lab, 1, "the way to it takes inner packets of so many bytes") >= 1);
}
