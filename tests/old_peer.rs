//! This version and version 0.1 in one cluster, on one etcd: what an upgrade host by host passes
//! through.
//!
//! Run by scripts/old-peer, which builds version 0.1 and sets `HOPSACK_OLD` to its program;
//! `cargo test` leaves this file out by name (Cargo.toml).

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hopsack::lab::traffic::{Amount, Flow, Transfer, tcp};
use hopsack::lab::{Lab, Options, Store};
use hopsack::packet::Family;
use support::encrypted::{READY, flows, of_peer, within};
use support::{HOPSACK, Scrape};

/// `security.mode` of all hosts, and the transport that follows from it.
const MODES: [(&str, &str); 3] = [("none", "udp"), ("sealed", "sealed"), ("quic", "quic")];

/// A lab of which each host runs the program that a link pointed to when its daemon was started.
struct Versions {
    lab: Lab,
    program: PathBuf,
    _folder: tempfile::TempDir,
}

impl Versions {
    /// A lab of which all hosts run version 0.1.
    fn new(label: &str, hosts: u8, mode: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("hopsack");
        link(&program, &old());
        let options = Options {
            hosts,
            binary: program.clone(),
            store: Store::Etcd { members: 1 },
            extra_config: format!("[security]\nmode = \"{mode}\"\n"),
            ..Options::unique(&format!("{label}-{mode}"), HOPSACK)
        };
        let lab = Lab::create(options).expect("this needs root, /dev/net/tun, ip, ping and etcd");
        let versions = Self { lab, program, _folder: folder };
        versions.lab.start().expect("hosts of version 0.1 join each other");
        versions
    }

    /// Starts a host's daemon again, from another program. Waits until it knows all other hosts.
    fn replace(&self, host: usize, program: &Path) {
        let daemon = self.lab.daemon(host);
        daemon.terminate().expect("it ends");
        link(&self.program, program);
        daemon.start().expect("started");
        daemon.wait_ready(READY).expect("ready");
        daemon.wait_peers(self.lab.hosts().len() - 1, READY).expect("it knows the others");
    }

    /// Waits until both hosts of a pair report this transport to each other.
    fn agree_on(&self, pair: [usize; 2], transport: &str) {
        for (host, peer) in [(pair[0], pair[1]), (pair[1], pair[0])] {
            within(30, &format!("{transport} from h{host} to h{peer}"), || {
                of_peer(&self.lab, host, peer, "transport") == transport
            });
        }
    }

    fn stream(&self, from: usize, to: usize, family: Family) -> Transfer {
        let amount = Amount::Time(Duration::from_secs(600));
        let flow = Flow { from: self.lab.pod(from), to: self.lab.pod(to), family, amount, verify: true };
        Transfer::start(flow).expect("TCP connects")
    }
}

/// The program of version 0.1.
fn old() -> PathBuf {
    std::env::var_os("HOPSACK_OLD").expect("HOPSACK_OLD is hopsack 0.1: run scripts/old-peer").into()
}

/// Makes `link` point to a program.
fn link(link: &Path, program: &Path) {
    let new = link.with_extension("new");
    std::os::unix::fs::symlink(program, &new).expect("a link");
    fs::rename(&new, link).expect("renamed");
}

#[test]
fn old_and_new_host_exchange_tcp() {
    for (mode, transport) in MODES {
        let versions = Versions::new("mixed", 2, mode);
        versions.replace(1, Path::new(HOPSACK));
        versions.agree_on([1, 2], transport);
        for (from, to) in [(1, 2), (2, 1)] {
            for family in [Family::V4, Family::V6] {
                let amount = Amount::Bytes(20_000_000);
                let (from, to) = (versions.lab.pod(from), versions.lab.pod(to));
                let moved =
                    tcp(Flow { from, to, family, amount, verify: true }).expect("every byte is right");
                assert_eq!(moved.bytes, 20_000_000, "{mode}");
            }
        }
        let refused = Scrape::of(&versions.lab.host(1).netns).refused("ingress");
        assert_eq!(refused, 0, "{mode}: nothing that the old host sent was refused");
    }
}

#[test]
fn rolling_upgrade_loses_no_connection() {
    for (mode, transport) in MODES {
        let versions = Versions::new("rolling", 3, mode);
        let pairs = [(1, 2, Family::V4), (2, 3, Family::V6), (3, 1, Family::V4)];
        let streams = pairs.map(|(from, to, family)| versions.stream(from, to, family));
        for host in 1..=3 {
            versions.replace(host, Path::new(HOPSACK));
            streams.iter().for_each(flows);
        }
        versions.agree_on([1, 2], transport);
        for stream in streams {
            stream.finish();
            let moved = stream.wait().expect("no connection was reset, and every byte is right");
            println!("{mode}: {} bytes right, the longest pause was {:?}", moved.bytes, moved.longest_stall);
        }
    }
}
