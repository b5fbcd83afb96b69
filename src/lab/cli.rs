//! Command line of `hopsack-lab`, which `hopsack lab` executes.
//!
//! It parses arguments and prints results. It decides nothing that tests or benches also need.

mod args;
mod cluster;
mod measure;
mod print;
mod programs;

use std::time::Duration;

use clap::{Parser, Subcommand};

use super::error::LabError;
use super::list::list;
use super::removal::down;
use super::{bench, demo};
use args::{DemoArgs, NameArg, UpArgs};
use measure::{BenchArgs, SoakArgs};
use print::{print, removal, table};

/// A cluster of hosts on this machine: each host is a network namespace with a daemon and a pod.
///
/// Everything is inside the lab: its hosts, its pods and the network between them are namespaces
/// named hs-LAB-*, and its files are in /run/hopsack-lab/LAB. `down` removes both. A lab needs
/// root, or a user namespace (scripts/demo makes one).
#[derive(Debug, Parser)]
#[command(
    name = "hopsack-lab",
    bin_name = "hopsack lab",
    version,
    after_help = "Examples:
  hopsack lab demo                            see hopsack at work
  hopsack lab bench                           compare hopsack with kernel VXLAN
  hopsack lab soak                            look for errors and memory growth under long traffic
  hopsack lab up --hosts 3                    make a cluster to try things in
  hopsack lab exec p1 -- ping 10.244.2.2      ping from the first host's pod to the second's
  hopsack lab exec h1 -- ip route             show the first host's routes
  hopsack lab down                            remove the cluster"
)]
pub struct LabCli {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Make a lab, start its daemons, and leave it running.
    ///
    /// If the lab is already up, this only starts the daemons that do not run.
    Up(UpArgs),
    /// Remove a lab and end every process in it. A lab that does not exist is not an error.
    Down {
        #[command(flatten)]
        lab: NameArg,
        /// Remove every lab of this machine, also incomplete labs and those of running tests.
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Run a command on a host (h1, h2, ...) or in its pod (p1, p2, ...).
    #[command(after_help = "Examples:
  hopsack lab exec p1 -- ping -c 3 10.244.2.2
  hopsack lab exec p3 -- ping -c 3 -M do -s 1444 10.244.1.2    the largest unfragmented ping
  hopsack lab exec h2 -- tcpdump -ni eth0 udp port 8285
  hopsack lab exec h1 -- bash")]
    Exec {
        #[command(flatten)]
        lab: NameArg,
        /// Name of the host or pod: h1, p1, ...
        #[arg(value_name = "HOST|POD")]
        site: String,
        /// Command with its arguments. Its exit code becomes the exit code of `exec`.
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Show hopsack at work in a minute: ping, TCP, routes, a daemon killed and started again,
    /// encryption turned on. Leaves nothing.
    ///
    /// The exit code is 0 only if every step succeeded. Ctrl-C ends the demo early and leaves
    /// nothing either.
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

impl LabCli {
    /// Runs the command.
    ///
    /// # Errors
    /// See [`LabError`]; [`LabError::exit_code`] is the exit code of the program.
    pub fn run(self) -> Result<(), LabError> {
        match self.command {
            LabCommand::Up(args) => cluster::up(args),
            LabCommand::Down { all: true, .. } => cluster::down_all(),
            LabCommand::Down { lab, .. } => print(&removal(&lab.name, down(&lab.name)?)),
            LabCommand::Exec { lab, site, command } => match cluster::exec(&lab.name, &site, &command)? {},
            LabCommand::Demo(args) => run_demo(args),
            LabCommand::Bench(args) => measure::run_bench(args),
            LabCommand::Soak(args) => measure::run_soak(args),
            LabCommand::Naive(args) => bench::run_naive(&args),
            LabCommand::Floor(args) => bench::run_floor(&args),
            LabCommand::List => print(&table(&list())),
        }
    }
}

fn run_demo(args: DemoArgs) -> Result<(), LabError> {
    let mut options = args::options(&args.name, args.hosts, args.ipv6, args.store)?;
    options.extra_config = args.security.toml().into();
    cluster::prepare(&mut options, "demo")?;
    demo::run(options, Duration::from_secs(args.seconds), &mut std::io::stdout().lock())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        super::LabCli::command().debug_assert();
    }
}
