//! Which lease a joining node gets, in Flannel's order: the one that it holds, the one that it held
//! before, or one of the free ones. It is pure: one list in, one decision out.
//!
//! flanneld takes over any lease with its address. We also know the node id: an address that
//! another hopsack holds is refused.
//!
//! Sources: `tryAcquireLease` in flannel-io/flannel `pkg/subnet/etcd/local_manager.go`.
#![forbid(unsafe_code)]

use ipnet::IpNet;

use super::holdings::Holdings;
use super::identity::NodeIdentity;
use super::own_lease::subnets_text;
use super::record::Record;
use crate::store::error::{ErrorCode, StoreError};
use crate::store::flannel::Network;

/// What a joining node does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LeaseChoice {
    /// The lease is ours: write our value into it.
    Adopt(Record),
    /// The lease is ours, but the network configuration has no such subnet: delete it.
    Clear(Record),
    /// No key holds these subnets: create a lease.
    Create(Vec<IpNet>),
}

/// Decides by `holdings`. `previous` are the subnets that this node had before, the likeliest
/// first.
pub(crate) fn choose(
    holdings: &Holdings,
    network: &Network,
    node: &NodeIdentity,
    previous: &[Vec<IpNet>],
    random: impl FnMut() -> u64,
) -> Result<LeaseChoice, StoreError> {
    let is_ours = |record: &&Record| record.node_id() == Some(node.identity.id.as_str());
    let has_our_address = |record: &&Record| record.claims(&node.public);
    let is_another_hopsack = |record: &&Record| record.node_id().is_some() && !is_ours(record);

    if let Some(other) = holdings.records.iter().filter(has_our_address).find(is_another_hopsack) {
        return Err(StoreError::new(ErrorCode::AddressTaken, address_conflict(node, other)));
    }
    let by_address = || holdings.records.iter().find(has_our_address);
    if let Some(held) = holdings.records.iter().find(is_ours).or_else(by_address) {
        return choose_held(network, node, held);
    }
    let is_usable = |subnets: &&Vec<IpNet>| network.fits(subnets) && holdings.is_free(subnets);
    if let Some(subnets) = previous.iter().find(is_usable) {
        return Ok(LeaseChoice::Create(subnets.clone()));
    }
    network.choose(&holdings.taken, random).map(LeaseChoice::Create).map_err(|full| {
        StoreError::new(
            ErrorCode::NetworkFull,
            format!(
                "all subnets of {full} are taken: release unused ones (see `hopsack leases list`), wait until the leases of \
                 lost nodes expire (24 h), or configure a larger network",
            ),
        )
    })
}

fn choose_held(network: &Network, node: &NodeIdentity, held: &Record) -> Result<LeaseChoice, StoreError> {
    if network.fits(&held.subnets) {
        return Ok(LeaseChoice::Adopt(held.clone()));
    }
    if held.is_reserved() {
        return Err(StoreError::new(
            ErrorCode::ReservationOutside,
            format!(
                "{} is reserved for this host ({}), but the network configuration has no such subnet: delete the key {}, \
                 or correct the network configuration",
                subnets_text(&held.subnets),
                node.describe(),
                held.kv.key,
            ),
        ));
    }
    Ok(LeaseChoice::Clear(held.clone()))
}

/// The sentence about two nodes with one address.
pub(crate) fn address_conflict(node: &NodeIdentity, other: &Record) -> String {
    let first = other.subnets.first().map(ToString::to_string).unwrap_or_default();
    format!(
        "{} holds the lease of {} with an address of this node, {}: set node.public_ip to an address that only this node \
         has; if the other node is this host before it was reinstalled, run `hopsack leases release {first}`",
        other.attributes.writer(),
        subnets_text(&other.subnets),
        node.describe(),
    )
}

#[cfg(test)]
mod tests;
