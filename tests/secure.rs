//! Encryption as pods, operators and eavesdroppers meet it: what passes, what the cable shows, who is kept out, and what
//! survives restarts and new certificates.

mod support;

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use hopsack::pki::Authority;
use hopsack::sys::netns::in_netns;
use socket2::{Domain, Protocol, Socket, Type};
use support::{HOPSACK, Scrape, attempt, eventually, hopsack, json, run, text};

const READY: Duration = Duration::from_secs(15);
const LIFE: Duration = Duration::from_secs(3600);

/// A lab on an etcd of its own, with what each daemon's configuration gets in addition.
fn lab(label: &str, hosts: u8, underlay: Family, config: &str) -> Lab {
    let (extra_config, store) = (config.to_owned(), Store::Etcd { members: 1 });
    let options = Options { hosts, underlay, extra_config, store, ..Options::unique(label, HOPSACK) };
    Lab::create(options).expect("these tests need root, /dev/net/tun, etcd, ip and ping: run scripts/test")
}

fn started(lab: Lab) -> Lab {
    lab.start().expect("all daemons are ready");
    lab
}

fn peers(lab: &Lab, host: usize) -> serde_json::Value {
    lab.daemon(host).ask(r#"{"command":"peers"}"#).expect("it answers")
}

/// One field of what a host says about another.
fn of_peer(lab: &Lab, host: usize, peer: usize, field: &str) -> String {
    let name = lab.host(peer).name.clone();
    let list = peers(lab, host);
    let found = list.as_array().expect("a list").iter().find(|entry| entry["name"] == name.as_str());
    found.map_or("no such peer".into(), |entry| entry[field].as_str().unwrap_or_default().to_owned())
}

fn reaches(lab: &Lab, from: usize, to: usize) -> bool {
    let pod = lab.pod(to);
    let one = |address: std::net::IpAddr| ping(&lab.pod(from).netns, Ping::to(address)).expect("ping runs");
    one(pod.v4.into()).is_whole() && one(pod.v6.into()).is_whole()
}

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
        // Where the hosts' cables meet, and no pod's.
        let every_protocol = i32::from(0x0003_u16.to_be());
        let open = move || {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(every_protocol)))?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        };
        let socket = in_netns(&lab.underlay_netns(), open).and_then(|result: std::io::Result<Socket>| result);
        let mut socket = socket.expect("a packet socket");
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

fn survives_kill_9(mode: &str) {
    let lab =
        started(lab(&format!("kill-{mode}"), 2, Family::V4, &format!("[security]\nmode = \"{mode}\"\n")));
    let amount = Amount::Time(Duration::from_secs(120));
    let flow = Flow { from: lab.pod(1), to: lab.pod(2), family: Family::V4, amount, verify: true };
    let transfer = Transfer::start(flow).expect("TCP connects");
    for host in [1, 2] {
        let before = transfer.received();
        eventually("bytes flow", || transfer.received() > before + 1_000_000);
        lab.daemon(host).kill9().expect("killed");
        lab.daemon(host).start().expect("started");
        lab.daemon(host).wait_ready(READY).expect("ready");
    }
    let before = transfer.received();
    eventually("bytes flow again", || transfer.received() > before + 1_000_000);
    transfer.finish();
    transfer.wait().expect("not one reset, not one wrong byte");
}

#[test]
fn tcp_survives_kill_9_of_either_end_by_quic() {
    survives_kill_9("quic");
}

#[test]
fn tcp_survives_kill_9_of_either_end_sealed() {
    survives_kill_9("sealed");
}

/// Gives a host a certificate of an authority, for its own name, and the other hosts' CA or its own.
fn certify(lab: &Lab, host: usize, folder: &Path, life: Duration) {
    let name = lab.host(host).name.clone();
    let authority = Authority::load(folder).expect("a CA");
    let own = lab.host(host).directory.join("pki");
    let [certificate, key] = authority.issue(&own, &name, life).expect("issued");
    let ca = folder.join("ca.crt");
    let security = format!(
        "\n[security]\nmode = \"quic\"\nrequire = true\nca = {ca:?}\ncert = {certificate:?}\nkey = {key:?}\n"
    );
    let path = lab.daemon(host).config_path();
    let config = std::fs::read_to_string(&path).expect("it is there");
    std::fs::write(&path, config + &security).expect("written");
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

#[test]
fn another_host_s_subnet_is_refused_and_its_user_is_named() {
    let lab = started(lab("subnet", 3, Family::V4, "[security]\nmode = \"quic\"\n"));
    assert!(reaches(&lab, 3, 1), "the first packet waits for the connection");
    // A pod of host 3 that pretends to live on host 2.
    let forged = lab.host(2).subnet_v4.hosts().nth(77).expect("an address").to_string();
    let netns = &lab.pod(3).netns;
    run(netns, &["ip", "addr", "add", &format!("{forged}/32"), "dev", "lo"]);
    attempt(netns, &["ping", "-c", "5", "-i", "0.05", "-W", "1", "-I", &forged, &lab.pod(1).v4.to_string()]);
    let scrape = Scrape::of(&lab.host(1).netns);
    assert!(scrape.dropped("ingress", "spoofed_source") >= 5);
    let name = format!("host=\"{}\"", lab.host(3).name);
    let named = |line: &str| line.contains("not its own") && line.contains(&name);
    assert!(lab.daemon(1).log().lines().any(named), "{}", lab.daemon(1).log());
}

#[test]
fn plain_hosts_stay_reachable_unless_encryption_is_required() {
    let lab = lab("pairs", 3, Family::V4, "");
    let configure = |host: usize, security: &str| {
        let path = lab.daemon(host).config_path();
        let config = std::fs::read_to_string(&path).expect("it is there");
        let config = config.split("\n[security]").next().expect("a part").to_owned();
        std::fs::write(&path, format!("{config}\n[security]\n{security}\n")).expect("written");
    };
    lab.start().expect("ready");
    // Host after host, as an operator would.
    for host in [1, 2] {
        configure(host, "mode = \"quic\"");
        lab.daemon(host).terminate().expect("it ends");
        lab.daemon(host).start().expect("started");
        lab.daemon(host).wait_ready(READY).expect("ready");
        lab.daemon(host).wait_peers(2, READY).expect("it knows the others");
        eventually("all reach all", || reaches(&lab, 1, 2) && reaches(&lab, 1, 3) && reaches(&lab, 3, 2));
    }
    assert_eq!(of_peer(&lab, 1, 2, "transport"), "quic");
    assert_eq!(of_peer(&lab, 1, 3, "transport"), "udp");
    assert_eq!(of_peer(&lab, 3, 1, "transport"), "udp");

    configure(1, "mode = \"quic\"\nrequire = true");
    lab.daemon(1).terminate().expect("it ends");
    lab.daemon(1).start().expect("started");
    lab.daemon(1).wait_ready(READY).expect("ready");
    eventually("the one that encrypts is reached", || reaches(&lab, 1, 2));
    assert!(!reaches(&lab, 1, 3) && !reaches(&lab, 3, 1));
    let status = lab.daemon(1).status().expect("it answers");
    let unreachable = status["unreachable"][0].as_str().unwrap_or_default().to_owned();
    assert!(unreachable.contains("does not encrypt"), "{status}");
}

fn rotates_under_tcp(mode: &str) {
    let lab =
        started(lab(&format!("rotate-{mode}"), 2, Family::V4, &format!("[security]\nmode = \"{mode}\"\n")));
    let amount = Amount::Time(Duration::from_secs(120));
    let flow = Flow { from: lab.pod(1), to: lab.pod(2), family: Family::V4, amount, verify: true };
    let transfer = Transfer::start(flow).expect("TCP connects");
    let handshakes =
        || Scrape::of(&lab.host(2).netns).get("hopsack_quic_handshakes_total{result=\"authenticated\"}");
    for host in [1, 2] {
        let (bytes, before) = (transfer.received(), handshakes());
        eventually("bytes flow", || transfer.received() > bytes + 1_000_000);
        let state = lab.host(host).directory.join("state");
        for name in ["node.crt", "node.key"] {
            std::fs::remove_file(state.join(name)).expect("it was there");
        }
        let pid = lab.daemon(host).pid().expect("it runs").to_string();
        run(&lab.host(host).netns, &["kill", "-HUP", &pid]);
        eventually("another certificate", || lab.daemon(host).log().contains("shows another certificate"));
        eventually("a handshake with it", || handshakes() > before);
    }
    let before = transfer.received();
    eventually("bytes flow again", || transfer.received() > before + 1_000_000);
    transfer.finish();
    transfer.wait().expect("not one reset, not one wrong byte");
    for host in 1..=2 {
        let scrape = Scrape::of(&lab.host(host).netns);
        for reason in ["unconnected", "cleartext"] {
            assert_eq!(scrape.dropped("egress", reason) + scrape.dropped("ingress", reason), 0, "{reason}");
        }
    }
}

#[test]
fn certificates_are_replaced_under_tcp_by_quic() {
    rotates_under_tcp("quic");
}

#[test]
fn certificates_are_replaced_under_tcp_sealed() {
    rotates_under_tcp("sealed");
}

#[test]
fn keys_are_replaced_every_two_seconds_under_tcp() {
    let config = "[security]\nmode = \"sealed\"\nrekey_seconds = 2\n";
    let lab = started(lab("rekey", 2, Family::V4, config));
    let amount = Amount::Time(Duration::from_secs(120));
    let flow = Flow { from: lab.pod(1), to: lab.pod(2), family: Family::V4, amount, verify: true };
    let transfer = Transfer::start(flow).expect("TCP connects");
    let rekeys = || Scrape::of(&lab.host(1).netns).get("hopsack_seal_rekeys_total");
    let wanted = rekeys() + 3;
    eventually("three changes of keys", || rekeys() >= wanted);
    transfer.finish();
    transfer.wait().expect("not one reset, not one wrong byte");
}
