//! `hopsack lab`: the lab at the command line.
//!
//! Says in words what [`Lab`] does; decides nothing that tests or benches would need too.

mod measure;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum, value_parser};

use super::{
    Interrupt, Lab, LabError, MAX_HOSTS, Options, Removed, Store, Summary, bench, demo, down, list, programs,
};
use super::{state, topology};
use crate::packet::Family;
use measure::{BenchArgs, SoakArgs};

/// A cluster of hosts on this machine, each a network namespace with a daemon and a pod.
///
/// Nothing outside the lab is touched: its hosts, its pods and the network between them are namespaces named
/// hs-LAB-*, its files are in /run/hopsack-lab/LAB, and `down` removes both. It needs root, or a user namespace
/// (scripts/demo makes one).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hopsack lab demo                            see it work, once
  hopsack lab bench                           measure it beside kernel VXLAN
  hopsack lab soak                            look whether anything wears out
  hopsack lab up --hosts 3                    a cluster to play with
  hopsack lab exec p1 -- ping 10.244.2.2      from the first host's pod to the second's
  hopsack lab exec h1 -- ip route             the first host's routes
  hopsack lab down")]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Make a lab, start its daemons, and leave it running.
    ///
    /// A lab that is up already is left as it is, but for daemons that do not run: these are started.
    Up(UpArgs),
    /// Remove a lab with all that runs in it. To remove what is not there is no error.
    Down {
        #[command(flatten)]
        lab: NameArg,
        /// Every lab of this machine, also half-made ones and those of tests that run.
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Run a command on a host (h1, h2, ...) or in its pod (p1, p2, ...).
    #[command(after_help = "Examples:
  hopsack lab exec p1 -- ping -c 3 10.244.2.2
  hopsack lab exec p3 -- ping -c 3 -M do -s 1444 10.244.1.2    the largest that passes whole
  hopsack lab exec h2 -- tcpdump -ni eth0 udp port 8285
  hopsack lab exec h1 -- bash")]
    Exec {
        #[command(flatten)]
        lab: NameArg,
        /// h1, p1, ...
        #[arg(value_name = "HOST|POD")]
        site: String,
        /// The command and its arguments. Its exit code is ours.
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Show it all in a minute: ping, TCP, routes, a daemon killed and started again, encryption turned on. Leaves nothing.
    ///
    /// The exit code is 0 only if every step held. Ctrl-C ends it early and leaves nothing either.
    Demo(DemoArgs),
    Bench(BenchArgs),
    Soak(SoakArgs),
    /// One end of the tunnel that `bench` measures as quinn-naive.
    #[command(hide = true)]
    Naive(bench::NaiveArgs),
    /// One end of the tunnel that `bench` measures as floor.
    #[command(hide = true)]
    Floor(bench::FloorArgs),
    /// Show the labs of this machine.
    List,
}

#[derive(Debug, Args)]
struct NameArg {
    /// The lab's name: 1 to 32 of a-z, 0-9 and '-'. Labs with different names run side by side.
    #[arg(long, default_value = "lab")]
    name: String,
}

#[derive(Debug, Args)]
struct UpArgs {
    #[command(flatten)]
    lab: NameArg,
    /// How many hosts, each with one pod.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u8).range(1..=i64::from(MAX_HOSTS)))]
    hosts: u8,
    /// IPv6 between the hosts. Pods have IPv4 and IPv6 in any case.
    #[arg(long)]
    ipv6: bool,
    /// Where the cluster is described.
    #[arg(long, value_enum, default_value_t = StoreKind::Etcd)]
    store: StoreKind,
    /// How packets between the hosts are encrypted.
    #[arg(long, value_enum, default_value_t = Security::None)]
    security: Security,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// The lab's name; a demo beside another one needs its own.
    #[arg(long, default_value = "demo")]
    name: String,
    /// How many hosts, each with one pod.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u8).range(2..=i64::from(demo::MAX_HOSTS)))]
    hosts: u8,
    /// IPv6 between the hosts. Pods have IPv4 and IPv6 in any case.
    #[arg(long)]
    ipv6: bool,
    /// How long TCP runs, in each family.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Where the cluster is described.
    #[arg(long, value_enum, default_value_t = StoreKind::Etcd)]
    store: StoreKind,
    /// How packets between the hosts are encrypted.
    #[arg(long, value_enum, default_value_t = Security::None)]
    security: Security,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Security {
    /// Not at all.
    None,
    /// One by one, in hopsack's own format.
    Sealed,
    /// In QUIC connections.
    Quic,
}

impl Security {
    /// For the daemons' configuration.
    fn toml(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Sealed => "[security]\nmode = \"sealed\"\nrequire = true\n",
            Self::Quic => "[security]\nmode = \"quic\"\nrequire = true\n",
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StoreKind {
    /// An etcd that the lab starts; daemons lease their subnets there.
    Etcd,
    /// A file that all hosts read.
    File,
}

impl From<StoreKind> for Store {
    fn from(kind: StoreKind) -> Self {
        match kind {
            StoreKind::Etcd => Self::Etcd { members: 1 },
            StoreKind::File => Self::File,
        }
    }
}

/// Does what the arguments say. `binary` is the program to run as daemon.
///
/// # Errors
/// See [`LabError`]; [`LabError::is_usage`] tells exit code 2 from 1.
pub fn run(args: LabArgs, binary: &Path) -> Result<(), LabError> {
    match args.command {
        LabCommand::Up(args) => up(args, binary),
        LabCommand::Down { all: true, .. } => down_all(),
        LabCommand::Down { lab, .. } => say(&removal(&lab.name, down(&lab.name)?)),
        LabCommand::Exec { lab, site, command } => match exec(&lab.name, &site, &command)? {},
        LabCommand::Demo(args) => run_demo(args, binary),
        LabCommand::Bench(args) => measure::run_bench(args, binary),
        LabCommand::Soak(args) => measure::run_soak(args, binary),
        LabCommand::Naive(args) => bench::run_naive(&args),
        LabCommand::Floor(args) => bench::run_floor(&args),
        LabCommand::List => say(&table(&list())),
    }
}

fn up(args: UpArgs, binary: &Path) -> Result<(), LabError> {
    let mut options = options(&args.lab.name, args.hosts, args.ipv6, args.store, binary);
    options.extra_config = args.security.toml().into();
    match Lab::open(&args.lab.name) {
        Ok(mut lab) => return mend(&mut lab, &options),
        Err(LabError::Absent(_)) => {}
        Err(error) => return Err(error),
    }
    options.interrupt = Interrupt::on_signals()?;
    let begin = Instant::now();
    let mut lab = Lab::create(options)?;
    say(&format!(
        "{} namespaces made in {:.2} s\n",
        2 * args.hosts as usize + 1,
        begin.elapsed().as_secs_f64()
    ))?;
    lab.start()?;
    say(&format!("{} daemons ready after {:.2} s\n\n", args.hosts, begin.elapsed().as_secs_f64()))?;
    say(&summary(&lab))?;
    lab.keep()
}

/// What `up` does to a lab that is there.
fn mend(lab: &mut Lab, wanted: &Options) -> Result<(), LabError> {
    let Options { name, hosts, underlay, store, extra_config, .. } = lab.options();
    let same_config = *extra_config == wanted.extra_config;
    if !same_config || (*hosts, *underlay, *store) != (wanted.hosts, wanted.underlay, wanted.store) {
        let store = if matches!(store, Store::File) { "file" } else { "etcd" };
        let encryption = if same_config { "" } else { " and another --security" };
        let has =
            format!("{hosts} hosts on an {} underlay and --store {store}{encryption}", family(*underlay));
        return Err(LabError::Differs { name: name.clone(), has });
    }
    let stopped = lab.hosts().iter().zip(1..).filter(|(_, number)| lab.daemon(*number).pid().is_none());
    let stopped: Vec<String> = stopped.map(|(host, _)| host.name.clone()).collect();
    let name = name.clone();
    lab.start()?;
    lab.keep()?;
    match stopped.as_slice() {
        [] => say(&format!("lab {name} is up already\n\n"))?,
        stopped => say(&format!("lab {name} was up; started the daemon of {}\n\n", stopped.join(", ")))?,
    }
    say(&summary(lab))
}

fn down_all() -> Result<(), LabError> {
    programs::privileged()?;
    let mut failed = Ok(());
    let labs = state::names();
    if labs.is_empty() {
        say("there is no lab\n")?;
    }
    for name in labs {
        match down(&name) {
            Ok(removed) => say(&removal(&name, removed))?,
            Err(error) => failed = Err(error),
        }
    }
    failed
}

/// Becomes the command.
fn exec(lab: &str, site: &str, command: &[String]) -> Result<Infallible, LabError> {
    let lab = Lab::open(lab)?;
    let netns = lab.netns_of(site)?;
    Err(LabError::io("run ip netns exec")(programs::command_in(netns, command).exec()))
}

fn run_demo(args: DemoArgs, binary: &Path) -> Result<(), LabError> {
    let mut options = options(&args.name, args.hosts, args.ipv6, args.store, binary);
    options.extra_config = args.security.toml().into();
    topology::check_name(&args.name)?;
    options.interrupt = Interrupt::on_signals()?;
    if let Some(removal) = clear(&args.name)? {
        say(&format!("what a killed demo left: {removal}"))?;
    }
    demo::run(options, Duration::from_secs(args.seconds), &mut io::stdout().lock())
}

/// Removes what a demo or bench left that was killed and could not: its lab has a dead owner, so nobody else wants it.
fn clear(name: &str) -> Result<Option<String>, LabError> {
    let Some(owner) = state::record(name).and_then(|record| record.owner) else { return Ok(None) };
    if owner.alive() {
        return Err(LabError::Busy { name: name.to_owned(), pid: owner.pid });
    }
    Ok(Some(removal(name, down(name)?)))
}

fn options(name: &str, hosts: u8, ipv6: bool, store: StoreKind, binary: &Path) -> Options {
    let underlay = if ipv6 { Family::V6 } else { Family::V4 };
    Options { hosts, underlay, store: store.into(), ..Options::named(name, PathBuf::from(binary)) }
}

/// What is there and what to try.
fn summary(lab: &Lab) -> String {
    let mut text =
        String::from("host  underlay            pod   address          address                overlay MTU\n");
    for host in lab.hosts().iter().take(10) {
        let pod = &host.pod;
        let (public, v4, v6) = (host.public.to_string(), pod.v4.to_string(), pod.v6.to_string());
        let mtu = lab.overlay_mtu();
        let _ = writeln!(text, "{:<6}{public:<20}{:<6}{v4:<17}{v6:<23}{mtu}", host.name, pod.name);
    }
    let more = lab.hosts().len().saturating_sub(10);
    if more > 0 {
        let _ = writeln!(text, "... and {more} more, numbered on");
    }
    let name = &lab.options().name;
    let option = if name == "lab" { String::new() } else { format!(" --name {name}") };
    let to = lab.hosts().last().map(|host| (host.pod.v4, host.pod.v6));
    let _ = writeln!(text, "\nTry:");
    if let Some((v4, v6)) = to {
        let _ = writeln!(text, "  hopsack lab exec{option} p1 -- ping -c 3 {v4}");
        let _ = writeln!(text, "  hopsack lab exec{option} p1 -- ping -c 3 {v6}");
    }
    let _ = writeln!(text, "  hopsack status --config {}", lab.daemon(1).config_path().display());
    let _ = writeln!(text, "  hopsack lab down{option}");
    text
}

fn removal(name: &str, removed: Removed) -> String {
    let Removed { processes, namespaces, .. } = removed;
    if removed == Removed::default() {
        return format!("lab {name} is not there\n");
    }
    format!("lab {name} removed: {processes} processes, {namespaces} namespaces\n")
}

fn table(labs: &[Summary]) -> String {
    if labs.is_empty() {
        return "there is no lab\n".into();
    }
    let mut text = String::from("name                              hosts  daemons  state\n");
    for Summary { name, hosts, daemons, whole, owner, abandoned } in labs {
        let hosts = hosts.map_or("?".into(), |hosts| hosts.to_string());
        let state = match owner {
            Some(pid) => format!("used by process {pid}"),
            None if *abandoned => format!("abandoned: hopsack lab down --name {name}"),
            None if *whole => "up".into(),
            None => format!("incomplete: hopsack lab down --name {name}"),
        };
        let _ = writeln!(text, "{name:<34}{hosts:>5}  {daemons:>7}  {state}");
    }
    text
}

fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn say(text: &str) -> Result<(), LabError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(LabError::io("write to the terminal"))
}
