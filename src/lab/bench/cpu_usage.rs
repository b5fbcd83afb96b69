//! CPU usage during a measurement: CPU time by kind and by program, packets on the underlay, and
//! packets in each system call.
//!
//! It reads counters that exist anyway: /proc/stat, /proc/PID/stat, /proc/net/dev, /metrics. The
//! kernel counts CPU time in ticks of 10 ms. Other programs on the machine are counted too.
//!
//! Invariant: a usage is the difference of two readings, and usages of several repeats can be
//! added.

use std::collections::BTreeMap;
use std::fs;
use std::ops::AddAssign;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::super::daemon_metrics::{scrape, worker_counters};
use super::keep_awake::KeepAwake;
use super::topology::SharedTopology;
use crate::sys::netns::in_netns;

/// Ticks per second in /proc/stat: USER_HZ, which is 100 on every architecture except Alpha
/// (`time(7)`).
const TICKS: f64 = 100.0;

/// CPU-seconds, packets and system calls during a period of time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct CpuUsage {
    /// Duration of the period in seconds.
    pub(super) wall: f64,
    /// CPU-seconds in user mode.
    pub(super) user: f64,
    /// CPU-seconds in kernel mode.
    pub(super) system: f64,
    /// CPU-seconds in interrupts and softirqs.
    pub(super) softirq: f64,
    /// CPU-seconds that the hypervisor took.
    pub(super) steal: f64,
    /// CPU-seconds without work.
    pub(super) idle: f64,
    /// CPU-seconds of this process, which has both ends of the traffic: user mode, kernel mode.
    pub(super) traffic: [f64; 2],
    /// CPU-seconds of the daemons: first host user mode, kernel mode; second host user mode, kernel
    /// mode.
    pub(super) daemons: [f64; 4],
    /// Packets that the second host's underlay device received.
    pub(super) wire_packets: f64,
    /// Bytes that the second host's underlay device received.
    pub(super) wire_bytes: f64,
    /// Counters of both daemons, summed over workers, by name without `hopsack_` and `_total`.
    pub(super) calls: BTreeMap<String, f64>,
}

impl CpuUsage {
    /// CPU-seconds that were not idle.
    pub(super) fn busy(&self) -> f64 {
        self.user + self.system + self.softirq + self.steal
    }

    /// CPU-seconds of unrelated programs in user mode. Their time in kernel mode cannot be
    /// separated from the kernel's work for packets.
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

/// Measures the usage of a period of time.
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
    /// Starts the period. `counters`: whether the daemons of the active system have counters.
    pub(super) fn start(topology: &SharedTopology<'_>, counters: bool) -> Self {
        let hosts = [topology.lab().host(1).netns.clone(), topology.lab().host(2).netns.clone()];
        let begin = Instant::now();
        let (daemons, spinners) =
            (topology.daemons(), topology.awake().map(KeepAwake::spinners).unwrap_or_default());
        let mut meter = Self { daemons, spinners, hosts, counters, begin, before: CpuUsage::default() };
        let calls = meter.calls();
        // Asking the daemons uses CPU time. So they are asked before the first reading of CPU time,
        // and after the last one.
        meter.begin = Instant::now();
        meter.before = CpuUsage { calls, ..meter.read() };
        meter
    }

    /// Ends the period.
    pub(super) fn stop(self) -> CpuUsage {
        let now = self.read();
        CpuUsage { calls: self.calls(), ..now }.minus(&self.before)
    }

    fn read(&self) -> CpuUsage {
        let mut usage = CpuUsage { wall: self.begin.elapsed().as_secs_f64(), ..machine() };
        usage.traffic = process("self");
        for stat in &self.spinners {
            // The spinning threads belong to this process and run only when a CPU has no other
            // work.
            let [user, system] = parse_process(&fs::read_to_string(stat).unwrap_or_default());
            usage.user -= user;
            usage.system -= system;
            usage.idle += user + system;
            usage.traffic = [usage.traffic[0] - user, usage.traffic[1] - system];
        }
        for (times, pid) in usage.daemons.chunks_mut(2).zip(&self.daemons) {
            times.copy_from_slice(&process(&pid.to_string()));
        }
        [usage.wire_bytes, usage.wire_packets] = received(&self.hosts[1]);
        usage
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

/// Part of the CPUs (0 to 1) that other programs use during this time.
pub(super) fn unrest(time: Duration) -> f64 {
    let before = machine();
    std::thread::sleep(time);
    let usage = machine().minus(&before);
    usage.busy() / (usage.busy() + usage.idle).max(1e-9)
}

fn machine() -> CpuUsage {
    parse_machine(&fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// Parses the first line of /proc/stat: `cpu  user nice system idle iowait irq softirq steal ...`
/// (`proc_stat(5)`).
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

/// CPU time of a process in user and kernel mode; zero if it has ended.
fn process(pid: &str) -> [f64; 2] {
    parse_process(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
}

/// Parses fields 14 and 15 of `proc_pid_stat(5)`; the name in field 2 ends at the last parenthesis.
fn parse_process(text: &str) -> [f64; 2] {
    let (_, fields) = text.rsplit_once(") ").unwrap_or_default();
    let mut ticks = fields.split(' ').skip(11).map(|word| word.parse().unwrap_or(0.0));
    [(); 2].map(|()| ticks.next().unwrap_or(0.0) / TICKS)
}

/// Bytes and packets that the underlay device of a host has received.
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
    fn kernel_counters_are_parsed() {
        let usage = parse_machine("cpu  100 20 300 4000 50 6 70 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n");
        assert_eq!((usage.user, usage.system, usage.idle), (1.2, 3.0, 40.5));
        assert_eq!((usage.softirq, usage.steal), (0.76, 0.08));
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 250 0 0 20 0 1 0 99";
        assert_eq!(parse_process(stat), [1.5, 2.5]);
        let devices = "Inter-|   Receive\n    lo: 1 2 0\n  eth0: 3000 20 0 0 0 0 0 0 9 9\n";
        assert_eq!(parse_device(devices), [3000.0, 20.0]);
    }

    #[test]
    fn usages_are_differences_and_add_up() {
        let calls = |n| BTreeMap::from([("turns".to_owned(), n)]);
        let earlier = CpuUsage { user: 1.0, wire_bytes: 10.0, calls: calls(5.0), ..CpuUsage::default() };
        let later = CpuUsage { user: 1.5, wire_bytes: 40.0, calls: calls(9.0), ..CpuUsage::default() };
        let mut usage = later.minus(&earlier);
        usage += usage.clone();
        assert_eq!((usage.user, usage.wire_bytes, usage.calls["turns"]), (1.0, 60.0, 8.0));
    }
}
