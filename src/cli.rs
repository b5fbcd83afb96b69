//! The command line: subcommands, and how their answers are printed.
//!
//! Every command that prints has `--json`; the table for people and the JSON come from one struct. Nothing is decided here:
//! a command calls the library and prints what came back.
//!
//! Invariant: `--json` prints one JSON value on standard output and nothing else there.

mod cluster;
mod completions;
mod config;
mod explain;
mod flanneld;
mod lab;
mod man;
mod options;
mod pki;
mod table;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::api::{DropRow, Explanation, PeerRow, Request, RouteRow, Status};
use crate::config::{Config, Sources};
use crate::node::{self, Node, NodeError};
use options::ConfigOptions;
use table::Table;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The node's own reasons.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The program `hopsack-lab` does not exist.
    #[error(
        "hopsack-lab is neither at {} nor on the PATH: install it, or build it with `cargo build --release`",
        .beside.display()
    )]
    NoLab {
        /// Path beside this program, where it was expected.
        beside: PathBuf,
    },
    /// There is no such command.
    #[error("there is no command {word:?}; the commands are {known}")]
    NoCommand {
        /// The word that names no command.
        word: String,
        /// The commands that exist, separated by commas.
        known: String,
    },
    /// Standard output, or the runtime.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl CliError {
    /// 2 for what an edit mends, 1 for the rest.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Node(error) => error.exit_code(),
            Self::NoCommand { .. } => 2,
            Self::NoLab { .. } | Self::Io(_) => 1,
        }
    }
}

/// What the program takes.
#[derive(Debug, Parser)]
#[command(
    name = "hopsack",
    version,
    about = "A userspace overlay router for containers: Flannel's UDP mode done right",
    long_about = "hopsack carries packets between containers on different hosts. A daemon on each host (`hopsack run`) \
                  reads pod packets from a TUN device, puts each into a UDP datagram to the host that owns the \
                  destination's subnet, and writes what it receives back to its TUN.",
    after_help = "Try it on this machine, in namespaces of its own:  hopsack lab demo\n\
                  Find out whether this host can run it:            hopsack check"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    ///
    /// Joins the cluster, makes the overlay device and forwards until SIGTERM or SIGINT. SIGHUP reads the cluster file and
    /// the log filter again. A device that a killed daemon left is adopted, with its routes.
    #[command(after_help = "Example: hopsack run --store-path ./cluster.toml --node-interface eth1")]
    Run(ConfigOptions),
    /// Run the daemon as flanneld's own flags and FLANNELD_* variables say: a drop-in
    ///
    /// Flags as flanneld takes them (-x, --x, -x=v). Those that hopsack cannot honour are refused or told to be without
    /// effect; configs/README.md has the table.
    #[command(disable_help_flag = true)]
    Flanneld {
        /// flanneld's flags; -help lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAG")]
        flags: Vec<String>,
    },
    /// Can this host do it? Each line ok, or FAIL with the mend; exit 1 on FAIL
    Check {
        #[command(flatten)]
        config: ConfigOptions,
        #[command(flatten)]
        format: Format,
    },
    /// How the running daemon is
    Status(Ask),
    /// The hosts that packets can be sent to
    Peers(Ask),
    /// Which subnet is reached through which host
    Routes(Ask),
    /// Packets that went nowhere, and why
    Drops(Ask),
    /// What this host does with a packet for an address, and why
    ///
    /// Route, next hop, MTU, encryption with the age of the keys, frame, and the counters to look at; for one that goes nowhere
    /// the reason. The running daemon says what it would do; no packet is sent.
    #[command(after_help = "Example: hopsack explain 10.244.2.2")]
    Explain {
        /// The address of a pod, or any other
        address: IpAddr,
        #[command(flatten)]
        ask: Ask,
    },
    /// The effective configuration, with the origin of each value
    Config(config::ConfigArgs),
    /// Remove the devices, routes and files that a killed daemon left on this host
    ///
    /// Only what this program made is touched. It refuses while a daemon runs.
    Clean {
        /// Only list what would be removed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        config: ConfigOptions,
        #[command(flatten)]
        format: Format,
    },
    /// The cluster's network configuration in etcd
    #[command(subcommand)]
    Network(cluster::NetworkCommand),
    /// The leases in etcd: who owns which subnet
    #[command(subcommand)]
    Leases(cluster::LeasesCommand),
    /// Certificates for encryption between the nodes: the cluster's CA, and what it signs
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// A cluster on this machine, for trying, testing and measuring: runs the program hopsack-lab
    #[command(disable_help_flag = true)]
    Lab {
        /// Arguments of hopsack-lab; --help lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<OsString>,
    },
    /// Print a script that completes this command line in a shell
    ///
    /// For bash: hopsack completions bash > /etc/bash_completion.d/hopsack
    Completions {
        /// Name of the shell
        shell: clap_complete::Shell,
    },
    /// Print a manual page
    ///
    /// To install the page of `hopsack run`: hopsack man run > /usr/local/share/man/man1/hopsack-run.1
    Man {
        /// Command that the page describes; without one, all of hopsack
        #[arg(value_name = "COMMAND")]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Format {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Options of the commands that ask the running daemon.
#[derive(Debug, Args)]
struct Ask {
    /// The daemon's configuration file, to find its control socket by [default: /etc/hopsack/hopsack.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon's control socket itself
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

impl Ask {
    fn of<T: serde::de::DeserializeOwned>(&self, request: Request) -> Result<T, NodeError> {
        let socket = match &self.socket {
            Some(socket) => socket.clone(),
            None => {
                let sources = Sources { file: self.config.clone(), ..Sources::from_environment() };
                sources.load()?.node.control_socket()
            }
        };
        Ok(crate::control::ask(&socket, request)?)
    }
}

impl Cli {
    /// Does it. `start_log` sets up logging for the daemon and returns what changes it later.
    pub fn run<R: Fn(&Config)>(self, start_log: impl FnOnce(&Config) -> R) -> Result<ExitCode, CliError> {
        match self.command {
            Command::Run(options) => run(&options.sources(), &[], start_log)?,
            Command::Flanneld { flags } => match flanneld::translate(&flags)? {
                flanneld::Request::Run(translated) => {
                    let sources = Sources { options: translated.options, ..Sources::from_environment() };
                    run(&sources, &translated.notes, start_log)?;
                }
                flanneld::Request::Help => say(&flanneld::help())?,
                flanneld::Request::Version => say(concat!("hopsack ", env!("CARGO_PKG_VERSION"), "\n"))?,
            },
            Command::Check { config, format } => return check(&config.sources(), &format),
            Command::Status(ask) => print(&ask.format, &ask.of::<Status>(Request::Status)?, status)?,
            Command::Peers(ask) => {
                print(&ask.format, &ask.of::<Vec<PeerRow>>(Request::Peers)?, |list| peers(list))?
            }
            Command::Routes(ask) => {
                print(&ask.format, &ask.of::<Vec<RouteRow>>(Request::Routes)?, |list| routes(list))?
            }
            Command::Drops(ask) => {
                print(&ask.format, &ask.of::<Vec<DropRow>>(Request::Drops)?, |list| drops(list))?
            }
            Command::Explain { address, ask } => {
                let said = ask.of::<Explanation>(Request::Explain { address })?;
                print(&ask.format, &said, explain::explanation)?;
            }
            Command::Config(args) => config::config(&args)?,
            Command::Clean { dry_run, config, format } => return clean(&config.sources(), dry_run, &format),
            Command::Network(command) => cluster::network(command)?,
            Command::Leases(command) => cluster::leases(command)?,
            Command::Pki(command) => pki::pki(command)?,
            Command::Lab { arguments } => match lab::exec(&arguments)? {},
            Command::Completions { shell } => completions::completions(shell)?,
            Command::Man { command } => man::man(&command)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `notes`: what is to be logged first.
fn run<R: Fn(&Config)>(
    sources: &Sources,
    notes: &[String],
    start_log: impl FnOnce(&Config) -> R,
) -> Result<(), CliError> {
    let config = sources.load().map_err(NodeError::from)?;
    let reconfigure = start_log(&config);
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    runtime()?.block_on(async {
        match Node::start(config).await? {
            Some(node) => node.run(sources, reconfigure).await,
            None => Ok(()),
        }
    })?;
    Ok(())
}

/// Store, netlink, sockets and signals share one thread; packets have their own.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn check(sources: &Sources, format: &Format) -> Result<ExitCode, CliError> {
    let config = sources.load().map_err(NodeError::from)?;
    let findings = runtime()?.block_on(node::check(&config));
    print(format, &findings, |findings| {
        let mut table = Table::new(&[]);
        for finding in findings {
            table.row(&[if finding.ok { "ok" } else { "FAIL" }, finding.question, &finding.answer]);
        }
        table
    })?;
    Ok(ExitCode::from(u8::from(!findings.iter().all(|finding| finding.ok))))
}

fn clean(sources: &Sources, dry_run: bool, format: &Format) -> Result<ExitCode, CliError> {
    let config = sources.load().map_err(NodeError::from)?;
    let cleaned = runtime()?.block_on(node::clean(&config, dry_run))?;
    print(format, &cleaned, |cleaned| {
        let mut table = Table::new(&[]);
        for item in cleaned {
            let done = if dry_run { "would remove" } else { "removed" };
            match &item.problem {
                None => table.row(&[done, &item.what]),
                Some(problem) => table.row(&["could not remove", &format!("{}: {problem}", item.what)]),
            }
        }
        if cleaned.is_empty() {
            table.row(&["nothing of hopsack's is left on this host"]);
        }
        table
    })?;
    Ok(ExitCode::from(u8::from(cleaned.iter().any(|item| item.problem.is_some()))))
}

/// One struct, two forms.
fn print<T: Serialize, P: std::fmt::Display>(
    format: &Format,
    value: &T,
    people: impl FnOnce(&T) -> P,
) -> Result<(), CliError> {
    let text = if format.json {
        serde_json::to_string_pretty(value).map_err(std::io::Error::other)? + "\n"
    } else {
        people(value).to_string()
    };
    say(&text)
}

fn say(text: &str) -> Result<(), CliError> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        // `hopsack routes | head` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn status(status: &Status) -> Table {
    let mut table = Table::new(&[]);
    table.row(&["ready", if status.ready { "yes" } else { "no" }]);
    table.row(&[
        "daemon",
        &format!("hopsack {}, pid {}, up {} s", status.version, status.pid, status.uptime_seconds),
    ]);
    table.row(&["host", &format!("{:?} at {} on {}", status.node, status.public_ip, status.interface)]);
    table.row(&["overlay", &format!("{}, MTU {}, UDP port {}", status.device, status.mtu, status.port)]);
    table.row(&["subnets", &format!("{} of {}", status.subnets.join(" "), status.networks.join(" "))]);
    let workers = if status.workers == 1 { "worker" } else { "workers" };
    let engine = format!("{}, {} {workers}: {}", status.engine, status.workers, status.engine_reason);
    table.row(&["engine", &engine]);
    table.row(&["store", &format!("{}; map {} s old", status.store, status.map_age_seconds)]);
    match status.lease_expires_seconds {
        Some(left) if left < 0 => {
            let past = -left / 60;
            table.row(&[
                "lease",
                &format!("ran out {past} min ago: kept until the store says that it is another's"),
            ]);
        }
        Some(left) => {
            table.row(&["lease", &format!("runs out in {} min unless renewed, which it will be", left / 60)]);
        }
        None => {}
    }
    for problem in &status.problems {
        table.row(&["PROBLEM", &format!("{problem} (for {} s)", problem.since_seconds)]);
    }
    table.row(&["encryption", &status.encryption]);
    table.row(&["peers", &status.peers.to_string()]);
    for lost in &status.unreachable {
        table.row(&["unreachable", lost]);
    }
    table.row(&["sent", &format!("{} packets, {} bytes", status.egress_packets, status.egress_bytes)]);
    table.row(&["received", &format!("{} packets, {} bytes", status.ingress_packets, status.ingress_bytes)]);
    table.row(&["dropped", &format!("{} packets (`hopsack drops` tells why)", status.dropped_packets)]);
    table
}

fn peers(list: &[PeerRow]) -> Table {
    let mut table = Table::new(&["HOST", "ENDPOINT", "TRANSPORT", "ENCRYPTION", "KEY AGE", "MTU", "SUBNETS"]);
    for peer in list {
        let (mtu, subnets) = (peer.mtu.to_string(), peer.subnets.join(" "));
        let age = peer.key_age_seconds.map_or("-".into(), |seconds| format!("{seconds} s"));
        table.row(&[&peer.name, &peer.endpoint, &peer.transport, &peer.encryption, &age, &mtu, &subnets]);
    }
    table
}

fn routes(list: &[RouteRow]) -> Table {
    let mut table = Table::new(&["SUBNET", "HOST", "NEXT HOP", "MTU"]);
    for route in list {
        table.row(&[&route.subnet, &route.host, &route.next_hop, &route.mtu.to_string()]);
    }
    table
}

fn drops(list: &[DropRow]) -> Table {
    let mut table = Table::new(&["DIRECTION", "REASON", "PACKETS", "MEANING"]);
    for drop in list {
        table.row(&[&drop.direction, &drop.reason, &drop.packets.to_string(), &drop.meaning]);
    }
    if list.is_empty() {
        table.row(&["no packet was dropped"]);
    }
    table
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
