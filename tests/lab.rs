//! The lab itself, without daemons: its links, its traffic, its removal, and its two programs.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, tcp};
use hopsack::lab::{self, Lab, LabError, Options};
use hopsack::packet::Family;
use hopsack::sys::netns::in_netns;

const HOPSACK: &str = env!("CARGO_BIN_EXE_hopsack");
const HOPSACK_LAB: &str = env!("CARGO_BIN_EXE_hopsack-lab");

/// What is left of a lab: its namespaces and its directory.
fn left(name: &str) -> Vec<String> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut left: Vec<String> = names.filter(|netns| netns.starts_with(&format!("hs-{name}-"))).collect();
    left.extend(Path::new("/run/hopsack-lab").join(name).exists().then(|| "directory".to_owned()));
    left
}

#[test]
fn hosts_and_pods_reach_their_neighbours() {
    for underlay in [Family::V4, Family::V6] {
        let lab = Lab::create(Options { underlay, ..Options::unique("links", "/bin/false") }).unwrap();
        let across = ping(&lab.host(1).netns, Ping::to(lab.host(3).public)).unwrap();
        assert!(across.is_whole(), "{}", across.output);
        for family in [Family::V4, Family::V6] {
            let down = ping(&lab.host(2).netns, Ping::to(lab.pod(2).address(family))).unwrap();
            assert!(down.is_whole(), "{}", down.output);
        }
        let read = std::fs::read_to_string;
        let inside =
            in_netns(&lab.pod(1).netns, || read("/proc/sys/net/ipv6/conf/eth0/mtu")).unwrap().unwrap();
        assert_eq!(inside.trim(), lab.overlay_mtu().to_string());
    }
}

/// `hopsack-lab up | head -1`: the reader of standard output ends before the lab is up.
#[test]
fn closed_output_does_not_remove_the_lab() {
    let name = Options::unique("head", HOPSACK).name;
    let lab = |command: &str| {
        let mut lab = Command::new(HOPSACK_LAB);
        lab.args([command, "--name", &name]);
        lab
    };
    let mut up = lab("up");
    let mut up = up.args(["--hosts", "1"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(up.stdout.take());
    assert!(up.wait().unwrap().success());
    assert!(!left(&name).is_empty(), "the lab is there");
    assert!(lab("down").output().unwrap().status.success());
    assert_eq!(left(&name), [""; 0]);
}

#[test]
fn dropped_lab_ends_stray_processes() {
    let lab = Lab::create(Options { hosts: 2, ..Options::unique("drop", "/bin/false") }).unwrap();
    let name = lab.options().name.clone();
    let mut stray =
        Command::new("ip").args(["netns", "exec", &lab.pod(2).netns, "sleep", "600"]).spawn().unwrap();
    // Wait until `ip` has entered the pod's namespace.
    let here = std::fs::read_link("/proc/self/ns/net").unwrap();
    let there = format!("/proc/{}/ns/net", stray.id());
    while std::fs::read_link(&there).unwrap() == here {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(left(&name).len(), 6, "{:?}", left(&name));
    drop(lab);
    assert!(!stray.wait().unwrap().success());
    assert_eq!(left(&name), [""; 0]);
    assert_eq!(
        lab::down(&name).unwrap(),
        lab::Removed::default(),
        "removing a lab that does not exist is not an error"
    );
}

#[test]
fn kept_lab_can_be_opened_and_a_busy_one_not() {
    let mut lab = Lab::create(Options { hosts: 1, ..Options::unique("kept", "/bin/false") }).unwrap();
    let name = lab.options().name.clone();
    assert!(matches!(Lab::open(&name), Err(LabError::Busy { .. })));
    assert!(matches!(Lab::create(lab.options().clone()), Err(LabError::Exists(_))));
    lab.keep().unwrap();
    drop(lab);
    let found = Lab::open(&name).unwrap();
    assert_eq!(found.host(1).name, "h1");
    let removed = found.down().unwrap();
    assert_eq!((removed.processes, removed.namespaces, removed.directory), (0, 3, true));
    assert!(matches!(Lab::open(&name), Err(LabError::Absent(_))));
}

#[test]
fn daemon_that_ends_at_start_removes_the_lab() {
    let options = Options { hosts: 1, ..Options::unique("dies", "/bin/ls") };
    let name = options.name.clone();
    let error = Lab::up(options).unwrap_err();
    let LabError::DaemonDied { host, log, .. } = &error else { panic!("{error}") };
    assert_eq!(host, "h1");
    // The daemon is `ls run --config FILE`, and `ls` complains about --config.
    assert!(log.contains("--config"), "{log}");
    assert_eq!(left(&name), [""; 0]);
}

#[test]
fn traffic_is_counted_and_verified() {
    let lab = Lab::create(Options { hosts: 1, ..Options::unique("traffic", "/bin/false") }).unwrap();
    for family in [Family::V4, Family::V6] {
        let (from, to) = (lab.pod(1), lab.pod(1));
        let moved = tcp(Flow { from, to, family, amount: Amount::Bytes(3_000_001), verify: true }).unwrap();
        assert_eq!(moved.bytes, 3_000_001);
    }
    let route = lab.pod(1).exec(&["ip", "route", "show", "default"]).unwrap();
    assert!(String::from_utf8(route.stdout).unwrap().contains("via 10.244.1.1"));
    let unused = ping(&lab.pod(1).netns, Ping { count: 1, ..Ping::to([10, 244, 1, 99]) }).unwrap();
    assert_eq!((unused.sent, unused.received), (1, 0));
}

/// Runs `hopsack` with the directory of its program and the PATH as given.
fn lab_command(program: &Path, path: &str, args: &[&str]) -> Output {
    Command::new(program).arg("lab").args(args).env("PATH", path).output().expect("hopsack is there")
}

#[test]
fn hopsack_lab_executes_the_program_beside_it() {
    let listed = lab_command(Path::new(HOPSACK), "/usr/sbin:/usr/bin:/sbin:/bin", &["list"]);
    assert_eq!(listed.status.code(), Some(0), "{listed:?}");
    let wrong = lab_command(Path::new(HOPSACK), "", &["up", "--hosts", "none"]);
    assert_eq!(wrong.status.code(), Some(2), "arguments and exit code are passed on: {wrong:?}");
    let help = lab_command(Path::new(HOPSACK), "", &["bench", "--help"]);
    let direct = Command::new(HOPSACK_LAB).args(["bench", "--help"]).output().expect("cargo built it");
    assert_eq!((help.status.code(), &help.stdout), (Some(0), &direct.stdout));
}

#[test]
fn missing_program_of_the_lab_is_an_error() {
    let programs = Path::new(HOPSACK).parent().unwrap();
    let directory = tempfile::tempdir_in(programs).unwrap();
    // A link, because a program that was just written may not be executed while another test forks.
    let link = |from: &str, name: &str| {
        let to = directory.path().join(name);
        std::fs::hard_link(from, &to).unwrap();
        to
    };
    let hopsack = link(HOPSACK, "hopsack");
    let alone = lab_command(&hopsack, "", &["list"]);
    assert_eq!(alone.status.code(), Some(1), "no hopsack-lab: {alone:?}");
    let found = lab_command(&hopsack, programs.to_str().unwrap(), &["list"]);
    assert_eq!(found.status.code(), Some(0), "hopsack-lab is on the PATH: {found:?}");

    std::fs::remove_file(&hopsack).unwrap();
    let lab = link(HOPSACK_LAB, "hopsack-lab");
    let alone = Command::new(lab).args(["up", "--name", "no-daemon"]).env("PATH", "").output().unwrap();
    assert_eq!(alone.status.code(), Some(1), "no hopsack: {alone:?}");
    assert_eq!(left("no-daemon"), [""; 0]);
}

/// The daemon's program must not contain the traffic generators and tunnels of the lab.
#[test]
fn daemon_program_contains_no_bench() {
    let contains = |program: &str, text: &str| {
        let bytes = std::fs::read(program).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    for text in ["the naive tunnel ended", "the floor ended"] {
        assert!(contains(HOPSACK_LAB, text), "{text}");
        assert!(!contains(HOPSACK, text), "{text}");
    }
}
