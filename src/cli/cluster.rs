//! `hopsack network` and `hopsack leases`: operator commands on the store, and how their results
//! are printed.
//!
//! The commands need no running daemon. They only print: the work is done in
//! [`crate::node::admin`].

use clap::Subcommand;
use ipnet::IpNet;
use serde::Serialize;

use super::error::CliError;
use super::options::ConfigOptions;
use super::output::{Format, print};
use super::runtime::runtime;
use crate::config::{EtcdConfig, Origin, StoreConfig};
use crate::node::NodeError;
use crate::node::admin::{self, LeaseTable, NetworkShown, PoolShown, Released};

/// The cluster's network configuration in etcd, in Flannel's JSON
#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// Write the network configuration if there is none
    #[command(
        after_help = "Example: hopsack network init '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"udp\"}}'"
    )]
    Init {
        /// Network configuration in Flannel's JSON
        #[arg(value_name = "JSON")]
        text: String,
        #[command(flatten)]
        common: Common,
    },
    /// Show the network configuration and the subnets that it describes
    Show {
        #[command(flatten)]
        common: Common,
    },
    /// Replace the network configuration; running nodes keep the old one until they are restarted
    Set {
        /// Network configuration in Flannel's JSON
        #[arg(value_name = "JSON")]
        text: String,
        #[command(flatten)]
        common: Common,
    },
}

/// The leases in etcd: which host has which subnet
#[derive(Debug, Subcommand)]
pub(super) enum LeasesCommand {
    /// List all leases
    List {
        /// Also show when each lease expires (one more call to etcd for each lease)
        #[arg(long)]
        expiry: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Delete the lease of a subnet, for a node that will not come back
    #[command(after_help = "Example: hopsack leases release 10.244.7.0/24")]
    Release {
        /// Subnet, as `hopsack leases list` shows it
        subnet: IpNet,
        /// Delete the lease even if it is a reservation
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
    /// The etcd settings. An administrator's machine may have no configuration file: `store.kind`
    /// means etcd there, unless it says otherwise.
    fn etcd(&self) -> Result<EtcdConfig, NodeError> {
        let mut sources = self.config.sources();
        let config = sources.load()?;
        let named = |key: &str| {
            let mut values = config.values.iter();
            values.any(|row| (row.section, row.key) == ("store", key) && row.origin != Origin::Default)
        };
        let is_file = (named("kind") || named("path")) && !named("endpoints");
        if !is_file {
            sources.options.push(("store", "kind", "etcd".into()));
        }
        match sources.load()?.store {
            StoreConfig::Etcd(etcd) => Ok(*etcd),
            StoreConfig::File { path } => Err(NodeError::Invalid {
                code: "store_without_leases",
                text: format!(
                    "this host's store is a file, which has no leases and no network in etcd: read and edit {}, or name \
                     an etcd with --store-endpoints",
                    path.display()
                ),
            }),
        }
    }

    fn call<T, F>(
        &self,
        command: impl FnOnce(EtcdConfig) -> F,
        text: fn(&T) -> String,
    ) -> Result<(), CliError>
    where
        T: Serialize,
        F: Future<Output = Result<T, NodeError>>,
    {
        let answer = runtime()?.block_on(command(self.etcd()?))?;
        print(&self.format, &answer, |answer| text(answer) + "\n")
    }
}

pub(super) fn network(command: NetworkCommand) -> Result<(), CliError> {
    match command {
        NetworkCommand::Init { text, common } => {
            common.call(async move |etcd| admin::network_init(&etcd, &text).await, network_text)
        }
        NetworkCommand::Show { common } => {
            common.call(async move |etcd| admin::network_show(&etcd).await, network_text)
        }
        NetworkCommand::Set { text, common } => {
            common.call(async move |etcd| admin::network_set(&etcd, &text).await, network_text)
        }
    }
}

pub(super) fn leases(command: LeasesCommand) -> Result<(), CliError> {
    match command {
        LeasesCommand::List { expiry, common } => {
            common.call(async move |etcd| admin::leases_list(&etcd, expiry).await, leases_text)
        }
        LeasesCommand::Release { subnet, reserved, common } => {
            common.call(async move |etcd| admin::leases_release(&etcd, subnet, reserved).await, released_text)
        }
    }
}

fn network_text(shown: &NetworkShown) -> String {
    let mut lines: Vec<String> = shown.pools.iter().map(pool_line).collect();
    lines.push(format!("backend   {}, port {}", shown.backend, shown.port));
    lines.push(format!("key       {}", shown.key));
    lines.push(format!("value     {}", shown.config));
    if let Some(before) = &shown.before {
        lines.push(format!("before    {before}"));
        lines.push("restart hopsack on every host: running nodes keep the old configuration".to_owned());
    }
    lines.join("\n")
}

fn pool_line(pool: &PoolShown) -> String {
    let PoolShown { network, subnet_len, min, max, capacity } = pool;
    format!("network   {network}, subnets of /{subnet_len} from {min} to {max} ({capacity})")
}

fn leases_text(table: &LeaseTable) -> String {
    let line = |cells: [&str; 5]| {
        let [subnets, name, public, daemon, expires] = cells;
        format!("{subnets:<36} {name:<20} {public:<24} {daemon:<9} {expires}")
    };
    let mut lines = vec![line(["SUBNET", "NODE", "PUBLIC", "DAEMON", "EXPIRES"])];
    for row in &table.leases {
        let expires = match (row.reserved, row.expires_in) {
            (true, _) => "never (reserved)".to_owned(),
            (false, Some(seconds)) => format!("in {}h {:02}m", seconds / 3600, seconds / 60 % 60),
            (false, None) => "-".to_owned(),
        };
        let (subnets, public) = (joined(&row.subnets, " and "), joined(&row.public, ","));
        lines.push(line([&subnets, &row.name, &public, &row.daemon, &expires]));
    }
    for (network, used, capacity) in &table.used {
        lines.push(format!("{used} of {capacity} subnets of {network} are taken"));
    }
    lines.extend(table.bad.iter().map(|(key, reason)| format!("{key}: {reason}")));
    lines.join("\n")
}

fn released_text(released: &Released) -> String {
    let subnets = joined(&released.lease.subnets, " and ");
    format!(
        "released {subnets} of {}; if that node still runs, it takes the subnet again",
        released.lease.name
    )
}

fn joined<T: ToString>(items: &[T], separator: &str) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_table_shows_reservations_and_expiry() {
        let row = |name: &str, reserved, expires_in| admin::LeaseRow {
            subnets: vec!["10.1.2.0/24".parse().expect("a prefix")],
            name: name.to_owned(),
            public: vec!["192.0.2.1".parse().expect("an address")],
            daemon: "hopsack".to_owned(),
            node_id: None,
            reserved,
            expires_in,
        };
        let table = LeaseTable {
            revision: 7,
            leases: vec![row("alpha", true, None), row("beta", false, Some(3725)), row("gamma", false, None)],
            bad: vec![("/p/subnets/x".to_owned(), "why".to_owned())],
            used: vec![("10.1.0.0/16".parse().expect("a prefix"), 2, 255)],
        };
        let text = leases_text(&table);
        let last_words: Vec<&str> = text.lines().map(|line| line.rsplit("  ").next().expect("one")).collect();
        assert_eq!(last_words[0], "EXPIRES");
        assert!(text.contains("alpha") && !last_words[1].ends_with('-'), "{text}");
        assert!(last_words[2].contains("1h 02m") && last_words[3].ends_with('-'), "{text}");
        assert_eq!(last_words.len(), 6, "{text}");
        assert!(["2", "255", "10.1.0.0/16"].iter().all(|value| last_words[4].contains(value)), "{text}");
        assert!(last_words[5].contains("/p/subnets/x"), "{text}");
    }
}
