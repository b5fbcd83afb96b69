//! What an operator does to the store by hand: `hopsack network init|show|set` and `hopsack leases list|release`.
//!
//! Each is one function that connects, does it, and returns what to print: as text by `Display`, as JSON by serde. They
//! need no running daemon, and take no lease.
//!
//! Invariant: nothing is written that flanneld would refuse.
#![forbid(unsafe_code)]

use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

use super::client::{Endpoints, Failure, Guard, Session, Written};
use super::map::{Reading, Record, read};
use super::{acquire, unreachable};
use crate::config;
use crate::store::StoreError;
use crate::store::flannel::{Keys, Network};

/// The cluster's network configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkShown {
    /// Its key in etcd.
    pub key: String,
    /// The text there, in Flannel's JSON.
    pub config: String,
    /// The pools that it means.
    pub pools: Vec<PoolShown>,
    /// `Backend.Type`, or what stands for it.
    pub backend: String,
    /// The UDP port of every host.
    pub port: u16,
    /// The text before, if it was another.
    pub before: Option<String>,
}

/// The subnets of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolShown {
    /// The network.
    pub network: IpNet,
    /// Length of one subnet.
    pub subnet_len: u8,
    /// The first subnet.
    pub min: std::net::IpAddr,
    /// The last subnet.
    pub max: std::net::IpAddr,
    /// How many there are.
    pub capacity: u128,
}

impl NetworkShown {
    fn new(key: String, config: &str, before: Option<String>) -> Result<Self, StoreError> {
        let network = Network::parse(config).map_err(|problem| {
            StoreError::Invalid(format!("the network configuration {config} is wrong: {problem}"))
        })?;
        let pools = network
            .pools()
            .map(|pool| PoolShown {
                network: pool.network(),
                subnet_len: pool.subnet_len(),
                min: pool.min(),
                max: pool.max(),
                capacity: pool.capacity(),
            })
            .collect();
        let port = network.port.unwrap_or(super::DEFAULT_PORT);
        Ok(Self { key, config: config.to_owned(), pools, backend: network.backend, port, before })
    }
}

impl fmt::Display for NetworkShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pool in &self.pools {
            let PoolShown { network, subnet_len, min, max, capacity } = pool;
            writeln!(f, "network   {network}, subnets of /{subnet_len} from {min} to {max} ({capacity})")?;
        }
        writeln!(f, "backend   {}, port {}", self.backend, self.port)?;
        writeln!(f, "key       {}", self.key)?;
        write!(f, "value     {}", self.config)?;
        if let Some(before) = &self.before {
            write!(f, "\nbefore    {before}\nrestart hopsack on every host for it to take effect")?;
        }
        Ok(())
    }
}

/// Writes the network configuration (Flannel's JSON) if there is none.
pub async fn network_init(config: &config::Etcd, json: &str) -> Result<NetworkShown, StoreError> {
    let mut at = At::connect(config).await?;
    let shown = NetworkShown::new(at.keys.config(), json, None)?;
    match at.session.put(&shown.key, json, 0, &Guard::Version(0)).await.map_err(failed)? {
        Written::At(_) => Ok(shown),
        Written::Not(Some(kv)) if kv.value == json.as_bytes() => Ok(shown),
        Written::Not(kv) => {
            let there = kv.map(|kv| String::from_utf8_lossy(&kv.value).into_owned()).unwrap_or_default();
            let key = shown.key;
            Err(StoreError::Invalid(format!(
                "{key} has {there} already: use `hopsack network set` to replace it"
            )))
        }
    }
}

/// Shows the network configuration.
pub async fn network_show(config: &config::Etcd) -> Result<NetworkShown, StoreError> {
    let mut at = At::connect(config).await?;
    let key = at.keys.config();
    match at.session.get(&key).await.map_err(failed)? {
        (Some(kv), _) => NetworkShown::new(key, &String::from_utf8_lossy(&kv.value), None),
        (None, _) => Err(StoreError::Unreachable(format!(
            "etcd has no network configuration ({key}): write one with `hopsack network init`"
        ))),
    }
}

/// Replaces the network configuration. Running nodes keep the old one until they are restarted, and say so.
pub async fn network_set(config: &config::Etcd, json: &str) -> Result<NetworkShown, StoreError> {
    let mut at = At::connect(config).await?;
    let shown = NetworkShown::new(at.keys.config(), json, None)?;
    let (found, _) = at.session.get(&shown.key).await.map_err(failed)?;
    let revision = found.as_ref().map_or(0, |kv| kv.mod_revision);
    match at.session.put(&shown.key, json, 0, &Guard::Version(revision)).await.map_err(failed)? {
        Written::At(_) => {
            let before = found.map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
            Ok(NetworkShown { before: before.filter(|before| before != json), ..shown })
        }
        Written::Not(_) => {
            let key = shown.key;
            Err(StoreError::Unreachable(format!("{key} was changed by somebody else just now: try again")))
        }
    }
}

/// What the store holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseTable {
    /// etcd's revision.
    pub revision: i64,
    /// Every lease, by key.
    pub leases: Vec<LeaseRow>,
    /// Keys that are no leases though they stand where leases do, with reasons.
    pub bad: Vec<(String, String)>,
    /// Subnets that are taken, and that there are, in each network; empty without network configuration.
    pub used: Vec<(IpNet, u128, u128)>,
}

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseRow {
    /// What it holds.
    pub subnets: Vec<IpNet>,
    /// The node's name, or its address.
    pub name: String,
    /// Where it is reached.
    pub public: Vec<std::net::IpAddr>,
    /// "hopsack", "flanneld", or the backend of another flanneld.
    pub daemon: String,
    /// The node's id, if it runs hopsack.
    pub node_id: Option<String>,
    /// A reservation does not run out.
    pub reserved: bool,
    /// Seconds until it runs out, if that was asked for.
    pub expires_in: Option<u64>,
}

impl LeaseRow {
    fn of(record: &Record) -> Self {
        let attributes = &record.attributes;
        let daemon = match (&attributes.identity, attributes.backend.as_str()) {
            (Some(_), _) => "hopsack",
            (None, "" | "udp") => "flanneld",
            (None, backend) => backend,
        };
        Self {
            subnets: record.subnets.clone(),
            name: attributes.lease(&record.subnets, 0).name,
            public: attributes.public.iter().collect(),
            daemon: daemon.to_owned(),
            node_id: record.node_id().map(str::to_owned),
            reserved: record.is_reserved(),
            expires_in: None,
        }
    }
}

impl fmt::Display for LeaseTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |cells: [&str; 5]| {
            let [subnets, name, public, daemon, expires] = cells;
            format!("{subnets:<36} {name:<20} {public:<24} {daemon:<9} {expires}")
        };
        write!(f, "{}", line(["SUBNET", "NODE", "PUBLIC", "DAEMON", "EXPIRES"]))?;
        for row in &self.leases {
            let public = row.public.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            let expires = match (row.reserved, row.expires_in) {
                (true, _) => "never (reserved)".to_owned(),
                (false, Some(seconds)) => format!("in {}h {:02}m", seconds / 3600, seconds / 60 % 60),
                (false, None) => "-".to_owned(),
            };
            let subnets = acquire::name(&row.subnets);
            write!(f, "\n{}", line([&subnets, &row.name, &public, &row.daemon, &expires]))?;
        }
        for (network, used, capacity) in &self.used {
            write!(f, "\n{used} of {capacity} subnets of {network} are taken")?;
        }
        for (key, reason) in &self.bad {
            write!(f, "\n{key}: {reason}")?;
        }
        Ok(())
    }
}

/// Lists the leases. `with_expiry` asks etcd for the time to live, one call a lease.
pub async fn leases_list(config: &config::Etcd, with_expiry: bool) -> Result<LeaseTable, StoreError> {
    let mut at = At::connect(config).await?;
    let listing = at.session.list(&at.keys.root(), None).await.map_err(failed)?;
    let network = acquire::network_of(&at.keys, &listing).ok().map(|(network, _)| network);
    let networks = network.as_ref().map(Network::networks);
    let mut table =
        LeaseTable { revision: listing.revision, leases: Vec::new(), bad: Vec::new(), used: Vec::new() };
    for kv in &listing.kvs {
        match read(&at.keys, networks.as_ref(), kv) {
            Reading::Lease(record) => {
                let mut row = LeaseRow::of(&record);
                if with_expiry && !row.reserved {
                    let ttl = at.session.time_to_live(kv.lease).await.map_err(failed)?;
                    row.expires_in = ttl.map(|(left, _)| left.as_secs());
                }
                table.leases.push(row);
            }
            Reading::Bad(_, reason) => table.bad.push((kv.key.clone(), reason)),
            Reading::Config | Reading::Other => {}
        }
    }
    let taken: Vec<IpNet> = table.leases.iter().flat_map(|row| &row.subnets).copied().collect();
    table.used = network
        .iter()
        .flat_map(Network::pools)
        .map(|pool| (pool.network(), pool.used(&taken), pool.capacity()))
        .collect();
    Ok(table)
}

/// What was released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Released {
    /// The key that is gone.
    pub key: String,
    /// The lease that it was.
    pub lease: LeaseRow,
}

impl fmt::Display for Released {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subnets = acquire::name(&self.lease.subnets);
        write!(f, "released {subnets}, which {} had; if that node runs, it takes it again", self.lease.name)
    }
}

/// Deletes the lease that holds `subnet`. A reservation only if `reserved`.
pub async fn leases_release(
    config: &config::Etcd,
    subnet: IpNet,
    reserved: bool,
) -> Result<Released, StoreError> {
    let mut at = At::connect(config).await?;
    let listing = at.session.list(&at.keys.root(), None).await.map_err(failed)?;
    let holdings = acquire::Holdings::of(&at.keys, &listing.kvs);
    let Some(record) = holdings.records.into_iter().find(|record| record.subnets.contains(&subnet)) else {
        return Err(StoreError::Invalid(format!("no lease holds {subnet}: see `hopsack leases list`")));
    };
    if record.is_reserved() && !reserved {
        return Err(StoreError::Invalid(format!("{subnet} is a reservation: add --reserved to delete it")));
    }
    let guard = Guard::Version(record.kv.mod_revision);
    match at.session.delete(&record.kv.key, &guard).await.map_err(failed)? {
        Written::At(_) => Ok(Released { lease: LeaseRow::of(&record), key: record.kv.key }),
        Written::Not(_) => Err(StoreError::Unreachable(format!(
            "the lease of {subnet} was written just now: its node is alive; try again if you mean it"
        ))),
    }
}

/// A connection and where things lie.
struct At {
    session: Session,
    keys: Keys,
}

impl At {
    /// The first endpoint that answers.
    async fn connect(config: &config::Etcd) -> Result<Self, StoreError> {
        let mut endpoints = Endpoints::new(config).map_err(StoreError::Invalid)?;
        let keys = Keys::new(&config.prefix);
        let mut last = None;
        for _ in 0..endpoints.len() {
            match reach(&mut endpoints, &keys).await {
                Ok(session) => return Ok(Self { session, keys }),
                Err(failure) => last = Some(failure),
            }
        }
        let none = || StoreError::Invalid("store.endpoints is empty".into());
        Err(last.map_or_else(none, failed))
    }
}

/// A connection is made by its first call.
async fn reach(endpoints: &mut Endpoints, keys: &Keys) -> Result<Session, Failure> {
    let mut session = endpoints.connect().await?;
    session.get(&keys.config()).await?;
    Ok(session)
}

#[expect(clippy::needless_pass_by_value, reason = "as an argument of map_err")]
fn failed(failure: Failure) -> StoreError {
    unreachable(&failure, "")
}
