//! Shared by the system tests: labs, commands in them, and the daemons' metrics.
//!
//! Each test program uses a part of this module.
#![allow(dead_code, unreachable_pub)]

pub mod connections;
pub mod encrypted;
pub mod forge;
pub mod host;
pub mod hostile;

pub mod initials;
pub mod narrow;
pub mod sinks;
pub mod wire;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hopsack::lab::{Lab, Options, exec};
use hopsack::packet::Family;
use hopsack::sys::netns::in_netns;

/// Path of the daemon under test.
pub const HOPSACK: &str = env!("CARGO_BIN_EXE_hopsack");

/// What a failed start of a lab usually means.
const NEEDS: &str =
    "these tests need root (or a user namespace), /dev/net/tun, ip and ping: run scripts/test";

/// A lab with a name that no other test uses. It is removed when it is dropped.
pub fn lab(label: &str, hosts: u8, underlay: Family) -> Lab {
    let options = Options { hosts, underlay, ..Options::unique(label, HOPSACK) };
    Lab::up(options).expect(NEEDS)
}

/// The name by which [`lab_on`] makes a lab with the kernel fast path.
pub const FAST: &str = "fast";

/// A lab as [`lab`] makes it, with this engine in every daemon and without the kernel fast path.
/// With [`FAST`], the engine is the default, and on an IPv4 underlay all packets go by the kernel.
pub fn lab_on(engine: &str, label: &str, hosts: u8, underlay: Family) -> Lab {
    let (engine_key, fast_path) = if engine == FAST { ("auto", true) } else { (engine, false) };
    let extra_config = format!("[dataplane]\nengine = \"{engine_key}\"\n");
    let named = Options::unique(&format!("{label}-{engine}"), HOPSACK);
    let lab = Lab::up(Options { hosts, underlay, extra_config, fast_path, ..named }).expect(NEEDS);
    if fast_path && underlay == Family::V4 {
        eventually("all packets go by the kernel fast path", || {
            (1..=lab.hosts().len()).all(|host| {
                let peers = lab.daemon(host).status().expect("it answers")["fast_path"]["peers"].clone();
                peers == lab.hosts().len() - 1
            })
        });
    }
    lab
}

/// A lab as [`lab`] makes it, with more configuration in every daemon.
pub fn lab_with(config: &str, label: &str, hosts: u8, underlay: Family) -> Lab {
    let extra_config = config.to_owned();
    let options = Options { hosts, underlay, extra_config, ..Options::unique(label, HOPSACK) };
    Lab::up(options).expect(NEEDS)
}

/// Makes one test for each engine from each function.
#[macro_export]
macro_rules! on_every_engine {
    ($($name:ident)*) => {
        $(mod $name {
            #[test]
            fn simple() {
                super::$name("simple");
            }
            #[test]
            fn batch() {
                super::$name("batch");
            }
            #[test]
            fn uring() {
                super::$name("uring");
            }
        })*
    };
}

/// Standard output of a command in a namespace. The command must succeed.
pub fn run(netns: &str, argv: &[&str]) -> String {
    let output = exec(netns, argv).expect("a program is missing: scripts/test installs it");
    assert!(output.status.success(), "{argv:?} in {netns}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard output and standard error of a command in a namespace, with any exit code.
pub fn attempt(netns: &str, argv: &[&str]) -> String {
    text(&exec(netns, argv).expect("a program is missing: scripts/test installs it"))
}

/// Standard output and standard error of a command.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs `hopsack` in the namespace of the test.
pub fn hopsack(argv: &[&str]) -> Output {
    Command::new(HOPSACK).args(argv).output().expect("cargo built hopsack")
}

/// Parses the output of `ip -j`, `hopsack --json` and other programs.
pub fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

/// Repeats a check until it succeeds. Fails after 10 s.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "not true within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// GET request to a daemon's HTTP port. Returns the complete answer with its headers.
pub fn http(netns: &str, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n");
    in_netns(netns, move || {
        let mut stream = TcpStream::connect("127.0.0.1:9285")?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
    .and_then(|result: std::io::Result<String>| result)
    .expect("the daemon answers on its HTTP port")
}

/// Metrics of a daemon, summed over its workers. The key is `name` or `name{label="value",...}`,
/// without the label `worker`.
#[derive(Debug)]
pub struct Scrape(BTreeMap<String, u64>);

impl Scrape {
    /// Reads the metrics of the daemon in a namespace.
    pub fn of(netns: &str) -> Self {
        let mut values = BTreeMap::new();
        let answer = http(netns, "/metrics");
        for line in answer.lines().filter(|line| line.starts_with("hopsack_")) {
            let (name, value) = line.rsplit_once(' ').expect("a metric has a name and a value");
            // Sums of seconds are not counts.
            let Ok(value) = value.parse::<u64>() else { continue };
            let name = name.split_once("{worker=").map_or(name, |(name, _)| name);
            *values.entry(name.to_owned()).or_insert(0) += value;
        }
        Self(values)
    }

    /// Value of a metric; 0 if it does not exist.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Packets that were dropped in this direction for this reason.
    pub fn dropped(&self, direction: &str, reason: &str) -> u64 {
        self.get(&format!("hopsack_dropped_packets_total{{direction=\"{direction}\",reason=\"{reason}\"}}"))
    }

    /// Packets that the daemon dropped, without those of queue management, which tell a bulk sender
    /// to slow down.
    pub fn refused(&self, direction: &str) -> u64 {
        self.all_dropped(direction) - self.dropped(direction, "standing_queue")
    }

    /// Packets that the daemon dropped, without those that the kernel dropped before the daemon saw
    /// them.
    pub fn all_dropped(&self, direction: &str) -> u64 {
        let prefix = format!("hopsack_dropped_packets_total{{direction=\"{direction}\"");
        let ours = |name: &str| name.starts_with(&prefix) && !name.contains("queue_full");
        self.0.iter().filter(|(name, _)| ours(name)).map(|(_, value)| *value).sum()
    }
}

/// Replaces a text in a file, atomically.
pub fn edit(path: &Path, from: &str, to: &str) {
    let before = std::fs::read_to_string(path).expect("the file can be read");
    assert!(before.contains(from), "{from:?} is not in {}", path.display());
    let temporary = path.with_extension("edit");
    std::fs::write(&temporary, before.replace(from, to)).expect("the new file is written");
    std::fs::rename(&temporary, path).expect("the new file is renamed");
}
