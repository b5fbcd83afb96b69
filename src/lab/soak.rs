//! The soak: traffic for an hour, and whether it wore anything out.
//!
//! Verified TCP streams in both families and both directions, renewed now and then, beside numbered datagrams of several
//! sizes (`datagrams`). At intervals it tells the daemons' memory, packets, drops by reason and datagrams out of order. It
//! measures no speed: that is the bench's.
//!
//! Invariant: [`run`] returns `Ok` only if all bytes were right, no datagram overtook another of its flow, memory stood
//! still and both daemons ended in order; and whichever way it returns, the lab is gone.

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
use crate::packet::Family;
use datagrams::{Datagrams, Tally};

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct SoakPlan {
    /// It ends after this time.
    pub time: Duration,
    /// Or after so many packets, sent and received ones of both daemons together.
    pub packets: u64,
    /// From line to line.
    pub every: Duration,
    /// Datagrams a second, in each of four flows.
    pub rate: u32,
    /// The cables.
    pub underlay: Underlay,
}

/// Between two generations of TCP streams: new flows come, old ones end.
const RENEW: Duration = Duration::from_secs(60);

/// What a daemon's memory may grow by from the middle to the end: buffers are made at the start, but a page counts from its
/// first use, and the last of them (4 MiB of merged packets) is used on the day that the kernel is slow. A leak of a tenth of
/// a byte a packet is more in an hour.
const GROWTH_KIB: u64 = 8 * 1024;

/// A run whose middle comes before this is too short to tell: until then, buffers are touched for the first time.
const SETTLED: Duration = Duration::from_secs(20);

/// What is still under way when the senders have stopped arrives within this.
const DRAIN: Duration = Duration::from_millis(500);

/// Soaks a lab of two hosts with the name, program, configuration and interrupt of `options`, and tells about it on `out`. An
/// interrupt ends it early, with the account of what was done.
///
/// # Errors
/// The lab could not be made, the traffic broke, or what must hold did not.
pub fn run(options: Options, plan: &SoakPlan, out: &mut dyn Write) -> Result<(), LabError> {
    let lab = Lab::up(Options { hosts: 2, underlay: Family::V4, ..options })?;
    let soaked = soak(&lab, plan, out);
    let removed = lab.down();
    soaked?;
    removed.map(|_| ())
}

fn soak(lab: &Lab, plan: &SoakPlan, out: &mut dyn Write) -> Result<(), LabError> {
    plan.underlay.set(lab)?;
    let engine = lab.daemon(1).status()?["engine"].as_str().unwrap_or_default().to_owned();
    say(out, &format!("engine {engine}, underlay {}\n{HEADER}", plan.underlay.name()))?;
    let datagrams = Datagrams::start(lab, plan.rate)?;
    let mut streams = Streams::start(lab)?;
    let (begin, mut looks) = (Instant::now(), Vec::new());
    let mut done = false;
    while !done {
        let left = plan.time.saturating_sub(begin.elapsed());
        let interrupted = lab.options().interrupt.sleep(plan.every.min(left)).is_err();
        let look = Look::at(lab, begin.elapsed(), streams.bytes(), datagrams.tally())?;
        say(out, &look.line(looks.last()))?;
        done = interrupted || look.time >= plan.time || look.packets() >= plan.packets;
        looks.push(look);
        if !done && streams.begin.elapsed() >= RENEW {
            streams.renew(lab)?;
        }
    }
    let bytes = streams.end()?;
    let tally = datagrams.end(DRAIN)?;
    let last = Look::at(lab, begin.elapsed(), bytes, tally)?;
    say(out, &last.line(None))?;
    say(out, &last.account())?;
    looks.push(last);
    stop(lab)?;
    verdict(&looks)?;
    say(out, "It held: bytes right, datagrams in order, memory constant, both daemons ended in order.")
}

/// Four endless streams: two families, two directions.
struct Streams {
    begin: Instant,
    running: Vec<Transfer>,
    /// Of those that have ended.
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

    /// Ends all in order, which tells whether each byte was right.
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

/// What there was to see at one moment.
#[derive(Debug, Clone, Default)]
struct Look {
    time: Duration,
    /// Resident memory of the two daemons, in KiB.
    rss: [u64; 2],
    /// Both daemons' counters, by name.
    counters: BTreeMap<String, f64>,
    /// By direction and reason.
    drops: BTreeMap<String, u64>,
    bytes: u64,
    tally: Tally,
}

const HEADER: &str =
    "    time   RSS h1   RSS h2         packets   kpps     TCP GB     datagrams      lost  late  drops";

impl Look {
    fn at(lab: &Lab, time: Duration, bytes: u64, tally: Tally) -> Result<Self, LabError> {
        let mut look = Self { time, bytes, tally, ..Self::default() };
        for (number, rss) in (1..).zip(&mut look.rss) {
            // Its status says why it is not there, if it is not.
            lab.daemon(number).wait_ready(Duration::ZERO)?;
            let pid = lab.daemon(number).pid().unwrap_or_default();
            *rss = resident(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default());
            let text = scrape(&lab.host(number).netns);
            for (name, count) in worker_counters(&text) {
                *look.counters.entry(name).or_default() += count;
            }
            for (reason, count) in drops(&text) {
                *look.drops.entry(reason).or_default() += count;
            }
        }
        Ok(look)
    }

    fn packets(&self) -> u64 {
        let count = |name| self.counters.get(name).copied().unwrap_or(0.0);
        // Counts of packets: whole, not negative, far below 2^53.
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
        let Tally { sent, late, .. } = self.tally;
        format!(
            "{:>6.0} s {one:>8} {two:>8} {:>15} {kpps:>6.0} {:>10.2} {sent:>13} {:>7.3} % {late:>5}  {drops}",
            self.time.as_secs_f64(),
            self.packets(),
            self.bytes as f64 / 1e9,
            100.0 * self.tally.lost(),
        )
    }

    /// All that both daemons have counted.
    fn account(&self) -> String {
        let counts: Vec<String> =
            self.counters.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!("counted by both: {}", counts.join(", "))
    }
}

/// `VmRSS` of `proc_pid_status(5)`, in KiB.
fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// `hopsack_dropped_packets_total`, where there were any.
fn drops(metrics: &str) -> Vec<(String, u64)> {
    let parse = |line: &str| {
        let (labels, count) = line.strip_prefix("hopsack_dropped_packets_total{")?.split_once("} ")?;
        let words: Vec<&str> = labels.split('"').skip(1).step_by(2).collect();
        let count = count.trim().parse().ok().filter(|count| *count > 0)?;
        Some((words.join(" "), count))
    };
    metrics.lines().filter_map(parse).collect()
}

/// Both daemons, as systemd would.
fn stop(lab: &Lab) -> Result<(), LabError> {
    for number in 1..=lab.hosts().len() {
        let status = lab.daemon(number).terminate()?;
        if !status.is_some_and(|status| status.success()) {
            let (host, status) =
                (&lab.host(number).name, status.map_or("gone".into(), |status| status.to_string()));
            return Err(failed(format!("the daemon of {host} ended with {status}")));
        }
    }
    Ok(())
}

fn verdict(looks: &[Look]) -> Result<(), LabError> {
    let (Some(last), Some(middle)) = (looks.last(), looks.get(looks.len() / 2)) else { return Ok(()) };
    let Tally { received, late, wrong, .. } = last.tally;
    if late + wrong > 0 {
        return Err(failed(format!("{late} datagrams came late, {wrong} were not what was sent")));
    }
    if received == 0 || last.bytes == 0 {
        return Err(failed(format!("{received} datagrams and {} bytes of TCP arrived", last.bytes)));
    }
    for (host, (now, then)) in ["h1", "h2"].into_iter().zip(last.rss.into_iter().zip(middle.rss)) {
        if middle.time >= SETTLED && now > then + GROWTH_KIB {
            let after = middle.time.as_secs();
            return Err(failed(format!(
                "the daemon of {host} grew from {then} KiB (at {after} s) to {now} KiB"
            )));
        }
    }
    Ok(())
}

fn say(out: &mut dyn Write, line: &str) -> Result<(), LabError> {
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(LabError::io("write to the terminal"))
}

fn failed(what: String) -> LabError {
    LabError::Soak(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_and_the_daemons_tell_is_read() {
        assert_eq!(resident("Name:\thopsack\nVmRSS:\t    4312 kB\n"), 4312);
        let metrics = "hopsack_dropped_packets_total{direction=\"ingress\",reason=\"queue_full\"} 12\n\
                       hopsack_dropped_packets_total{direction=\"egress\",reason=\"no_route\"} 0\n";
        assert_eq!(drops(metrics), [("ingress queue_full".to_owned(), 12)]);
    }

    #[test]
    fn what_must_hold_is_judged() {
        let tally = Tally { sent: 10, received: 9, ..Tally::default() };
        let good = Look { time: SETTLED, rss: [4000; 2], bytes: 1, tally, ..Look::default() };
        verdict(&[good.clone(), good.clone(), good.clone()]).expect("nothing happened");
        let judge =
            |last: Look| verdict(&[good.clone(), good.clone(), last]).expect_err("it wore out").to_string();
        let grown = judge(Look { rss: [4000, 14_000], ..good.clone() });
        assert!(grown.contains("h2 grew from 4000 KiB"), "{grown}");
        let late = judge(Look { tally: Tally { late: 1, ..tally }, ..good.clone() });
        assert!(late.contains("1 datagrams came late"), "{late}");
        judge(Look { tally: Tally::default(), ..good.clone() });
    }
}
