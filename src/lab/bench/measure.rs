//! Measures one workload on the active system: traffic from the first pod to the second.
//!
//! It chooses durations and defines the metrics. [`super::udp`], [`super::request`] and
//! [`super::super::traffic`] make the traffic.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::super::error::LabError;
use super::super::interrupt::Interrupt;
use super::super::traffic::{Amount, Flow, Transfer};
use super::cpu_usage::{CpuUsage, UsageMeter};
use super::request;
use super::topology::SharedTopology;
use super::udp::{self, Search, Shape};
use crate::packet::Family;

/// Kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// One TCP stream.
    Tcp1,
    /// Four TCP streams.
    Tcp4,
    /// Datagrams of 64 bytes in one flow: a flood, then a search for the rate with at most 1 %
    /// loss.
    Udp64,
    /// Datagrams of 64 bytes in 32 flows that take turns.
    Udp64x32,
    /// Datagrams of 1400 bytes in one flow.
    Udp1400,
    /// Datagrams of 1400 bytes in 32 flows that take turns.
    Udp1400x32,
    /// UDP requests and answers of 64 bytes, one at a time.
    Rtt,
    /// Round trips as in `rtt`, beside one TCP stream.
    RttBulk,
    /// Round trips as in `rtt`, beside 16 TCP streams.
    RttBulk16,
    /// TCP connections with one request and one answer, one at a time.
    Connects,
}

impl Workload {
    /// Name, as on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp4 => "tcp4",
            Self::Udp64 => "udp64",
            Self::Udp64x32 => "udp64x32",
            Self::Udp1400 => "udp1400",
            Self::Udp1400x32 => "udp1400x32",
            Self::Rtt => "rtt",
            Self::RttBulk => "rtt-bulk",
            Self::RttBulk16 => "rtt-bulk16",
            Self::Connects => "connects",
        }
    }
}

/// Quantity that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Payload of one TCP stream in bit/s.
    Tcp1,
    /// Payload of four TCP streams together in bit/s.
    Tcp4,
    /// CPU-seconds of the whole machine per GB of one TCP stream.
    CpuPerGb,
    /// Datagrams of 64 bytes per second: most that arrived in any trial.
    Udp64Highest,
    /// Datagrams of 64 bytes per second: most that arrived in a trial with at most 1 % loss.
    Udp64Carried,
    /// As `Udp64Highest`, with 32 flows.
    Udp64x32Highest,
    /// As `Udp64Carried`, with 32 flows.
    Udp64x32Carried,
    /// As `Udp64Highest`, with 1400 bytes.
    Udp1400Highest,
    /// As `Udp64Carried`, with 1400 bytes.
    Udp1400Carried,
    /// As `Udp64Highest`, with 1400 bytes and 32 flows.
    Udp1400x32Highest,
    /// As `Udp64Carried`, with 1400 bytes and 32 flows.
    Udp1400x32Carried,
    /// Median of the round trips in seconds.
    RttP50,
    /// 99th percentile of the round trips in seconds.
    RttP99,
    /// Median of the round trips beside one TCP stream.
    BulkRttP50,
    /// 99th percentile of the round trips beside one TCP stream.
    BulkRttP99,
    /// Payload of that TCP stream in bit/s. It shows whether short round trips starve the stream.
    BulkTcp,
    /// Median of the round trips beside 16 TCP streams.
    Bulk16RttP50,
    /// 99th percentile of the round trips beside 16 TCP streams.
    Bulk16RttP99,
    /// Payload of those 16 TCP streams together in bit/s.
    Bulk16Tcp,
    /// TCP connections per second.
    Connects,
}

impl Metric {
    /// All metrics in the order of the tables.
    pub const ALL: [Self; 20] = [
        Self::Tcp1,
        Self::Tcp4,
        Self::CpuPerGb,
        Self::Udp64Highest,
        Self::Udp64Carried,
        Self::Udp64x32Highest,
        Self::Udp64x32Carried,
        Self::Udp1400Highest,
        Self::Udp1400Carried,
        Self::Udp1400x32Highest,
        Self::Udp1400x32Carried,
        Self::RttP50,
        Self::RttP99,
        Self::BulkRttP50,
        Self::BulkRttP99,
        Self::BulkTcp,
        Self::Bulk16RttP50,
        Self::Bulk16RttP99,
        Self::Bulk16Tcp,
        Self::Connects,
    ];

    /// Title for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Tcp1 => "TCP, 1 stream",
            Self::Tcp4 => "TCP, 4 streams",
            Self::CpuPerGb => "CPU for TCP, 1 stream",
            Self::Udp64Highest => "UDP 64 B, highest",
            Self::Udp64Carried => "UDP 64 B, <= 1 % lost",
            Self::Udp64x32Highest => "UDP 64 B x 32 flows, highest",
            Self::Udp64x32Carried => "UDP 64 B x 32 flows, <= 1 % lost",
            Self::Udp1400Highest => "UDP 1400 B, highest",
            Self::Udp1400Carried => "UDP 1400 B, <= 1 % lost",
            Self::Udp1400x32Highest => "UDP 1400 B x 32 flows, highest",
            Self::Udp1400x32Carried => "UDP 1400 B x 32 flows, <= 1 % lost",
            Self::RttP50 => "round trip, p50",
            Self::RttP99 => "round trip, p99",
            Self::BulkRttP50 => "round trip beside TCP, p50",
            Self::BulkRttP99 => "round trip beside TCP, p99",
            Self::BulkTcp => "that TCP",
            Self::Bulk16RttP50 => "round trip beside 16 TCP, p50",
            Self::Bulk16RttP99 => "round trip beside 16 TCP, p99",
            Self::Bulk16Tcp => "those TCP",
            Self::Connects => "TCP connections",
        }
    }

    /// Unit for people, and the number by which a value in base units is divided.
    #[must_use]
    pub fn unit(self) -> (&'static str, f64) {
        match self {
            Self::Tcp1 | Self::Tcp4 | Self::BulkTcp | Self::Bulk16Tcp => ("Gbit/s", 1e9),
            Self::CpuPerGb => ("CPU-s/GB", 1.0),
            Self::Udp64Highest
            | Self::Udp64Carried
            | Self::Udp64x32Highest
            | Self::Udp64x32Carried
            | Self::Udp1400Highest
            | Self::Udp1400Carried
            | Self::Udp1400x32Highest
            | Self::Udp1400x32Carried => ("kpps", 1e3),
            Self::RttP50
            | Self::RttP99
            | Self::BulkRttP50
            | Self::BulkRttP99
            | Self::Bulk16RttP50
            | Self::Bulk16RttP99 => ("us", 1e-6),
            Self::Connects => ("/s", 1.0),
        }
    }

    /// Whether a smaller value is better.
    #[must_use]
    pub fn is_cost(self) -> bool {
        matches!(self, Self::CpuPerGb) || self.unit().0 == "us"
    }
}

/// Result of one run of a workload: values in base units, and the CPU usage.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) values: Vec<(Metric, f64)>,
    pub(super) usage: CpuUsage,
    /// Round trips that a prober of ordinary priority measured.
    pub(super) disturbed: Vec<Metric>,
}

/// Durations of the parts of a workload, computed from the duration of one TCP measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Duration of a TCP measurement.
    flow: Duration,
    /// Warm-up before it, in which TCP finds its speed.
    warm: Duration,
    /// Duration of each trial of a search. Queues fill many times in it, so loss shows soon.
    trial: Duration,
    /// Duration of what is counted: some thousand round trips, some thousand connections.
    many: Duration,
}

impl Times {
    pub(super) fn of(flow: Duration) -> Self {
        Self { flow, warm: flow / 5, trial: flow / 5, many: flow / 2 }
    }

    /// Approximate duration of a workload, within some tens of milliseconds.
    pub(super) fn total(self, workload: Workload) -> Duration {
        match workload {
            Workload::Tcp1 | Workload::Tcp4 | Workload::RttBulk | Workload::RttBulk16 => {
                self.warm + self.flow
            }
            Workload::Udp64 | Workload::Udp64x32 | Workload::Udp1400 | Workload::Udp1400x32 => {
                self.many + (self.trial + udp::DRAIN) * udp::TRIALS + udp::DRAIN
            }
            Workload::Rtt | Workload::Connects => self.many,
        }
    }
}

/// Runs a workload once.
pub(super) fn run(
    topology: &SharedTopology<'_>,
    workload: Workload,
    counters: bool,
    times: Times,
    interrupt: &Interrupt,
) -> Result<Outcome, LabError> {
    let beside = |count, metrics| round_trips_beside(topology, count, metrics, counters, times, interrupt);
    let udp = |payload, many, metrics| {
        datagrams(topology, Shape { payload, many }, metrics, counters, times, interrupt)
    };
    match workload {
        Workload::Tcp1 => {
            let (rate, bytes, usage) = streams(topology, 1, counters, times, interrupt)?;
            let cpu = usage.busy() / (bytes / 1e9);
            let values = vec![(Metric::Tcp1, rate), (Metric::CpuPerGb, cpu)];
            Ok(Outcome { values, usage, ..Outcome::default() })
        }
        Workload::Tcp4 => {
            let (rate, _, usage) = streams(topology, 4, counters, times, interrupt)?;
            Ok(Outcome { values: vec![(Metric::Tcp4, rate)], usage, ..Outcome::default() })
        }
        Workload::Udp64 => udp(64, false, [Metric::Udp64Highest, Metric::Udp64Carried]),
        Workload::Udp64x32 => udp(64, true, [Metric::Udp64x32Highest, Metric::Udp64x32Carried]),
        Workload::Udp1400 => udp(1400, false, [Metric::Udp1400Highest, Metric::Udp1400Carried]),
        Workload::Udp1400x32 => udp(1400, true, [Metric::Udp1400x32Highest, Metric::Udp1400x32Carried]),
        Workload::Rtt => {
            let meter = UsageMeter::start(topology, counters);
            let outcome = round_trips(topology, times.many, [Metric::RttP50, Metric::RttP99], interrupt)?;
            Ok(Outcome { usage: meter.stop(), ..outcome })
        }
        Workload::RttBulk => beside(1, [Metric::BulkRttP50, Metric::BulkRttP99, Metric::BulkTcp]),
        Workload::RttBulk16 => beside(16, [Metric::Bulk16RttP50, Metric::Bulk16RttP99, Metric::Bulk16Tcp]),
        Workload::Connects => {
            let meter = UsageMeter::start(topology, counters);
            let rate = request::connections(topology.pods(), times.many, interrupt)?;
            let values = vec![(Metric::Connects, rate)];
            Ok(Outcome { values, usage: meter.stop(), ..Outcome::default() })
        }
    }
}

/// Measures round trips beside `count` TCP streams, and the rate of these streams.
fn round_trips_beside(
    topology: &SharedTopology<'_>,
    count: usize,
    [p50, p99, tcp]: [Metric; 3],
    counters: bool,
    times: Times,
    interrupt: &Interrupt,
) -> Result<Outcome, LabError> {
    let transfers = (0..count).map(|_| start(topology)).collect::<Result<Vec<_>, _>>()?;
    let received = || transfers.iter().map(Transfer::received).sum::<u64>();
    interrupt.sleep(times.warm)?;
    let (meter, begin, before) = (UsageMeter::start(topology, counters), Instant::now(), received());
    let mut outcome = round_trips(topology, times.flow, [p50, p99], interrupt)?;
    let rate = (received() - before) as f64 * 8.0 / begin.elapsed().as_secs_f64();
    outcome.values.push((tcp, rate));
    Ok(Outcome { usage: meter.stop(), ..outcome })
}

/// Measures TCP streams in the middle of their life, then closes them. Returns bit/s, bytes and CPU
/// usage.
fn streams(
    topology: &SharedTopology<'_>,
    count: usize,
    counters: bool,
    times: Times,
    interrupt: &Interrupt,
) -> Result<(f64, f64, CpuUsage), LabError> {
    let transfers = (0..count).map(|_| start(topology)).collect::<Result<Vec<_>, _>>()?;
    let received = || transfers.iter().map(Transfer::received).sum::<u64>();
    interrupt.sleep(times.warm)?;
    let meter = UsageMeter::start(topology, counters);
    let (begin, before) = (Instant::now(), received());
    interrupt.sleep(times.flow)?;
    let (bytes, seconds) = ((received() - before) as f64, begin.elapsed().as_secs_f64());
    let usage = meter.stop();
    if bytes == 0.0 {
        return Err(LabError::Bench(format!("{count} TCP streams moved nothing in {seconds:.1} s")));
    }
    Ok((bytes * 8.0 / seconds, bytes, usage))
}

/// Starts a stream that runs until it is dropped.
fn start(topology: &SharedTopology<'_>) -> Result<Transfer, LabError> {
    let [from, to] = topology.pods();
    let amount = Amount::Time(Duration::from_secs(3600));
    let transfer = Transfer::start(Flow { from, to, family: Family::V4, amount, verify: false })?;
    transfer.set_congestion_control(topology.congestion_control())?;
    Ok(transfer)
}

/// How much longer a flood may become until a datagram arrives during it.
const FLOOD_STRETCH: u32 = 16;

/// Measures floods and paced datagrams. The CPU usage is that of the flood, because the rates of
/// the search differ between systems.
fn datagrams(
    topology: &SharedTopology<'_>,
    shape: Shape,
    [highest, carried]: [Metric; 2],
    counters: bool,
    times: Times,
    interrupt: &Interrupt,
) -> Result<Outcome, LabError> {
    let (mut usage, mut time) = (CpuUsage::default(), times.many);
    // On a busy machine a short flood may end before its first datagram has arrived.
    let flood = loop {
        let meter = UsageMeter::start(topology, counters);
        let flood = udp::trial(topology.pods(), shape, None, time, interrupt, || usage = meter.stop())?;
        if flood.delivered > 0.0 || time >= times.many * FLOOD_STRETCH {
            break flood;
        }
        time *= 2;
    };
    let mut search = Search::after(flood);
    while let Some(rate) = search.next() {
        search.observe(udp::trial(topology.pods(), shape, Some(rate), times.trial, interrupt, || ())?);
    }
    if search.highest() == 0.0 {
        return Err(LabError::Bench(format!("not one datagram of {} bytes arrived", shape.payload)));
    }
    let mut values = vec![(highest, search.highest())];
    values.extend(search.carried().map(|rate| (carried, rate)));
    Ok(Outcome { values, usage, ..Outcome::default() })
}

fn round_trips(
    topology: &SharedTopology<'_>,
    time: Duration,
    [p50, p99]: [Metric; 2],
    interrupt: &Interrupt,
) -> Result<Outcome, LabError> {
    let times = request::round_trips(topology.pods(), time, interrupt)?;
    let both = [(p50, times.quantile(0.5)), (p99, times.quantile(0.99))];
    let values = both.into_iter().filter_map(|(metric, time)| Some((metric, time?))).collect();
    let disturbed = if times.realtime { Vec::new() } else { vec![p50, p99] };
    Ok(Outcome { values, disturbed, ..Outcome::default() })
}
