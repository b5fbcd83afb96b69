//! The daemon as a target: listening sockets that are used up, links at the files that it writes,
//! and the privileges of its threads.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hopsack::control::MOST_CONNECTIONS;
use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use hopsack::sys::netns::in_netns;
use support::connections::{idle_tcp, idle_unix};
use support::{HOPSACK, eventually, http, lab, run};

const READY: Duration = Duration::from_secs(10);
/// Bit of CAP_NET_ADMIN in the sets of /proc/PID/status.
const NET_ADMIN: u64 = 1 << 12;
/// Bit of CAP_BPF, which the kernel fast path needs.
const BPF: u64 = 1 << 39;
/// Bit of CAP_NET_BIND_SERVICE.
const NET_BIND_SERVICE: u64 = 1 << 10;
/// Bit of CAP_SYS_NICE.
const SYS_NICE: u64 = 1 << 23;

/// A lab with one host and no daemon yet.
fn one_host(label: &str, store: Store, config: &str) -> Lab {
    let extra_config = config.to_owned();
    let options = Options { hosts: 1, store, extra_config, ..Options::unique(label, HOPSACK) };
    Lab::create(options).expect("these tests need root, /dev/net/tun, etcd, ip and ping: run scripts/test")
}

fn pid(lab: &Lab) -> u32 {
    lab.daemon(1).pid().expect("the daemon runs")
}

/// Number of open descriptors of a process.
fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs").count()
}

#[test]
fn idle_connections_do_not_stop_the_answers() {
    const IDLE: usize = 1000;
    let lab = lab("idle", 1, Family::V4);
    let (netns, daemon) = (lab.host(1).netns.clone(), lab.daemon(1));
    // The usual limit of a process.
    run(&netns, &["prlimit", "--pid", &pid(&lab).to_string(), "--nofile=1024"]);
    let before = descriptors(pid(&lab));
    let metrics = "127.0.0.1:9285".parse().expect("an address");

    let tcp = idle_tcp(&netns, metrics, IDLE);
    assert!(http(&netns, "/healthz").starts_with("HTTP/1.1 200"));
    let unix = idle_unix(&daemon.control_path(), IDLE);
    assert_eq!(daemon.status().expect("it answers")["ready"], true);
    assert!(http(&netns, "/metrics").trim_end().ends_with("# EOF"));
    // Two sockets with all their places taken, and what the daemon opens meanwhile.
    let bound = before + 2 * MOST_CONNECTIONS + 32;
    eventually("the daemon closes what is too much", || descriptors(pid(&lab)) <= bound);
    drop((tcp, unix));

    // An answer that nobody reads, half a request, and a request without an end hold no place for
    // long.
    let connect = || TcpStream::connect(metrics).expect("connected");
    let mut slow = in_netns(&netns, move || [connect(), connect()]).expect("netns");
    slow[0].write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\n").expect("sent");
    slow[1].write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\n\r\n").expect("sent");
    let mut endless = UnixStream::connect(daemon.control_path()).expect("connected");
    endless.write_all(&[b'x'; 5000]).expect("sent");
    let mut answer = String::new();
    endless.set_read_timeout(Some(READY)).expect("a timeout");
    endless.read_to_string(&mut answer).expect("the daemon closes the connection");
    assert!(answer.contains("error"), "{answer}");
    let is_open = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).expect("set");
        let mut bytes = [0; 4096];
        !matches!(stream.read(&mut bytes), Ok(0))
    };
    support::encrypted::within(50, "a half request is closed", || !is_open(&mut slow[0]));
    support::encrypted::within(50, "idle descriptors are closed", || descriptors(pid(&lab)) <= before + 8);
}

/// A daemon that is started with a umask, and killed when its test ends.
struct WithUmask(Child);

impl WithUmask {
    fn start(lab: &Lab, umask: &str) -> Self {
        let script = format!("umask {umask} && exec \"$@\"");
        let config = lab.daemon(1).config_path();
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &lab.host(1).netns,
            "sh",
            "-c",
            &script,
            "sh",
            HOPSACK,
            "run",
            "--config",
        ]);
        Self(command.arg(config).stderr(Stdio::null()).spawn().expect("ip runs"))
    }
}

impl Drop for WithUmask {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn control_socket_is_private_whatever_the_umask() {
    let lab = one_host("umask", Store::File, "");
    let path = lab.daemon(1).control_path();
    for umask in ["000", "077", "0177"] {
        let daemon = WithUmask::start(&lab, umask);
        eventually("it is ready", || lab.daemon(1).status().is_ok_and(|status| status["ready"] == true));
        assert_eq!(fs::metadata(&path).expect("a socket").mode() & 0o777, 0o600, "umask {umask}");
        drop(daemon);
    }
}

#[test]
fn files_are_not_written_through_links() {
    let lab = one_host("links", Store::Etcd { members: 1 }, "[security]\nmode = \"sealed\"\n");
    let directory = lab.host(1).directory.clone();
    let other = directory.join("other");
    // The host's previous subnet is read through a link. Nothing is written through one.
    let previous = fs::read_to_string(directory.join("subnet.env")).expect("the lab wrote it");
    let content = format!("# of another program\n{previous}");
    fs::write(&other, &content).expect("written");
    fs::create_dir_all(directory.join("run")).expect("a folder");
    fs::create_dir_all(directory.join("state")).expect("a folder");
    // Names of temporary files too, of this version and of the one before.
    let written = ["subnet.env", "run/subnet.env"];
    let temporary = ["subnet.env.new", "subnet.tmp", "run/subnet.tmp", "state/map.new", "state/node-id.new"];
    for name in written.iter().chain(&temporary) {
        let _ = fs::remove_file(directory.join(name));
        symlink(&other, directory.join(name)).expect("a link");
    }
    lab.start().expect("the daemon is ready");
    let map = directory.join("state/map");
    eventually("the map is saved", || map.exists());
    assert_eq!(fs::read_to_string(&other).expect("it exists"), content);
    for name in written {
        assert!(fs::symlink_metadata(directory.join(name)).expect("it exists").is_file(), "{name}");
    }
}

/// The capability sets of each thread of a process, without repetitions, and whether it may gain
/// more.
fn privileges(pid: u32) -> Vec<Vec<(String, u64)>> {
    let fields = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"];
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let mut found: Vec<_> = threads
        .map(|thread| {
            let status = thread.expect("a thread").path().join("status");
            let text = fs::read_to_string(status).expect("the thread runs");
            let pairs = text.lines().filter_map(|line| line.split_once(":\t"));
            let set = |value: &str| u64::from_str_radix(value.trim(), 16).expect("hexadecimal");
            pairs
                .filter(|(name, _)| fields.contains(name))
                .map(|(name, v)| (name.to_owned(), set(v)))
                .collect()
        })
        .collect();
    assert!(found.len() > 2, "the daemon has workers");
    found.dedup();
    found
}

#[test]
fn threads_keep_only_the_capabilities_that_are_needed() {
    let lab = one_host("drop", Store::File, "");
    let netns = lab.host(1).netns.clone();
    let expect = |capabilities: u64| {
        let sets =
            [("CapEff", capabilities), ("CapPrm", capabilities), ("CapBnd", capabilities), ("NoNewPrivs", 1)];
        let found = privileges(pid(&lab));
        assert_eq!(found.len(), 1, "all threads have the same: {found:x?}");
        let of = |name: &str| found[0].iter().find(|(field, _)| field == name).expect("a field").1;
        for (name, value) in sets {
            assert_eq!(of(name), value, "{name} of {found:x?}");
        }
        for name in ["CapInh", "CapAmb"] {
            assert_eq!(of(name) & !capabilities, 0, "{name} of {found:x?}");
        }
    };
    lab.start().expect("ready");
    expect(NET_ADMIN | BPF);
    // What it has is enough for its later work: the repair of a setting, of a device and of a route.
    run(&netns, &["sh", "-c", "sysctl -qw net.ipv4.ip_forward=0; ip link set hopsack0 down"]);
    let forwards = || run(&netns, &["sysctl", "-n", "net.ipv4.ip_forward"]).trim() == "1";
    eventually("the daemon repairs both", || {
        forwards() && run(&netns, &["ip", "-4", "route", "show", "dev", "hopsack0"]).contains("10.244.0.0/16")
    });
    assert!(
        ping(&lab.pod(1).netns, Ping::to(lab.host(1).subnet_v4.network())).expect("ping runs").is_whole()
    );
    // The queue of the UDP socket is longer than net.core.rmem_max allows without a privilege, which
    // the kernel looks for in the first user namespace.
    let users = fs::read_to_string("/proc/self/uid_map").expect("it can be read");
    if users.trim_end().ends_with("4294967295") {
        let sockets = run(&netns, &["ss", "-nuam", "sport", "=", ":8285"]);
        assert!(sockets.contains("rb16777216"), "{sockets}");
    }
    // The daemon cannot be looked into by another process of root without CAP_SYS_PTRACE.
    let exe = format!("/proc/{}/exe", pid(&lab));
    let look = ["setpriv", "--bounding-set", "-sys_ptrace", "readlink", &exe];
    assert_eq!(support::attempt(&netns, &look).trim(), "", "the daemon is dumpable");

    // A port below 1024 and real-time priority need one capability each, which is kept then.
    lab.daemon(1).terminate().expect("it ends");
    let low = "127.0.0.1:985\"\n\n[dataplane]\nrealtime = true\nfast_path = \"off\"\n";
    support::edit(&lab.daemon(1).config_path(), "127.0.0.1:9285\"\n", low);
    lab.start().expect("ready");
    expect(NET_ADMIN | NET_BIND_SERVICE | SYS_NICE);
    lab.daemon(1).terminate().expect("it ends");
    // Only `check` and the start name what is missing.
    let config = lab.daemon(1).config_path().to_string_lossy().into_owned();
    let without = ["timeout", "10", "setpriv", "--bounding-set", "-net_bind_service", HOPSACK];
    let said = support::attempt(&netns, &[&without[..], &["run", "--config", &config]].concat());
    assert!(said.contains("[no_net_bind_service]"), "{said}");
    let found = support::attempt(&netns, &[&without[..], &["check", "--json", "--config", &config]].concat());
    let findings = support::json(&found);
    let row = findings.as_array().expect("a list").iter().find(|row| row["code"] == "privileges");
    assert_eq!(row.expect("a finding")["ok"], false, "{findings}");
}
