//! `hopsack lab bench` and `hopsack lab soak` at the command line.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, value_parser};

use super::super::{Interrupt, LabError, bench, soak, topology};
use super::{StoreKind, clear, options, say};

/// Measure hopsack beside kernel VXLAN and plain routing, on this machine, in about a minute. Leaves nothing.
///
/// Two hosts with a pod each come up; then each system in turn, repeat by repeat, carries the same traffic between the two
/// pods: TCP, floods of datagrams, round trips alone and beside TCP, connections. The table shows medians, [min-max], and
/// the ratio to kernel VXLAN in the same run; below it stands what set the limit: who used the CPUs, and how many packets a
/// system call carried.
///
/// All ends share this machine's CPUs, so the ratios are about CPU spent a packet, not about your network, and another
/// program that runs meanwhile spoils them. Only values of one run compare. Ctrl-C ends it early and leaves nothing either.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hopsack lab bench                                       raw, vxlan, and the engine chosen here
  hopsack lab bench --systems vxlan,simple,batch,uring --repeats 5
  hopsack lab bench --underlay noseg+gro                  nearest to a NIC
  hopsack lab bench --workloads rtt,rtt-bulk --awake      latency, without the CPUs' wake-ups
  FLANNELD=/path/to/flanneld hopsack lab bench --systems vxlan,flannel,auto
  WIREGUARD_GO=/path BORINGTUN=/path hopsack lab bench --systems uring,sealed,quic,wireguard-go,boringtun
  hopsack lab bench --json > run.json                     with every sample
  hopsack lab bench --from run.json --html run.html       plots of an earlier run

The full matrix is `cargo bench --bench overlay`; benches/README.md says what is unfair about each comparison.")]
pub(super) struct BenchArgs {
    /// The lab's name; a bench beside another one needs its own, and neither will be worth much.
    #[arg(long, default_value = "bench")]
    name: String,
    /// How long a TCP measurement takes; the others take a part of it.
    #[arg(long, default_value_t = bench::Plan::short().seconds, value_parser = seconds)]
    seconds: f64,
    /// How often everything is done; each time begins with another system.
    #[arg(long, default_value_t = bench::Plan::short().repeats, value_parser = value_parser!(u32).range(1..=1000))]
    repeats: u32,
    /// What carries the packets. Without vxlan there are no ratios.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = bench::Plan::short().systems)]
    systems: Vec<bench::System>,
    /// What the cables between the hosts do with super packets.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = bench::Plan::short().underlays)]
    underlay: Vec<bench::Underlay>,
    /// What is carried.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = bench::Plan::short().workloads)]
    workloads: Vec<bench::Workload>,
    /// Keep the CPUs of the whole machine from halting meanwhile.
    #[arg(long)]
    awake: bool,
    /// Print JSON, with every sample, instead of the table.
    #[arg(long)]
    json: bool,
    /// Write a page with plots: one file, nothing else needed to show it.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure nothing: show what an earlier run printed with --json, or several that measured different things.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    from: Vec<PathBuf>,
}

/// Move packets for an hour and look whether anything wears out. Leaves nothing.
///
/// Two hosts with a pod each come up; verified TCP streams run in both families and both directions and are renewed
/// now and then, and numbered datagrams of several sizes run beside them. A line at intervals shows the daemons' memory,
/// packets, drops by reason, and datagrams out of order.
///
/// The exit code is 0 only if every byte of TCP was right, no datagram overtook another of its flow, the daemons' memory did
/// not grow, and both ended in order.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hopsack lab soak                                        an hour, or 1e9 packets
  hopsack lab soak --minutes 5 --engine uring --underlay noseg+gro
  nice -n 19 hopsack lab soak                             beside other work")]
pub(super) struct SoakArgs {
    /// The lab's name; a soak beside another one needs its own.
    #[arg(long, default_value = "soak")]
    name: String,
    /// How long at most.
    #[arg(long, default_value_t = 60.0, value_parser = minutes)]
    minutes: f64,
    /// How many packets at most, counted where they leave a host's daemon and where they reach the other's.
    #[arg(long, default_value_t = 1_000_000_000)]
    packets: u64,
    /// Seconds from line to line.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    every: f64,
    /// Datagrams a second in each of the four flows.
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// The daemons' engine.
    #[arg(long, default_value = "auto")]
    engine: String,
    /// What the cables between the hosts do with super packets.
    #[arg(long, value_enum, default_value_t = bench::Underlay::Pass)]
    underlay: bench::Underlay,
}

pub(super) fn run_bench(args: BenchArgs, binary: &Path) -> Result<(), LabError> {
    // The page's file first: a path that cannot be written is worth knowing before a minute has passed.
    let page = args.html.as_ref().map(|path| {
        let failed = LabError::io(format!("write {}", path.display()));
        std::fs::File::options().append(true).create(true).open(path).map(|_| path).map_err(failed)
    });
    let page = page.transpose()?;
    let report = if args.from.is_empty() {
        measure(&args, binary)?
    } else {
        bench::join(args.from.iter().map(|path| read_report(path)).collect::<Result<_, _>>()?)?
    };
    if let Some(path) = page {
        let written = std::fs::write(path, bench::page(&report));
        written.map_err(LabError::io(format!("write {}", path.display())))?;
    }
    let text = if args.json { json(&report)? } else { report.table() };
    say(&text)?;
    match report.broken().first() {
        // The table has said why.
        Some(broken) => Err(LabError::Bench(format!("{} could not be measured", broken.system.name()))),
        None => Ok(()),
    }
}

/// Progress goes to standard error, which leaves standard output to the result.
fn measure(args: &BenchArgs, binary: &Path) -> Result<bench::Report, LabError> {
    let mut options = options(&args.name, 2, false, StoreKind::File, binary);
    topology::check_name(&args.name)?;
    options.interrupt = Interrupt::on_signals()?;
    let plan = bench::Plan {
        systems: args.systems.clone(),
        underlays: args.underlay.clone(),
        workloads: args.workloads.clone(),
        repeats: args.repeats,
        seconds: args.seconds,
        awake: args.awake,
    };
    if let Some(removal) = clear(&args.name)? {
        eprint!("what a killed bench left: {removal}");
    }
    eprintln!("about {} s; leave the machine alone meanwhile", plan.estimate().as_secs() + 1);
    let report = bench::run(options, &plan, &mut |next| eprintln!("{next}"))?;
    eprintln!();
    Ok(report)
}

fn read_report(path: &Path) -> Result<bench::Report, LabError> {
    let read = || serde_json::from_slice(&std::fs::read(path)?).map_err(io::Error::other);
    read().map_err(LabError::io(format!("read {} as a report of this version", path.display())))
}

fn json(report: &bench::Report) -> Result<String, LabError> {
    let text = serde_json::to_string_pretty(report).map_err(io::Error::other);
    text.map(|text| text + "\n").map_err(LabError::io("write the report as JSON"))
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.05..=600.0).contains(number));
    number.ok_or_else(|| "write a number from 0.05 to 600".to_owned())
}

pub(super) fn run_soak(args: SoakArgs, binary: &Path) -> Result<(), LabError> {
    let mut options = options(&args.name, 2, false, StoreKind::File, binary);
    topology::check_name(&args.name)?;
    options.interrupt = Interrupt::on_signals()?;
    options.extra_config = format!("[dataplane]\nengine = {:?}\n", args.engine);
    if let Some(removal) = clear(&args.name)? {
        eprint!("what a killed soak left: {removal}");
    }
    let plan = soak::Plan {
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
