//! One workload on the active system: traffic from the first pod to the second, and what it came to.
//!
//! It chooses durations and knows the metrics; the traffic itself is made by [`super::udp`], [`super::request`] and
//! [`super::super::traffic`].

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

/// What is done to a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// One TCP stream.
    Tcp1,
    /// Four TCP streams.
    Tcp4,
    /// Datagrams of 64 bytes, one flow: a flood, then the search for the rate that is carried.
    Udp64,
    /// The same with 32 flows that take turns.
    Udp64x32,
    /// Datagrams of 1400 bytes, one flow.
    Udp1400,
    /// The same with 32 flows that take turns.
    Udp1400x32,
    /// Questions and answers of 64 bytes by UDP, one at a time.
    Rtt,
    /// The same beside one TCP stream.
    RttBulk,
    /// The same beside 16 TCP streams.
    RttBulk16,
    /// TCP connect, question, answer, close, one at a time.
    Connects,
}

impl Workload {
    /// As on the command line.
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

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Bits of payload a second.
    Tcp1,
    /// Bits of payload a second, four streams together.
    Tcp4,
    /// Of the whole machine, one TCP stream.
    CpuPerGb,
    /// The most that arrived, flooded or paced.
    Udp64Highest,
    /// The most that arrived while at most 1 % was lost.
    Udp64Carried,
    /// Of 32 flows.
    Udp64x32Highest,
    /// Of 32 flows.
    Udp64x32Carried,
    /// 1400 bytes.
    Udp1400Highest,
    /// 1400 bytes.
    Udp1400Carried,
    /// 1400 bytes, of 32 flows.
    Udp1400x32Highest,
    /// 1400 bytes, of 32 flows.
    Udp1400x32Carried,
    /// Half of the answers came within.
    RttP50,
    /// Of 100 answers 99 came within.
    RttP99,
    /// Beside one TCP stream.
    BulkRttP50,
    /// Beside one TCP stream.
    BulkRttP99,
    /// What that TCP stream moved meanwhile: a tail can be bought by starving it.
    BulkTcp,
    /// Beside 16 TCP streams.
    Bulk16RttP50,
    /// Beside 16 TCP streams.
    Bulk16RttP99,
    /// What those moved together.
    Bulk16Tcp,
    /// TCP connections a second.
    Connects,
}

impl Metric {
    /// In the order of the tables.
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

    /// For people.
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

    /// The unit for people, and what a value in base units is divided by to be in it.
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

    /// Whether less is better.
    #[must_use]
    pub fn is_cost(self) -> bool {
        matches!(self, Self::CpuPerGb) || self.unit().0 == "us"
    }
}

/// What one workload came to once: values in base units, and the load of its bulk.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) values: Vec<(Metric, f64)>,
    pub(super) load: CpuUsage,
}

/// For how long each part of a workload runs, from the seconds of one TCP measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// What is measured by its flow.
    flow: Duration,
    /// Before it, for TCP to find its speed.
    warm: Duration,
    /// Each trial of a search: loss is a sum over many queues' fillings and shows soon.
    trial: Duration,
    /// What is measured by its number: some thousand round trips, some thousand connections.
    many: Duration,
}

impl Times {
    pub(super) fn of(flow: Duration) -> Self {
        Self { flow, warm: flow / 5, trial: flow / 5, many: flow / 2 }
    }

    /// What a workload takes, within some tens of milliseconds.
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

/// Does it.
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
            let (rate, bytes, load) = streams(topology, 1, counters, times, interrupt)?;
            let cpu = load.busy() / (bytes / 1e9);
            Ok(Outcome { values: vec![(Metric::Tcp1, rate), (Metric::CpuPerGb, cpu)], load })
        }
        Workload::Tcp4 => {
            let (rate, _, load) = streams(topology, 4, counters, times, interrupt)?;
            Ok(Outcome { values: vec![(Metric::Tcp4, rate)], load })
        }
        Workload::Udp64 => udp(64, false, [Metric::Udp64Highest, Metric::Udp64Carried]),
        Workload::Udp64x32 => udp(64, true, [Metric::Udp64x32Highest, Metric::Udp64x32Carried]),
        Workload::Udp1400 => udp(1400, false, [Metric::Udp1400Highest, Metric::Udp1400Carried]),
        Workload::Udp1400x32 => udp(1400, true, [Metric::Udp1400x32Highest, Metric::Udp1400x32Carried]),
        Workload::Rtt => {
            let meter = UsageMeter::start(topology, counters);
            let values = round_trips(topology, times.many, [Metric::RttP50, Metric::RttP99], interrupt)?;
            Ok(Outcome { values, load: meter.stop() })
        }
        Workload::RttBulk => beside(1, [Metric::BulkRttP50, Metric::BulkRttP99, Metric::BulkTcp]),
        Workload::RttBulk16 => beside(16, [Metric::Bulk16RttP50, Metric::Bulk16RttP99, Metric::Bulk16Tcp]),
        Workload::Connects => {
            let meter = UsageMeter::start(topology, counters);
            let rate = request::connections(topology.pods(), times.many, interrupt)?;
            Ok(Outcome { values: vec![(Metric::Connects, rate)], load: meter.stop() })
        }
    }
}

/// Round trips beside so many streams, and what these moved meanwhile.
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
    let mut values = round_trips(topology, times.flow, [p50, p99], interrupt)?;
    let rate = (received() - before) as f64 * 8.0 / begin.elapsed().as_secs_f64();
    values.push((tcp, rate));
    Ok(Outcome { values, load: meter.stop() })
}

/// Bits a second, bytes and load of a stretch in the middle of some TCP streams, which are then cut off.
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
    let load = meter.stop();
    if bytes == 0.0 {
        return Err(LabError::Bench(format!("{count} TCP streams moved nothing in {seconds:.1} s")));
    }
    Ok((bytes * 8.0 / seconds, bytes, load))
}

/// A stream that goes on until it is dropped.
fn start(topology: &SharedTopology<'_>) -> Result<Transfer, LabError> {
    let [from, to] = topology.pods();
    let amount = Amount::Time(Duration::from_secs(3600));
    let transfer = Transfer::start(Flow { from, to, family: Family::V4, amount, verify: false })?;
    transfer.set_congestion_control(topology.congestion_control())?;
    Ok(transfer)
}

/// The load is the flood's: what the search offers differs from system to system.
fn datagrams(
    topology: &SharedTopology<'_>,
    shape: Shape,
    [highest, carried]: [Metric; 2],
    counters: bool,
    times: Times,
    interrupt: &Interrupt,
) -> Result<Outcome, LabError> {
    let meter = UsageMeter::start(topology, counters);
    let mut load = CpuUsage::default();
    let flood = udp::trial(topology.pods(), shape, None, times.many, interrupt, || load = meter.stop())?;
    let mut search = Search::after(flood);
    while let Some(rate) = search.next() {
        search.observe(udp::trial(topology.pods(), shape, Some(rate), times.trial, interrupt, || ())?);
    }
    if search.highest() == 0.0 {
        return Err(LabError::Bench(format!("not one datagram of {} bytes arrived", shape.payload)));
    }
    let mut values = vec![(highest, search.highest())];
    values.extend(search.carried().map(|rate| (carried, rate)));
    Ok(Outcome { values, load })
}

fn round_trips(
    topology: &SharedTopology<'_>,
    time: Duration,
    [p50, p99]: [Metric; 2],
    interrupt: &Interrupt,
) -> Result<Vec<(Metric, f64)>, LabError> {
    let times = request::round_trips(topology.pods(), time, interrupt)?;
    let both = [(p50, times.quantile(0.5)), (p99, times.quantile(0.99))];
    Ok(both.into_iter().filter_map(|(metric, time)| Some((metric, time?))).collect())
}
