//! Who used the CPUs while something was measured, what crossed the underlay, and how many packets a system call carried.
//!
//! It reads what the kernel and the daemons count anyway: /proc/stat, /proc/PID/stat, /proc/net/dev, /metrics. The kernel
//! counts CPU time in ticks of 10 ms, and whatever else runs on the machine is counted too.
//!
//! Invariant: a load is the difference of two readings, and loads of repeats add up.

use std::collections::BTreeMap;
use std::fs;
use std::ops::AddAssign;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::super::daemon_metrics::{scrape, worker_counters};
use super::keep_awake::KeepAwake;
use super::topology::SharedTopology;
use crate::sys::netns::in_netns;

/// Ticks of /proc/stat in a second: USER_HZ, 100 on every architecture that Linux still has but Alpha (`time(7)`).
const TICKS: f64 = 100.0;

/// CPU-seconds, packets and calls of a stretch of time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct CpuUsage {
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

impl CpuUsage {
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

impl AddAssign for CpuUsage {
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
pub(super) struct UsageMeter {
    daemons: Vec<u32>,
    spinners: Vec<PathBuf>,
    hosts: [String; 2],
    counters: bool,
    begin: Instant,
    before: CpuUsage,
}

impl UsageMeter {
    /// From here on. `counters`: the active system's daemons have some.
    pub(super) fn start(topology: &SharedTopology<'_>, counters: bool) -> Self {
        let hosts = [topology.lab().host(1).netns.clone(), topology.lab().host(2).netns.clone()];
        let begin = Instant::now();
        let (daemons, spinners) =
            (topology.daemons(), topology.awake().map(KeepAwake::spinners).unwrap_or_default());
        let mut meter = Self { daemons, spinners, hosts, counters, begin, before: CpuUsage::default() };
        let calls = meter.calls();
        // Asking the daemons costs CPU: last before, first after would count it.
        meter.begin = Instant::now();
        meter.before = CpuUsage { calls, ..meter.read() };
        meter
    }

    /// Up to here.
    pub(super) fn stop(self) -> CpuUsage {
        let now = self.read();
        CpuUsage { calls: self.calls(), ..now }.minus(&self.before)
    }

    fn read(&self) -> CpuUsage {
        let mut load = CpuUsage { wall: self.begin.elapsed().as_secs_f64(), ..machine() };
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
            for (name, count) in worker_counters(&scrape(netns)) {
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

fn machine() -> CpuUsage {
    parse_machine(&fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// The first line: `cpu  user nice system idle iowait irq softirq steal ...` (`proc_stat(5)`).
fn parse_machine(text: &str) -> CpuUsage {
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> =
        line.split_ascii_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let seconds = |fields: &[usize]| fields.iter().filter_map(|field| ticks.get(*field)).sum::<f64>() / TICKS;
    CpuUsage {
        user: seconds(&[0, 1]),
        system: seconds(&[2]),
        idle: seconds(&[3, 4]),
        softirq: seconds(&[5, 6]),
        steal: seconds(&[7]),
        ..CpuUsage::default()
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
    }

    #[test]
    fn loads_are_differences_that_add_up() {
        let calls = |n| BTreeMap::from([("turns".to_owned(), n)]);
        let earlier = CpuUsage { user: 1.0, wire_bytes: 10.0, calls: calls(5.0), ..CpuUsage::default() };
        let later = CpuUsage { user: 1.5, wire_bytes: 40.0, calls: calls(9.0), ..CpuUsage::default() };
        let mut load = later.minus(&earlier);
        load += load.clone();
        assert_eq!((load.user, load.wire_bytes, load.calls["turns"]), (1.0, 60.0, 8.0));
    }
}
