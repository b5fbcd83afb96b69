//! Operator commands on the etcd store: read and write the network configuration, list and release
//! leases.
//!
//! Each command is one function that connects, does its work and returns a value. Printing is left
//! to the caller. The commands need no running daemon and take no lease.
//!
//! Invariant: no command writes anything that flanneld would refuse.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::Serialize;

use super::error::{ErrorCode, StoreError};
use super::etcd::connection::{Endpoints, Session};
use super::etcd::failure::Failure;
use super::etcd::guard::{Guard, Written};
use super::etcd::holdings::{Holdings, network_of};
use super::etcd::host_files;
use super::etcd::record::{Reading, Record, read};
use super::flannel::{DEFAULT_PORT, Keys, Network};
use super::settings::EtcdSettings;
use super::update::Cluster;

/// Whether `state_dir` has the id of this node. The first start makes it.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn has_node_id(state_dir: &Path) -> Result<bool, StoreError> {
    let known = host_files::known_node_id(state_dir);
    known.map(|id| id.is_some()).map_err(|text| StoreError::new(ErrorCode::NodeId, text))
}

/// The cluster's network configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkShown {
    /// Key in etcd.
    pub key: String,
    /// Value in etcd: Flannel's JSON.
    pub config: String,
    /// Subnet pools that the configuration describes.
    pub pools: Vec<PoolShown>,
    /// Backend type: `Backend.Type`, or `udp` if it is omitted.
    pub backend: String,
    /// UDP port of every host.
    pub port: u16,
    /// Value that was replaced, if it was different.
    pub before: Option<String>,
}

/// Subnets of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolShown {
    /// Network that is divided into subnets.
    pub network: IpNet,
    /// Prefix length of one subnet.
    pub subnet_len: u8,
    /// First subnet that is handed out.
    pub min: IpAddr,
    /// Last subnet that is handed out.
    pub max: IpAddr,
    /// Number of subnets.
    pub capacity: u128,
}

impl NetworkShown {
    fn new(key: String, config: &str, before: Option<String>) -> Result<Self, StoreError> {
        let network = Network::parse(config).map_err(|problem| {
            StoreError::new(
                ErrorCode::NetworkInvalid,
                format!("the network configuration {config} is wrong: {problem}"),
            )
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
        let port = network.port.unwrap_or(DEFAULT_PORT);
        Ok(Self { key, config: config.to_owned(), pools, backend: network.backend, port, before })
    }
}

/// Writes the network configuration (Flannel's JSON) if there is none. Writing the same text again
/// is no error.
pub async fn network_init(settings: &EtcdSettings, json: &str) -> Result<NetworkShown, StoreError> {
    let mut store = Connected::open(settings).await?;
    let shown = NetworkShown::new(store.keys.config(), json, None)?;
    match store.session.put(&shown.key, json, 0, &Guard::Version(0)).await.map_err(Failure::into_error)? {
        Written::At(_) => Ok(shown),
        Written::Not(Some(kv)) if kv.value == json.as_bytes() => Ok(shown),
        Written::Not(kv) => {
            let existing = kv.map(|kv| String::from_utf8_lossy(&kv.value).into_owned()).unwrap_or_default();
            let key = shown.key;
            Err(StoreError::new(
                ErrorCode::NetworkExists,
                format!("{key} already holds {existing}: use `hopsack network set` to replace it"),
            ))
        }
    }
}

/// Reads the network configuration.
pub async fn network_show(settings: &EtcdSettings) -> Result<NetworkShown, StoreError> {
    let mut store = Connected::open(settings).await?;
    let key = store.keys.config();
    match store.session.get(&key).await.map_err(Failure::into_error)? {
        Some(kv) => NetworkShown::new(key, &String::from_utf8_lossy(&kv.value), None),
        None => Err(StoreError::new(
            ErrorCode::NetworkMissing,
            format!("etcd has no network configuration ({key}): write one with `hopsack network init`"),
        )),
    }
}

/// Reads what a joining node would learn of the cluster, with the refusals of a join. It takes no
/// lease.
pub async fn cluster(settings: &EtcdSettings) -> Result<Cluster, StoreError> {
    let mut store = Connected::open(settings).await?;
    let listing = store.session.list(&store.keys.config(), None).await.map_err(Failure::into_error)?;
    let (network, _) = network_of(&store.keys, &listing)?;
    Ok(Cluster { networks: network.networks(), port: network.port })
}

/// Replaces the network configuration. Running nodes keep the old one until they are restarted, and
/// log a warning.
pub async fn network_set(settings: &EtcdSettings, json: &str) -> Result<NetworkShown, StoreError> {
    let mut store = Connected::open(settings).await?;
    let shown = NetworkShown::new(store.keys.config(), json, None)?;
    let found = store.session.get(&shown.key).await.map_err(Failure::into_error)?;
    let guard = Guard::Version(found.as_ref().map_or(0, |kv| kv.mod_revision));
    match store.session.put(&shown.key, json, 0, &guard).await.map_err(Failure::into_error)? {
        Written::At(_) => {
            let before = found.map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
            Ok(NetworkShown { before: before.filter(|before| before != json), ..shown })
        }
        Written::Not(_) => Err(StoreError::new(
            ErrorCode::NetworkChanged,
            format!("{} was changed by another writer at the same moment: try again", shown.key),
        )),
    }
}

/// All leases in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseTable {
    /// etcd's revision.
    pub revision: i64,
    /// Leases, sorted by key.
    pub leases: Vec<LeaseRow>,
    /// Invalid keys among the leases, each with the reason.
    pub bad: Vec<(String, String)>,
    /// Each network with its number of taken subnets and its number of subnets; empty without
    /// network configuration.
    pub used: Vec<(IpNet, u128, u128)>,
}

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseRow {
    /// Subnets that the lease holds.
    pub subnets: Vec<IpNet>,
    /// Name of the node, or its address.
    pub name: String,
    /// Addresses at which other hosts reach the node.
    pub public: Vec<IpAddr>,
    /// Daemon of the node: "hopsack", "flanneld", or the backend of a flanneld that does not use
    /// UDP.
    pub daemon: String,
    /// Node id, if the node runs hopsack.
    pub node_id: Option<String>,
    /// Whether the lease is a reservation, which does not expire.
    pub reserved: bool,
    /// Seconds until the lease expires, if the caller asked for that.
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

/// Lists the leases. `with_expiry` also asks for the time to live, which costs one call a lease.
pub async fn leases_list(settings: &EtcdSettings, with_expiry: bool) -> Result<LeaseTable, StoreError> {
    let mut store = Connected::open(settings).await?;
    let listing = store.session.list(&store.keys.root(), None).await.map_err(Failure::into_error)?;
    let network = network_of(&store.keys, &listing).ok().map(|(network, _)| network);
    let networks = network.as_ref().map(Network::networks);
    let mut table =
        LeaseTable { revision: listing.revision, leases: Vec::new(), bad: Vec::new(), used: Vec::new() };
    for kv in &listing.kvs {
        match read(&store.keys, networks.as_ref(), kv) {
            Reading::Lease(record) => {
                let mut row = LeaseRow::of(&record);
                if with_expiry && !row.reserved {
                    let ttl = store.session.time_to_live(kv.lease).await.map_err(Failure::into_error)?;
                    row.expires_in = ttl.map(|(left, _)| left.as_secs());
                }
                table.leases.push(row);
            }
            Reading::Invalid(_, reason) => table.bad.push((kv.key.clone(), reason)),
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

/// A lease that was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Released {
    /// Key that was deleted.
    pub key: String,
    /// The lease that the key held.
    pub lease: LeaseRow,
}

/// Deletes the lease that holds `subnet`. A reservation is deleted only if `reserved` is set.
pub async fn leases_release(
    settings: &EtcdSettings,
    subnet: IpNet,
    reserved: bool,
) -> Result<Released, StoreError> {
    let mut store = Connected::open(settings).await?;
    let listing = store.session.list(&store.keys.root(), None).await.map_err(Failure::into_error)?;
    let holdings = Holdings::of(&store.keys, &listing.kvs);
    let Some(record) = holdings.records.into_iter().find(|record| record.subnets.contains(&subnet)) else {
        return Err(StoreError::new(
            ErrorCode::NoSuchLease,
            format!("no lease holds {subnet}: see `hopsack leases list`"),
        ));
    };
    if record.is_reserved() && !reserved {
        return Err(StoreError::new(
            ErrorCode::Reserved,
            format!("{subnet} is a reservation: add --reserved to delete it"),
        ));
    }
    let guard = Guard::Version(record.kv.mod_revision);
    match store.session.delete(&record.kv.key, &guard).await.map_err(Failure::into_error)? {
        Written::At(_) => Ok(Released { lease: LeaseRow::of(&record), key: record.kv.key }),
        Written::Not(_) => Err(StoreError::new(
            ErrorCode::LeaseChanged,
            format!(
                "the lease of {subnet} was written at the same moment, so its node is alive: try again if you want to \
                 delete it anyway"
            ),
        )),
    }
}

/// A connection to the first endpoint that answers.
struct Connected {
    session: Session,
    keys: Keys,
}

impl Connected {
    async fn open(settings: &EtcdSettings) -> Result<Self, StoreError> {
        let mut endpoints = Endpoints::new(settings)?;
        let keys = Keys::new(&settings.prefix);
        // There is at least one endpoint: `Endpoints::new` refuses an empty list.
        let mut reached = reach(&mut endpoints, &keys).await;
        for _ in 1..endpoints.len() {
            if reached.is_ok() {
                break;
            }
            reached = reach(&mut endpoints, &keys).await;
        }
        let session = reached.map_err(Failure::into_error)?;
        Ok(Self { session, keys })
    }
}

/// Connects, and makes one call: the client connects only when it is used.
async fn reach(endpoints: &mut Endpoints, keys: &Keys) -> Result<Session, Failure> {
    let mut session = endpoints.connect().await?;
    session.get(&keys.config()).await?;
    Ok(session)
}
