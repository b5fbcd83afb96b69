//! Daemons on an underlay that delivers single segments: the veth pair is chosen, kept and adopted.

use std::time::{Duration, Instant};

use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::lab::{Lab, Options};
use hopsack::packet::Family;
use serde_json::Value;

use crate::support::{HOPSACK, attempt, eventually, http, json, run};

const NEEDS: &str =
    "these tests need root, /dev/net/tun, ip, ethtool and a Linux from 6.6 on: run scripts/test";
const NEAR: &str = "hopsack0-gro0";
const FAR: &str = "hopsack0-gro1";

/// Two hosts with daemons that send by the fast path.
fn lab(label: &str, delivers_segments: bool) -> Lab {
    let lab = Lab::create(Options { hosts: 2, ..Options::unique(label, HOPSACK) }).expect(NEEDS);
    if delivers_segments {
        for host in lab.hosts() {
            run(&host.netns, &["ethtool", "-K", "eth0", "tso", "off", "gso", "off", "gro", "off"]);
        }
    }
    lab.start().expect(NEEDS);
    for number in 1..=2 {
        eventually("the fast path is on", || status(&lab, number)["peers"] == 1);
    }
    lab
}

fn status(lab: &Lab, number: usize) -> Value {
    lab.daemon(number).status().expect("status")["fast_path"].clone()
}

fn gro(lab: &Lab, number: usize) -> Value {
    status(lab, number)["gro"].clone()
}

fn is_used(lab: &Lab) -> bool {
    gro(lab, 2)["is_used"] == true
}

fn merged(lab: &Lab) -> u64 {
    gro(lab, 2)["super_packets"].as_u64().expect("a number")
}

fn transfer(lab: &Lab) -> Transfer {
    let amount = Amount::Time(Duration::from_secs(120));
    let (from, to) = (lab.pod(1), lab.pod(2));
    Transfer::start(Flow { from, to, family: Family::V4, amount, verify: true }).expect("TCP connects")
}

/// Bytes go on, and segments are merged.
fn goes_on(lab: &Lab, transfer: &Transfer) {
    let (bytes, merges) = (transfer.received(), merged(lab));
    eventually("bytes flow, merged", || {
        transfer.received() > bytes + 10_000_000 && merged(lab) > merges + 100
    });
}

fn ends(transfer: Transfer) {
    transfer.finish();
    transfer.wait().expect("not one reset, not one wrong byte");
}

#[test]
fn pair_is_chosen_for_single_segments_and_mended() {
    let lab = lab("gro", true);
    let host = lab.host(2).netns.clone();
    assert_eq!(gro(&lab, 2)["is_used"], false);
    assert!(attempt(&host, &["ip", "link", "show", NEAR]).contains("does not exist"));
    let transfer = transfer(&lab);
    let start = Instant::now();
    eventually("the pair is used", || is_used(&lab));
    println!("the pair is used after {:.1?}", start.elapsed());
    assert!(gro(&lab, 2)["reason"].as_str().expect("text").contains("single segments"));
    goes_on(&lab, &transfer);
    assert_eq!(gro(&lab, 1)["is_used"], false, "the sender gets acknowledgements only");

    let link = json(&run(&host, &["ip", "-j", "-d", "addr", "show", FAR]))[0].clone();
    assert_eq!(
        (&link["ifalias"], link["addr_info"].as_array().map(Vec::len)),
        (&"hopsack overlay".into(), Some(0))
    );
    let flags = link["flags"].as_array().expect("flags");
    assert!(flags.contains(&"NOARP".into()) && flags.contains(&"UP".into()), "{flags:?}");

    let repairs = |object: &str| {
        let metrics = http(&host, "/metrics");
        let row = format!("hopsack_repairs_total{{object=\"{object}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&row).map(str::to_owned));
        line.expect("the metric").parse::<u64>().expect("a number")
    };
    let (links, offloads) = (repairs("link"), repairs("offload"));
    let is_merging = || run(&host, &["ethtool", "-k", FAR]).contains("generic-receive-offload: on");
    run(&host, &["ethtool", "-K", FAR, "gro", "off"]);
    let start = Instant::now();
    eventually("GRO is on again", is_merging);
    println!("mended after {:.1?}", start.elapsed());
    for disturb in [["ip", "link", "set", FAR, "down"].as_slice(), &["ip", "link", "del", NEAR]] {
        let before = repairs("link");
        run(&host, disturb);
        let start = Instant::now();
        eventually("the pair is mended", || repairs("link") > before && is_used(&lab));
        println!("{disturb:?}: mended after {:.1?}", start.elapsed());
        goes_on(&lab, &transfer);
    }
    assert!(is_merging() && repairs("link") >= links + 2 && repairs("offload") > offloads);
    ends(transfer);

    // What entered the pair has left it, or is counted as lost.
    eventually("all is accounted for", || {
        let metrics = http(&host, "/metrics");
        let get = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)).expect("a metric");
            line.trim().parse::<u64>().expect("a number")
        };
        get("hopsack_fast_gro_entered_total")
            == get("hopsack_fast_gro_segments_total") + get("hopsack_fast_gro_dropped_total")
    });
}

#[test]
fn next_daemon_adopts_the_pair_and_clean_removes_it() {
    let lab = lab("gro-adopt", true);
    let host = lab.host(2).netns.clone();
    let transfer = transfer(&lab);
    eventually("the pair is used", || is_used(&lab));
    let index = || json(&run(&host, &["ip", "-j", "link", "show", NEAR]))[0]["ifindex"].clone();
    let before = index();
    for _ in 0..2 {
        lab.daemon(2).kill9().expect("killed");
        let received = transfer.received();
        eventually("bytes flow without a daemon", || transfer.received() > received + 10_000_000);
        lab.daemon(2).start().expect("started");
        lab.daemon(2).wait_ready(Duration::from_secs(10)).expect("ready");
        eventually("it is used", || is_used(&lab));
        assert!(gro(&lab, 2)["reason"].as_str().expect("text").contains("earlier hopsack"));
        goes_on(&lab, &transfer);
        assert_eq!(index(), before, "the same pair");
    }
    ends(transfer);
    lab.daemon(2).kill9().expect("killed");
    let config = lab.daemon(2).config_path().to_string_lossy().into_owned();
    let cleaned = run(&host, &[HOPSACK, "clean", "--config", &config]);
    assert!(cleaned.contains(NEAR) || cleaned.contains(FAR), "{cleaned}");
    for device in [NEAR, FAR, "hopsack0"] {
        assert!(attempt(&host, &["ip", "link", "show", device]).contains("does not exist"), "{device}");
    }
}

#[test]
fn pair_is_not_used_where_super_packets_pass() {
    let lab = lab("gro-pass", false);
    let transfer = transfer(&lab);
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        assert!(!is_used(&lab), "{}", gro(&lab, 2));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(transfer.received() > 100_000_000);
    ends(transfer);
    let reason = gro(&lab, 2)["reason"].clone();
    assert!(reason.as_str().expect("text").contains("yet"), "{reason}");
    assert!(attempt(&lab.host(2).netns, &["ip", "link", "show", NEAR]).contains("does not exist"));
    let config = lab.daemon(2).config_path().to_string_lossy().into_owned();
    let printed = run(&lab.host(2).netns, &[HOPSACK, "status", "--config", &config]);
    assert!(printed.contains("GRO pair    not used: "), "{printed}");
}
