//! `hopsack network` and `hopsack leases`: what an operator does to the store by hand. They need no running daemon.

use clap::Subcommand;
use ipnet::IpNet;

use super::options::ConfigOptions;
use super::{CliError, Format, runtime};
use crate::config::{self, Store};
use crate::node::NodeError;
use crate::store::StoreError;
use crate::store::etcd::commands;

/// The cluster's network configuration in etcd, in Flannel's JSON.
#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// Write it, if there is none
    #[command(
        after_help = "Example: hopsack network init '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"udp\"}}'"
    )]
    Init {
        /// Flannel's JSON
        #[arg(value_name = "JSON")]
        text: String,
        #[command(flatten)]
        common: Common,
    },
    /// Show it, and the subnets that it means
    Show {
        #[command(flatten)]
        common: Common,
    },
    /// Replace it; running nodes keep the old one until they are restarted
    Set {
        /// Flannel's JSON
        #[arg(value_name = "JSON")]
        text: String,
        #[command(flatten)]
        common: Common,
    },
}

/// The leases in etcd: who owns which subnet.
#[derive(Debug, Subcommand)]
pub(super) enum LeasesCommand {
    /// List them
    List {
        /// Ask for the time to live too: one call a lease
        #[arg(long)]
        expiry: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Delete the lease of a subnet: for a node that will not come back
    #[command(after_help = "Example: hopsack leases release 10.244.7.0/24")]
    Release {
        /// The subnet, as `hopsack leases list` shows it
        subnet: IpNet,
        /// Also if it is a reservation
        #[arg(long)]
        reserved: bool,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Common {
    #[command(flatten)]
    config: ConfigOptions,
    #[command(flatten)]
    format: Format,
}

impl Common {
    /// These commands are about etcd, whatever store the daemon of this host uses.
    fn etcd(&self) -> Result<config::Etcd, NodeError> {
        let mut sources = self.config.sources();
        sources.options.push(("store", "kind", "etcd".into()));
        match sources.load()?.store {
            Store::Etcd(etcd) => Ok(*etcd),
            Store::File { .. } => Err(NodeError::Invalid("store.kind = \"file\" has no leases".into())),
        }
    }

    fn call<T, F>(&self, command: impl FnOnce(config::Etcd) -> F) -> Result<(), CliError>
    where
        T: serde::Serialize + std::fmt::Display,
        F: Future<Output = Result<T, StoreError>>,
    {
        let answer = runtime()?.block_on(command(self.etcd()?)).map_err(NodeError::from)?;
        super::print(&self.format, &answer, |answer| format!("{answer}\n"))
    }
}

pub(super) fn network(command: NetworkCommand) -> Result<(), CliError> {
    match command {
        NetworkCommand::Init { text, common } => {
            common.call(async move |etcd| commands::network_init(&etcd, &text).await)
        }
        NetworkCommand::Show { common } => common.call(async move |etcd| commands::network_show(&etcd).await),
        NetworkCommand::Set { text, common } => {
            common.call(async move |etcd| commands::network_set(&etcd, &text).await)
        }
    }
}

pub(super) fn leases(command: LeasesCommand) -> Result<(), CliError> {
    match command {
        LeasesCommand::List { expiry, common } => {
            common.call(async move |etcd| commands::leases_list(&etcd, expiry).await)
        }
        LeasesCommand::Release { subnet, reserved, common } => {
            common.call(async move |etcd| commands::leases_release(&etcd, subnet, reserved).await)
        }
    }
}
