//! Labs with hosts that encrypt: what the hosts report about each other, and certificates as an
//! operator installs them.
#![allow(dead_code, unreachable_pub)]

use std::path::Path;
use std::time::{Duration, Instant};

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use hopsack::pki::Authority;
use ipnet::IpNet;
use serde_json::Value;

use super::{HOPSACK, Scrape, eventually, run};

pub const READY: Duration = Duration::from_secs(15);

/// A lab with an etcd of its own. `config` is added to each daemon's configuration. No daemon runs.
pub fn lab(label: &str, hosts: u8, underlay: Family, config: &str) -> Lab {
    let (extra_config, store) = (config.to_owned(), Store::Etcd { members: 1 });
    let options = Options { hosts, underlay, extra_config, store, ..Options::unique(label, HOPSACK) };
    Lab::create(options).expect("these tests need root, /dev/net/tun, etcd, ip and ping: run scripts/test")
}

/// Starts all daemons of a lab.
pub fn started(lab: Lab) -> Lab {
    lab.start().expect("all daemons are ready");
    lab
}

/// Two running hosts with this `security.mode`. `more` is added to `[security]`.
pub fn pair(label: &str, mode: &str, more: &str) -> Lab {
    let config = format!("[security]\nmode = \"{mode}\"\n{more}");
    started(lab(&format!("{label}-{mode}"), 2, Family::V4, &config))
}

/// All that a host reports about its peers.
pub fn peers(lab: &Lab, host: usize) -> Value {
    lab.daemon(host).ask(r#"{"command":"peers"}"#).expect("the daemon answers")
}

/// One field of what a host reports about a peer.
pub fn of_peer(lab: &Lab, host: usize, peer: usize, field: &str) -> Value {
    let name = lab.host(peer).name.clone();
    let list = peers(lab, host);
    let found = list.as_array().expect("a list").iter().find(|entry| entry["name"] == name.as_str());
    found.map_or(Value::Null, |entry| entry[field].clone())
}

/// What a host reports about packets to another host's pod.
pub fn explain(lab: &Lab, host: usize, peer: usize) -> Value {
    let request = format!(r#"{{"command":"explain","address":"{}"}}"#, lab.pod(peer).v4);
    lab.daemon(host).ask(&request).expect("the daemon answers")
}

/// Name of the keys with which a host seals packets to a peer; `None` if there are no keys.
pub fn keys(lab: &Lab, host: usize, peer: usize) -> Option<String> {
    explain(lab, host, peer)["keys"]["name"].as_str().map(str::to_owned)
}

/// Waits until a host has keys for a peer.
pub fn wait_keys(lab: &Lab, host: usize, peer: usize) {
    eventually("there are keys", || keys(lab, host, peer).is_some());
}

/// Whether a host's log has a line that contains all these fields.
pub fn has_logged(lab: &Lab, host: usize, fields: &[&str]) -> bool {
    let log = lab.daemon(host).log();
    log.lines().any(|line| fields.iter().all(|field| line.contains(field)))
}

/// Whether a host has logged that handshakes with a peer fail for this reason.
pub fn has_logged_failure(lab: &Lab, host: usize, peer: usize, reason: &str) -> bool {
    let (peer, reason) = (format!("host=\"{}\"", lab.host(peer).name), format!("reason=\"{reason}\""));
    has_logged(lab, host, &[&peer, &reason])
}

pub fn reaches(lab: &Lab, from: usize, to: usize) -> bool {
    let pod = lab.pod(to);
    let one = |address: std::net::IpAddr| ping(&lab.pod(from).netns, Ping::to(address)).expect("ping runs");
    one(pod.v4.into()).is_whole() && one(pod.v6.into()).is_whole()
}

/// TCP from one host's pod to another's, with every byte checked, until the test ends it.
pub fn stream(lab: &Lab, from: usize, to: usize) -> Transfer {
    let amount = Amount::Time(Duration::from_secs(600));
    let flow = Flow { from: lab.pod(from), to: lab.pod(to), family: Family::V4, amount, verify: true };
    Transfer::start(flow).expect("TCP connects")
}

/// Waits until another megabyte has arrived.
pub fn flows(transfer: &Transfer) {
    let before = transfer.received();
    within(30, "bytes flow", || transfer.received() > before + 1_000_000);
}

/// Ends a stream in order. Returns the number of bytes that arrived.
pub fn ends_whole(transfer: Transfer) -> u64 {
    transfer.finish();
    transfer.wait().expect("no connection was reset, and every byte is right").bytes
}

/// Starts a host's daemon again after it has ended.
pub fn start_again(lab: &Lab, host: usize) {
    lab.daemon(host).start().expect("started");
    lab.daemon(host).wait_ready(READY).expect("ready");
}

/// Sends SIGHUP: the daemon reads its certificates again.
pub fn hang_up(lab: &Lab, host: usize) {
    let pid = lab.daemon(host).pid().expect("the daemon runs").to_string();
    run(&lab.host(host).netns, &["kill", "-HUP", &pid]);
}

pub fn handshakes(lab: &Lab, host: usize) -> u64 {
    Scrape::of(&lab.host(host).netns).get("hopsack_quic_handshakes_total{result=\"authenticated\"}")
}

/// Replaces the `[security]` section of a host's configuration.
pub fn configure(lab: &Lab, host: usize, security: &str) {
    let path = lab.daemon(host).config_path();
    let config = std::fs::read_to_string(&path).expect("the configuration exists");
    let config = config.split("\n[security]").next().expect("a first part");
    std::fs::write(&path, format!("{config}\n[security]\n{security}\n")).expect("written");
}

/// The subnets that a host has by the plan of the lab.
pub fn subnets(lab: &Lab, host: usize) -> [IpNet; 2] {
    let host = lab.host(host);
    [IpNet::V4(host.subnet_v4), IpNet::V6(host.subnet_v6)]
}

/// Gives a host a certificate of a CA for the host's own name. Replaces an earlier one, and
/// configures `security` and the files.
pub fn certify(lab: &Lab, host: usize, ca_folder: &Path, validity: Duration, security: &str) {
    let name = lab.host(host).name.clone();
    let authority = Authority::load(ca_folder).expect("a CA");
    let own = lab.host(host).directory.join("pki");
    let fresh = own.join("fresh");
    let [certificate, key] = authority.issue(&fresh, (&name, &subnets(lab, host)), validity).expect("issued");
    let install = |from: &Path| {
        let to = own.join(from.file_name().expect("a name"));
        std::fs::rename(from, &to).expect("moved");
        to
    };
    // The key is moved first. If the daemon reads both files in between, it refuses them and reads
    // them again later.
    let (key, certificate) = (install(&key), install(&certificate));
    let ca = ca_folder.join("ca.crt");
    configure(lab, host, &format!("{security}\nca = {ca:?}\ncert = {certificate:?}\nkey = {key:?}"));
}

/// Polls a condition until it holds. Fails after this many seconds.
pub fn within(seconds: u64, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
