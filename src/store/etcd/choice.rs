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
    if let Some(required) = &node.subnets {
        return choose_required(holdings, network, node, required);
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

/// The node must have the subnets that its certificate contains, and no others.
fn choose_required(
    holdings: &Holdings,
    network: &Network,
    node: &NodeIdentity,
    required: &[IpNet],
) -> Result<LeaseChoice, StoreError> {
    let networks = network.networks();
    let has_family = |subnet: &&IpNet| match subnet {
        IpNet::V4(_) => networks.v4.is_some(),
        IpNet::V6(_) => networks.v6.is_some(),
    };
    let wanted: Vec<IpNet> = required.iter().filter(has_family).copied().collect();
    let refused = |code, why: &str| {
        let (node, subnets) = (node.describe(), subnets_text(&wanted));
        Err(StoreError::new(code, format!("the certificate of this host, {node}, is for [{subnets}]: {why}")))
    };
    if !network.fits(&wanted) {
        let why = "the network configuration needs one such subnet of each family; issue a certificate with others \
                   (hopsack pki issue --subnet)";
        return refused(ErrorCode::CertificateSubnets, why);
    }
    let is_ours = |record: &&Record| record.node_id() == Some(node.identity.id.as_str());
    let has_our_address = |record: &&Record| record.claims(&node.public);
    let records = &holdings.records;
    let held = records.iter().find(is_ours).or_else(|| records.iter().find(has_our_address));
    match held {
        Some(held) if held.subnets == wanted => Ok(LeaseChoice::Adopt(held.clone())),
        Some(held) if held.is_reserved() => {
            let key = &held.kv.key;
            let why =
                format!("but the key {key} reserves another subnet for this host: delete one of the two");
            refused(ErrorCode::CertificateSubnets, &why)
        }
        Some(held) => Ok(LeaseChoice::Clear(held.clone())),
        None if holdings.is_free(&wanted) => Ok(LeaseChoice::Create(wanted)),
        None => {
            let why = "another lease holds a part of it: see `hopsack leases list`, and release that lease";
            refused(ErrorCode::CertificateSubnetsTaken, why)
        }
    }
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
