//! `hopsack lab bench` and `hopsack lab soak` at the command line.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, value_parser};

use super::super::bench::{self, BenchPlan};
use super::super::error::LabError;
use super::super::soak::{self, SoakPlan};
use super::args::{StoreArg, options};
use super::cluster::prepare;
use super::print::print;

/// Compare hopsack with kernel VXLAN and plain routing on this machine, in about a minute. Leaves
/// nothing.
///
/// The bench makes two hosts with one pod each. In each repeat, each system in turn carries the
/// same traffic between the two pods: TCP streams, UDP floods, round trips alone and beside TCP,
/// and connections. The table shows the median [min-max] and the ratio to kernel VXLAN in the same
/// run. The text below the table says what set the limit: which programs used the CPUs, and how
/// many packets one system call carried.
///
/// Both ends share the CPUs of this machine, so the ratios compare CPU time for each packet, not
/// your network. Another program that runs at the same time spoils them. Compare only values of one
/// run. Ctrl-C ends the bench early and leaves nothing either.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hopsack lab bench                                       raw, vxlan, and the engine chosen here
  hopsack lab bench --systems vxlan,simple,batch,uring --repeats 5
  hopsack lab bench --underlay noseg+gro                  most similar to a network card
  hopsack lab bench --workloads rtt,rtt-bulk --awake      latency without wake-ups of idle CPUs
  FLANNELD=/path/to/flanneld hopsack lab bench --systems vxlan,flannel,auto
  WIREGUARD_GO=/path BORINGTUN=/path hopsack lab bench --systems uring,sealed,quic,wireguard-go,boringtun
  hopsack lab bench --json > run.json                     every sample, one row in each line
  hopsack lab bench --from run.json --html run.html       plots of an earlier run

The full matrix is `cargo bench --bench overlay`. benches/README.md says which comparisons are unfair.")]
pub(super) struct BenchArgs {
    /// Name of the lab. Two benches at the same time need two names, and spoil each other's
    /// numbers.
    #[arg(long, default_value = "bench")]
    name: String,
    /// Duration of a TCP measurement in seconds. Other measurements take a part of it.
    #[arg(long, default_value_t = BenchPlan::short().seconds, value_parser = seconds)]
    seconds: f64,
    /// Number of repeats. Each repeat begins with another system.
    #[arg(long, default_value_t = BenchPlan::short().repeats, value_parser = value_parser!(u32).range(1..=1000))]
    repeats: u32,
    /// Systems that carry the packets. Without vxlan the table has no ratios.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = BenchPlan::short().systems)]
    systems: Vec<bench::System>,
    /// How the links between the hosts treat super packets.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = BenchPlan::short().underlays)]
    underlay: Vec<bench::Underlay>,
    /// Kinds of traffic.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = BenchPlan::short().workloads)]
    workloads: Vec<bench::Workload>,
    /// Keep all CPUs of the machine from halting during the run.
    #[arg(long)]
    awake: bool,
    /// Print the report as JSON with every sample instead of the table.
    #[arg(long)]
    json: bool,
    /// Write an HTML page with plots. It is one file that needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure nothing: show a report that an earlier run printed with --json, or several reports
    /// that measured different things.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    from: Vec<PathBuf>,
}

/// Carry traffic for an hour and look for errors and memory growth. Leaves nothing.
///
/// The soak makes two hosts with one pod each. Verified TCP streams run in both families and both
/// directions and are replaced by new ones now and then. Numbered datagrams of several sizes run at
/// the same time. At intervals a line shows the daemons' memory, packets, drops by reason, and
/// datagrams that came out of order.
///
/// The exit code is 0 only if every TCP byte was right, no datagram overtook another one of its
/// flow, the daemons' memory did not grow, and both daemons ended in order.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hopsack lab soak                                        an hour, or 1e9 packets
  hopsack lab soak --minutes 5 --engine uring --underlay noseg+gro
  nice -n 19 hopsack lab soak                             beside other work")]
pub(super) struct SoakArgs {
    /// Name of the lab. Two soaks at the same time need two names.
    #[arg(long, default_value = "soak")]
    name: String,
    /// Maximal duration in minutes.
    #[arg(long, default_value_t = 60.0, value_parser = minutes)]
    minutes: f64,
    /// Maximal number of packets. A packet is counted where it leaves one daemon and where it
    /// reaches the other.
    #[arg(long, default_value_t = 1_000_000_000)]
    packets: u64,
    /// Seconds between two lines of output.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    every: f64,
    /// Datagrams in each second in each of the four flows.
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Engine of the daemons. The kernel fast path is off: a flow that moves to it may lose its
    /// order once.
    #[arg(long, default_value = "auto")]
    engine: String,
    /// How the links between the hosts treat super packets.
    #[arg(long, value_enum, default_value_t = bench::Underlay::Pass)]
    underlay: bench::Underlay,
}

pub(super) fn run_bench(args: BenchArgs) -> Result<(), LabError> {
    // Open the page's file first, so that a path that cannot be written fails before the run.
    let page = args.html.as_ref().map(|path| {
        let failed = LabError::io(format!("write {}", path.display()));
        std::fs::File::options().append(true).create(true).open(path).map(|_| path).map_err(failed)
    });
    let page = page.transpose()?;
    let report = if args.from.is_empty() {
        measure(&args)?
    } else {
        bench::join(args.from.iter().map(|path| read_report(path)).collect::<Result<_, _>>()?)?
    };
    if let Some(path) = page {
        let written = std::fs::write(path, bench::page(&report));
        written.map_err(LabError::io(format!("write {}", path.display())))?;
    }
    let text = if args.json { bench::to_json(&report) } else { report.table() };
    print(&text)?;
    match report.broken().first() {
        // The table contains the reason.
        Some(broken) => Err(LabError::Bench(format!("{} could not be measured", broken.system.name()))),
        None => Ok(()),
    }
}

/// Progress goes to standard error, which leaves standard output to the result.
fn measure(args: &BenchArgs) -> Result<bench::Report, LabError> {
    let mut options = options(&args.name, 2, false, StoreArg::File)?;
    prepare(&mut options, "bench")?;
    let plan = BenchPlan {
        systems: args.systems.clone(),
        underlays: args.underlay.clone(),
        workloads: args.workloads.clone(),
        repeats: args.repeats,
        seconds: args.seconds,
        awake: args.awake,
    };
    let seconds = plan.estimate().as_secs() + 1;
    eprintln!("this takes about {seconds} s; do not use the machine for other work until it ends");
    let report = bench::run(options, &plan, &mut |next| eprintln!("{next}"))?;
    eprintln!();
    Ok(report)
}

fn read_report(path: &Path) -> Result<bench::Report, LabError> {
    let failed = LabError::io(format!("read {} as a report", path.display()));
    std::fs::read_to_string(path).and_then(|text| bench::from_json(&text)).map_err(failed)
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.05..=600.0).contains(number));
    number.ok_or_else(|| "write a number from 0.05 to 600".to_owned())
}

pub(super) fn run_soak(args: SoakArgs) -> Result<(), LabError> {
    let mut options = options(&args.name, 2, false, StoreArg::File)?;
    options.extra_config = format!("[dataplane]\nengine = {:?}\n", args.engine);
    options.fast_path = false;
    prepare(&mut options, "soak")?;
    let plan = SoakPlan {
        time: Duration::from_secs_f64(args.minutes * 60.0),
        packets: args.packets,
        every: Duration::from_secs_f64(args.every),
        rate: args.rate,
        underlay: args.underlay,
    };
    soak::run(options, &plan, &mut io::stdout().lock())
}

fn minutes(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.01..=10_000.0).contains(number));
    number.ok_or_else(|| "write a number from 0.01 to 10000".to_owned())
}
