//! What a run came to: the samples, what they are in the middle, what they are beside kernel VXLAN, and on what machine.
//!
//! Pure but for [`Machine::look`]. The table for people, the page and the JSON are made from one [`Report`], and a report
//! that was written as JSON can be read and shown again.
//!
//! Invariant: a cell of the table is the median of samples that are in the report; what was not measured says why.

use std::fmt::Write as _;
use std::fs;

use serde::{Deserialize, Serialize};

use super::keep_awake::KeepAwake;
use super::measure::{Metric, Workload};
use super::plan::BenchPlan;
use super::system::System;
use super::topology::SharedTopology;
use super::underlay::Underlay;

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// What was asked for.
    pub plan: BenchPlan,
    /// What was measured.
    pub cells: Vec<Cell>,
    /// What was not, and why.
    pub unmeasured: Vec<Unmeasured>,
    /// What set the limit.
    pub limits: Vec<Limit>,
}

/// Where and when a run was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// The processor, as it calls itself.
    pub cpu: String,
    /// How many may be used by us.
    pub cpus: usize,
    /// UTC.
    pub date: String,
    /// The command line.
    pub command: String,
    /// Of hopsack.
    pub version: String,
    /// TCP's congestion control in the pods.
    pub congestion_control: String,
    /// The engine that `auto` stands for, if that was measured.
    pub auto: Option<String>,
    /// The part of the CPUs that was busy before the run began, 0 to 1.
    pub unrest: f64,
    /// Built without optimisation.
    pub debug_build: bool,
    /// What kept the CPUs from halting, if something did.
    #[serde(default)]
    pub awake: Option<String>,
}

/// One metric of one system on one underlay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The cables.
    pub underlay: Underlay,
    /// The system.
    pub system: System,
    /// The metric.
    pub metric: Metric,
    /// One value a repeat, in order, in base units: bit/s, packets/s, seconds, CPU-seconds a GB, connections/s.
    pub samples: Vec<f64>,
    /// Of the samples.
    pub median: f64,
    /// Of the samples.
    pub min: f64,
    /// Of the samples.
    pub max: f64,
    /// The median divided by that of kernel VXLAN in this run on this underlay.
    pub ratio_to_vxlan: Option<f64>,
    /// The least and the most of the ratios within one repeat, if each repeat has both.
    #[serde(default)]
    pub ratio_spread: Option<[f64; 2]>,
}

/// Something that has no value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmeasured {
    /// The system.
    pub system: System,
    /// On these cables; none: on all.
    pub underlay: Option<Underlay>,
    /// In a sentence.
    pub reason: String,
    /// It should have worked.
    pub broken: bool,
}

/// What set the limit of one workload, with the numbers it is told from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// The cables.
    pub underlay: Underlay,
    /// The system.
    pub system: System,
    /// The workload.
    pub workload: Workload,
    /// In a sentence.
    pub sentence: String,
    /// Of the machine's CPU time, in parts of 1: user, system, softirq (with irq), stolen, idle.
    pub cpu: [f64; 5],
    /// CPUs that this process, which has both ends of the traffic, kept busy.
    pub traffic_cpus: f64,
    /// CPUs that the first host's daemon kept busy in user and in kernel mode, then the second's.
    pub daemon_cpus: [f64; 4],
    /// CPUs that programs which have nothing to do with it kept busy in user mode.
    pub other_cpus: f64,
    /// Bytes in a packet on the underlay, on average, as the receiving host's device counts them.
    pub wire_packet_bytes: Option<f64>,
    /// Packets in a read of the TUN, a send, a receive, and a write to the TUN, on average, of a hopsack.
    pub packets_per_call: Option<[f64; 4]>,
}

impl Cell {
    pub(super) fn new(underlay: Underlay, system: System, metric: Metric, samples: Vec<f64>) -> Option<Self> {
        let [min, median, max] = spread(&samples)?;
        Some(Self {
            underlay,
            system,
            metric,
            samples,
            median,
            min,
            max,
            ratio_to_vxlan: None,
            ratio_spread: None,
        })
    }

    /// Without its unit: `9.46 [8.90-9.71]`.
    fn value(&self) -> String {
        let (_, scale) = self.metric.unit();
        let [min, median, max] = [self.min, self.median, self.max].map(|value| digits(value / scale));
        if self.samples.len() == 1 { median } else { format!("{median} [{min}-{max}]") }
    }
}

/// Fills in the ratios.
pub(super) fn compare(cells: &mut [Cell]) {
    let vxlan: Vec<Cell> = cells.iter().filter(|cell| cell.system == System::Vxlan).cloned().collect();
    for cell in cells {
        let same = |base: &&Cell| (base.underlay, base.metric) == (cell.underlay, cell.metric);
        let Some(base) = vxlan.iter().find(same).filter(|base| base.median > 0.0) else {
            (cell.ratio_to_vxlan, cell.ratio_spread) = (None, None);
            continue;
        };
        let pairs = cell.samples.iter().zip(&base.samples);
        let ratios: Vec<f64> = pairs.map(|(sample, base)| sample / base).collect();
        let whole = cell.samples.len() == base.samples.len() && base.min > 0.0;
        cell.ratio_to_vxlan = Some(cell.median / base.median);
        cell.ratio_spread = spread(&ratios).filter(|_| whole).map(|[least, _, most]| [least, most]);
    }
}

/// The least, the middle and the most; none of nothing.
pub(super) fn spread(samples: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (first, last) = (sorted.first()?, sorted.last()?);
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    Some([*first, f64::midpoint(low, high), *last])
}

/// Three digits that mean something: 0.0671, 9.46, 101, 13248.
pub(super) fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        v if v >= 0.0995 => 3,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

impl Report {
    /// The cell, if it was measured.
    #[must_use]
    pub fn cell(&self, underlay: Underlay, system: System, metric: Metric) -> Option<&Cell> {
        let wanted = (underlay, system, metric);
        self.cells.iter().find(|cell| (cell.underlay, cell.system, cell.metric) == wanted)
    }

    /// The systems that should have worked and did not.
    #[must_use]
    pub fn broken(&self) -> Vec<&Unmeasured> {
        self.unmeasured.iter().filter(|unmeasured| unmeasured.broken).collect()
    }

    /// Where, when and how, a fact a line.
    #[must_use]
    pub fn facts(&self) -> Vec<String> {
        let Machine { kernel, cpu, cpus, date, command, version, congestion_control, auto, .. } =
            &self.machine;
        let BenchPlan { repeats, seconds, .. } = &self.plan;
        let mut facts = vec![
            format!("{date}, Linux {kernel}, {cpus} CPUs ({cpu}), hopsack {version}"),
            format!("command: {command}"),
            format!(
                "{repeats} interleaved repeats, {seconds} s each; both hosts, both pods and the traffic share the CPUs; \
                 TCP {congestion_control}, gso_max_size 62000 in all pods"
            ),
            "cells: median [min-max]; x ratio of medians to kernel VXLAN on the same underlay [min-max of the repeats' ratios]"
                .to_owned(),
        ];
        facts.extend(auto.iter().map(|engine| format!("auto is the engine {engine} here")));
        facts
            .extend(self.machine.awake.iter().map(|how| format!("the CPUs were kept from halting by {how}")));
        let debug = "NOISE: this is a debug build of hopsack; build it with --release";
        facts.extend(self.machine.debug_build.then(|| debug.to_owned()));
        facts.extend(self.noise());
        facts
    }

    /// What spoils the run, if something does.
    fn noise(&self) -> Option<String> {
        let Machine { unrest, cpus, .. } = self.machine;
        let during =
            self.limits.iter().map(|limit| limit.other_cpus / cpus.max(1) as f64).fold(0.0, f64::max);
        let percent = [unrest, during].map(|part| format!("{:.0} %", part * 100.0));
        (unrest.max(during) > QUIET).then(|| {
            let [before, during] = percent;
            format!("NOISE: other programs took {before} of the CPUs before the run and up to {during} during it; \
                     don't trust these numbers")
        })
    }

    /// What the systems have measured, as tables for a terminal, with what set the limits.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = self.facts().join("\n") + "\n";
        for underlay in &self.plan.underlays {
            for systems in self.plan.systems.chunks(COLUMNS) {
                let _ = write!(text, "\nunderlay {}\n{}", underlay.name(), self.block(*underlay, systems));
            }
        }
        if !self.unmeasured.is_empty() {
            text.push('\n');
        }
        for Unmeasured { system, underlay, reason, .. } in &self.unmeasured {
            let on = underlay.map(|underlay| format!(" on {}", underlay.name())).unwrap_or_default();
            let _ = writeln!(text, "{}{on} not measured: {reason}", system.name());
        }
        for underlay in &self.plan.underlays {
            let shown = |limit: &&Limit| limit.underlay == *underlay && BULK.contains(&limit.workload);
            let limits: Vec<_> = self.limits.iter().filter(shown).collect();
            if !limits.is_empty() {
                let _ = writeln!(text, "\nwhat set the limit, underlay {}", underlay.name());
            }
            for Limit { system, workload, sentence, .. } in limits {
                let _ = writeln!(text, "  {:<13}{:<9}{sentence}", system.name(), workload.name());
            }
        }
        text
    }

    /// One table: metrics down, systems across.
    fn block(&self, underlay: Underlay, systems: &[System]) -> String {
        let mut rows = vec![vec![String::new()]];
        rows[0].extend(systems.iter().map(|system| system.name().to_owned()));
        for metric in self.metrics_on(underlay) {
            let (unit, _) = metric.unit();
            let cost = if metric.is_cost() { ", less is better" } else { "" };
            let mut row = vec![format!("{} ({unit}{cost})", metric.title())];
            row.extend(systems.iter().map(|system| self.entry(underlay, *system, metric)));
            rows.push(row);
        }
        align(&rows)
    }

    /// `9.46 [8.90-9.71] x0.86 [0.83-0.90]`, or a dash.
    pub(super) fn entry(&self, underlay: Underlay, system: System, metric: Metric) -> String {
        let Some(cell) = self.cell(underlay, system, metric) else { return "-".into() };
        let ratio = cell.ratio_to_vxlan.filter(|_| system != System::Vxlan);
        let ratio = ratio.map(|ratio| format!(" x{}", digits(ratio))).unwrap_or_default();
        let spread = cell.ratio_spread.filter(|_| !ratio.is_empty() && cell.samples.len() > 1);
        let spread = spread.map(|[least, most]| format!(" [{}-{}]", digits(least), digits(most)));
        cell.value() + &ratio + &spread.unwrap_or_default()
    }

    /// Those that have a value on these cables, in order.
    pub(super) fn metrics_on(&self, underlay: Underlay) -> Vec<Metric> {
        let here = |metric: &Metric| {
            self.cells.iter().any(|cell| (cell.underlay, cell.metric) == (underlay, *metric))
        };
        Metric::ALL.into_iter().filter(here).collect()
    }

    /// Those that have a value anywhere, in order.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let measured = |metric: &Metric| self.cells.iter().any(|cell| cell.metric == *metric);
        Metric::ALL.into_iter().filter(measured).collect()
    }
}

/// The workloads whose limit a terminal is told; JSON and the page have all.
const BULK: [Workload; 3] = [Workload::Tcp1, Workload::Tcp4, Workload::Udp64];

/// Systems beside each other in a table, so that it fits a wide terminal.
const COLUMNS: usize = 3;

/// The part of the CPUs that others may use before the numbers are called noise.
pub(super) const QUIET: f64 = 0.05;

fn align(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut text = String::new();
    for row in rows {
        let cells =
            row.iter().enumerate().map(|(column, cell)| format!("{cell:<width$}", width = width(column)));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

impl Machine {
    /// This one.
    pub(super) fn look(unrest: f64, topology: &SharedTopology<'_>) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let model = read("/proc/cpuinfo");
        let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let mut arguments: Vec<String> =
            std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
        if let Some(program) = arguments.first_mut() {
            // Where it lies is this machine's business, and results are shown to others.
            *program = program.rsplit('/').next().unwrap_or_default().to_owned();
        }
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: model.map_or(std::env::consts::ARCH, |(_, model)| model).trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            date: date(since.map_or(0, |since| since.as_secs())),
            command: arguments.join(" "),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            congestion_control: topology.congestion_control().to_owned(),
            auto: None,
            unrest,
            debug_build: cfg!(debug_assertions),
            awake: topology.awake().map(|awake| KeepAwake::how(awake).to_owned()),
        }
    }
}

/// `2026-01-31 12:34 UTC` from seconds since 1970.
fn date(seconds: u64) -> String {
    // Howard Hinnant's civil_from_days, counting years from March 1st of the year 0.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, new_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + new_year;
    let minutes = seconds / 60 % 1440;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two systems on one underlay, and one that was refused.
    pub(in super::super) fn report() -> Report {
        let cell = |system, metric, samples: &[f64]| {
            Cell::new(Underlay::Pass, system, metric, samples.to_vec()).unwrap()
        };
        let mut cells = vec![
            cell(System::Vxlan, Metric::Tcp1, &[12e9, 10e9, 11e9]),
            cell(System::Simple, Metric::Tcp1, &[0.6e9, 0.7e9, 0.8e9]),
            cell(System::Vxlan, Metric::RttP50, &[50e-6]),
            cell(System::Simple, Metric::RttP50, &[100e-6]),
        ];
        compare(&mut cells);
        let machine = Machine {
            kernel: "6.18.0".into(),
            cpu: "a <fast> one".into(),
            cpus: 2,
            date: date(0),
            command: "hopsack lab bench".into(),
            version: "0.1.0".into(),
            congestion_control: "cubic".into(),
            auto: None,
            unrest: 0.5,
            debug_build: false,
            awake: None,
        };
        let plan =
            BenchPlan { systems: vec![System::Vxlan, System::Simple, System::Uring], ..BenchPlan::short() };
        let unmeasured = vec![Unmeasured {
            system: System::Uring,
            underlay: None,
            reason: "not in this build: x & y".into(),
            broken: false,
        }];
        let limits = vec![Limit {
            underlay: Underlay::Pass,
            system: System::Simple,
            workload: Workload::Tcp1,
            sentence: "the CPUs are full".into(),
            cpu: [0.1, 0.7, 0.1, 0.0, 0.1],
            traffic_cpus: 0.4,
            daemon_cpus: [0.1, 0.5, 0.1, 0.5],
            other_cpus: 0.2,
            wire_packet_bytes: Some(1500.0),
            packets_per_call: Some([1.0; 4]),
        }];
        Report { machine, plan, cells, unmeasured, limits }
    }

    #[test]
    fn the_middle_of_samples() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0]), Some([3.0; 3]));
        assert_eq!(spread(&[9.0, 1.0, 3.0]), Some([1.0, 3.0, 9.0]));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 9.0]), Some([1.0, 3.0, 9.0]));
    }

    #[test]
    fn ratios_are_to_vxlan_on_the_same_underlay() {
        let mut report = report();
        let ratio = |report: &Report, metric| {
            report.cell(Underlay::Pass, System::Simple, metric).unwrap().ratio_to_vxlan
        };
        assert_eq!(ratio(&report, Metric::Tcp1), Some(0.7e9 / 11e9));
        assert_eq!(ratio(&report, Metric::RttP50), Some(2.0));
        report.cells.retain(|cell| cell.system != System::Vxlan);
        compare(&mut report.cells);
        assert_eq!(ratio(&report, Metric::Tcp1), None);
    }

    #[test]
    fn the_table_shows_values_ratios_refusals_and_noise() {
        let table = report().table();
        for part in [
            "underlay pass",
            "11.0 [10.0-12.0]",
            "0.700 [0.600-0.800] x0.0636 [0.0500-0.0727]",
            "100 x2.00",
            "uring not measured: not in this build",
            "NOISE: other programs took 50 % of the CPUs before the run and up to 10 % during it",
            "simple       tcp1     the CPUs are full",
        ] {
            assert!(table.contains(part), "{part:?} is not in\n{table}");
        }
        let uring = table.lines().find(|line| line.starts_with("TCP, 1 stream")).unwrap();
        assert!(uring.ends_with(" -"), "{uring}");
    }

    #[test]
    fn numbers_and_dates_for_people() {
        assert_eq!(
            [0.0671, 0.7, 9.456, 100.4, 13_248.0].map(digits),
            ["0.0671", "0.700", "9.46", "100", "13248"]
        );
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_767_225_599), "2025-12-31 23:59 UTC");
    }
}
