//! What a restart of the daemon costs: packets of the kernel fast path are never lost, and those of
//! the engine only while no daemon runs. And what happens when a part that the fast path needs goes
//! away.
//!
//! In each test TCP with all bytes compared and numbered datagrams run between two pods. The tests
//! print what was lost.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use hopsack::api::Request;
use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use hopsack::sys::bpf::{Hook, interface_index, pinned_link, programs};
use hopsack::sys::netns::in_netns;
use serde_json::Value;
use support::{HOPSACK, Scrape, edit, eventually, json, run, text};

const READY: Duration = Duration::from_secs(10);
/// Datagrams in a burst, and the time between two bursts: 20,000 in a second.
const BURST: u64 = 20;
const PERIOD: Duration = Duration::from_millis(1);

fn lab(label: &str, hosts: u8, fast_path: bool) -> Lab {
    let options = Options { hosts, fast_path, ..Options::unique(label, HOPSACK) };
    Lab::up(options).expect("these tests need root, /dev/net/tun, ip and ping: run scripts/test")
}

fn status(lab: &Lab, host: usize) -> Value {
    lab.daemon(host).status().unwrap_or_default()
}

/// Whether a host sends to `peers` peers by the fast path.
fn sends_fast(lab: &Lab, host: usize, peers: u64) -> bool {
    let fast = status(lab, host)["fast_path"].clone();
    fast["is_on"] == true && fast["peers"] == peers
}

fn all_send_fast(lab: &Lab) -> bool {
    let hosts = lab.hosts().len();
    (1..=hosts).all(|host| sends_fast(lab, host, hosts as u64 - 1))
}

/// Rate of TCP: 1 Gbit/s, in bytes a second.
const RATE: u32 = 125_000_000;

/// TCP from the first pod to the second one, and datagrams back.
struct Traffic {
    tcp: Transfer,
    udp: Numbered,
    backlog_drops: u64,
}

impl Traffic {
    fn start(lab: &Lab) -> Self {
        let amount = Amount::Time(Duration::from_secs(600));
        let flow = Flow { from: lab.pod(1), to: lab.pod(2), family: Family::V4, amount, verify: true };
        let tcp = Transfer::start(flow).expect("TCP connects");
        tcp.limit_rate(RATE).expect("paced");
        let traffic = Self { tcp, udp: Numbered::start(lab), backlog_drops: backlog_drops() };
        traffic.flows();
        // What is tested is what happens to flows that run.
        sleep(Duration::from_secs(2));
        traffic
    }

    /// Waits until TCP has moved more bytes.
    fn flows(&self) {
        let before = self.tcp.received();
        eventually("bytes flow", || self.tcp.received() > before + 100_000);
    }

    /// Ends both. TCP must be whole. Returns the numbers of sent and lost datagrams.
    fn end(self) -> (u64, u64) {
        self.tcp.finish();
        let moved = self.tcp.wait().expect("not one reset, not one wrong byte");
        let (sent, lost) = self.udp.end();
        let busy = backlog_drops() - self.backlog_drops;
        println!(
            "TCP: {} MB, longest pause {:.3} s; UDP: {sent} sent, {lost} lost, {busy} frames dropped by busy CPUs",
            moved.bytes / 1_000_000,
            moved.longest_stall.as_secs_f64(),
        );
        // A loss that the queues of the CPUs explain says nothing about the daemon.
        (sent, lost.saturating_sub(busy))
    }
}

/// Frames that the kernel has dropped because the queue of a CPU was full (netdev_max_backlog), in
/// all network namespaces.
fn backlog_drops() -> u64 {
    let stat = fs::read_to_string("/proc/net/softnet_stat").expect("it exists");
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    stat.lines().filter_map(dropped).sum()
}

/// Numbered datagrams from the second pod to the first one.
struct Numbered {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
}

impl Numbered {
    fn start(lab: &Lab) -> Self {
        let bind = |netns: &str, at: SocketAddr| -> UdpSocket {
            in_netns(netns, move || UdpSocket::bind(at)).and_then(|socket| socket).expect("a socket")
        };
        let receiver = bind(&lab.pod(1).netns, SocketAddr::new(lab.pod(1).v4.into(), 7000));
        let sender = bind(&lab.pod(2).netns, SocketAddr::new(lab.pod(2).v4.into(), 0));
        // A thread that has to wait for the processor must not lose datagrams.
        let queue = socket2::SockRef::from(&receiver);
        queue.set_recv_buffer_size(64 << 20).expect("set");
        force_queue(&receiver);
        receiver.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
        let to = receiver.local_addr().expect("an address");
        let stop = Arc::<AtomicBool>::default();
        let sender = std::thread::spawn({
            let stop = stop.clone();
            move || send(&sender, to, &stop)
        });
        let receiver = std::thread::spawn({
            let stop = stop.clone();
            move || receive(&receiver, &stop)
        });
        Self { stop, sender, receiver }
    }

    fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("it sends");
        let received = self.receiver.join().expect("it receives");
        (sent, sent - received)
    }
}

/// A queue that is longer than net.core.rmem_max permits.
fn force_queue(socket: &UdpSocket) {
    use std::os::fd::AsRawFd;
    let bytes: libc::c_int = 64 << 20;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("small");
    // SAFETY: the kernel reads one integer, which lives until the call has returned.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            length,
        )
    };
}

fn send(socket: &UdpSocket, to: SocketAddr, stop: &AtomicBool) -> u64 {
    let (begin, mut bursts, mut sent) = (Instant::now(), 0, 0u64);
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            // A packet filter or a full queue: the datagram is not sent.
            if socket.send_to(&sent.to_be_bytes(), to).is_ok() {
                sent += 1;
            }
        }
        bursts += 1;
        // A thread that comes late does not hurry.
        let next = PERIOD * bursts;
        match next.checked_sub(begin.elapsed()) {
            Some(left) => sleep(left),
            None => bursts = u32::try_from(begin.elapsed().as_millis()).expect("minutes"),
        }
    }
    sent
}

/// Returns the number of different datagrams.
fn receive(socket: &UdpSocket, stop: &AtomicBool) -> u64 {
    let (mut numbers, mut buffer) = (BTreeSet::new(), [0; 8]);
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) => drop(numbers.insert(u64::from_be_bytes(buffer))),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if stop.load(Ordering::Relaxed) {
                    return numbers.len() as u64;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The links of a host: names of pins, and the kernel's numbers.
fn links(lab: &Lab, host: usize) -> Vec<(String, u32)> {
    let entries = fs::read_dir(lab.host(host).bpf_directory()).expect("a bpffs");
    let mut links: Vec<_> = entries
        .map(|entry| entry.expect("an entry"))
        .filter_map(|entry| {
            let name = entry.file_name().into_string().expect("a name");
            let id = name.contains('-').then(|| pinned_link(&entry.path()).expect("a link").id)?;
            Some((name, id))
        })
        .collect();
    links.sort();
    links
}

fn index(lab: &Lab, host: usize, device: &str) -> Value {
    json(&run(&lab.host(host).netns, &["ip", "-j", "link", "show", device]))[0]["ifindex"].clone()
}

/// What a restart leaves as it was, and what it does not.
fn adopts(lab: &Lab, host: usize, before: &(Vec<(String, u32)>, Value)) {
    assert_eq!(links(lab, host), before.0, "the same links");
    assert_eq!(index(lab, host, "hopsack0"), before.1, "the same device");
    let fast = status(lab, host)["fast_path"].clone();
    assert_eq!((&fast["is_on"], &fast["peers"]), (&true.into(), &1.into()), "{fast}");
    assert_eq!(fast["repairs"], 0, "{fast}");
}

fn all_of(lab: &Lab, host: usize) -> (Vec<(String, u32)>, Value) {
    (links(lab, host), index(lab, host, "hopsack0"))
}

#[test]
fn restarts_lose_no_packet_of_the_fast_path() {
    let lab = lab("restart", 2, true);
    eventually("both use the fast path", || all_send_fast(&lab));
    let before = [all_of(&lab, 1), all_of(&lab, 2)];
    let daemons = [lab.daemon(1), lab.daemon(2)];
    let start = |daemons: &[&hopsack::lab::Daemon]| {
        daemons.iter().for_each(|daemon| daemon.start().expect("started"));
        daemons.iter().for_each(|daemon| daemon.wait_ready(READY).expect("ready"));
    };
    let judge = |what: &str, traffic: Traffic| {
        print!("{what}: ");
        let (sent, lost) = traffic.end();
        assert!(sent > 1000 && lost == 0, "{what}: {lost} of {sent} lost");
        eventually("both use the fast path", || all_send_fast(&lab));
        for host in [1, 2] {
            adopts(&lab, host, &before[host - 1]);
        }
    };

    for (what, killed) in [("kill -9 of one daemon", &daemons[..1]), ("kill -9 of both", &daemons[..])] {
        let traffic = Traffic::start(&lab);
        killed.iter().for_each(|daemon| daemon.kill9().expect("killed"));
        for _ in 0..10 {
            sleep(Duration::from_secs(1));
            traffic.flows();
        }
        start(killed);
        sleep(Duration::from_secs(4));
        traffic.flows();
        judge(what, traffic);
    }

    let traffic = Traffic::start(&lab);
    for daemon in daemons {
        let status = daemon.terminate().expect("it ends").expect("it is our child");
        assert!(status.success());
        start(&[daemon]);
        sleep(Duration::from_secs(3));
    }
    judge("planned restart of one daemon after the other", traffic);

    // Another program takes over, as after an upgrade.
    let copy = lab.host(1).directory.join("hopsack-copy");
    fs::copy(HOPSACK, &copy).expect("copied");
    let traffic = Traffic::start(&lab);
    daemons[0].terminate().expect("it ends");
    let other = Other::start(&lab.host(1).netns, &[], &copy, &daemons[0].config_path());
    eventually("the copy is ready", || status(&lab, 1)["ready"] == true);
    sleep(Duration::from_secs(3));
    judge("upgrade", traffic);
    drop(other);
}

/// A daemon that the lab does not start.
struct Other(Child);

impl Other {
    fn start(netns: &str, before: &[&str], binary: &Path, config: &Path) -> Self {
        let child = Command::new("ip")
            .args(["netns", "exec", netns])
            .args(before)
            .arg(binary)
            .args(["run", "--config"])
            .arg(config)
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("ip runs"))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn restarts_cost_the_engine_what_was_sent_meanwhile() {
    let lab = lab("restart-engine", 2, false);
    for (what, away) in [("kill -9, away for 10 s", Some(Duration::from_secs(10))), ("planned restart", None)]
    {
        let traffic = Traffic::start(&lab);
        let daemon = lab.daemon(1);
        match away {
            Some(away) => {
                daemon.kill9().expect("killed");
                sleep(away);
            }
            None => drop(daemon.terminate().expect("it ends")),
        }
        daemon.start().expect("started");
        daemon.wait_ready(READY).expect("ready");
        // TCP waits longer and longer before it tries again.
        eventually("bytes flow again", || {
            let before = traffic.tcp.received();
            sleep(Duration::from_secs(1));
            traffic.tcp.received() > before
        });
        print!("without the fast path, {what}: ");
        let (sent, lost) = traffic.end();
        assert!(lost > 0 && lost < sent, "{lost} of {sent}");
    }
}

#[test]
fn detached_program_is_attached_again() {
    let lab = lab("detach", 2, true);
    eventually("both use the fast path", || all_send_fast(&lab));
    let directory = lab.host(2).bpf_directory();
    let pin = || {
        let name = links(&lab, 2).into_iter().find(|(name, _)| name.starts_with("underlay"));
        directory.join(name.expect("a link").0)
    };
    let repairs = || Scrape::of(&lab.host(2).netns).get("hopsack_fast_repairs_total");
    let missed = || {
        let problems = status(&lab, 2)["problems"].clone();
        problems.as_array().is_some_and(|list| list.iter().any(|problem| problem["code"] == "fast_missed"))
    };
    let traffic = Traffic::start(&lab);
    let link = pin();
    let detach = ["bpftool", "link", "detach", "pinned", &link.display().to_string()].map(str::to_owned);
    for (round, detached) in (1..).zip([false, true]) {
        let begin = Instant::now();
        if detached {
            let output = Command::new(&detach[0]).args(&detach[1..]).output();
            let Ok(output) = output else {
                println!("bpftool is missing: the link was only unpinned");
                break;
            };
            assert!(output.status.success(), "{}", text(&output));
        } else {
            fs::remove_file(pin()).expect("removed");
        }
        eventually("it is attached again", || repairs() == round);
        println!("attached again after {:.2} s", begin.elapsed().as_secs_f64());
        eventually("the problem is reported", missed);
        traffic.flows();
        sleep(Duration::from_secs(2));
        traffic.flows();
    }
    let (_, lost) = traffic.end();
    assert_eq!(lost, 0, "the daemon has taken what the program did not");
    let deadline = Instant::now() + Duration::from_secs(30);
    while missed() {
        assert!(Instant::now() < deadline, "the problem does not end");
        sleep(Duration::from_millis(200));
    }
    assert!(all_send_fast(&lab));
}

#[test]
fn fast_path_follows_the_underlay() {
    let lab = lab("follow", 2, true);
    eventually("both use the fast path", || all_send_fast(&lab));
    let (host, net) = (lab.host(1).netns.clone(), lab.underlay_netns());
    let traffic = Traffic::start(&lab);
    let back = |what: &str| {
        let begin = Instant::now();
        let deadline = begin + Duration::from_secs(40);
        while !all_send_fast(&lab) {
            assert!(Instant::now() < deadline, "{what}: {} {}", status(&lab, 1), status(&lab, 2));
            sleep(Duration::from_millis(50));
        }
        println!("{what}: by the fast path again after {:.1} s", begin.elapsed().as_secs_f64());
        traffic.flows();
    };
    // The interface goes down, and comes up again.
    run(&host, &["ip", "link", "set", "eth0", "down"]);
    eventually("the engine sends", || sends_fast(&lab, 1, 0));
    run(&host, &["ip", "link", "set", "eth0", "up"]);
    back("interface down and up");
    run(&net, &["ip", "link", "set", "h1", "down"]);
    eventually("the engine sends", || sends_fast(&lab, 1, 0));
    run(&net, &["ip", "link", "set", "h1", "up"]);
    back("carrier lost and back");

    // The interface is replaced by another one of the same name.
    run(&host, &["ip", "link", "del", "eth0"]);
    eventually("the engine sends", || sends_fast(&lab, 1, 0));
    run(&net, &["ip", "link", "add", "h1", "type", "veth", "peer", "name", "eth0", "netns", &host]);
    run(&net, &["ip", "link", "set", "h1", "master", "br0", "up"]);
    run(&host, &["ip", "addr", "add", "192.0.2.1/24", "dev", "eth0"]);
    run(&host, &["ip", "link", "set", "eth0", "up"]);
    back("interface replaced");
    let underlay = format!("underlay-{}", index(&lab, 1, "eth0"));
    assert!(links(&lab, 1).iter().any(|(name, _)| *name == underlay), "{:?}", links(&lab, 1));
    traffic.end();
}

#[test]
fn fast_path_follows_another_address() {
    let store = Store::Etcd { members: 1 };
    let options = Options { hosts: 2, store, ..Options::unique("moved", HOPSACK) };
    let lab =
        Lab::up(options).expect("these tests need root, /dev/net/tun, etcd, ip and ping: run scripts/test");
    let (host, daemon) = (lab.host(1).netns.clone(), lab.daemon(1));
    // The lab configures the address; this host has to find it.
    edit(&daemon.config_path(), "public_ip  = \"192.0.2.1\"\n", "");
    daemon.terminate().expect("it ends");
    daemon.start().expect("started");
    daemon.wait_ready(READY).expect("ready");
    eventually("both use the fast path", || all_send_fast(&lab));
    let traffic = Traffic::start(&lab);
    for (gone, new) in [(1, 101), (101, 1)] {
        let move_address =
            format!("ip addr del 192.0.2.{gone}/24 dev eth0 && ip addr add 192.0.2.{new}/24 dev eth0");
        run(&host, &["sh", "-c", &move_address]);
        let begin = Instant::now();
        let is_moved = || {
            let peers: Value = lab.daemon(2).query(Request::Peers).expect("it answers");
            let peer = &peers[0];
            peer["endpoint"] == format!("192.0.2.{new}:8285") && peer["path"] == "kernel"
        };
        while !(is_moved() && all_send_fast(&lab)) {
            assert!(begin.elapsed() < Duration::from_secs(40), "{} {}", status(&lab, 1), status(&lab, 2));
            sleep(Duration::from_millis(50));
        }
        println!("another address: by the fast path again after {:.1} s", begin.elapsed().as_secs_f64());
        eventually("bytes flow", || {
            let before = traffic.tcp.received();
            sleep(Duration::from_millis(500));
            traffic.tcp.received() > before
        });
    }
    traffic.end();
}

#[test]
fn deleted_overlay_device_costs_a_restart_only() {
    let lab = lab("no-device", 2, true);
    eventually("both use the fast path", || all_send_fast(&lab));
    let traffic = Traffic::start(&lab);
    run(&lab.host(1).netns, &["ip", "link", "del", "hopsack0"]);
    eventually("the daemon ends", || lab.daemon(1).pid().is_none());
    lab.daemon(1).start().expect("started");
    lab.daemon(1).wait_ready(READY).expect("ready");
    eventually("both use the fast path", || all_send_fast(&lab));
    eventually("bytes flow again", || {
        let before = traffic.tcp.received();
        sleep(Duration::from_millis(500));
        traffic.tcp.received() > before
    });
    traffic.end();
}

#[test]
fn clean_leaves_nothing_of_the_fast_path() {
    let lab = lab("fast-clean", 2, true);
    eventually("both use the fast path", || all_send_fast(&lab));
    let (host, directory) = (lab.host(1).netns.clone(), lab.host(1).bpf_directory());
    let attached = || {
        let found = in_netns(&host, || {
            let at = |device: &str, hook| programs(interface_index(device)?, hook);
            // The overlay device is gone in the end.
            let overlay = at("hopsack0", Hook::Egress).unwrap_or_default();
            Ok::<_, std::io::Error>(at("eth0", Hook::Ingress)?.len() + overlay.len())
        });
        found.expect("netns").expect("a query")
    };
    let config = lab.daemon(1).config_path().display().to_string();
    lab.daemon(1).terminate().expect("it ends");
    assert_eq!((attached(), links(&lab, 1).len()), (2, 2));
    let cleaned = json(&run(&host, &[HOPSACK, "clean", "--json", "--config", &config]));
    for row in cleaned.as_array().expect("a list") {
        assert!(row["problem"].is_null(), "{cleaned}");
    }
    eventually("the kernel has removed the links", || attached() == 0);
    assert!(!directory.exists(), "the mount is gone, and its directory");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("it can be read");
    assert!(!mounts.contains(&directory.display().to_string()), "{mounts}");
    assert_eq!(json(&run(&host, &[HOPSACK, "clean", "--json", "--config", &config])), serde_json::json!([]));
    lab.daemon(1).start().expect("started");
    lab.daemon(1).wait_ready(READY).expect("ready");
    eventually("both use the fast path", || all_send_fast(&lab));
}

/// A host that starts again without the fast path takes the program away, and nothing is lost.
#[test]
fn fast_path_that_is_turned_off_is_removed() {
    let lab = lab("turned-off", 2, true);
    eventually("both use the fast path", || all_send_fast(&lab));
    let traffic = Traffic::start(&lab);
    lab.daemon(1).terminate().expect("it ends");
    let config = lab.daemon(1).config_path();
    let before = fs::read_to_string(&config).expect("the configuration");
    fs::write(&config, format!("{before}\n[dataplane]\nfast_path = \"off\"\n")).expect("written");
    lab.daemon(1).start().expect("started");
    lab.daemon(1).wait_ready(READY).expect("ready");
    eventually("the other host knows", || sends_fast(&lab, 2, 0));
    assert!(links(&lab, 1).is_empty());
    traffic.flows();
    print!("the fast path is turned off: ");
    traffic.end();
}
