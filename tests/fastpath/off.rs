//! Where there can be no fast path, the engine carries the packets, and `status` and `check` name
//! the reason.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::{Lab, Options};
use hopsack::packet::Family;
use serde_json::Value;

use crate::support::{HOPSACK, attempt, eventually, json, text};

const DROP_IN: &str = include_str!("../../configs/hopsack-fastpath.conf");

fn options(label: &str) -> Options {
    Options { hosts: 2, ..Options::unique(label, HOPSACK) }
}

fn fast_path(lab: &Lab, host: usize) -> Value {
    lab.daemon(host).status().expect("it answers")["fast_path"].clone()
}

/// Packets pass in both families, and no host has a fast path for them.
fn carries_by_the_engine(lab: &Lab, reason: &str) {
    let fast = fast_path(lab, 1);
    let is_named = fast["reason"].as_str().is_some_and(|text| text.contains(reason));
    assert!(fast["is_on"] == false && is_named, "{reason}: {fast}");
    for family in [Family::V4, Family::V6] {
        let pods = || ping(&lab.pod(1).netns, Ping::to(lab.pod(2).address(family))).expect("ping runs");
        eventually(reason, || pods().is_whole());
    }
    assert_eq!(fast_path(lab, 2)["peers"], 0);
}

/// The main thread of a daemon that has nothing to do sleeps. By then it knows routes and peers.
fn is_idle(lab: &Lab) {
    let pid = lab.daemon(1).pid().expect("it runs");
    let run_time = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).expect("it exists");
        stat.split(' ').next().expect("a number").parse().expect("nanoseconds")
    };
    std::thread::sleep(Duration::from_secs(2));
    let before = run_time();
    std::thread::sleep(Duration::from_secs(1));
    let spent = Duration::from_nanos(run_time() - before);
    assert!(spent < Duration::from_millis(300), "it ran for {spent:?} of a second");
}

/// The finding of `hopsack check` on the first host, run by a program with arguments.
fn check(lab: &Lab, before: &[&str]) -> Value {
    let config = lab.daemon(1).config_path().display().to_string();
    let argv = [before, &[HOPSACK, "check", "--json", "--config", &config]].concat();
    let findings = json(&attempt(&lab.host(1).netns, &argv));
    let rows = findings.as_array().expect("a list");
    rows.iter().find(|row| row["code"] == "fast_path").unwrap_or_else(|| panic!("{findings}")).clone()
}

fn is_found(finding: &Value, reason: &str) -> bool {
    finding["ok"] == true && finding["answer"].as_str().is_some_and(|text| text.contains(reason))
}

#[test]
fn configuration_and_underlay_can_rule_it_out() {
    let security = "[security]\nmode = \"sealed\"\nrequire = true\n";
    let with = |label: &str, extra: &str| Options { extra_config: extra.to_owned(), ..options(label) };
    for (options, reason) in [
        (Options { fast_path: false, ..options("fast-off") }, "dataplane.fast_path"),
        (with("fast-simple", "[dataplane]\nengine = \"simple\"\n"), "simple engine"),
        (with("fast-sealed", security), "security.require"),
        (Options { underlay: Family::V6, ..options("fast-v6") }, "IPv6"),
    ] {
        let lab = Lab::up(options).expect("a lab");
        carries_by_the_engine(&lab, reason);
        is_idle(&lab);
        let finding = check(&lab, &[]);
        assert!(is_found(&finding, reason), "{finding}");
        assert_eq!(finding["warning"], reason != "dataplane.fast_path", "{finding}");
    }
}

/// A daemon with the capabilities of a unit.
struct Unit(Child);

impl Unit {
    fn start(lab: &Lab, capabilities: &str) -> Self {
        let child = Command::new("ip")
            .args(["netns", "exec", &lab.host(1).netns, "setpriv", "--bounding-set", capabilities])
            .args([HOPSACK, "run", "--config"])
            .arg(lab.daemon(1).config_path())
            .stderr(Stdio::null())
            .spawn();
        let unit = Self(child.expect("ip runs"));
        eventually("it is ready", || lab.daemon(1).status().is_ok_and(|status| status["ready"] == true));
        unit
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the command of the drop-in for another directory.
fn run_drop_in_command(directory: &Path) {
    let line = DROP_IN.lines().find_map(|line| line.strip_prefix("ExecStartPre=+/bin/sh -c '"));
    let script = line.and_then(|line| line.strip_suffix('\'')).expect("a command");
    let script = script.replace("/run/hopsack/bpf", &directory.display().to_string());
    let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
    assert!(output.status.success(), "{}", text(&output));
}

/// `kernel_errors.rs` shows a daemon that systemd does not permit bpf(2).
#[test]
fn unit_has_the_fast_path_only_with_its_drop_in() {
    const UNIT: &str = "-all,+net_admin";
    const WITH_DROP_IN: &str = "-all,+net_admin,+bpf";
    let lab = Lab::create(options("fast-unit")).expect("a lab");
    lab.daemon(2).start().expect("started");
    let set = |capabilities| ["setpriv", "--bounding-set", capabilities];
    {
        let _daemon = Unit::start(&lab, UNIT);
        carries_by_the_engine(&lab, "CAP_BPF");
        let finding = check(&lab, &set(UNIT));
        assert!(is_found(&finding, "CAP_BPF") && finding["warning"] == true, "{finding}");
    }
    {
        let _daemon = Unit::start(&lab, WITH_DROP_IN);
        carries_by_the_engine(&lab, "bpffs");
        let finding = check(&lab, &set(WITH_DROP_IN));
        assert!(is_found(&finding, "bpffs") && finding["warning"] == true, "{finding}");
    }
    // As with each start of the unit, it may be mounted already.
    for _ in 0..2 {
        run_drop_in_command(&lab.host(1).bpf_directory());
    }
    let _daemon = Unit::start(&lab, WITH_DROP_IN);
    eventually("the fast path is in use", || {
        let fast = [1, 2].map(|host| fast_path(&lab, host));
        fast.iter().all(|fast| fast["is_on"] == true && fast["peers"] == 1)
    });
    let finding = check(&lab, &set(WITH_DROP_IN));
    assert!(finding["ok"] == true && finding["warning"] == false, "{finding}");
}
