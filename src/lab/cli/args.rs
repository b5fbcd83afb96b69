//! Arguments that several commands share, and the options that follow from them.

use clap::{Args, ValueEnum, value_parser};

use super::super::demo;
use super::super::error::LabError;
use super::super::options::{Options, Store};
use super::super::topology::MAX_HOSTS;
use super::programs;
use crate::packet::Family;

/// Name of an existing or new lab.
#[derive(Debug, Args)]
pub(super) struct NameArg {
    /// Name of the lab: 1 to 32 of a-z, 0-9 and '-'. Labs with different names run side by side.
    #[arg(long, default_value = "lab")]
    pub(super) name: String,
}

/// Arguments of `up`.
#[derive(Debug, Args)]
pub(super) struct UpArgs {
    #[command(flatten)]
    pub(super) lab: NameArg,
    /// Number of hosts, each with one pod.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u8).range(1..=i64::from(MAX_HOSTS)))]
    pub(super) hosts: u8,
    /// Use IPv6 between the hosts. Pods have IPv4 and IPv6 in any case.
    #[arg(long)]
    pub(super) ipv6: bool,
    /// Store that describes the cluster.
    #[arg(long, value_enum, default_value_t = StoreArg::Etcd)]
    pub(super) store: StoreArg,
    /// Encryption of the packets between the hosts.
    #[arg(long, value_enum, default_value_t = SecurityArg::None)]
    pub(super) security: SecurityArg,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Name of the lab. Two demos at the same time need two names.
    #[arg(long, default_value = "demo")]
    pub(super) name: String,
    /// Number of hosts, each with one pod.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u8).range(2..=i64::from(demo::MAX_HOSTS)))]
    pub(super) hosts: u8,
    /// Use IPv6 between the hosts. Pods have IPv4 and IPv6 in any case.
    #[arg(long)]
    pub(super) ipv6: bool,
    /// Duration of the TCP transfer in each family, in seconds.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=600))]
    pub(super) seconds: u64,
    /// Store that describes the cluster.
    #[arg(long, value_enum, default_value_t = StoreArg::Etcd)]
    pub(super) store: StoreArg,
    /// Encryption of the packets between the hosts.
    #[arg(long, value_enum, default_value_t = SecurityArg::None)]
    pub(super) security: SecurityArg,
}

/// Values of `--security`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum SecurityArg {
    /// No encryption.
    None,
    /// Each packet is encrypted in hopsack's own format.
    Sealed,
    /// Packets are sent in QUIC connections.
    Quic,
}

impl SecurityArg {
    /// The table for the daemons' configuration.
    pub(super) fn toml(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Sealed => "[security]\nmode = \"sealed\"\nrequire = true\n",
            Self::Quic => "[security]\nmode = \"quic\"\nrequire = true\n",
        }
    }
}

/// Values of `--store`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum StoreArg {
    /// An etcd that the lab starts. Daemons lease their subnets there.
    Etcd,
    /// A file that all hosts read.
    File,
}

impl From<StoreArg> for Store {
    fn from(arg: StoreArg) -> Self {
        match arg {
            StoreArg::Etcd => Self::Etcd { members: 1 },
            StoreArg::File => Self::File,
        }
    }
}

/// Options of a lab with the programs that were found. Prints the path of the daemon's program to
/// standard error, which leaves standard output to results.
pub(super) fn options(name: &str, hosts: u8, ipv6: bool, store: StoreArg) -> Result<Options, LabError> {
    let programs = programs::find()?;
    eprintln!("daemon: {} ({})", programs.daemon.display(), programs.place);
    let underlay = if ipv6 { Family::V6 } else { Family::V4 };
    let (store, lab_binary) = (store.into(), programs.lab);
    Ok(Options { hosts, underlay, store, lab_binary, ..Options::named(name, programs.daemon) })
}
