//! Limit: says in a sentence what limited a workload, from CPU usage and packets per system call.
//! Pure.
//!
//! It uses only the numbers. If CPUs are idle, it does not guess what the workload waited for.

use super::cpu_usage::CpuUsage;
use super::measure::Workload;
use super::report::{Limit, QUIET, digits};
use super::system::System;
use super::underlay::Underlay;

/// If less than this part of the CPU time is idle, the CPUs are the limit. The traffic generators
/// need CPU time too.
const FULL: f64 = 0.15;

/// A single thread that is busy for more than this part of a CPU is the limit.
const ONE_CPU: f64 = 0.85;

/// The limit, from the sum of the usages of all repeats. None if nothing was measured.
pub(super) fn limit(
    underlay: Underlay,
    system: System,
    workload: Workload,
    usage: &CpuUsage,
    cpus: usize,
) -> Option<Limit> {
    let all = usage.busy() + usage.idle;
    if all <= 0.0 || usage.wall <= 0.0 {
        return None;
    }
    let cpu = [usage.user, usage.system, usage.softirq, usage.steal, usage.idle].map(|part| part / all);
    let daemon_cpus = usage.daemons.map(|seconds| seconds / usage.wall);
    let traffic_cpus = usage.traffic.iter().sum::<f64>() / usage.wall;
    let bytes = usage.wire_bytes / usage.wire_packets;
    let mut limit = Limit {
        underlay,
        system,
        workload,
        sentence: String::new(),
        cpu,
        traffic_cpus,
        daemon_cpus,
        other_cpus: usage.others() / usage.wall,
        wire_packet_bytes: (usage.wire_packets > 0.0).then_some(bytes),
        packets_per_call: packets_per_call(usage),
    };
    limit.sentence = sentence(&limit, cpus);
    Some(limit)
}

/// Packets per TUN read, send, receive and TUN write, over both daemons.
fn packets_per_call(usage: &CpuUsage) -> Option<[f64; 4]> {
    let count = |name| usage.calls.get(name).copied().unwrap_or(0.0);
    let (out, into) = (count("egress_packets"), count("ingress_packets"));
    let per = |packets: f64, calls| if count(calls) > 0.0 { packets / count(calls) } else { 0.0 };
    let all = [
        per(out, "tun_reads"),
        per(out, "egress_sends"),
        per(into, "udp_receives"),
        per(into, "ingress_writes"),
    ];
    (out + into > 0.0).then_some(all)
}

/// What limited a workload.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    /// All CPUs are busy.
    Cpus,
    /// The first host's daemon, with the CPUs that it uses.
    FirstDaemon(f64),
    /// The second host's daemon, with the CPUs that it uses.
    SecondDaemon(f64),
    /// The thread that sends the traffic.
    Traffic,
    /// None of these: CPUs are idle.
    Waiting,
}

fn bound(limit: &Limit) -> Bound {
    let [user_1, system_1, user_2, system_2] = limit.daemon_cpus;
    let (first, second) = (user_1 + system_1, user_2 + system_2);
    let [_, _, _, _, idle] = limit.cpu;
    if idle < FULL {
        Bound::Cpus
    } else if first.max(second) >= ONE_CPU {
        if first >= second { Bound::FirstDaemon(first) } else { Bound::SecondDaemon(second) }
    } else if limit.traffic_cpus >= ONE_CPU {
        Bound::Traffic
    } else {
        Bound::Waiting
    }
}

/// Whether unrelated programs disturbed the measurement.
fn is_noisy(limit: &Limit, cpus: usize) -> bool {
    limit.other_cpus > QUIET * cpus as f64
}

fn sentence(limit: &Limit, cpus: usize) -> String {
    let [user, system, softirq, steal, idle] = limit.cpu.map(|part| part * 100.0);
    let [user_1, system_1, user_2, system_2] = limit.daemon_cpus;
    let (first, second) = (user_1 + system_1, user_2 + system_2);
    let (daemons, traffic) = (first + second, limit.traffic_cpus);
    let daemon = |name, busy| {
        format!("the {name} host's daemon: {} CPUs busy ({idle:.0} % of the machine idle)", digits(busy))
    };
    let mut text = match bound(limit) {
        Bound::Cpus => format!("the CPUs: all {cpus} are busy ({idle:.0} % idle)"),
        Bound::FirstDaemon(busy) => daemon("first", busy),
        Bound::SecondDaemon(busy) => daemon("second", busy),
        Bound::Traffic => format!(
            "the traffic's own thread, which runs the kernel's path in its system calls ({idle:.0} % idle)"
        ),
        Bound::Waiting => format!("waiting, not CPU: {idle:.0} % idle"),
    };
    text += &format!("; user {user:.0} %, kernel {system:.0} %, softirq {softirq:.0} %");
    if steal >= 1.0 {
        text += &format!(", stolen {steal:.0} %");
    }
    text += &format!("; traffic {} CPUs", digits(traffic));
    if daemons > 0.0 {
        let kernel = 100.0 * (system_1 + system_2) / daemons;
        let (first, second) = (digits(first), digits(second));
        text += &format!(", daemons {first} and {second} ({kernel:.0} % of it in system calls)");
    }
    if is_noisy(limit, cpus) {
        text += &format!("; NOISE: other programs {}", digits(limit.other_cpus));
    }
    if let Some([read, send, receive, write]) = limit.packets_per_call.map(|calls| calls.map(digits)) {
        text += &format!("; packets per read {read}, send {send}, receive {receive}, write {write}");
    }
    if let Some(bytes) = limit.wire_packet_bytes {
        text += &format!("; {bytes:.0} B a packet on the wire");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn limit_of(usage: &CpuUsage) -> Limit {
        limit(Underlay::Pass, System::Simple, Workload::Tcp1, usage, 2).unwrap()
    }

    #[test]
    fn limit_is_named() {
        let calls =
            BTreeMap::from([("egress_packets".to_owned(), 300.0), ("egress_sends".to_owned(), 300.0)]);
        let full = CpuUsage {
            wall: 1.0,
            user: 0.2,
            system: 1.2,
            softirq: 0.5,
            idle: 0.1,
            traffic: [0.1, 0.5],
            daemons: [0.05, 0.75, 0.05, 0.35],
            calls,
            ..CpuUsage::default()
        };
        let whole = limit_of(&full);
        assert_eq!((bound(&whole), is_noisy(&whole, 2)), (Bound::Cpus, false));
        assert_eq!(whole.packets_per_call, Some([0.0, 1.0, 0.0, 0.0]));
        assert!(is_noisy(&limit_of(&CpuUsage { user: 0.9, ..full.clone() }), 2));
        let waiting = CpuUsage { idle: 1.6, ..full.clone() };
        assert_eq!(bound(&limit_of(&waiting)), Bound::Waiting);
        let sender = CpuUsage { traffic: [0.1, 0.87], ..waiting.clone() };
        assert_eq!(bound(&limit_of(&sender)), Bound::Traffic);
        let daemon = CpuUsage { daemons: [0.1, 0.2, 0.1, 0.85], ..sender };
        assert!(matches!(bound(&limit_of(&daemon)), Bound::SecondDaemon(busy) if (busy - 0.95).abs() < 1e-9));
    }

    #[test]
    fn no_usage_gives_no_limit() {
        assert_eq!(limit(Underlay::Pass, System::Raw, Workload::Rtt, &CpuUsage::default(), 2), None);
    }
}
