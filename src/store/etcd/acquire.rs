//! How a node comes by its subnet, in Flannel's order: the one it holds, the one it held, one of the free ones.
//!
//! [`plan`] decides, pure, from one list; [`acquire`] does it and plans again whenever somebody else was quicker, without
//! end: of any number of nodes that start together each gets its own. What flanneld does not know is the node id:
//! an address that another hopsack holds is refused, not taken over.
//!
//! Invariant: no write happens but under a guard that what was planned on still holds.
//!
//! Sources: `tryAcquireLease` in flannel-io/flannel `pkg/subnet/etcd/local_manager.go`.
#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::backoff;
use super::client::{Failure, Guard, Kv, Listing, Session, Written};
use super::liveness;
use super::map::{Map, Reading, Record, read};
use crate::route::Public;
use crate::store::error::{ErrorCode, StoreError};
use crate::store::flannel::{Attributes, Identity, Keys, Network};

/// Longest wait after a lost race, times the races lost so far.
const RACE_WAIT: Duration = Duration::from_millis(20);

/// Who we are in etcd.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) keys: Keys,
    pub(crate) identity: Identity,
    pub(crate) public: Public,
    pub(crate) ttl: Duration,
}

impl Node {
    /// The value that our key has.
    pub(crate) fn value(&self) -> String {
        Attributes::ours(self.public, &self.identity).to_json()
    }

    /// We, for a sentence.
    pub(crate) fn describe(&self) -> String {
        Attributes::ours(self.public, &self.identity).writer()
    }
}

/// Our own lease, as last seen in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) key: String,
    pub(crate) subnets: Vec<IpNet>,
    /// As we wrote it, or are about to.
    pub(crate) value: String,
    pub(crate) mod_revision: i64,
    /// etcd's lease; 0: a reservation, which does not run out.
    pub(crate) lease: i64,
    pub(crate) granted: Duration,
    pub(crate) expires: Option<SystemTime>,
}

impl Own {
    pub(crate) fn kv(&self) -> Kv {
        Kv {
            key: self.key.clone(),
            value: self.value.clone().into_bytes(),
            mod_revision: self.mod_revision,
            lease: self.lease,
        }
    }

    /// It has its whole time again.
    pub(crate) fn renewed(&mut self) {
        self.expires = (self.lease != 0).then(|| SystemTime::now() + self.granted);
    }

    pub(crate) fn name(&self) -> String {
        name(&self.subnets)
    }
}

/// Subnets for a sentence.
pub(crate) fn name(subnets: &[IpNet]) -> String {
    subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

/// What joining brought.
#[derive(Debug)]
pub(crate) struct Acquired {
    pub(crate) own: Own,
    pub(crate) network: Network,
    pub(crate) config: String,
    pub(crate) map: Map,
    /// Keys that are no leases.
    pub(crate) bad: Vec<(String, String)>,
}

/// Why there is no lease.
#[derive(Debug)]
pub(crate) enum NoLease {
    /// etcd did not answer.
    Failed(Failure),
    /// There is none for us.
    Refused(StoreError),
}

impl From<Failure> for NoLease {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// This lease is ours: make it say so.
    Adopt(Record),
    /// This lease is ours, but the configuration has no place for it: delete it.
    Clear(Record),
    /// Nobody holds this: take it.
    Create(Vec<IpNet>),
}

/// What a list says about leases, whether they fit the configuration or not.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    pub(crate) records: Vec<Record>,
    /// Subnets that have a key, be its value good or bad.
    pub(crate) taken: Vec<IpNet>,
}

impl Holdings {
    pub(crate) fn of(keys: &Keys, kvs: &[Kv]) -> Self {
        let mut holdings = Self::default();
        for kv in kvs {
            match read(keys, None, kv) {
                Reading::Lease(record) => {
                    holdings.taken.extend(&record.subnets);
                    holdings.records.push(record);
                }
                Reading::Bad(subnets, _) => holdings.taken.extend(subnets.unwrap_or_default()),
                Reading::Config | Reading::Other => {}
            }
        }
        holdings
    }

    fn is_free(&self, subnets: &[IpNet]) -> bool {
        !subnets.iter().any(|ours| self.taken.iter().any(|net| net.contains(ours) || ours.contains(net)))
    }
}

/// Decides what to do about `holdings`. `previous`: what we held before, the likeliest first.
pub(crate) fn plan(
    holdings: &Holdings,
    network: &Network,
    node: &Node,
    previous: &[Vec<IpNet>],
    random: impl FnMut() -> u64,
) -> Result<Plan, StoreError> {
    let ours = |record: &&Record| record.node_id() == Some(node.identity.id.as_str());
    let at_our_address = |record: &&Record| record.claims(&node.public);
    let foreign = |record: &&Record| record.node_id().is_some() && !ours(record);

    if let Some(other) = holdings.records.iter().filter(at_our_address).find(foreign) {
        return Err(StoreError::new(ErrorCode::AddressTaken, clash(node, other)));
    }
    let held = holdings.records.iter().find(ours).or_else(|| holdings.records.iter().find(at_our_address));
    if let Some(held) = held {
        if network.fits(&held.subnets) {
            return Ok(Plan::Adopt(held.clone()));
        }
        if held.is_reserved() {
            return Err(StoreError::new(
                ErrorCode::ReservationOutside,
                format!(
                    "{} is reserved for this host ({}), but the network configuration hands out no such subnet: delete \
                 the key {}, or mend the configuration",
                    name(&held.subnets),
                    node.describe(),
                    held.kv.key,
                ),
            ));
        }
        return Ok(Plan::Clear(held.clone()));
    }
    let usable = |subnets: &&Vec<IpNet>| network.fits(subnets) && holdings.is_free(subnets);
    if let Some(subnets) = previous.iter().find(usable) {
        return Ok(Plan::Create(subnets.clone()));
    }
    network.choose(&holdings.taken, random).map(Plan::Create).map_err(|full| {
        StoreError::new(ErrorCode::NetworkFull, format!(
            "all subnets of {full} are taken: see `hopsack leases list` and release what is not used, or wait for \
             leases of lost nodes to run out (24 h), or use a larger network",
        ))
    })
}

/// Two nodes, one address.
pub(crate) fn clash(node: &Node, other: &Record) -> String {
    let subnet = name(&other.subnets);
    format!(
        "{} has the lease of {subnet} with an address of this node, {}: set node.public_ip to an address that only \
         this node has; if the other is this host before it was installed anew, run `hopsack leases release {}`",
        other.attributes.writer(),
        node.describe(),
        other.subnets.first().map(ToString::to_string).unwrap_or_default(),
    )
}

/// The network configuration in a list.
pub(crate) fn network_of(keys: &Keys, listing: &Listing) -> Result<(Network, String), StoreError> {
    let key = keys.config();
    let Some(kv) = listing.kvs.iter().find(|kv| kv.key == key) else {
        return Err(StoreError::new(
            ErrorCode::NetworkMissing,
            format!("etcd has no network configuration ({key}): write one with `hopsack network init`"),
        ));
    };
    let text = String::from_utf8_lossy(&kv.value).into_owned();
    let network = Network::parse(&text).map_err(|problem| {
        StoreError::new(
            ErrorCode::NetworkInvalid,
            format!("the network configuration in etcd ({key}) is wrong: {problem}"),
        )
    })?;
    if network.backend != "udp" {
        return Err(StoreError::new(
            ErrorCode::BackendUnsupported,
            format!(
                "the network configuration in etcd ({key}) asks for the backend {}: this version of hopsack has udp \
             only",
                network.backend
            ),
        ));
    }
    Ok((network, text))
}

/// Joins: lists, plans and does it until it is done.
pub(crate) async fn acquire(
    session: &mut Session,
    node: &Node,
    previous: &[Vec<IpNet>],
) -> Result<Acquired, NoLease> {
    let mut previous = previous.to_vec();
    let mut grant = None;
    let mut races = 0u32;
    loop {
        let listing = session.list(&node.keys.root(), None).await?;
        let (network, config) = network_of(&node.keys, &listing).map_err(NoLease::Refused)?;
        let holdings = Holdings::of(&node.keys, &listing.kvs);
        let planned =
            plan(&holdings, &network, node, &previous, backoff::number).map_err(NoLease::Refused)?;
        let own = match planned {
            Plan::Adopt(record)
                if is_elsewhere(node, &record) && liveness::is_alive(session, node).await? =>
            {
                return Err(NoLease::Refused(StoreError::new(
                    ErrorCode::StateCopied,
                    liveness::refusal(node, &record),
                )));
            }
            Plan::Adopt(record) => adopt(session, node, &record).await?,
            Plan::Clear(record) => {
                session.delete(&record.kv.key, &Guard::Version(record.kv.mod_revision)).await?;
                previous.insert(0, record.subnets);
                None
            }
            Plan::Create(subnets) => {
                let (lease, granted) = match grant {
                    Some(grant) => grant,
                    None => *grant.insert(session.grant(node.ttl).await?),
                };
                create(session, node, &subnets, (lease, granted), listing.revision).await?
            }
        };
        if let Some(own) = own {
            let mut map = Map::new(&node.keys, network.networks());
            let bad = map.list(&listing);
            map.put(&own.kv());
            return Ok(Acquired { own, network, config, map, bad });
        }
        // Who lost a race stands aside a little: the next list shows who won.
        tokio::time::sleep(backoff::around(RACE_WAIT * races.min(10), 1)).await;
        races = races.saturating_add(1);
    }
}

/// Our own lease, with another address: the host was moved, or copied.
fn is_elsewhere(node: &Node, record: &Record) -> bool {
    record.node_id() == Some(node.identity.id.as_str()) && !record.claims(&node.public)
}

/// Makes a lease that is ours say so. `None`: it changed meanwhile.
async fn adopt(session: &mut Session, node: &Node, record: &Record) -> Result<Option<Own>, Failure> {
    let value = node.value();
    let mut own = Own {
        key: record.kv.key.clone(),
        subnets: record.subnets.clone(),
        value,
        mod_revision: record.kv.mod_revision,
        lease: record.kv.lease,
        granted: node.ttl,
        expires: None,
    };
    let says_so = record.kv.value == own.value.as_bytes();
    if says_so && own.lease == 0 {
        return Ok(Some(own));
    }
    if says_so
        && let Some((_, granted)) = session.time_to_live(own.lease).await?
        && granted == node.ttl
        && session.keep_alive(own.lease).await?
    {
        own.renewed();
        return Ok(Some(own));
    }
    // A reservation stays one: flanneld makes a lease of 24 h of it (FLANNEL.md §5).
    if own.lease != 0 {
        (own.lease, own.granted) = session.grant(node.ttl).await?;
    }
    match session.put(&own.key, &own.value, own.lease, &Guard::Version(own.mod_revision)).await? {
        Written::At(revision) => {
            own.mod_revision = revision;
            own.renewed();
            Ok(Some(own))
        }
        Written::Not(_) => Ok(None),
    }
}

/// Takes a free subnet. `None`: somebody else was quicker.
async fn create(
    session: &mut Session,
    node: &Node,
    subnets: &[IpNet],
    (lease, granted): (i64, Duration),
    listed: i64,
) -> Result<Option<Own>, Failure> {
    let Some(key) = node.keys.of(subnets) else { return Ok(None) };
    let guard = guard(node, &key, subnets, listed);
    let value = node.value();
    match session.put(&key, &value, lease, &guard).await? {
        Written::At(mod_revision) => {
            let subnets = subnets.to_vec();
            let mut own = Own { key, subnets, value, mod_revision, lease, granted, expires: None };
            own.renewed();
            Ok(Some(own))
        }
        Written::Not(_) => Ok(None),
    }
}

/// What must hold for a lease of `subnets` to be made. With both families two nodes may choose one IPv6 subnet under
/// different keys, so there all keys are guarded: slower when many start together, but never two for one subnet.
pub(crate) fn guard(node: &Node, key: &str, subnets: &[IpNet], listed: i64) -> Guard {
    match subnets {
        [_] => Guard::NoKey(key.to_owned()),
        _ => Guard::Unwritten(node.keys.subnets(), listed),
    }
}

#[cfg(test)]
#[path = "acquire_tests.rs"]
mod tests;
