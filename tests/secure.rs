//! Encryption as pods, operators and attackers see it: which packets arrive, what the underlay
//! shows, and which packets an attacker can bring in.
//!
//! Changes over time (keys, certificates, restarts) are tested in tests/rekey.rs.

mod support;

use std::io::Read as _;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::lab::{Lab, LabError};
use hopsack::packet::Family;
use hopsack::pki::Authority;
use hopsack::sys::batch::Message;
use hopsack::sys::netns::in_netns;
use hopsack::sys::udp;
use support::encrypted::{
    READY, configure, explain, handshakes, hang_up, has_logged, has_logged_failure, keys, lab, of_peer, pair,
    reaches, start_again, started, subnets, wait_keys, within,
};
use support::wire::{Ear, Forger, Recorder, no_trains, tap};
use support::{Scrape, attempt, edit, eventually, hopsack, json, run, text};

const VALIDITY: Duration = Duration::from_secs(3600);

/// Bytes that fill the marked packets.
const MARK: &[u8] = b"MARKED-PAYLOAD-7";

/// Pings with marked packets, in IPv4 and IPv6.
fn ping_marked(lab: &Lab, from: usize, to: usize) {
    let pattern: String = MARK.iter().map(|byte| format!("{byte:02x}")).collect();
    for address in [lab.pod(to).v4.to_string(), lab.pod(to).v6.to_string()] {
        let argv = ["ping", "-c", "20", "-i", "0.02", "-s", "1000", "-p", &pattern, &address];
        let output = run(&lab.pod(from).netns, &argv);
        assert!(output.contains(" 0% packet loss"), "{output}");
    }
}

/// A thread that looks for the mark in every frame on the underlay.
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
                    let is_marked = frame[..length].windows(MARK.len()).any(|window| window == MARK);
                    marked.fetch_add(u64::from(is_marked), Ordering::Relaxed);
                }
            }
        });
        Self { frames, marked, stop, thread }
    }

    /// Ends the thread. Returns the number of frames, and of those that show the mark.
    fn end(self) -> (u64, u64) {
        std::thread::sleep(Duration::from_millis(200));
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread has not panicked");
        (self.frames.load(Ordering::Relaxed), self.marked.load(Ordering::Relaxed))
    }
}

/// An encrypted overlay does what a plain one does: pods reach each other, packets of the whole MTU
/// pass, TCP works. The underlay shows no payload.
fn encrypted_overlay_works(mode: &str, engine: &str, underlay: Family) {
    let config =
        format!("[security]\nmode = \"{mode}\"\nrequire = true\n\n[dataplane]\nengine = \"{engine}\"\n");
    let lab = started(lab(&format!("{mode}-{engine}"), 2, underlay, &config));
    let eavesdropper = Eavesdropper::on(&lab);
    eventually("pods reach each other", || reaches(&lab, 1, 2) && reaches(&lab, 2, 1));
    ping_marked(&lab, 1, 2);
    let (frames, marked) = eavesdropper.end();
    assert!(frames >= 160, "there are two frames for each round trip: {frames}");
    assert_eq!(marked, 0, "of {frames} frames");

    // A packet of the whole MTU passes. If a pod sends a longer one, the host tells it the MTU.
    let payload = lab.overlay_mtu() - 28;
    let full = Ping { payload, dont_fragment: true, ..Ping::to(lab.pod(2).v4) };
    assert!(ping(&lab.pod(1).netns, full).expect("ping runs").is_whole());
    run(&lab.pod(1).netns, &["ip", "link", "set", "eth0", "mtu", "1500"]);
    let longer = Ping { payload: payload + 1, dont_fragment: true, ..Ping::to(lab.pod(2).v4) };
    let answer = ping(&lab.pod(1).netns, longer).expect("ping runs");
    assert!(answer.received == 0 && answer.output.to_lowercase().contains("mtu"), "{}", answer.output);

    for family in [Family::V4, Family::V6] {
        let amount = Amount::Bytes(20_000_000);
        let flow = Flow { from: lab.pod(1), to: lab.pod(2), family, amount, verify: true };
        let moved = Transfer::start(flow).expect("TCP connects").wait().expect("every byte is right");
        assert_eq!(moved.bytes, 20_000_000);
    }
    assert_eq!(of_peer(&lab, 1, 2, "transport"), mode);
    let status = lab.daemon(1).status().expect("the daemon answers");
    assert!(status["encryption"].as_str().is_some_and(|text| text.starts_with(mode)), "{status}");
    for host in 1..=2 {
        assert!(handshakes(&lab, host) >= 1);
        assert_eq!(Scrape::of(&lab.host(host).netns).dropped("ingress", "cleartext"), 0);
    }
}

mod quic {
    use super::*;

    #[test]
    fn simple() {
        encrypted_overlay_works("quic", "simple", Family::V4);
    }
    #[test]
    fn batch() {
        encrypted_overlay_works("quic", "batch", Family::V6);
    }
    #[test]
    fn uring() {
        encrypted_overlay_works("quic", "uring", Family::V4);
    }
}

mod sealed {
    use super::*;

    #[test]
    fn simple() {
        encrypted_overlay_works("sealed", "simple", Family::V4);
    }
    #[test]
    fn batch() {
        encrypted_overlay_works("sealed", "batch", Family::V6);
    }
    #[test]
    fn uring() {
        encrypted_overlay_works("sealed", "uring", Family::V4);
    }
}

/// An administrator's MTU of a route limits sealed bundles too, including the seal.
#[test]
fn sealed_bundles_adapt_to_the_path_mtu() {
    const PACKETS: usize = 60;
    let lab = pair("narrow", "sealed", "");
    assert!(reaches(&lab, 1, 2));
    wait_keys(&lab, 1, 2);
    let netns = &lab.host(1).netns;
    run(netns, &["ip", "route", "add", "192.0.2.2", "dev", "eth0", "mtu", "1000"]);
    eventually("the route's MTU is in force", || of_peer(&lab, 1, 2, "mtu") == 1000 - 28 - 28);
    let (ear, at) = (Ear::of(&lab, 2), (lab.pod(1).v4, 0));
    let socket = in_netns(&lab.pod(1).netns, move || UdpSocket::bind(at)).and_then(|bound| bound);
    let socket = socket.expect("a socket");
    no_trains(&lab, 1);
    let recorder = Recorder::of(&lab, 1, 2, 8285);
    let train = Message::train(0, PACKETS * 64, 64, (lab.pod(2).v4, Ear::PORT).into());
    udp::send_many(&socket, &[7; PACKETS * 64], &[train]).expect("sent");
    let mut received = 0;
    within(10, "all packets arrive", || {
        received += ear.count(Duration::from_millis(100));
        received == PACKETS
    });
    let datagrams = recorder.stop();
    let longest = datagrams.iter().map(Vec::len).max().unwrap_or(0);
    assert!((500..=1000 - 28).contains(&longest), "{longest}");
    let scrape = Scrape::of(netns);
    assert!(scrape.get("hopsack_egress_bundles_total") >= 2);
    assert_eq!(
        (scrape.get("hopsack_bundle_fallbacks_total"), scrape.dropped("egress", "send_failed")),
        (0, 0)
    );
}

/// Shows that the eavesdropper of the other tests works.
#[test]
fn eavesdropper_sees_clear_packets() {
    let lab = started(lab("clear", 2, Family::V4, ""));
    let eavesdropper = Eavesdropper::on(&lab);
    ping_marked(&lab, 1, 2);
    let (frames, marked) = eavesdropper.end();
    assert!(marked >= 80, "{marked} of {frames}");
    assert_eq!(of_peer(&lab, 1, 2, "transport"), "udp");
    assert_eq!(lab.daemon(1).status().expect("the daemon answers")["encryption"], "none");
}

/// Gives a host a certificate of a CA, and makes it require one of that CA from others.
fn certify(lab: &Lab, host: usize, ca_folder: &Path, validity: Duration) {
    support::encrypted::certify(lab, host, ca_folder, validity, "mode = \"quic\"\nrequire = true");
}

#[test]
fn host_of_another_ca_is_refused_and_named() {
    let lab = lab("ca", 3, Family::V4, "");
    let (ours, theirs) = (lab.host(1).directory.join("ca"), lab.host(3).directory.join("ca"));
    // An operator makes a CA in this way.
    let made = hopsack(&["pki", "init", "--dir", &ours.to_string_lossy()]);
    assert!(made.status.success(), "{}", text(&made));
    Authority::init(&theirs, "another cluster", VALIDITY).expect("made");
    for (host, folder) in [(1, &ours), (2, &ours), (3, &theirs)] {
        certify(&lab, host, folder, VALIDITY);
    }
    let lab = started(lab);
    assert!(reaches(&lab, 1, 2) && reaches(&lab, 2, 1), "the first packet waits for the connection");
    assert!(!reaches(&lab, 3, 1) && !reaches(&lab, 1, 3), "host 3 has another CA");
    eventually("host 3 is named in the log", || has_logged_failure(&lab, 1, 3, "unknown_ca"));
    assert_eq!(explain(&lab, 1, 3)["outcome"], "waits");
    let scrape = Scrape::of(&lab.host(1).netns);
    assert!(scrape.get("hopsack_quic_handshakes_total{result=\"failed\"}") >= 1);
    eventually("packets that waited too long are counted", || {
        Scrape::of(&lab.host(1).netns).dropped("egress", "unconnected") >= 1
    });
    let shown = hopsack(&["pki", "show", "--json", &ours.join("ca.crt").to_string_lossy()]);
    assert_eq!(json(&String::from_utf8_lossy(&shown.stdout))[0]["is_ca"], true);
}

/// With a CA, a writer of etcd cannot give a host a subnet that is not in its certificate.
#[test]
fn subnet_outside_the_certificate_gets_no_keys() {
    let lab = lab("bound", 3, Family::V4, "");
    let ca = lab.host(1).directory.join("ca");
    Authority::init(&ca, "cluster", VALIDITY).expect("made");
    for host in 1..=3 {
        // `require` follows from the CA.
        support::encrypted::certify(&lab, host, &ca, VALIDITY, "mode = \"sealed\"");
    }
    // What an earlier flanneld had is not what the certificate contains.
    std::fs::write(lab.host(2).directory.join("subnet.env"), "FLANNEL_SUBNET=10.244.200.1/24\n")
        .expect("written");
    let lab = started(lab);
    let own = lab.daemon(2).status().expect("the daemon answers")["subnets"].clone();
    assert_eq!(own, json(&serde_json::to_string(&subnets(&lab, 2)).expect("JSON")), "exactly these");
    eventually("pods reach each other", || reaches(&lab, 1, 2) && reaches(&lab, 1, 3) && reaches(&lab, 2, 3));
    wait_keys(&lab, 1, 3);

    let etcd = |arguments: &[&str]| {
        let url = lab.etcd(1).url();
        run(&lab.host(1).netns, &[&["etcdctl", "--endpoints", &url], arguments].concat())
    };
    let prefix = "/coreos.com/network/subnets/";
    let all = etcd(&["get", "--prefix", prefix]);
    let lines: Vec<&str> = all.lines().collect();
    let at =
        lines.iter().position(|line| line.starts_with(&format!("{prefix}10.244.3.0-24"))).expect("a lease");
    let stolen = format!("{prefix}10.244.77.0-24");
    etcd(&["put", &stolen, lines[at + 1]]);
    let problem = |host: usize| {
        let status = lab.daemon(host).status().expect("the daemon answers");
        let problems = status["problems"].as_array().expect("a list").clone();
        problems
            .iter()
            .any(|problem| problem["code"] == "peer_certificate" && problem["object"] == "192.0.2.3")
    };
    eventually("the problem is shown", || problem(1) && problem(2));
    assert!(keys(&lab, 1, 3).is_none(), "keys are removed at once");
    let ask = json(
        &lab.daemon(1)
            .ask(r#"{"command":"explain","address":"10.244.77.1"}"#)
            .expect("it answers")
            .to_string(),
    );
    assert_eq!(ask["outcome"], "waits", "{ask}");
    assert!(of_peer(&lab, 1, 3, "encryption").as_str().is_some_and(|text| text.contains("10.244.77.0/24")));
    assert!(reaches(&lab, 1, 2) && !reaches(&lab, 1, 3));
    eventually("the reason is logged", || has_logged_failure(&lab, 1, 3, "subnets_not_certified"));
    etcd(&["del", &stolen]);
    within(20, "the problem is over", || !problem(1) && reaches(&lab, 1, 3));
    wait_keys(&lab, 1, 3);

    // A host with a certificate that contains no subnets does not start.
    let bare = lab.host(3).directory.join("bare");
    let name = lab.host(3).name.clone();
    let authority = Authority::load(&ca).expect("a CA");
    let [certificate, key] = authority.issue(&bare, (&name, &[]), VALIDITY).expect("issued");
    let ca = ca.join("ca.crt");
    configure(&lab, 3, &format!("mode = \"sealed\"\nca = {ca:?}\ncert = {certificate:?}\nkey = {key:?}"));
    lab.daemon(3).terminate().expect("ended");
    lab.daemon(3).start().expect("started");
    let refused = lab.daemon(3).wait_ready(READY);
    let Err(LabError::DaemonDied { status, log, .. }) = refused else { panic!("{refused:?}") };
    assert!(status == "exit status: 2" && log.contains("[certificate_subnets]"), "{status}: {log}");
}

#[test]
fn expired_certificate_is_refused() {
    let lab = lab("expired", 2, Family::V4, "");
    let folder = lab.host(1).directory.join("ca");
    Authority::init(&folder, "cluster", VALIDITY).expect("made");
    certify(&lab, 1, &folder, VALIDITY);
    certify(&lab, 2, &folder, Duration::from_secs(8));
    let lab = started(lab);
    // An existing connection does not end when the certificate expires. A restart of host 1 makes a
    // new connection necessary.
    std::thread::sleep(Duration::from_secs(9));
    lab.daemon(1).kill9().expect("killed");
    start_again(&lab, 1);
    lab.daemon(1).wait_peers(1, READY).expect("host 1 knows host 2");
    assert!(!reaches(&lab, 1, 2) && !reaches(&lab, 2, 1));
    eventually("host 2 is named in the log", || has_logged_failure(&lab, 1, 2, "certificate_expired"));
    // Host 2 itself does not start with such a certificate: only a new certificate can help.
    lab.daemon(2).terminate().expect("ended");
    lab.daemon(2).start().expect("started");
    let refused = lab.daemon(2).wait_ready(READY);
    let Err(LabError::DaemonDied { status, log, .. }) = refused else { panic!("{refused:?}") };
    assert!(status == "exit status: 2" && log.contains("[own_certificate_invalid]"), "{status}: {log}");
}

/// A pod of host 3 uses a source address of host 2's subnet. Host 1 drops its packets and logs the
/// name of host 3.
fn foreign_source_is_dropped_and_named(mode: &str) {
    let lab = lab(&format!("subnet-{mode}"), 3, Family::V4, &format!("[security]\nmode = \"{mode}\"\n"));
    // Host 3 itself does not check what its pods send.
    edit(&lab.daemon(3).config_path(), "[overlay]", "[overlay]\nverify_source = \"peer\"");
    let lab = started(lab);
    assert!(reaches(&lab, 3, 1), "the first packet waits for the connection");
    if mode == "sealed" {
        wait_keys(&lab, 3, 1);
    }
    let forged = lab.host(2).subnet_v4.hosts().nth(77).expect("an address").to_string();
    let netns = &lab.pod(3).netns;
    run(netns, &["ip", "addr", "add", &format!("{forged}/32"), "dev", "lo"]);
    attempt(netns, &["ping", "-c", "5", "-i", "0.05", "-W", "1", "-I", &forged, &lab.pod(1).v4.to_string()]);
    let scrape = Scrape::of(&lab.host(1).netns);
    assert!(scrape.dropped("ingress", "spoofed_source") >= 5);
    let host = format!("host=\"{}\"", lab.host(3).name);
    eventually("host 3 is named in the log", || has_logged(&lab, 1, &["spoofed_source", &host]));
}

#[test]
fn foreign_source_in_quic_is_dropped() {
    foreign_source_is_dropped_and_named("quic");
}

#[test]
fn sealed_foreign_source_is_dropped() {
    foreign_source_is_dropped_and_named("sealed");
}

#[test]
fn plain_hosts_are_reachable_unless_encryption_is_required() {
    let lab = lab("pairs", 3, Family::V4, "");
    lab.start().expect("ready");
    let restart = |host: usize, security: &str| {
        configure(&lab, host, security);
        lab.daemon(host).terminate().expect("ended");
        start_again(&lab, host);
    };
    // An operator turns encryption on host by host.
    for host in [1, 2] {
        restart(host, "mode = \"quic\"");
        lab.daemon(host).wait_peers(2, READY).expect("the host knows the others");
        eventually("all reach all", || reaches(&lab, 1, 2) && reaches(&lab, 1, 3) && reaches(&lab, 3, 2));
    }
    assert_eq!(of_peer(&lab, 1, 2, "transport"), "quic");
    assert_eq!(of_peer(&lab, 1, 3, "transport"), "udp");
    assert_eq!(of_peer(&lab, 3, 1, "transport"), "udp");

    restart(1, "mode = \"quic\"\nrequire = true");
    eventually("the host that encrypts is reachable", || reaches(&lab, 1, 2));
    assert!(!reaches(&lab, 1, 3) && !reaches(&lab, 3, 1));
    let status = lab.daemon(1).status().expect("the daemon answers");
    let unreachable = status["unreachable"].as_array().expect("a list");
    let is_host_3 =
        |entry: &serde_json::Value| entry.as_str().is_some_and(|text| text.starts_with(&lab.host(3).name));
    assert!(unreachable.len() == 1 && is_host_3(&unreachable[0]), "{status}");
    assert_eq!(explain(&lab, 1, 3)["drop"], "no_route");
}

/// Sends datagrams from one pod to another, slowly enough that no queue overflows.
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

/// If nothing arrives for this time, everything that was sent has arrived.
const QUIET: Duration = Duration::from_millis(500);

/// Sends datagrams with the address of host 1 to host 2, as an attacker would.
struct Attack<'a> {
    lab: &'a Lab,
    ear: Ear,
    forger: Forger,
}

impl<'a> Attack<'a> {
    fn on(lab: &'a Lab) -> Self {
        Self { lab, ear: Ear::of(lab, 2), forger: Forger::of(lab, 1, 2, 8285) }
    }

    fn scrape(&self) -> Scrape {
        Scrape::of(&self.lab.host(2).netns)
    }

    fn dropped(&self, reasons: &[&str]) -> u64 {
        let scrape = self.scrape();
        reasons.iter().map(|reason| scrape.dropped("ingress", reason)).sum()
    }

    /// Sends datagrams. Host 2 must drop each of them once, for one of these reasons.
    fn is_dropped(&self, datagrams: &[Vec<u8>], reasons: &[&str], what: &str) {
        let (before, all) = (self.dropped(reasons), self.scrape().all_dropped("ingress"));
        datagrams.iter().for_each(|datagram| self.forger.send(datagram));
        let sent = datagrams.len() as u64;
        within(10, what, || self.dropped(reasons) >= before + sent);
        assert_eq!(self.scrape().all_dropped("ingress") - all, sent, "{what}: each is counted once");
        assert_eq!(self.ear.count(QUIET), 0, "{what}: no packet reaches the pod");
    }

    /// Sends datagrams from pod 1 to pod 2 and records them on the underlay.
    fn record(&self) -> Vec<Vec<u8>> {
        let recorder = Recorder::of(self.lab, 1, 2, 8285);
        send(self.lab, 1, 2, 300);
        assert_eq!(self.ear.count(QUIET), 300);
        let recorded = recorder.stop();
        let is_sealed = |datagram: &Vec<u8>| datagram[0] == 0x10;
        assert!(recorded.len() >= 20 && recorded.iter().all(is_sealed), "{}", recorded.len());
        recorded
    }

    /// Records datagrams that never arrive at host 2, because its link is down.
    fn intercept(&self) -> Vec<Vec<u8>> {
        let recorder = Recorder::of(self.lab, 1, 2, 8285);
        run(&self.lab.underlay_netns(), &["ip", "link", "set", "h2", "down"]);
        send(self.lab, 1, 2, 40);
        run(&self.lab.underlay_netns(), &["ip", "link", "set", "h2", "up"]);
        let intercepted = recorder.stop();
        assert!(self.ear.count(QUIET) == 0 && intercepted.len() >= 20, "{}", intercepted.len());
        intercepted
    }
}

/// Copies of a datagram, each with one bit changed: one bit of each byte (header, ciphertext, tag),
/// and every bit of the first byte.
fn with_one_bit_changed(datagram: &[u8]) -> Vec<Vec<u8>> {
    let change = |(at, bit): (usize, usize)| {
        let mut copy = datagram.to_vec();
        copy[at] ^= 1 << bit;
        copy
    };
    let each_byte = (0..datagram.len()).map(|at| (at, at % 8));
    each_byte.chain((0..8).map(|bit| (0, bit))).map(change).collect()
}

#[test]
fn recorded_sealed_datagrams_are_dropped() {
    let lab = pair("replay", "sealed", "");
    assert!(reaches(&lab, 1, 2));
    wait_keys(&lab, 1, 2);
    no_trains(&lab, 1);
    let attack = Attack::on(&lab);

    let recorded = attack.record();
    // The hosts exchange control messages meanwhile.
    let opened = || {
        let scrape = attack.scrape();
        scrape.get("hopsack_opened_datagrams_total") - scrape.get("hopsack_control_messages_total")
    };
    let opened_before = opened();
    let some: Vec<_> = recorded.iter().step_by(7).cloned().collect();
    let backwards: Vec<_> = recorded.iter().rev().cloned().collect();
    attack.is_dropped(&recorded, &["replayed"], "all");
    attack.is_dropped(&some, &["replayed"], "some");
    attack.is_dropped(&backwards, &["replayed"], "in another order");
    assert_eq!(opened(), opened_before);

    // These datagrams are new to host 2. It accepts each of them once, in any order.
    let intercepted = attack.intercept();
    let changed = with_one_bit_changed(intercepted.last().expect("at least one"));
    let reasons = ["unauthentic", "no_key", "replayed", "malformed", "unknown_type", "cleartext"];
    attack.is_dropped(&changed, &reasons, "with changed bits");
    intercepted.iter().rev().for_each(|datagram| attack.forger.send(datagram));
    assert_eq!(attack.ear.count(QUIET), 40, "the changed copies have not spoilt the originals");
    attack.is_dropped(&intercepted, &["replayed"], "the same again");

    // After a rekey the old keys still open datagrams that were under way.
    let rekey = || {
        let before = keys(&lab, 2, 1);
        hang_up(&lab, 1);
        eventually("there are other keys", || keys(&lab, 2, 1).is_some_and(|name| Some(name) != before));
    };
    rekey();
    attack.is_dropped(&recorded, &["replayed"], "after a rekey");
    // After more of them host 2 has forgotten the old keys.
    (0..4).for_each(|_| rekey());
    attack.is_dropped(&recorded, &["no_key"], "after five rekeys");

    // A new process has no keys at first. Then it has keys of another handshake, which may have the
    // same epoch number.
    lab.daemon(2).kill9().expect("killed");
    start_again(&lab, 2);
    attack.is_dropped(&some, &["no_key", "unauthentic", "unknown_peer"], "after a restart");
    eventually("pods reach each other", || reaches(&lab, 1, 2));
    wait_keys(&lab, 2, 1);
    let reasons = ["no_key", "unauthentic"];
    attack.is_dropped(&recorded, &reasons, "after a restart and a handshake");
    attack.is_dropped(&intercepted, &reasons, "after a restart and a handshake");
}

#[test]
fn recorded_quic_packets_are_ignored() {
    let lab = pair("replay", "quic", "");
    assert!(reaches(&lab, 1, 2));
    no_trains(&lab, 1);
    let (ear, forger) = (Ear::of(&lab, 2), Forger::of(&lab, 1, 2, 8286));
    let recorder = Recorder::of(&lab, 1, 2, 8286);
    send(&lab, 1, 2, 100);
    assert_eq!(ear.count(QUIET), 100);
    let recorded = recorder.stop();
    assert!(recorded.len() >= 20, "{}", recorded.len());
    let accepted = || Scrape::of(&lab.host(2).netns).get("hopsack_ingress_packets_total");
    let before = accepted();
    for datagram in recorded.iter().chain(recorded.iter().rev()) {
        forger.send(datagram);
    }
    assert_eq!((ear.count(QUIET), accepted()), (0, before));
    assert!(reaches(&lab, 1, 2), "the connection still works");
}
