//! Labs whose hosts encrypt, what they say of one another, and certificates as an operator hands them out.
#![allow(dead_code, unreachable_pub)]

use std::path::Path;
use std::time::{Duration, Instant};

use hopsack::lab::ping::{Ping, ping};
use hopsack::lab::traffic::{Amount, Flow, Transfer};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use hopsack::pki::Authority;

use super::{HOPSACK, Scrape};

pub const READY: Duration = Duration::from_secs(15);

/// A lab on an etcd of its own, with what each daemon's configuration gets in addition. No daemon runs.
pub fn lab(label: &str, hosts: u8, underlay: Family, config: &str) -> Lab {
    let (extra_config, store) = (config.to_owned(), Store::Etcd { members: 1 });
    let options = Options { hosts, underlay, extra_config, store, ..Options::unique(label, HOPSACK) };
    Lab::create(options).expect("these tests need root, /dev/net/tun, etcd, ip and ping: run scripts/test")
}

pub fn started(lab: Lab) -> Lab {
    lab.start().expect("all daemons are ready");
    lab
}

/// Two hosts of a mode that run.
pub fn pair(label: &str, mode: &str, more: &str) -> Lab {
    let config = format!("[security]\nmode = \"{mode}\"\n{more}");
    started(lab(&format!("{label}-{mode}"), 2, Family::V4, &config))
}

pub fn peers(lab: &Lab, host: usize) -> serde_json::Value {
    lab.daemon(host).ask(r#"{"command":"peers"}"#).expect("it answers")
}

/// One field of what a host says about another.
pub fn of_peer(lab: &Lab, host: usize, peer: usize, field: &str) -> String {
    let name = lab.host(peer).name.clone();
    let list = peers(lab, host);
    let found = list.as_array().expect("a list").iter().find(|entry| entry["name"] == name.as_str());
    found.map_or("no such peer".into(), |entry| entry[field].as_str().unwrap_or_default().to_owned())
}

pub fn reaches(lab: &Lab, from: usize, to: usize) -> bool {
    let pod = lab.pod(to);
    let one = |address: std::net::IpAddr| ping(&lab.pod(from).netns, Ping::to(address)).expect("ping runs");
    one(pod.v4.into()).is_whole() && one(pod.v6.into()).is_whole()
}

/// Verified TCP from one host's pod to another's, until it is asked to end.
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

/// Ends it in order. Returns the bytes that arrived.
pub fn ends_whole(transfer: Transfer) -> u64 {
    transfer.finish();
    transfer.wait().expect("not one reset, not one wrong byte").bytes
}

/// Starts a host's daemon again, after whatever has ended it.
pub fn start_again(lab: &Lab, host: usize) {
    lab.daemon(host).start().expect("started");
    lab.daemon(host).wait_ready(READY).expect("ready");
}

pub fn handshakes(lab: &Lab, host: usize) -> u64 {
    Scrape::of(&lab.host(host).netns).get("hopsack_quic_handshakes_total{result=\"authenticated\"}")
}

/// Takes the `[security]` of a host's configuration away, and writes another.
pub fn configure(lab: &Lab, host: usize, security: &str) {
    let path = lab.daemon(host).config_path();
    let config = std::fs::read_to_string(&path).expect("it is there");
    let config = config.split("\n[security]").next().expect("a part");
    std::fs::write(&path, format!("{config}\n[security]\n{security}\n")).expect("written");
}

/// Gives a host a certificate of an authority, for its own name, in place of the one that it may have; and the configuration
/// that goes with it: `security`, and the files.
pub fn certify(lab: &Lab, host: usize, folder: &Path, life: Duration, security: &str) {
    let name = lab.host(host).name.clone();
    let authority = Authority::load(folder).expect("a CA");
    let own = lab.host(host).directory.join("pki");
    let fresh = own.join("fresh");
    let [certificate, key] = authority.issue(&fresh, &name, life).expect("issued");
    let place = |from: &Path| {
        let to = own.join(from.file_name().expect("a name"));
        std::fs::rename(from, &to).expect("moved");
        to
    };
    // The key first: what stands there between the two is refused, and tried again.
    let (key, certificate) = (place(&key), place(&certificate));
    let ca = folder.join("ca.crt");
    configure(lab, host, &format!("{security}\nca = {ca:?}\ncert = {certificate:?}\nkey = {key:?}"));
}

/// Tries until it holds or so many seconds have passed.
pub fn within(seconds: u64, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
