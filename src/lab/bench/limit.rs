//! Names what set the limit of a workload, from who used the CPUs and how many packets a system call carried. Pure.
//!
//! It says what the numbers say and no more: with CPUs left over it does not guess at what was waited for.

use super::cpu_usage::CpuUsage;
use super::measure::Workload;
use super::report::{Limit, QUIET, digits};
use super::system::System;
use super::underlay::Underlay;

/// Less idle time than this, and the CPUs are the limit: the generators too wait for them.
const FULL: f64 = 0.15;

/// What is busy for this part of a CPU has nothing left, if it has one thread.
const ONE_CPU: f64 = 0.85;

/// From the sum of the repeats' loads.
pub(super) fn limit(
    underlay: Underlay,
    system: System,
    workload: Workload,
    load: &CpuUsage,
    cpus: usize,
) -> Option<Limit> {
    let all = load.busy() + load.idle;
    if all <= 0.0 || load.wall <= 0.0 {
        return None;
    }
    let cpu = [load.user, load.system, load.softirq, load.steal, load.idle].map(|part| part / all);
    let daemon_cpus = load.daemons.map(|seconds| seconds / load.wall);
    let traffic_cpus = load.traffic.iter().sum::<f64>() / load.wall;
    let bytes = load.wire_bytes / load.wire_packets;
    let mut limit = Limit {
        underlay,
        system,
        workload,
        sentence: String::new(),
        cpu,
        traffic_cpus,
        daemon_cpus,
        other_cpus: load.others() / load.wall,
        wire_packet_bytes: (load.wire_packets > 0.0).then_some(bytes),
        packets_per_call: packets_per_call(load),
    };
    limit.sentence = sentence(&limit, cpus);
    Some(limit)
}

/// Of a TUN read, a send, a receive and a TUN write, over both daemons.
fn packets_per_call(load: &CpuUsage) -> Option<[f64; 4]> {
    let count = |name| load.calls.get(name).copied().unwrap_or(0.0);
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

fn sentence(limit: &Limit, cpus: usize) -> String {
    let [user, system, softirq, steal, idle] = limit.cpu.map(|part| part * 100.0);
    let [user_1, system_1, user_2, system_2] = limit.daemon_cpus;
    let (first, second) = (user_1 + system_1, user_2 + system_2);
    let (daemons, traffic) = (first + second, limit.traffic_cpus);
    let mut text = if limit.cpu[4] < FULL {
        format!("the CPUs: all {cpus} are busy ({idle:.0} % idle)")
    } else if first.max(second) >= ONE_CPU {
        let (name, busiest) = if first >= second { ("first", first) } else { ("second", second) };
        format!("the {name} host's daemon: {} CPUs busy ({idle:.0} % of the machine idle)", digits(busiest))
    } else if traffic >= ONE_CPU {
        format!("the traffic's own thread, in whose system calls the kernel's path runs ({idle:.0} % idle)")
    } else {
        format!("waiting, not CPU: {idle:.0} % idle")
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
    if limit.other_cpus > QUIET * cpus as f64 {
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

    fn told(load: &CpuUsage) -> String {
        limit(Underlay::Pass, System::Simple, Workload::Tcp1, load, 2).unwrap().sentence
    }

    #[test]
    fn the_limit_is_named() {
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
        let text = told(&full);
        assert!(text.starts_with("the CPUs: all 2 are busy (5 % idle)"), "{text}");
        assert!(text.contains("daemons 0.800 and 0.400 (92 % of it in system calls)"), "{text}");
        assert!(text.contains("send 1.00") && !text.contains("NOISE"), "{text}");
        let noisy = CpuUsage { user: 0.9, ..full.clone() };
        assert!(told(&noisy).contains("; NOISE: other programs 0.700"), "{}", told(&noisy));
        let waiting = CpuUsage { idle: 1.6, ..full.clone() };
        assert!(told(&waiting).starts_with("waiting"), "{}", told(&waiting));
        let sender = CpuUsage { traffic: [0.1, 0.87], ..waiting.clone() };
        assert!(told(&sender).starts_with("the traffic"), "{}", told(&sender));
        let daemon = CpuUsage { daemons: [0.1, 0.2, 0.1, 0.85], ..sender };
        assert!(told(&daemon).starts_with("the second host's daemon: 0.950 CPUs"), "{}", told(&daemon));
    }

    #[test]
    fn nothing_measured_names_nothing() {
        assert_eq!(limit(Underlay::Pass, System::Raw, Workload::Rtt, &CpuUsage::default(), 2), None);
    }
}
