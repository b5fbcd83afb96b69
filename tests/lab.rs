//! The lab itself, without daemons: its links, its traffic, and that nothing is left of it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, tcp};
use hopsack::lab::{self, Lab, LabError, Options};
use hopsack::packet::Family;
use hopsack::sys::netns::in_netns;

/// What a lab leaves: its namespaces and its directory.
fn left(name: &str) -> Vec<String> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut left: Vec<String> = names.filter(|netns| netns.starts_with(&format!("hs-{name}-"))).collect();
    left.extend(Path::new("/run/hopsack-lab").join(name).exists().then(|| "directory".to_owned()));
    left
}

#[test]
fn hosts_and_pods_reach_their_neighbours_at_once() {
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

#[test]
fn a_dropped_lab_leaves_nothing_not_even_a_stray_process() {
    let lab = Lab::create(Options { hosts: 2, ..Options::unique("drop", "/bin/false") }).unwrap();
    let name = lab.options().name.clone();
    let mut stray =
        Command::new("ip").args(["netns", "exec", &lab.pod(2).netns, "sleep", "600"]).spawn().unwrap();
    // Until it has left our namespace for the pod's.
    let here = std::fs::read_link("/proc/self/ns/net").unwrap();
    let there = format!("/proc/{}/ns/net", stray.id());
    while std::fs::read_link(&there).unwrap() == here {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(left(&name).len(), 6, "{:?}", left(&name));
    drop(lab);
    assert!(!stray.wait().unwrap().success());
    assert_eq!(left(&name), [""; 0]);
    assert_eq!(lab::down(&name).unwrap(), lab::Removed::default(), "to remove nothing is no error");
}

#[test]
fn a_kept_lab_is_found_again_and_a_busy_one_is_refused() {
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
fn a_daemon_that_dies_shows_its_log_and_takes_the_lab_with_it() {
    let options = Options { hosts: 1, ..Options::unique("dies", "/bin/ls") };
    let name = options.name.clone();
    let error = Lab::up(options).unwrap_err();
    let LabError::DaemonDied { host, log, .. } = &error else { panic!("{error}") };
    assert_eq!(host, "h1");
    // `ls run --config FILE` knows no --config.
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
    let nobody = ping(&lab.pod(1).netns, Ping { count: 1, ..Ping::to([10, 244, 1, 99]) }).unwrap();
    assert_eq!((nobody.sent, nobody.received), (1, 0));
}
