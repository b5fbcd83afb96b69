//! Acquires our lease: lists, chooses, writes, and begins again when another node was faster.
//!
//! There is no limit of attempts: of any number of nodes that start together, each gets a subnet of
//! its own.
//!
//! Invariant: every write is guarded by what the choice was based on.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::choice::{LeaseChoice, choose};
use super::connection::Session;
use super::failure::Failure;
use super::guard::{Guard, Written};
use super::holdings::{Holdings, network_of};
use super::identity::NodeIdentity;
use super::lease_cache::LeaseCache;
use super::own_lease::{OwnLease, creation_guard};
use super::record::{LeaseDecoder, Record};
use super::{liveness, random};
use crate::route::unfit_in;
use crate::store::clock::Clock;
use crate::store::error::{ErrorCode, StoreError};
use crate::store::flannel::Network;
use crate::store::watch::InvalidKey;

/// Longest wait after a lost race, multiplied by the number of races that were lost (at most 10).
const RACE_WAIT: Duration = Duration::from_millis(20);

/// Result of joining.
#[derive(Debug)]
pub(crate) struct Acquired {
    pub(crate) own: OwnLease,
    pub(crate) network: Network,
    /// Text of the network configuration.
    pub(crate) config: String,
    pub(crate) cache: LeaseCache,
    pub(crate) invalid: Vec<InvalidKey>,
}

/// Why a node has no lease.
#[derive(Debug)]
pub(crate) enum NoLease {
    /// etcd did not answer.
    Failed(Failure),
    /// There is no lease for this node.
    Refused(StoreError),
}

impl From<Failure> for NoLease {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<StoreError> for NoLease {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

/// Joins: lists, chooses and writes until a lease is ours. `previous` are subnets that this node
/// had before.
pub(crate) async fn acquire(
    session: &mut Session,
    node: &NodeIdentity,
    clock: Clock,
    previous: &[Vec<IpNet>],
) -> Result<Acquired, NoLease> {
    let mut previous = previous.to_vec();
    let mut grant = None;
    let mut races = 0u32;
    loop {
        let listing = session.list(&node.keys.root(), None).await?;
        let (network, config) = network_of(&node.keys, &listing)?;
        let unfit = |address: IpAddr| Some((address, unfit_in(&network.networks(), address)?));
        if let Some((address, why)) = node.public.iter().find_map(unfit) {
            let text = format!(
                "{address} cannot be the address of this host: {why}; set node.public_ip to another address"
            );
            return Err(StoreError::new(ErrorCode::AddressUnfit, text).into());
        }
        let holdings = Holdings::of(&node.keys, &listing.kvs);
        let own = match choose(&holdings, &network, node, &previous, random::number)? {
            LeaseChoice::Adopt(record)
                if has_another_address(node, &record) && liveness::is_alive(session, node).await? =>
            {
                let text = liveness::refusal(node, &record);
                return Err(StoreError::new(ErrorCode::StateCopied, text).into());
            }
            LeaseChoice::Adopt(record) => adopt(session, node, clock, &record).await?,
            LeaseChoice::Clear(record) => {
                session.delete(&record.kv.key, &Guard::Version(record.kv.mod_revision)).await?;
                previous.insert(0, record.subnets);
                None
            }
            LeaseChoice::Create(subnets) => {
                let granted = match grant {
                    Some(granted) => granted,
                    None => *grant.insert(session.grant(node.ttl).await?),
                };
                create(session, node, clock, &subnets, granted, listing.revision).await?
            }
        };
        if let Some(own) = own {
            let mut cache = LeaseCache::new(LeaseDecoder::new(&node.keys, network.networks()));
            let invalid = cache.replace(&listing);
            cache.put(&own.kv());
            return Ok(Acquired { own, network, config, cache, invalid });
        }
        // The next list shows which node won. The wait keeps the losers from meeting again.
        tokio::time::sleep(random::around(RACE_WAIT * races.min(10), 1)).await;
        races = races.saturating_add(1);
    }
}

/// Whether our own lease names another address: the host was moved, or its disk was copied.
fn has_another_address(node: &NodeIdentity, record: &Record) -> bool {
    record.node_id() == Some(node.identity.id.as_str()) && !record.claims(&node.public)
}

/// Writes our value into a lease that is ours. Returns `None` if the key changed meanwhile.
async fn adopt(
    session: &mut Session,
    node: &NodeIdentity,
    clock: Clock,
    record: &Record,
) -> Result<Option<OwnLease>, Failure> {
    let mut own = OwnLease {
        key: record.kv.key.clone(),
        subnets: record.subnets.clone(),
        value: node.value(),
        created: record.kv.create_revision,
        mod_revision: record.kv.mod_revision,
        lease: record.kv.lease,
        granted: node.ttl,
        expires: None,
    };
    let is_current = record.kv.value == own.value.as_bytes();
    if is_current && own.lease == 0 {
        return Ok(Some(own));
    }
    if is_current
        && let Some((_, granted)) = session.time_to_live(own.lease).await?
        && granted == node.ttl
        && session.keep_alive(own.lease).await?
    {
        own.renewed(clock);
        return Ok(Some(own));
    }
    // A reservation stays one. flanneld would turn it into a lease of 24 h (see the README of
    // store/flannel).
    if own.lease != 0 {
        (own.lease, own.granted) = session.grant(node.ttl).await?;
    }
    match session.put(&own.key, &own.value, own.lease, &Guard::Version(own.mod_revision)).await? {
        Written::At(revision) => {
            own.mod_revision = revision;
            own.renewed(clock);
            Ok(Some(own))
        }
        Written::Not(_) => Ok(None),
    }
}

/// Creates a lease of free subnets. Returns `None` if another node was faster.
async fn create(
    session: &mut Session,
    node: &NodeIdentity,
    clock: Clock,
    subnets: &[IpNet],
    (lease, granted): (i64, Duration),
    listed: i64,
) -> Result<Option<OwnLease>, Failure> {
    let Some(key) = node.keys.of(subnets) else { return Ok(None) };
    let guard = creation_guard(&node.keys, &key, subnets, listed);
    let value = node.value();
    match session.put(&key, &value, lease, &guard).await? {
        Written::At(mod_revision) => {
            let subnets = subnets.to_vec();
            let created = mod_revision;
            let mut own =
                OwnLease { key, subnets, value, created, mod_revision, lease, granted, expires: None };
            own.renewed(clock);
            Ok(Some(own))
        }
        Written::Not(_) => Ok(None),
    }
}
