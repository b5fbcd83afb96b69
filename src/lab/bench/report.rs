//! Report of a run: samples, medians, ratios to kernel VXLAN, and the machine.
//!
//! Pure. The table, the HTML page and the JSON file are made from one [`Report`]. A JSON file can
//! be read and shown again.
//!
//! Invariant: each cell of the table is the median of samples in the report, and everything that
//! was not measured has a reason.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::measure::{Metric, Workload};
use super::plan::BenchPlan;
use super::system::System;
use super::underlay::Underlay;

/// Report of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Machine and time of the run.
    pub machine: Machine,
    /// Plan of the run.
    pub plan: BenchPlan,
    /// Measured values.
    pub cells: Vec<Cell>,
    /// Round trips that a prober of ordinary priority measured, because real-time priority was
    /// refused: they contain its own time slice.
    #[serde(default)]
    pub disturbed: Vec<Metric>,
    /// Systems without values, with the reasons.
    pub unmeasured: Vec<Unmeasured>,
    /// What limited each workload.
    pub limits: Vec<Limit>,
}

/// One metric of one system on one underlay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Underlay.
    pub underlay: Underlay,
    /// System.
    pub system: System,
    /// Metric.
    pub metric: Metric,
    /// One value for each repeat, in order, in base units: bit/s, packets/s, seconds, CPU-seconds
    /// per GB, connections/s.
    pub samples: Vec<f64>,
    /// Median of the samples.
    pub median: f64,
    /// Smallest sample.
    pub min: f64,
    /// Largest sample.
    pub max: f64,
    /// Median divided by the median of kernel VXLAN in this run on this underlay.
    pub ratio_to_vxlan: Option<f64>,
    /// Smallest and largest ratio within one repeat, if each repeat has both values.
    #[serde(default)]
    pub ratio_spread: Option<[f64; 2]>,
}

/// A system without values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmeasured {
    /// System.
    pub system: System,
    /// Underlay on which it has no values; none means all underlays.
    pub underlay: Option<Underlay>,
    /// Reason in a sentence.
    pub reason: String,
    /// Whether the system should have worked.
    pub broken: bool,
}

/// What limited one workload, with the numbers that show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// Underlay.
    pub underlay: Underlay,
    /// System.
    pub system: System,
    /// Workload.
    pub workload: Workload,
    /// Limit in a sentence.
    pub sentence: String,
    /// Parts (0 to 1) of the machine's CPU time: user, system, softirq (with irq), stolen, idle.
    pub cpu: [f64; 5],
    /// CPUs used by this process, which has both ends of the traffic.
    pub traffic_cpus: f64,
    /// CPUs used by the daemons: first host user mode, kernel mode; second host user mode, kernel
    /// mode.
    pub daemon_cpus: [f64; 4],
    /// CPUs used by unrelated programs in user mode.
    pub other_cpus: f64,
    /// Average bytes per packet on the underlay, as the receiving host's device counts them.
    pub wire_packet_bytes: Option<f64>,
    /// Average packets per TUN read, send, receive and TUN write; only for hopsack.
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

    /// Value without its unit: `9.46 [8.90-9.71]`.
    fn value(&self) -> String {
        let (_, scale) = self.metric.unit();
        let [min, median, max] = [self.min, self.median, self.max].map(|value| digits(value / scale));
        if self.samples.len() == 1 { median } else { format!("{median} [{min}-{max}]") }
    }
}

/// Computes the ratios of all cells.
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

/// Smallest value, median and largest value; none without samples.
pub(super) fn spread(samples: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (first, last) = (sorted.first()?, sorted.last()?);
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    Some([*first, f64::midpoint(low, high), *last])
}

/// Number with three significant digits: 0.0671, 9.46, 101, 13248.
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
    /// A cell; none if it was not measured.
    #[must_use]
    pub fn cell(&self, underlay: Underlay, system: System, metric: Metric) -> Option<&Cell> {
        let wanted = (underlay, system, metric);
        self.cells.iter().find(|cell| (cell.underlay, cell.system, cell.metric) == wanted)
    }

    /// Systems that should have worked, but did not.
    #[must_use]
    pub fn broken(&self) -> Vec<&Unmeasured> {
        self.unmeasured.iter().filter(|unmeasured| unmeasured.broken).collect()
    }

    /// Facts about the run, one in each line.
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
        facts.extend(auto.iter().map(|engine| format!("auto chose the engine {engine}")));
        facts
            .extend(self.machine.awake.iter().map(|how| format!("the CPUs were kept from halting by {how}")));
        let debug = "NOISE: hopsack is a debug build; build it with --release";
        facts.extend(self.machine.debug_build.then(|| debug.to_owned()));
        facts.extend(self.noise());
        facts
    }

    /// A warning if other programs disturbed the run.
    fn noise(&self) -> Option<String> {
        let Machine { unrest, cpus, .. } = self.machine;
        let during =
            self.limits.iter().map(|limit| limit.other_cpus / cpus.max(1) as f64).fold(0.0, f64::max);
        let percent = [unrest, during].map(|part| format!("{:.0} %", part * 100.0));
        (unrest.max(during) > QUIET).then(|| {
            let [before, during] = percent;
            format!("NOISE: other programs took {before} of the CPUs before the run and up to {during} during it; \
                     do not trust these numbers")
        })
    }

    /// Tables for a terminal, with the limits below.
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
            let shown =
                |limit: &&Limit| limit.underlay == *underlay && SHOWN_LIMITS.contains(&limit.workload);
            let limits: Vec<_> = self.limits.iter().filter(shown).collect();
            if !limits.is_empty() {
                let _ = writeln!(text, "\nlimits on underlay {}", underlay.name());
            }
            for Limit { system, workload, sentence, .. } in limits {
                let _ = writeln!(text, "  {:<13}{:<9}{sentence}", system.name(), workload.name());
            }
        }
        text
    }

    /// One table: a row for each metric, a column for each system.
    fn block(&self, underlay: Underlay, systems: &[System]) -> String {
        let mut rows = vec![vec![String::new()]];
        rows[0].extend(systems.iter().map(|system| system.name().to_owned()));
        for metric in self.metrics_on(underlay) {
            let (unit, _) = metric.unit();
            let cost = if metric.is_cost() { ", less is better" } else { "" };
            let mut row = vec![format!("{} ({unit}{cost}{})", metric.title(), self.mark(metric))];
            row.extend(systems.iter().map(|system| self.entry(underlay, *system, metric)));
            rows.push(row);
        }
        align(&rows)
    }

    /// Says that a prober was disturbed.
    pub(super) fn mark(&self, metric: Metric) -> &'static str {
        if self.disturbed.contains(&metric) { ", PROBER OF ORDINARY PRIORITY" } else { "" }
    }

    /// Text of a cell: `9.46 [8.90-9.71] x0.86 [0.83-0.90]`, or a dash.
    pub(super) fn entry(&self, underlay: Underlay, system: System, metric: Metric) -> String {
        let Some(cell) = self.cell(underlay, system, metric) else { return "-".into() };
        let ratio = cell.ratio_to_vxlan.filter(|_| system != System::Vxlan);
        let ratio = ratio.map(|ratio| format!(" x{}", digits(ratio))).unwrap_or_default();
        let spread = cell.ratio_spread.filter(|_| !ratio.is_empty() && cell.samples.len() > 1);
        let spread = spread.map(|[least, most]| format!(" [{}-{}]", digits(least), digits(most)));
        cell.value() + &ratio + &spread.unwrap_or_default()
    }

    /// Metrics with a value on this underlay, in order.
    pub(super) fn metrics_on(&self, underlay: Underlay) -> Vec<Metric> {
        let here = |metric: &Metric| {
            self.cells.iter().any(|cell| (cell.underlay, cell.metric) == (underlay, *metric))
        };
        Metric::ALL.into_iter().filter(here).collect()
    }

    /// Metrics with a value on any underlay, in order.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let measured = |metric: &Metric| self.cells.iter().any(|cell| cell.metric == *metric);
        Metric::ALL.into_iter().filter(measured).collect()
    }
}

/// Workloads with limits in the terminal's table. JSON and the page show all limits.
const SHOWN_LIMITS: [Workload; 3] = [Workload::Tcp1, Workload::Tcp4, Workload::Udp64];

/// Number of systems in one table, so that it fits a wide terminal.
const COLUMNS: usize = 3;

/// Part of the CPUs that other programs may use before the table warns of noise.
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A report with two systems on one underlay, and one refused system.
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
            date: "1970-01-01 00:00 UTC".into(),
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
        Report { machine, plan, cells, disturbed: Vec::new(), unmeasured, limits }
    }

    #[test]
    fn spread_has_min_median_and_max() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0]), Some([3.0; 3]));
        assert_eq!(spread(&[9.0, 1.0, 3.0]), Some([1.0, 3.0, 9.0]));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 9.0]), Some([1.0, 3.0, 9.0]));
    }

    #[test]
    fn ratios_compare_with_vxlan() {
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
    fn table_shows_values_ratios_and_noise() {
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
    fn row_of_a_disturbed_prober_is_marked() {
        let report = Report { disturbed: vec![Metric::RttP50], ..report() };
        let marked = |title: &str| {
            let table = report.table();
            let row = table.lines().find(|line| line.starts_with(title)).unwrap().to_owned();
            row.contains("PROBER OF ORDINARY PRIORITY")
        };
        assert!(marked(Metric::RttP50.title()) && !marked(Metric::Tcp1.title()));
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(
            [0.0671, 0.7, 9.456, 100.4, 13_248.0].map(digits),
            ["0.0671", "0.700", "9.46", "100", "13248"]
        );
    }
}
