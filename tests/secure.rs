//! Encryption as pods, operators and eavesdroppers meet it: what passes, what the cable shows and what it is fed with, who is
//! kept out. What changes over time is in tests/rekey.rs.

mod support;

use std::io::Read as _;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hopsack::lab::Lab;
use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::packet::Family;
use hopsack::pki::Authority;
use hopsack::sys::block::Part;
use hopsack::sys::netns::in_netns;
use hopsack::sys::udp;
use support::encrypted::{
    READY, configure, lab, of_peer, pair, peers, reaches, start_again, started, within,
};
use support::wire::{Ear, Forger, Recorder, no_trains, tap};
use support::{Scrape, attempt, eventually, hopsack, json, run, text};

const LIFE: Duration = Duration::from_secs(3600);

/// What ping fills its packets with.
const MARK: &[u8] = b"MARKED-PAYLOAD-7";

/// Sends marked packets both ways.
fn ping_marked(lab: &Lab, from: usize, to: usize) {
    let pattern: String = MARK.iter().map(|byte| format!("{byte:02x}")).collect();
    for address in [lab.pod(to).v4.to_string(), lab.pod(to).v6.to_string()] {
        let argv = ["ping", "-c", "20", "-i", "0.02", "-s", "1000", "-p", &pattern, &address];
        let said = run(&lab.pod(from).netns, &argv);
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
}

/// Somebody on the hosts' cables, who looks for the mark in every frame.
struct Eavesdropper {
    frames: Arc<AtomicU64>,
    marked: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Eavesdropper {
    fn on(lab: &Lab) -> Self {
        let mut socket = tap(lab);
        let (frames, marked, stop) =
            (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (frames, marked, stop) = (frames.clone(), marked.clone(), stop.clone());
            move || {
                let mut frame = vec![0; 70_000];
                while !stop.load(Ordering::Relaxed) {
                    let Ok(length) = socket.read(&mut frame) else { continue };
                    frames.fetch_add(1, Ordering::Relaxed);
                    let shows = frame[..length].windows(MARK.len()).any(|window| window == MARK);
                    marked.fetch_add(u64::from(shows), Ordering::Relaxed);
                }
            }
        });
        Self { frames, marked, stop, thread }
    }

    /// Frames seen, and those that showed the mark.
    fn heard(self) -> (u64, u64) {
        std::thread::sleep(Duration::from_millis(200));
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it listened to the end");
        (self.frames.load(Ordering::Relaxed), self.marked.load(Ordering::Relaxed))
    }
}

/// Everything that the overlay promises, encrypted: reachability, a whole MTU, TCP, and nothing on the cable.
fn carries_everything_and_shows_nothing(mode: &str, engine: &str, underlay: Family) {
    let config =
        format!("[security]\nmode = \"{mode}\"\nrequire = true\n\n[dataplane]\nengine = \"{engine}\"\n");
    let lab = started(lab(&format!("{mode}-{engine}"), 2, underlay, &config));
    let ear = Eavesdropper::on(&lab);
    eventually("pods reach each other", || reaches(&lab, 1, 2) && reaches(&lab, 2, 1));
    ping_marked(&lab, 1, 2);
    let (frames, marked) = ear.heard();
    assert!(frames >= 160, "two frames a round trip: {frames}");
    assert_eq!(marked, 0, "of {frames} frames");

    // A packet of the whole MTU passes; pods with a larger one are told by the host.
    let payload = lab.overlay_mtu() - 28;
    let full = Ping { payload, dont_fragment: true, ..Ping::to(lab.pod(2).v4) };
    assert!(ping(&lab.pod(1).netns, full).expect("ping runs").is_whole());
    run(&lab.pod(1).netns, &["ip", "link", "set", "eth0", "mtu", "1500"]);
    let more = Ping { payload: payload + 1, dont_fragment: true, ..Ping::to(lab.pod(2).v4) };
    let told = ping(&lab.pod(1).netns, more).expect("ping runs");
    assert!(told.received == 0 && told.output.to_lowercase().contains("mtu"), "{}", told.output);

    for family in [Family::V4, Family::V6] {
        let amount = Amount::Bytes(20_000_000);
        let flow = Flow { from: lab.pod(1), to: lab.pod(2), family, amount, verify: true };
        let moved = Transfer::start(flow).expect("TCP connects").wait().expect("not one wrong byte");
        assert_eq!(moved.bytes, 20_000_000);
    }
    assert_eq!(of_peer(&lab, 1, 2, "transport"), mode);
    let status = lab.daemon(1).status().expect("it answers");
    assert!(status["encryption"].as_str().is_some_and(|text| text.starts_with(mode)), "{status}");
    for host in 1..=2 {
        let scrape = Scrape::of(&lab.host(host).netns);
        assert!(scrape.get("hopsack_quic_handshakes_total{result=\"authenticated\"}") >= 1);
        assert_eq!(scrape.dropped("ingress", "cleartext"), 0);
    }
}

mod quic {
    use super::*;

    #[test]
    fn simple() {
        carries_everything_and_shows_nothing("quic", "simple", Family::V4);
    }
    #[test]
    fn batch() {
        carries_everything_and_shows_nothing("quic", "batch", Family::V6);
    }
    #[test]
    fn uring() {
        carries_everything_and_shows_nothing("quic", "uring", Family::V4);
    }
}

mod sealed {
    use super::*;

    #[test]
    fn simple() {
        carries_everything_and_shows_nothing("sealed", "simple", Family::V4);
    }
    #[test]
    fn batch() {
        carries_everything_and_shows_nothing("sealed", "batch", Family::V6);
    }
    #[test]
    fn uring() {
        carries_everything_and_shows_nothing("sealed", "uring", Family::V4);
    }
}

/// The path takes less than the table says: what is in the first bundles passes, and those after them fit, sealed.
#[test]
fn sealed_bundles_are_made_to_fit_a_narrow_path() {
    const PACKETS: usize = 60;
    let lab = pair("narrow", "sealed", "");
    assert!(reaches(&lab, 1, 2));
    eventually("keys", || of_peer(&lab, 1, 2, "encryption").starts_with("sealed"));
    let netns = &lab.host(1).netns;
    run(netns, &["ip", "route", "add", "192.0.2.2", "dev", "eth0", "mtu", "1400"]);
    let (ear, at) = (Ear::of(&lab, 2), (lab.pod(1).v4, 0));
    let socket = in_netns(&lab.pod(1).netns, move || UdpSocket::bind(at)).and_then(|bound| bound);
    let socket = socket.expect("a socket");
    let (mut sent, mut heard) = (0, 0);
    // What one burst brought: packets that left, bundles, and those that were refused.
    let mut burst = || {
        let counts = || {
            let names = ["egress_packets", "egress_bundles", "bundle_fallbacks"];
            let scrape = Scrape::of(netns);
            names.map(|name| scrape.get(&format!("hopsack_{name}_total")))
        };
        let (before, train) = (counts(), Part::train(0, PACKETS * 64, 64, (lab.pod(2).v4, Ear::PORT).into()));
        udp::send_many(&socket, &[7; PACKETS * 64], &[train]).expect("sent");
        sent += PACKETS;
        within(10, "all of it arrives", || {
            heard += ear.count(Duration::from_millis(100));
            heard == sent
        });
        let after = counts();
        std::array::from_fn::<u64, 3, _>(|n| after[n] - before[n])
    };
    let [_, _, refused] = burst();
    assert!(refused > 0, "no bundle was too long");
    // Each thread learns it by itself.
    within(30, "bundles fit", || {
        let [packets, bundles, refused] = burst();
        packets >= PACKETS as u64 && (2..30).contains(&bundles) && refused == 0
    });
    let log = lab.daemon(1).log();
    assert!(log.contains("too narrow for bundles") && log.contains("longest=1344"), "{log}");
    assert_eq!(Scrape::of(netns).dropped("egress", "send_failed"), 0);
}

#[test]
fn the_eavesdropper_would_see_clear_packets() {
    let lab = started(lab("clear", 2, Family::V4, ""));
    let ear = Eavesdropper::on(&lab);
    ping_marked(&lab, 1, 2);
    let (frames, marked) = ear.heard();
    assert!(marked >= 80, "{marked} of {frames}");
    assert_eq!(of_peer(&lab, 1, 2, "transport"), "udp");
    assert_eq!(lab.daemon(1).status().expect("it answers")["encryption"], "none");
}

/// Gives a host a certificate of an authority, which it requires of others.
fn certify(lab: &Lab, host: usize, folder: &Path, life: Duration) {
    support::encrypted::certify(lab, host, folder, life, "mode = \"quic\"\nrequire = true");
}

#[test]
fn another_ca_gets_nothing_in_and_is_named() {
    let lab = lab("ca", 3, Family::V4, "");
    let (ours, theirs) = (lab.host(1).directory.join("ca"), lab.host(3).directory.join("ca"));
    // As an operator makes it.
    let made = hopsack(&["pki", "init", "--dir", &ours.to_string_lossy()]);
    assert!(made.status.success(), "{}", text(&made));
    Authority::init(&theirs, "another cluster", LIFE).expect("made");
    for (host, folder) in [(1, &ours), (2, &ours), (3, &theirs)] {
        certify(&lab, host, folder, LIFE);
    }
    let lab = started(lab);
    assert!(
        reaches(&lab, 1, 2) && reaches(&lab, 2, 1),
        "one CA, and the first packet waits for the connection"
    );
    assert!(!reaches(&lab, 3, 1) && !reaches(&lab, 1, 3), "another CA");
    let name = format!("host=\"{}\"", lab.host(3).name);
    eventually("the stranger is named", || {
        lab.daemon(1)
            .log()
            .lines()
            .any(|line| line.contains("no encrypted connection") && line.contains(&name))
    });
    assert!(of_peer(&lab, 1, 3, "encryption").starts_with("NO CONNECTION"), "{}", peers(&lab, 1));
    let scrape = Scrape::of(&lab.host(1).netns);
    assert!(scrape.get("hopsack_quic_handshakes_total{result=\"failed\"}") >= 1);
    eventually("packets are held for a while, then counted", || {
        Scrape::of(&lab.host(1).netns).dropped("egress", "unconnected") >= 1
    });
    let shown = hopsack(&["pki", "show", "--json", &ours.join("ca.crt").to_string_lossy()]);
    assert_eq!(json(&String::from_utf8_lossy(&shown.stdout))[0]["is_ca"], true);
}

#[test]
fn an_expired_certificate_gets_nothing_in() {
    let lab = lab("expired", 2, Family::V4, "");
    let folder = lab.host(1).directory.join("ca");
    Authority::init(&folder, "cluster", LIFE).expect("made");
    certify(&lab, 1, &folder, LIFE);
    certify(&lab, 2, &folder, Duration::from_secs(8));
    let lab = started(lab);
    // The connection that stands is not ended by the clock; a new one is needed when the other end was restarted.
    std::thread::sleep(Duration::from_secs(9));
    lab.daemon(1).kill9().expect("killed");
    lab.daemon(1).start().expect("started");
    lab.daemon(1).wait_ready(READY).expect("ready");
    lab.daemon(1).wait_peers(1, READY).expect("it knows the other");
    assert!(!reaches(&lab, 1, 2) && !reaches(&lab, 2, 1));
    eventually("the expired one is named", || {
        let log = lab.daemon(1).log();
        log.lines().any(|line| line.contains("no encrypted connection") && line.contains("expired"))
    });
    // And it does not even start with it.
    lab.daemon(2).terminate().expect("it ends");
    lab.daemon(2).start().expect("started");
    let refused = lab.daemon(2).wait_ready(READY).expect_err("its certificate has run out").to_string();
    assert!(refused.contains("own certificate is not valid"), "{refused}");
}

fn another_host_s_subnet_is_refused_and_its_user_is_named(mode: &str) {
    let lab =
        started(lab(&format!("subnet-{mode}"), 3, Family::V4, &format!("[security]\nmode = \"{mode}\"\n")));
    assert!(reaches(&lab, 3, 1), "the first packet waits for the connection");
    if mode == "sealed" {
        eventually("keys", || of_peer(&lab, 3, 1, "encryption").starts_with("sealed"));
    }
    // A pod of host 3 that pretends to live on host 2.
    let forged = lab.host(2).subnet_v4.hosts().nth(77).expect("an address").to_string();
    let netns = &lab.pod(3).netns;
    run(netns, &["ip", "addr", "add", &format!("{forged}/32"), "dev", "lo"]);
    attempt(netns, &["ping", "-c", "5", "-i", "0.05", "-W", "1", "-I", &forged, &lab.pod(1).v4.to_string()]);
    let scrape = Scrape::of(&lab.host(1).netns);
    assert!(scrape.dropped("ingress", "spoofed_source") >= 5);
    let name = format!("host=\"{}\"", lab.host(3).name);
    let named = |line: &str| line.contains("not its own") && line.contains(&name);
    eventually("it is named", || lab.daemon(1).log().lines().any(named));
}

#[test]
fn another_host_s_subnet_by_quic() {
    another_host_s_subnet_is_refused_and_its_user_is_named("quic");
}

#[test]
fn another_host_s_subnet_sealed() {
    another_host_s_subnet_is_refused_and_its_user_is_named("sealed");
}

#[test]
fn plain_hosts_stay_reachable_unless_encryption_is_required() {
    let lab = lab("pairs", 3, Family::V4, "");
    lab.start().expect("ready");
    // Host after host, as an operator would.
    for host in [1, 2] {
        configure(&lab, host, "mode = \"quic\"");
        lab.daemon(host).terminate().expect("it ends");
        lab.daemon(host).start().expect("started");
        lab.daemon(host).wait_ready(READY).expect("ready");
        lab.daemon(host).wait_peers(2, READY).expect("it knows the others");
        eventually("all reach all", || reaches(&lab, 1, 2) && reaches(&lab, 1, 3) && reaches(&lab, 3, 2));
    }
    assert_eq!(of_peer(&lab, 1, 2, "transport"), "quic");
    assert_eq!(of_peer(&lab, 1, 3, "transport"), "udp");
    assert_eq!(of_peer(&lab, 3, 1, "transport"), "udp");

    configure(&lab, 1, "mode = \"quic\"\nrequire = true");
    lab.daemon(1).terminate().expect("it ends");
    lab.daemon(1).start().expect("started");
    lab.daemon(1).wait_ready(READY).expect("ready");
    eventually("the one that encrypts is reached", || reaches(&lab, 1, 2));
    assert!(!reaches(&lab, 1, 3) && !reaches(&lab, 3, 1));
    let status = lab.daemon(1).status().expect("it answers");
    let unreachable = status["unreachable"][0].as_str().unwrap_or_default().to_owned();
    assert!(unreachable.contains("does not encrypt"), "{status}");
}

/// Sends so many datagrams from a pod to another, not too fast for anybody.
fn send(lab: &Lab, from: usize, to: usize, count: usize) {
    let at = (lab.pod(from).v4, 0);
    let socket = in_netns(&lab.pod(from).netns, move || UdpSocket::bind(at)).and_then(|bound| bound);
    let socket = socket.expect("a socket");
    for number in 0..count {
        let payload = format!("datagram {number} {}", "x".repeat(400));
        socket.send_to(payload.as_bytes(), (lab.pod(to).v4, Ear::PORT)).expect("sent");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Long enough for what was sent to arrive.
const QUIET: Duration = Duration::from_millis(500);

#[test]
fn what_was_recorded_is_worth_nothing() {
    let lab = pair("replay", "sealed", "");
    assert!(reaches(&lab, 1, 2));
    eventually("keys", || of_peer(&lab, 1, 2, "encryption").starts_with("sealed"));
    no_trains(&lab, 1);
    let (ear, forger) = (Ear::of(&lab, 2), Forger::of(&lab, 1, 2, 8285));
    let scrape = || Scrape::of(&lab.host(2).netns);
    let dropped = |reasons: &[&str]| {
        let scrape = scrape();
        reasons.iter().map(|reason| scrape.dropped("ingress", reason)).sum::<u64>()
    };
    // Feeds host 2 with datagrams that must all be dropped, for one of these reasons, and none else.
    let feed = |datagrams: &[Vec<u8>], reasons: &[&str], what: &str| {
        let (before, all) = (dropped(reasons), scrape().all_dropped("ingress"));
        datagrams.iter().for_each(|datagram| forger.send(datagram));
        let wanted = datagrams.len() as u64;
        within(10, what, || dropped(reasons) >= before + wanted);
        assert_eq!(scrape().all_dropped("ingress") - all, wanted, "{what}: each once");
        assert_eq!(ear.count(QUIET), 0, "{what}: nothing gets in");
    };

    let recorder = Recorder::of(&lab, 1, 2, 8285);
    send(&lab, 1, 2, 300);
    assert_eq!(ear.count(QUIET), 300);
    let recorded = recorder.stop();
    let opened = scrape().get("hopsack_opened_datagrams_total");
    assert!(
        recorded.len() >= 20 && recorded.iter().all(|datagram| datagram[0] == 0x10),
        "{}",
        recorded.len()
    );
    let some: Vec<_> = recorded.iter().step_by(7).cloned().collect();
    let backwards: Vec<_> = recorded.iter().rev().cloned().collect();
    feed(&recorded, &["replayed"], "all");
    feed(&some, &["replayed"], "some");
    feed(&backwards, &["replayed"], "in another order");
    assert_eq!(scrape().get("hopsack_opened_datagrams_total"), opened);

    // The cable is cut while these are under way: they are new to host 2, and it takes each once, in whatever order.
    let recorder = Recorder::of(&lab, 1, 2, 8285);
    run(&lab.underlay_netns(), &["ip", "link", "set", "h2", "down"]);
    send(&lab, 1, 2, 40);
    run(&lab.underlay_netns(), &["ip", "link", "set", "h2", "up"]);
    let held = recorder.stop();
    assert!(ear.count(QUIET) == 0 && held.len() >= 20, "{}", held.len());
    // A bit of each byte, of the header, of what is sealed, of the tag.
    let whole = held.last().expect("one");
    let flip = |(at, bit): (usize, usize)| {
        let mut datagram = whole.clone();
        datagram[at] ^= 1 << bit;
        datagram
    };
    let flipped: Vec<_> = (0..whole.len()).map(|at| flip((at, at % 8))).collect();
    let first: Vec<_> = (0..8).map(|bit| flip((0, bit))).collect();
    let reasons = ["unauthentic", "no_key", "replayed", "malformed", "unknown_type", "cleartext"];
    feed(&[flipped, first].concat(), &reasons, "flipped bits");
    held.iter().rev().for_each(|datagram| forger.send(datagram));
    assert_eq!(ear.count(QUIET), 40, "flipped bits have not spoilt the originals");
    feed(&held, &["replayed"], "the same again");

    // Another epoch is in force, and the old one still opens for what was on its way.
    let handshake = || {
        let before = of_peer(&lab, 2, 1, "encryption");
        let pid = lab.daemon(1).pid().expect("it runs").to_string();
        run(&lab.host(1).netns, &["kill", "-HUP", &pid]);
        eventually("other keys", || of_peer(&lab, 2, 1, "encryption") != before);
    };
    handshake();
    feed(&recorded, &["replayed"], "after a rekey");
    // And one that has been forgotten.
    (0..4).for_each(|_| handshake());
    feed(&recorded, &["no_key"], "after five");

    // A new process: it has no keys, then those of another handshake, perhaps of an epoch of the same number.
    lab.daemon(2).kill9().expect("killed");
    start_again(&lab, 2);
    feed(&some, &["no_key", "unauthentic", "unknown_peer"], "after a restart");
    eventually("pods reach each other", || reaches(&lab, 1, 2));
    eventually("keys", || of_peer(&lab, 2, 1, "encryption").starts_with("sealed"));
    feed(&recorded, &["no_key", "unauthentic"], "after a restart and a handshake");
    feed(&held, &["no_key", "unauthentic"], "after a restart and a handshake");
}

#[test]
fn what_was_recorded_of_quic_gets_nothing_in() {
    let lab = pair("replay", "quic", "");
    assert!(reaches(&lab, 1, 2));
    no_trains(&lab, 1);
    let (ear, forger) = (Ear::of(&lab, 2), Forger::of(&lab, 1, 2, 8286));
    let recorder = Recorder::of(&lab, 1, 2, 8286);
    send(&lab, 1, 2, 100);
    assert_eq!(ear.count(QUIET), 100);
    let recorded = recorder.stop();
    assert!(recorded.len() >= 20, "{}", recorded.len());
    let taken = || Scrape::of(&lab.host(2).netns).get("hopsack_ingress_packets_total");
    let before = taken();
    for datagram in recorded.iter().chain(recorded.iter().rev()) {
        forger.send(datagram);
    }
    assert_eq!((ear.count(QUIET), taken()), (0, before));
    assert!(reaches(&lab, 1, 2), "and does no harm");
}
