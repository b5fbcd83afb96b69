//! Who used the CPUs while something was measured, what crossed the underlay, and how many packets a system call carried.
//!
//! It reads what the kernel and the daemons count anyway: /proc/stat, /proc/PID/stat, /proc/net/dev, /metrics. The kernel
//! counts CPU time in ticks of 10 ms, and whatever else runs on the machine is counted too.
//!
//! Invariant: a load is the difference of two readings, and loads of repeats add up.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::ops::AddAssign;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::awake::Awake;
use super::rig::Rig;
use crate::sys::netns::in_netns;

/// Ticks of /proc/stat in a second: USER_HZ, 100 on every architecture that Linux still has but Alpha (`time(7)`).
const TICKS: f64 = 100.0;

/// CPU-seconds, packets and calls of a stretch of time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Load {
    /// Seconds on the clock.
    pub(super) wall: f64,
    pub(super) user: f64,
    pub(super) system: f64,
    pub(super) softirq: f64,
    /// Taken by the machine below this one.
    pub(super) steal: f64,
    pub(super) idle: f64,
    /// This process, which has both ends of the traffic, in user and in kernel mode.
    pub(super) traffic: [f64; 2],
    /// The first host's daemon in user and in kernel mode, then the second's.
    pub(super) daemons: [f64; 4],
    /// What the second host's underlay device received.
    pub(super) wire_packets: f64,
    pub(super) wire_bytes: f64,
    /// Both daemons' counters, by name without `hopsack_` and `_total`, summed over workers.
    pub(super) calls: BTreeMap<String, f64>,
}

impl Load {
    /// CPU-seconds that were not idle.
    pub(super) fn busy(&self) -> f64 {
        self.user + self.system + self.softirq + self.steal
    }

    /// CPU-seconds in user mode of programs that have nothing to do with it. In kernel mode they cannot be told from what the
    /// kernel does for packets.
    pub(super) fn others(&self) -> f64 {
        let [first, _, second, _] = self.daemons;
        (self.user - self.traffic[0] - first - second).max(0.0)
    }

    fn minus(mut self, earlier: &Self) -> Self {
        for (now, then) in self.numbers().zip(earlier.clone().numbers()) {
            *now -= *then;
        }
        for (name, count) in &mut self.calls {
            *count -= earlier.calls.get(name).copied().unwrap_or(0.0);
        }
        self
    }

    fn numbers(&mut self) -> impl Iterator<Item = &mut f64> {
        let Self { wall, user, system, softirq, steal, idle, traffic, daemons, .. } = self;
        let Self { wire_packets, wire_bytes, .. } = self;
        let alone = [wall, user, system, softirq, steal, idle, wire_packets, wire_bytes];
        alone.into_iter().chain(traffic).chain(daemons)
    }
}

impl AddAssign for Load {
    fn add_assign(&mut self, mut more: Self) {
        for (sum, number) in self.numbers().zip(more.numbers()) {
            *sum += *number;
        }
        for (name, count) in more.calls {
            *self.calls.entry(name).or_default() += count;
        }
    }
}

/// A stretch of time that is being measured.
#[derive(Debug)]
pub(super) struct Meter {
    daemons: Vec<u32>,
    spinners: Vec<PathBuf>,
    hosts: [String; 2],
    counters: bool,
    begin: Instant,
    before: Load,
}

impl Meter {
    /// From here on. `counters`: the active system's daemons have some.
    pub(super) fn start(rig: &Rig<'_>, counters: bool) -> Self {
        let hosts = [rig.lab().host(1).netns.clone(), rig.lab().host(2).netns.clone()];
        let begin = Instant::now();
        let (daemons, spinners) = (rig.daemons(), rig.awake().map(Awake::spinners).unwrap_or_default());
        let mut meter = Self { daemons, spinners, hosts, counters, begin, before: Load::default() };
        let calls = meter.calls();
        // Asking the daemons costs CPU: last before, first after would count it.
        meter.begin = Instant::now();
        meter.before = Load { calls, ..meter.read() };
        meter
    }

    /// Up to here.
    pub(super) fn stop(self) -> Load {
        let now = self.read();
        Load { calls: self.calls(), ..now }.minus(&self.before)
    }

    fn read(&self) -> Load {
        let mut load = Load { wall: self.begin.elapsed().as_secs_f64(), ..machine() };
        load.traffic = process("self");
        for stat in &self.spinners {
            // They are threads of this process, and run when nobody else does.
            let [user, system] = parse_process(&fs::read_to_string(stat).unwrap_or_default());
            load.user -= user;
            load.system -= system;
            load.idle += user + system;
            load.traffic = [load.traffic[0] - user, load.traffic[1] - system];
        }
        for (times, pid) in load.daemons.chunks_mut(2).zip(&self.daemons) {
            times.copy_from_slice(&process(&pid.to_string()));
        }
        [load.wire_bytes, load.wire_packets] = received(&self.hosts[1]);
        load
    }

    fn calls(&self) -> BTreeMap<String, f64> {
        let mut calls = BTreeMap::new();
        for netns in self.hosts.iter().filter(|_| self.counters) {
            for (name, count) in counters(&scrape(netns)) {
                *calls.entry(name).or_default() += count;
            }
        }
        calls
    }
}

/// How much of the machine is busy with other things, 0 to 1, looking for so long.
pub(super) fn unrest(time: Duration) -> f64 {
    let before = machine();
    std::thread::sleep(time);
    let load = machine().minus(&before);
    load.busy() / (load.busy() + load.idle).max(1e-9)
}

fn machine() -> Load {
    parse_machine(&fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// The first line: `cpu  user nice system idle iowait irq softirq steal ...` (`proc_stat(5)`).
fn parse_machine(text: &str) -> Load {
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> =
        line.split_ascii_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let seconds = |fields: &[usize]| fields.iter().filter_map(|field| ticks.get(*field)).sum::<f64>() / TICKS;
    Load {
        user: seconds(&[0, 1]),
        system: seconds(&[2]),
        idle: seconds(&[3, 4]),
        softirq: seconds(&[5, 6]),
        steal: seconds(&[7]),
        ..Load::default()
    }
}

/// A process's user and system time; nothing if it has ended.
fn process(pid: &str) -> [f64; 2] {
    parse_process(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
}

/// Fields 14 and 15 of `proc_pid_stat(5)`; the name in field 2 ends at the last parenthesis.
fn parse_process(text: &str) -> [f64; 2] {
    let (_, fields) = text.rsplit_once(") ").unwrap_or_default();
    let mut ticks = fields.split(' ').skip(11).map(|word| word.parse().unwrap_or(0.0));
    [(); 2].map(|()| ticks.next().unwrap_or(0.0) / TICKS)
}

/// Bytes and packets that a host's underlay device has received.
fn received(netns: &str) -> [f64; 2] {
    let text = in_netns(netns, || fs::read_to_string("/proc/thread-self/net/dev"));
    parse_device(&text.and_then(|text| text).unwrap_or_default())
}

fn parse_device(text: &str) -> [f64; 2] {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:")).unwrap_or_default();
    let mut words = line.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0.0));
    [(); 2].map(|()| words.next().unwrap_or(0.0))
}

/// A daemon's metrics; nothing if it does not tell.
pub(in super::super) fn scrape(netns: &str) -> String {
    let converse = || {
        let mut stream = TcpStream::connect("127.0.0.1:9285")?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    in_netns(netns, converse).and_then(|answer| answer).unwrap_or_default()
}

/// The counters that each worker has, summed over workers.
pub(in super::super) fn counters(text: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in text.lines() {
        let counter = line.strip_prefix("hopsack_").and_then(|line| line.split_once("_total{worker="));
        let value = line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
        if let (Some((name, _)), Some(value)) = (counter, value) {
            *sums.entry(name.to_owned()).or_default() += value;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_counts_are_read() {
        let load = parse_machine("cpu  100 20 300 4000 50 6 70 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n");
        assert_eq!((load.user, load.system, load.idle), (1.2, 3.0, 40.5));
        assert_eq!((load.softirq, load.steal), (0.76, 0.08));
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 250 0 0 20 0 1 0 99";
        assert_eq!(parse_process(stat), [1.5, 2.5]);
        let devices = "Inter-|   Receive\n    lo: 1 2 0\n  eth0: 3000 20 0 0 0 0 0 0 9 9\n";
        assert_eq!(parse_device(devices), [3000.0, 20.0]);
        let metrics =
            "hopsack_turns_total{worker=\"0\"} 3\nhopsack_turns_total{worker=\"1\"} 4\nhopsack_ready 1\n";
        assert_eq!(counters(metrics), BTreeMap::from([("turns".to_owned(), 7.0)]));
    }

    #[test]
    fn loads_are_differences_that_add_up() {
        let calls = |n| BTreeMap::from([("turns".to_owned(), n)]);
        let earlier = Load { user: 1.0, wire_bytes: 10.0, calls: calls(5.0), ..Load::default() };
        let later = Load { user: 1.5, wire_bytes: 40.0, calls: calls(9.0), ..Load::default() };
        let mut load = later.minus(&earlier);
        load += load.clone();
        assert_eq!((load.user, load.wire_bytes, load.calls["turns"]), (1.0, 60.0, 8.0));
    }
}
