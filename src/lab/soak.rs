//! Soak: carries traffic for an hour and looks for errors and memory growth.
//!
//! Verified TCP streams run in both families and both directions, and are replaced now and then.
//! Numbered datagrams of several sizes run at the same time (`datagrams`). At intervals the soak
//! prints the daemons' memory, packets, drops by reason, and datagrams out of order. It measures no
//! speed; the bench does.
//!
//! Invariant: [`run`] returns `Ok` only if all bytes were right, no datagram overtook another one
//! of its flow, memory did not grow, and both daemons ended in order. It always removes the lab.

mod datagrams;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use super::bench::Underlay;
use super::cluster::Lab;
use super::daemon_metrics::{scrape, worker_counters};
use super::error::LabError;
use super::options::Options;
use super::traffic::{Amount, Flow, Transfer};
use crate::api::{Request, Status};
use crate::packet::Family;
use datagrams::{DatagramCounts, Datagrams};

/// What a soak does.
#[derive(Debug, Clone, Copy)]
pub struct SoakPlan {
    /// Maximal duration.
    pub time: Duration,
    /// Maximal number of packets: sent and received ones of both daemons together.
    pub packets: u64,
    /// Time between two lines of output.
    pub every: Duration,
    /// Datagrams per second in each of the four flows.
    pub rate: u32,
    /// Offloads of the links between the hosts.
    pub underlay: Underlay,
}

/// Lifetime of the TCP streams. Then new flows replace them.
const RENEW: Duration = Duration::from_secs(60);

/// A daemon may grow by this much memory from the middle of the soak to its end. Buffers are
/// allocated at the start, but a page counts only from its first use, and the last pages (4 MiB of
/// merged packets) are used only when the kernel is slow. A leak of 0.1 bytes for each packet
/// exceeds this in an hour.
const MAX_GROWTH_KIB: u64 = 8 * 1024;

/// Time until all buffers have been used once. If the middle of a soak comes before this, the soak
/// is too short to judge memory.
const SETTLED: Duration = Duration::from_secs(20);

/// Time for packets to arrive that are still under way when the senders have stopped.
const DRAIN: Duration = Duration::from_millis(500);

/// Runs a soak in a lab of two hosts with the name, programs, configuration and interrupt of
/// `options`, and prints its progress to `out`. An interrupt ends it early, with the summary of
/// what was done.
///
/// # Errors
/// The lab could not be made, the traffic failed, or a check failed.
pub fn run(options: Options, plan: &SoakPlan, out: &mut dyn Write) -> Result<(), LabError> {
    let lab = Lab::up(Options { hosts: 2, underlay: Family::V4, ..options })?;
    let soaked = soak(&lab, plan, out);
    let removed = lab.down();
    soaked?;
    removed.map(|_| ())
}

fn soak(lab: &Lab, plan: &SoakPlan, out: &mut dyn Write) -> Result<(), LabError> {
    plan.underlay.set(lab)?;
    let engine = lab.daemon(1).query::<Status>(Request::Status)?.engine;
    print(out, &format!("engine {engine}, underlay {}\n{HEADER}", plan.underlay.name()))?;
    let datagrams = Datagrams::start(lab, plan.rate)?;
    let mut streams = Streams::start(lab)?;
    let (begin, mut samples) = (Instant::now(), Vec::new());
    let mut done = false;
    while !done {
        let left = plan.time.saturating_sub(begin.elapsed());
        let interrupted = lab.options().interrupt.sleep(plan.every.min(left)).is_err();
        let sample = Sample::at(lab, begin.elapsed(), streams.bytes(), datagrams.counts())?;
        print(out, &sample.line(samples.last()))?;
        done = interrupted || sample.time >= plan.time || sample.packets() >= plan.packets;
        samples.push(sample);
        if !done && streams.begin.elapsed() >= RENEW {
            streams.renew(lab)?;
        }
    }
    let bytes = streams.end()?;
    let counts = datagrams.end(DRAIN)?;
    let last = Sample::at(lab, begin.elapsed(), bytes, counts)?;
    print(out, &last.line(None))?;
    print(out, &last.counters_line())?;
    samples.push(last);
    stop_daemons(lab)?;
    check(&samples)?;
    print(out, "passed: bytes right, datagrams in order, memory constant, both daemons ended in order")
}

/// Four endless TCP streams: two families, two directions.
struct Streams {
    begin: Instant,
    running: Vec<Transfer>,
    /// Bytes of the streams that have ended.
    bytes: u64,
}

impl Streams {
    fn start(lab: &Lab) -> Result<Self, LabError> {
        let (one, two, amount) = (lab.pod(1), lab.pod(2), Amount::Time(Duration::MAX));
        let mut running = Vec::new();
        for family in [Family::V4, Family::V6] {
            for (from, to) in [(one, two), (two, one)] {
                running.push(Transfer::start(Flow { from, to, family, amount, verify: true })?);
            }
        }
        Ok(Self { begin: Instant::now(), running, bytes: 0 })
    }

    fn bytes(&self) -> u64 {
        self.bytes + self.running.iter().map(Transfer::received).sum::<u64>()
    }

    /// Ends all streams in order, which checks that each byte was right.
    fn end(self) -> Result<u64, LabError> {
        self.running.iter().for_each(Transfer::finish);
        let moved = self.running.into_iter().map(|transfer| transfer.wait().map(|moved| moved.bytes));
        Ok(self.bytes + moved.sum::<Result<u64, _>>()?)
    }

    fn renew(&mut self, lab: &Lab) -> Result<(), LabError> {
        let next = Self::start(lab)?;
        let bytes = std::mem::replace(self, next).end()?;
        self.bytes = bytes;
        Ok(())
    }
}

/// State of the soak at one moment.
#[derive(Debug, Clone, Default)]
struct Sample {
    time: Duration,
    /// Resident memory of the two daemons, in KiB.
    rss: [u64; 2],
    /// Counters of both daemons together, by name.
    counters: BTreeMap<String, f64>,
    /// Drops of both daemons together, by direction and reason.
    drops: BTreeMap<String, u64>,
    bytes: u64,
    datagrams: DatagramCounts,
}

const HEADER: &str =
    "    time   RSS h1   RSS h2         packets   kpps     TCP GB     datagrams      lost  late  drops";

impl Sample {
    fn at(lab: &Lab, time: Duration, bytes: u64, datagrams: DatagramCounts) -> Result<Self, LabError> {
        let mut sample = Self { time, bytes, datagrams, ..Self::default() };
        for (number, rss) in (1..).zip(&mut sample.rss) {
            // If the daemon does not run, this returns the error that says why.
            lab.daemon(number).wait_ready(Duration::ZERO)?;
            let pid = lab.daemon(number).pid().unwrap_or_default();
            *rss = resident(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default());
            let text = scrape(&lab.host(number).netns);
            for (name, count) in worker_counters(&text) {
                *sample.counters.entry(name).or_default() += count;
            }
            for (reason, count) in drops(&text) {
                *sample.drops.entry(reason).or_default() += count;
            }
        }
        Ok(sample)
    }

    fn packets(&self) -> u64 {
        let count = |name| self.counters.get(name).copied().unwrap_or(0.0);
        // Numbers of packets are whole, not negative, and far below 2^53.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let packets = (count("egress_packets") + count("ingress_packets")) as u64;
        packets
    }

    fn line(&self, before: Option<&Self>) -> String {
        let since = before.map_or(Duration::ZERO, |before| before.time);
        let packets = self.packets() - before.map_or(0, Self::packets);
        let kpps = packets as f64 / (self.time - since).as_secs_f64().max(1e-9) / 1e3;
        let [one, two] = self.rss;
        let drops: Vec<String> =
            self.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let drops = if drops.is_empty() { "-".to_owned() } else { drops.join(", ") };
        let DatagramCounts { sent, late, .. } = self.datagrams;
        format!(
            "{:>6.0} s {one:>8} {two:>8} {:>15} {kpps:>6.0} {:>10.2} {sent:>13} {:>7.3} % {late:>5}  {drops}",
            self.time.as_secs_f64(),
            self.packets(),
            self.bytes as f64 / 1e9,
            100.0 * self.datagrams.lost(),
        )
    }

    /// All counters of both daemons together.
    fn counters_line(&self) -> String {
        let counts: Vec<String> =
            self.counters.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!("counters of both daemons: {}", counts.join(", "))
    }
}

/// `VmRSS` of `proc_pid_status(5)`, in KiB.
fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Values of `hopsack_dropped_packets_total` that are not zero.
fn drops(metrics: &str) -> Vec<(String, u64)> {
    let parse = |line: &str| {
        let (labels, count) = line.strip_prefix("hopsack_dropped_packets_total{")?.split_once("} ")?;
        let values: Vec<&str> = labels.split('"').skip(1).step_by(2).collect();
        let count = count.trim().parse().ok().filter(|count| *count > 0)?;
        Some((values.join(" "), count))
    };
    metrics.lines().filter_map(parse).collect()
}

/// Ends both daemons with SIGTERM, as systemd would.
fn stop_daemons(lab: &Lab) -> Result<(), LabError> {
    for number in 1..=lab.hosts().len() {
        let status = lab.daemon(number).terminate()?;
        if !status.is_some_and(|status| status.success()) {
            let (host, status) =
                (&lab.host(number).name, status.map_or("not running".into(), |status| status.to_string()));
            return Err(failed(format!("the daemon of {host} ended with {status}")));
        }
    }
    Ok(())
}

fn check(samples: &[Sample]) -> Result<(), LabError> {
    let (Some(last), Some(middle)) = (samples.last(), samples.get(samples.len() / 2)) else { return Ok(()) };
    let DatagramCounts { received, late, wrong, .. } = last.datagrams;
    if late + wrong > 0 {
        return Err(failed(format!("{late} datagrams came late, {wrong} had wrong content")));
    }
    if received == 0 || last.bytes == 0 {
        return Err(failed(format!("{received} datagrams and {} bytes of TCP arrived", last.bytes)));
    }
    for (host, (now, then)) in ["h1", "h2"].into_iter().zip(last.rss.into_iter().zip(middle.rss)) {
        if middle.time >= SETTLED && now > then + MAX_GROWTH_KIB {
            let after = middle.time.as_secs();
            return Err(failed(format!(
                "the daemon of {host} grew from {then} KiB (at {after} s) to {now} KiB"
            )));
        }
    }
    Ok(())
}

fn print(out: &mut dyn Write, line: &str) -> Result<(), LabError> {
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(LabError::io("write to the terminal"))
}

fn failed(what: String) -> LabError {
    LabError::Soak(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_drops_are_parsed() {
        assert_eq!(resident("Name:\thopsack\nVmRSS:\t    4312 kB\n"), 4312);
        let metrics = "hopsack_dropped_packets_total{direction=\"ingress\",reason=\"queue_full\"} 12\n\
                       hopsack_dropped_packets_total{direction=\"egress\",reason=\"no_route\"} 0\n";
        assert_eq!(drops(metrics), [("ingress queue_full".to_owned(), 12)]);
    }

    #[test]
    fn failed_checks_are_reported() {
        let datagrams = DatagramCounts { sent: 10, received: 9, ..DatagramCounts::default() };
        let good = Sample { time: SETTLED, rss: [4000; 2], bytes: 1, datagrams, ..Sample::default() };
        check(&[good.clone(), good.clone(), good.clone()]).expect("all samples are good");
        let fails = |last: Sample| check(&[good.clone(), good.clone(), last]).is_err();
        assert!(fails(Sample { rss: [4000, 14_000], ..good.clone() }), "memory grew");
        assert!(
            fails(Sample { datagrams: DatagramCounts { late: 1, ..datagrams }, ..good.clone() }),
            "a datagram is late"
        );
        assert!(fails(Sample { datagrams: DatagramCounts::default(), ..good.clone() }), "nothing arrived");
    }
}
