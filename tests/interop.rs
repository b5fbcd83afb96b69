//! hopsack and a real flanneld (udp backend) in one cluster, on one etcd.
//!
//! Run by scripts/interop-flannel, which sets `FLANNELD` to flanneld's program: Debian has no
//! package of it, so that `cargo test` leaves this file out by name (Cargo.toml). h1 runs hopsack,
//! h2 runs flanneld; between them IPv4 only, which is what flanneld's udp backend has.

mod support;

use std::fs::File;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, Transfer, tcp};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use hopsack::sys::netns::in_netns;
use support::{HOPSACK, Scrape, attempt, edit, json, run};

const NETWORK: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;
const PATIENCE: Duration = Duration::from_secs(30);

/// A lab of two hosts, of which h2 runs flanneld.
struct Mixed {
    lab: Lab,
    flanneld: Option<Child>,
}

impl Mixed {
    fn new(label: &str) -> Self {
        let options =
            Options { hosts: 2, store: Store::Etcd { members: 1 }, ..Options::unique(label, HOPSACK) };
        let lab = Lab::create(options).expect("this needs root, /dev/net/tun, ip, ping and etcd");
        lab.etcd(1).start().expect("started");
        lab.etcd(1).wait_ready(PATIENCE).expect("it serves");
        let url = lab.etcd(1).url();
        run(&lab.underlay_netns(), &[HOPSACK, "network", "init", NETWORK, "--store-endpoints", &url]);
        for (host, number) in lab.hosts().iter().zip(1..) {
            // The previous subnet, which both daemons take again; the lab's own file has IPv6 too.
            let env = format!("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{number}.1/24\n");
            std::fs::write(host.directory.join("subnet.env"), env).expect("written");
        }
        Self { lab, flanneld: None }
    }

    fn start_flanneld(&mut self) {
        let program =
            std::env::var("FLANNELD").expect("FLANNELD is flanneld's program: run scripts/interop-flannel");
        let host = self.lab.host(2);
        let log = File::options().create(true).append(true).open(self.log()).expect("a log");
        let subnet_file = format!("-subnet-file={}", host.directory.join("subnet.env").display());
        let endpoints = format!("-etcd-endpoints={}", self.lab.etcd(1).url());
        let child = Command::new("ip")
            .args(["netns", "exec", &host.netns, &program, &endpoints, &subnet_file])
            .args(["-iface=eth0", "-iptables-forward-rules=false", "-v=1"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("flanneld starts");
        self.flanneld = Some(child);
    }

    fn stop_flanneld(&mut self) {
        let mut child = self.flanneld.take().expect("it runs");
        child.kill().expect("killed");
        child.wait().expect("gone");
    }

    fn log(&self) -> std::path::PathBuf {
        self.lab.host(2).directory.join("flanneld.log")
    }

    fn start_hopsack(&self) {
        self.lab.daemon(1).start().expect("started");
        self.lab.daemon(1).wait_ready(PATIENCE).expect("ready");
    }

    /// Packets pass both ways, small and as large as they come.
    fn talks(&self) {
        let [first, second] = [self.lab.pod(1), self.lab.pod(2)];
        for (from, to) in [(first, second), (second, first)] {
            self.eventually("pings pass", || {
                ping(&from.netns, Ping { count: 1, ..Ping::to(to.v4) }).expect("ping runs").is_whole()
            });
            let largest = Ping { payload: 1472 - 28, dont_fragment: true, ..Ping::to(to.v4) };
            let pinged = ping(&from.netns, largest).expect("ping runs");
            assert!(pinged.is_whole(), "{}", pinged.output);
            let amount = Amount::Bytes(20_000_000);
            let moved = tcp(Flow { from, to, family: Family::V4, amount, verify: true }).expect("TCP passes");
            println!(
                "{} to {}: {} bytes right, {:.0} Mbit/s",
                from.name,
                to.name,
                moved.bytes,
                moved.bits_per_second() / 1e6
            );
        }
    }

    /// Each sees the other's lease.
    fn see_each_other(&self) {
        let url = self.lab.etcd(1).url();
        let netns = self.lab.underlay_netns();
        println!("{}", run(&netns, &[HOPSACK, "leases", "list", "--expiry", "--store-endpoints", &url]));
        let table = json(&run(&netns, &[HOPSACK, "leases", "list", "--json", "--store-endpoints", &url]));
        let seen = |at: usize| {
            let row = &table["leases"][at];
            (row["subnets"][0].to_string(), row["public"][0].to_string(), row["daemon"].to_string())
        };
        let quoted = |texts: [&str; 3]| texts.map(|text| format!("{text:?}")).into();
        assert_eq!(seen(0), quoted(["10.244.1.0/24", "192.0.2.1", "hopsack"]));
        assert_eq!(seen(1), quoted(["10.244.2.0/24", "192.0.2.2", "flanneld"]));
        assert!(
            table["leases"][2].is_null() && table["bad"].as_array().is_some_and(Vec::is_empty),
            "{table}"
        );

        let env =
            std::fs::read_to_string(self.lab.host(2).directory.join("subnet.env")).expect("it is there");
        assert!(env.contains("FLANNEL_SUBNET=10.244.2.1/24\nFLANNEL_MTU=1472\n"), "{env}");
        let ours =
            std::fs::read_to_string(self.lab.host(1).directory.join("subnet.env")).expect("it is there");
        let form =
            |env: &str| env.lines().map(|line| line.split('=').next().map(str::to_owned)).collect::<Vec<_>>();
        assert_eq!(form(&ours), form(&env), "the same file, line by line");
    }

    fn eventually(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !holds() {
            let log = || std::fs::read_to_string(self.log()).unwrap_or_default();
            let routes = || attempt(&self.lab.host(2).netns, &["ip", "route"]);
            assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}\n{}\n{}", log(), routes());
            sleep(Duration::from_millis(100));
        }
    }

    fn flow(&self) -> Transfer {
        let (from, to) = (self.lab.pod(1), self.lab.pod(2));
        let amount = Amount::Time(Duration::from_secs(120));
        Transfer::start(Flow { from, to, family: Family::V4, amount, verify: true }).expect("TCP connects")
    }

    fn flows(&self, transfer: &Transfer) {
        let before = transfer.received();
        self.eventually("bytes flow", || transfer.received() > before + 1_000_000);
    }
}

impl Drop for Mixed {
    fn drop(&mut self) {
        if let Some(mut child) = self.flanneld.take() {
            // It may have ended by itself, which the test has noticed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn flanneld_joins_hopsack_and_each_survives_restarts() {
    let mut mixed = Mixed::new("mixed");
    mixed.start_hopsack();
    mixed.start_flanneld();
    mixed.talks();
    mixed.see_each_other();

    let transfer = mixed.flow();
    mixed.flows(&transfer);
    mixed.lab.daemon(1).kill9().expect("killed");
    mixed.start_hopsack();
    mixed.flows(&transfer);
    mixed.stop_flanneld();
    mixed.start_flanneld();
    mixed.flows(&transfer);
    transfer.finish();
    let moved = transfer.wait().expect("not one reset, not one wrong byte");
    println!("both restarted: {} bytes right, stood still for {:?}", moved.bytes, moved.longest_stall);
    mixed.talks();
    mixed.see_each_other();

    let scrape = Scrape::of(&mixed.lab.host(1).netns);
    assert_eq!(scrape.refused("ingress"), 0, "nothing that flanneld sent was refused");

    // flanneld follows a hopsack that changes its address, by the lease.
    edit(&mixed.lab.daemon(1).config_path(), "public_ip  = \"192.0.2.1\"\n", "");
    mixed.lab.daemon(1).kill9().expect("killed");
    mixed.start_hopsack();
    let transfer = mixed.flow();
    mixed.flows(&transfer);
    let ip = |argv: [&str; 5]| run(&mixed.lab.host(1).netns, &[&["ip"][..], &argv].concat());
    ip(["addr", "del", "192.0.2.1/24", "dev", "eth0"]);
    ip(["addr", "add", "192.0.2.101/24", "dev", "eth0"]);
    mixed.flows(&transfer);
    transfer.finish();
    let moved = transfer.wait().expect("not one reset, not one wrong byte");
    println!("another address: {} bytes right, stood still for {:?}", moved.bytes, moved.longest_stall);
}

#[test]
fn flanneld_first_then_hopsack() {
    let mut mixed = Mixed::new("mixed");
    mixed.start_flanneld();
    let url = mixed.lab.etcd(1).url();
    let argv = [HOPSACK, "leases", "list", "--store-endpoints", &url];
    mixed.eventually("flanneld has its lease", || {
        run(&mixed.lab.underlay_netns(), &argv).contains("10.244.2.0/24")
    });
    mixed.start_hopsack();
    mixed.talks();
    mixed.see_each_other();
}

/// What flanneld's proxy makes of datagrams that are not as it would send them. It is what hopsack
/// relies on (any source port) and what it must never send (too long, IPv6).
#[test]
fn flanneld_checks_no_source_and_misreads_ipv6() {
    let mut mixed = Mixed::new("odd");
    mixed.start_flanneld();
    let (sender, pod) = (mixed.lab.host(1).netns.clone(), mixed.lab.pod(2).clone());
    let target = SocketAddr::new(mixed.lab.host(2).public, 8285);
    let listen = |address: IpAddr| {
        let socket =
            in_netns(&pod.netns, || UdpSocket::bind((address, 5000))).expect("netns").expect("bound");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        socket
    };
    let (four, six) = (listen(pod.v4.into()), listen(pod.v6.into()));
    run(&sender, &["ip", "addr", "add", "192.0.2.77/24", "dev", "eth0"]);
    let stranger = in_netns(&sender, || UdpSocket::bind("192.0.2.77:0")).expect("netns").expect("bound");
    let inner = |length: usize| {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([10, 244, 77, 7], pod.v4.octets(), 64).udp(7, 5000);
        builder.write(&mut packet, &vec![7; length]).expect("fits");
        packet
    };
    let mut buffer = [0; 2000];
    let mut arrives = |socket: &UdpSocket, packet: &[u8]| {
        stranger.send_to(packet, target).expect("sent");
        socket.recv_from(&mut buffer).ok()
    };

    // From an address that is in no lease, from any port, with an inner source that is in no lease
    // either.
    mixed.eventually("flanneld forwards a stranger's packet", || {
        arrives(&four, &inner(100))
            .is_some_and(|(length, from)| length == 100 && from.ip() == IpAddr::from([10, 244, 77, 7]))
    });
    // Its buffer has the MTU of its TUN: one byte more is cut off, and the kernel drops what is
    // left.
    let truncated = || {
        let text = run(&mixed.lab.host(2).netns, &["cat", "/proc/net/netstat"]);
        let mut rows = text.lines().filter_map(|line| line.strip_prefix("IpExt: "));
        let (names, values) = (rows.next().expect("names"), rows.next().expect("values"));
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, value) = pairs.find(|(name, _)| *name == "InTruncatedPkts").expect("counted");
        value.parse::<u64>().expect("a number")
    };
    assert!(arrives(&four, &inner(1472 - 28)).is_some(), "the MTU passes");
    let before = truncated();
    assert_eq!(arrives(&four, &inner(1472 - 27)), None, "one byte more does not");
    assert_eq!(truncated(), before + 1, "it was cut");
    // The byte where IPv4 has its TTL and the word where it has its checksum are in IPv6's source
    // address.
    let source: [u8; 16] = "fd00:244:0:77::7".parse::<Ipv6Addr>().expect("an address").octets();
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(source, pod.v6.octets(), 64).udp(7, 5000);
    builder.write(&mut packet, &[7; 100]).expect("fits");
    let got = arrives(&six, &packet);
    println!("IPv6 from fd00:244:0:77::7 through flanneld: {got:?}");
    assert!(got.is_none_or(|(_, from)| from.ip() != IpAddr::from(source)), "never as it was sent");
}
