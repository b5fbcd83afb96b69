//! Overlay bench: every system on every underlay. It needs root, ethtool, half an hour and a quiet
//! machine; benches/README.md describes the method.
//!
//! Criterion measures one function after the other, but a machine drifts more in half an hour than
//! the systems differ. So [`hopsack::lab::bench`] measures, interleaved, and criterion gets the
//! recorded samples (by `iter_custom`, one repeat is one sample). Criterion then computes its
//! statistics, compares with a saved baseline and applies its filters. Each value becomes a time,
//! so that less is better; [`Throughput`] says for what: a gigabyte by TCP, a datagram, a
//! connection, a round trip, or CPU time for a gigabyte.
//!
//! Invariant: criterion gets only measured samples. With fewer samples than it needs (10) it is
//! left out.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};

use hopsack::lab::bench::{self, BenchPlan, Cell, Metric, Report};
use hopsack::lab::{Interrupt, LabError, Options};

/// Smallest number of samples that criterion accepts.
const MIN_SAMPLES: u32 = 10;

fn main() -> ExitCode {
    // `cargo test --benches` runs this program too; a test must not take half an hour.
    if !env::args().any(|argument| argument == "--bench") {
        println!(
            "overlay: nothing was measured; use `cargo bench --bench overlay` (tests/bench.rs tests the bench)"
        );
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overlay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), LabError> {
    let report = match env::var_os("HOPSACK_BENCH_FROM") {
        Some(paths) => {
            bench::join(env::split_paths(&paths).map(|path| read(&path)).collect::<Result<_, _>>()?)?
        }
        None => measure()?,
    };
    print!("{}", report.table());
    if report.plan.repeats >= MIN_SAMPLES {
        show(&report);
    } else {
        println!("\ncriterion is left out: it needs at least {MIN_SAMPLES} repeats");
    }
    match report.broken().first() {
        Some(broken) => {
            Err(failed(format!("{} could not be measured; the table says why", broken.system.name())))
        }
        None => Ok(()),
    }
}

/// Measures the full matrix, or the part that the environment selects. Writes the results before it
/// returns.
fn measure() -> Result<Report, LabError> {
    let full = BenchPlan::full();
    let plan = BenchPlan {
        systems: chosen("HOPSACK_BENCH_SYSTEMS", full.systems)?,
        underlays: chosen("HOPSACK_BENCH_UNDERLAYS", full.underlays)?,
        workloads: chosen("HOPSACK_BENCH_WORKLOADS", full.workloads)?,
        repeats: number("HOPSACK_BENCH_REPEATS", full.repeats)?,
        seconds: number("HOPSACK_BENCH_SECONDS", full.seconds)?,
        awake: env::var_os("HOPSACK_BENCH_AWAKE").is_some(),
    };
    let name = format!("bench-overlay-{}", std::process::id());
    let interrupt = Interrupt::on_signals()?;
    let options = Options { interrupt, ..Options::named(name, env!("CARGO_BIN_EXE_hopsack")) };
    eprintln!(
        "this takes about {} min; do not use the machine for other work until it ends",
        plan.estimate().as_secs() / 60 + 1
    );
    let report = bench::run(options, &plan, &mut |next| eprintln!("{next}"))?;

    let folder = env::var_os("HOPSACK_BENCH_RESULTS").map_or_else(results, PathBuf::from);
    let stem = report.machine.date.replace([' ', ':'], "-");
    let json = bench::to_json(&report);
    std::fs::create_dir_all(&folder).map_err(|error| failed(format!("{}: {error}", folder.display())))?;
    for (extension, text) in [("json", json), ("html", bench::page(&report))] {
        let path = folder.join(format!("overlay-{stem}.{extension}"));
        std::fs::write(&path, text).map_err(|error| failed(format!("{}: {error}", path.display())))?;
        eprintln!("written: {}", path.display());
    }
    Ok(report)
}

/// Default directory of the results. It is below target, which git ignores: a result that is worth
/// keeping is copied to benches/results by hand.
fn results() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/overlay")
}

/// Reads a list from the environment, with the values of `hopsack lab bench`.
fn chosen<T: ValueEnum>(variable: &str, default: Vec<T>) -> Result<Vec<T>, LabError> {
    let Ok(text) = env::var(variable) else { return Ok(default) };
    let word = |word: &str| {
        T::from_str(word.trim(), false)
            .map_err(|_| failed(format!("{variable}: {word:?} is not a value of it")))
    };
    text.split(',').map(word).collect()
}

fn number<T: std::str::FromStr>(variable: &str, default: T) -> Result<T, LabError> {
    let Ok(text) = env::var(variable) else { return Ok(default) };
    text.parse().map_err(|_| failed(format!("{variable}: {text:?} is not a number")))
}

fn read(path: &Path) -> Result<Report, LabError> {
    let report = std::fs::read_to_string(path).and_then(|text| bench::from_json(&text));
    report.map_err(|error| failed(format!("{}: {error}", path.display())))
}

fn failed(what: String) -> LabError {
    LabError::Bench(what)
}

/// Makes one criterion group for each metric and underlay, with one bench for each system, for
/// example `tcp1/noseg/vxlan`.
fn show(report: &Report) {
    let mut criterion = Criterion::default().configure_from_args();
    for metric in Metric::ALL {
        for underlay in &report.plan.underlays {
            let cells =
                report.cells.iter().filter(|cell| (cell.metric, cell.underlay) == (metric, *underlay));
            let enough = |cell: &Cell| cell.samples.len() >= MIN_SAMPLES as usize;
            // A value of 0 has no time.
            let whole = |cell: &&Cell| enough(cell) && cell.samples.iter().all(|sample| *sample > 0.0);
            let cells: Vec<&Cell> = cells.filter(whole).collect();
            if cells.is_empty() {
                continue;
            }
            let mut group = criterion.benchmark_group(format!("{}/{}", label(metric), underlay.name()));
            group.sampling_mode(SamplingMode::Flat);
            // There is nothing to warm up. The warm-up is one call, which uses the first sample;
            // the samples then repeat from the beginning, so none is lost.
            group.warm_up_time(Duration::from_nanos(1)).measurement_time(Duration::from_secs(1));
            if let Some(throughput) = throughput(metric) {
                group.throughput(throughput);
            }
            for cell in cells {
                let mut samples = cell.samples.iter().map(|sample| time(metric, *sample)).cycle();
                group.sample_size(cell.samples.len());
                group.bench_function(BenchmarkId::from_parameter(cell.system.name()), |bencher| {
                    let sample = samples.next().unwrap_or_default();
                    bencher.iter_custom(|iterations| {
                        // Criterion divides by the time of the first call, which must not be 0.
                        std::thread::sleep(Duration::from_micros(10));
                        sample.mul_f64(iterations as f64)
                    });
                });
            }
            group.finish();
        }
    }
}

/// Name of a metric, as in the JSON report.
fn label(metric: Metric) -> String {
    let name = serde_json::to_value(metric).ok();
    name.as_ref().and_then(|name| name.as_str()).unwrap_or_default().to_owned()
}

/// Time for one unit: a gigabyte of TCP payload, a datagram, a connection. A value that is a time
/// stays unchanged.
fn time(metric: Metric, value: f64) -> Duration {
    let seconds = match metric.unit().0 {
        "Gbit/s" => 8e9 / value,
        _ if metric.is_cost() => value,
        _ => 1.0 / value,
    };
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn throughput(metric: Metric) -> Option<Throughput> {
    match metric.unit().0 {
        "Gbit/s" => Some(Throughput::BytesDecimal(1_000_000_000)),
        _ if metric.is_cost() => None,
        _ => Some(Throughput::Elements(1)),
    }
}
