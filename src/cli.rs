//! The command line: the table of contents of the commands.
//!
//! Each command has a file of its own. A command calls the library or asks the running daemon, and
//! prints the result as a table, or with `--json` the same value as JSON. No command decides
//! anything.

mod ask;
mod check;
mod clean;
mod cluster;
mod completions;
mod config;
mod drops;
mod error;
mod explain;
mod flanneld;
mod lab;
mod log_lines;
mod man;
mod options;
mod output;
mod peers;
mod pki;
mod routes;
mod run;
mod runtime;
mod status;
mod table;

use std::ffi::OsString;
use std::net::IpAddr;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

pub use error::CliError;
pub use log_lines::LogLines;

use crate::config::Config;
use ask::Ask;
use options::ConfigOptions;
use output::Format;

/// The arguments of `hopsack`.
#[derive(Debug, Parser)]
#[command(
    name = "hopsack",
    version,
    about = "An overlay network for containers on several hosts, compatible with Flannel's UDP backend",
    long_about = "hopsack connects containers on different hosts. A daemon on each host (`hopsack run`) reads the packets \
                  of local containers from a TUN device and sends each in a UDP datagram to the host that owns the \
                  destination's subnet. The daemon there writes the packet to its own TUN device, and the kernel \
                  delivers it.\n\n\
                  The daemons learn which host owns which subnet from a file or from etcd, in Flannel's format.",
    after_help = "To try a cluster on this machine, in network namespaces:  hopsack lab demo\n\
                  To find out whether this host can run the daemon:         hopsack check"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    ///
    /// The daemon joins the cluster, creates the overlay device and forwards packets until it
    /// receives SIGTERM or SIGINT. SIGHUP makes it read the cluster file, the certificates and the
    /// log filter again. Device, routes and kernel fast path stay when it ends, and the next
    /// daemon takes them over.
    #[command(after_help = "Example: hopsack run --store-path ./cluster.toml --node-interface eth1")]
    Run(run::RunArgs),
    /// Run the daemon with flanneld's flags and FLANNELD_* variables
    ///
    /// This replaces flanneld without a change of its command line: -x, --x and -x=v are accepted.
    /// A flag that hopsack does not support is refused, or ignored with a warning;
    /// configs/README.md has the table.
    #[command(disable_help_flag = true)]
    Flanneld {
        /// Flags of flanneld; -help lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAG")]
        flags: Vec<String>,
    },
    /// Check whether this host can run the daemon
    ///
    /// Prints one line for each requirement: ok, or FAIL with the way to fix it. The exit code is 1
    /// if a line says FAIL. Nothing is changed, and a running daemon is not disturbed.
    Check {
        #[command(flatten)]
        config: ConfigOptions,
        #[command(flatten)]
        format: Format,
    },
    /// Show the state of the running daemon, and its problems
    Status(Ask),
    /// List the hosts to which packets can be sent
    Peers(Ask),
    /// List the subnets of the overlay, each with the host that owns it
    Routes(Ask),
    /// Count the dropped packets by reason
    Drops(Ask),
    /// Explain what this host does with a packet for an address
    ///
    /// Shows the route, next hop, MTU, encryption with the age of the keys, the format of the
    /// datagrams and the counters to look at. If the packet would be dropped, it shows the reason.
    /// The running daemon answers; no packet is sent.
    #[command(after_help = "Example: hopsack explain 10.244.2.2")]
    Explain {
        /// Destination address: of a pod, or any other
        address: IpAddr,
        #[command(flatten)]
        ask: Ask,
    },
    /// Show the configuration in effect, with the origin of each value
    Config(config::ConfigArgs),
    /// Remove the devices, routes and files that an earlier daemon left on this host
    ///
    /// Only what hopsack created is removed. The command refuses to work while a daemon runs.
    Clean(clean::CleanArgs),
    /// Show or change the network configuration of the cluster in etcd
    #[command(subcommand)]
    Network(cluster::NetworkCommand),
    /// List or release the leases in etcd, each of which gives a subnet to a host
    #[command(subcommand)]
    Leases(cluster::LeasesCommand),
    /// Create the CA of the cluster, and certificates for encryption between the hosts
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// Run a cluster on this machine, for trying, testing and measuring: starts the program
    /// hopsack-lab
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
    /// To install the page of `hopsack run`: hopsack man run >
    /// /usr/local/share/man/man1/hopsack-run.1
    Man {
        /// Command that the page describes; without one, all of hopsack
        #[arg(value_name = "COMMAND")]
        command: Vec<String>,
    },
}

impl Cli {
    /// Runs the command. `start_log` starts logging for the daemon and returns a function that
    /// changes the log filter later.
    pub fn run<R: Fn(&Config)>(self, start_log: impl FnOnce(&Config) -> R) -> Result<ExitCode, CliError> {
        match self.command {
            Command::Run(args) => run::run(&args, start_log)?,
            Command::Flanneld { flags } => run::run_as_flanneld(&flags, start_log)?,
            Command::Check { config, format } => return check::check(&config, &format),
            Command::Status(ask) => status::status(&ask)?,
            Command::Peers(ask) => peers::peers(&ask)?,
            Command::Routes(ask) => routes::routes(&ask)?,
            Command::Drops(ask) => drops::drops(&ask)?,
            Command::Explain { address, ask } => explain::explain(&ask, address)?,
            Command::Config(args) => config::config(&args)?,
            Command::Clean(args) => return clean::clean(&args),
            Command::Network(command) => cluster::network(command)?,
            Command::Leases(command) => cluster::leases(command)?,
            Command::Pki(command) => pki::pki(command)?,
            Command::Lab { arguments } => match lab::exec(&arguments)? {},
            Command::Completions { shell } => completions::completions(Self::command(), shell)?,
            Command::Man { command } => man::man(Self::command(), &command)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
