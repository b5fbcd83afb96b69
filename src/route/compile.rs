//! Compiles a RIB into a FIB and the list of its hosts.
//!
//! It does not publish the result, and keeps nothing between two calls.
//!
//! Invariant: each lease but our own is either routed, or reported as [`Unreachable`] with a
//! reason.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::abilities::Abilities;
use super::adjacency::Adjacency;
use super::encryption_policy::Protection;
use super::fib::{FIRST_PEER, Fib, LOCAL};
use super::lease::{Dialect, Lease};
use super::local::Local;
use super::networks::Networks;
use super::prefix_table::{Prefix, PrefixTable, Regular};
use super::rib::Rib;
use super::unreachable::{Unreachable, UnreachableReason};
use crate::packet::Family;

/// A compiled RIB.
#[derive(Debug, Default)]
pub struct Compiled {
    /// The prefixes.
    pub fib: Fib,
    /// The hosts that prefixes lead to, in the order of their subnets.
    pub peers: Vec<Adjacency>,
    /// Underlay address and number of each peer, sorted by address.
    pub by_address: Box<[(IpAddr, u32)]>,
    /// The leases without a route.
    pub unreachable: Vec<Unreachable>,
}

/// Compiles the routes of `rib` for the host `local`.
#[must_use]
pub fn compile(rib: &Rib, networks: &Networks, local: &Local) -> Compiled {
    let mut claims = Claims::default();
    let mut unreachable = Vec::new();
    for subnet in &local.subnets {
        claims.add(*subnet, LOCAL, u64::MAX);
    }
    let mut routed = Vec::new();
    for lease in rib.leases().filter(|lease| lease.subnets != local.subnets) {
        match reach(lease, local) {
            Err(reason) => {
                let (name, subnets) = (lease.name.clone(), lease.subnets.clone());
                unreachable.push(Unreachable { name, subnets, reason });
            }
            Ok((endpoint, abilities, protection)) => routed.push((lease, endpoint, abilities, protection)),
        }
    }
    let (numbers, by_address) = number_peers(routed.iter().map(|(_, endpoint, ..)| endpoint.ip()));
    let mut peers: Vec<Adjacency> = Vec::with_capacity(by_address.len());
    for ((lease, endpoint, abilities, protection), number) in routed.into_iter().zip(numbers) {
        let index = number as usize;
        if index == peers.len() {
            let (name, subnets) = (lease.name.clone(), Vec::with_capacity(lease.subnets.len()));
            peers.push(Adjacency { name, endpoint, subnets, abilities, protection });
        }
        let is_accepted = |subnet: &IpNet| matches!(subnet, IpNet::V4(_)) || abilities.ipv6;
        let (accepted, left_out): (Vec<IpNet>, Vec<IpNet>) =
            lease.subnets.iter().copied().partition(is_accepted);
        for subnet in accepted {
            peers[index].subnets.push(subnet);
            claims.add(subnet, FIRST_PEER + number, lease.revision);
        }
        if !left_out.is_empty() {
            unreachable.push(Unreachable {
                name: lease.name.clone(),
                subnets: left_out,
                reason: UnreachableReason::NoIpv6,
            });
        }
    }
    let v4 = networks.v4.map(|(net, len)| Regular::new(IpNet::V4(net), len));
    let v6 = networks.v6.map(|(net, len)| Regular::new(IpNet::V6(net), len));
    let fib = Fib {
        v4: PrefixTable::compile(v4, strongest(claims.v4)),
        v6: PrefixTable::compile(v6, strongest(claims.v6)),
    };
    Compiled { fib, peers, by_address, unreachable }
}

/// How the owner of a lease is reached, or why it is not.
fn reach(lease: &Lease, local: &Local) -> Result<(SocketAddr, Abilities, Protection), UnreachableReason> {
    let (endpoint, abilities) = (endpoint(lease, local)?, abilities(lease)?);
    let protection = local.policy.with(abilities.secure);
    if protection == Protection::Clear && local.policy.require {
        return Err(UnreachableReason::NotEncrypted);
    }
    Ok((endpoint, abilities, protection))
}

fn endpoint(lease: &Lease, local: &Local) -> Result<SocketAddr, UnreachableReason> {
    let family = Family::of(local.public);
    let address = lease.public.of(family).ok_or(UnreachableReason::NoPublicAddress(local.public))?;
    if address == local.public {
        return Err(UnreachableReason::OwnPublicAddress(address));
    }
    Ok(SocketAddr::new(address, local.port))
}

fn abilities(lease: &Lease) -> Result<Abilities, UnreachableReason> {
    match &lease.dialect {
        Dialect::Flannel => Ok(Abilities::default()),
        Dialect::Hopsack(abilities) => Ok(*abilities),
        Dialect::Other(backend) => Err(UnreachableReason::OtherBackend(backend.clone())),
    }
}

/// Numbers the peers in the order of their first lease. Returns the number of each lease's peer,
/// and the peers sorted by address. A host that holds several leases is one peer with all their
/// subnets.
///
/// A table of thousands of leases is compiled for each change, so this sorts once instead of
/// searching a tree.
fn number_peers(addresses: impl Iterator<Item = IpAddr>) -> (Vec<u32>, Box<[(IpAddr, u32)]>) {
    let mut sorted: Vec<(IpAddr, u32)> = addresses.zip(0u32..).collect();
    sorted.sort_unstable();
    // For each lease, the first lease of the same host.
    let mut first = vec![0u32; sorted.len()];
    let mut leader = None;
    for (address, lease) in &sorted {
        let (_, of) =
            *leader.insert(leader.filter(|(known, _)| known == address).unwrap_or((*address, *lease)));
        first[*lease as usize] = of;
    }
    let (mut numbers, mut next) = (vec![0u32; first.len()], 0);
    for (lease, of) in (0u32..).zip(&first) {
        numbers[lease as usize] = if *of == lease { next } else { numbers[*of as usize] };
        next += u32::from(*of == lease);
    }
    sorted.dedup_by_key(|(address, _)| *address);
    let by_address = sorted.into_iter().map(|(address, lease)| (address, numbers[lease as usize])).collect();
    (numbers, by_address)
}

/// The claimed prefixes of each family, with revision and slot value.
#[derive(Default)]
struct Claims {
    v4: Vec<(Prefix, u64, u32)>,
    v6: Vec<(Prefix, u64, u32)>,
}

impl Claims {
    fn add(&mut self, subnet: IpNet, slot: u32, revision: u64) {
        let claim = (Prefix::of(subnet), revision, slot);
        match subnet {
            IpNet::V4(_) => self.v4.push(claim),
            IpNet::V6(_) => self.v6.push(claim),
        }
    }
}

/// Chooses one owner for each prefix: the claim with the latest revision wins, and our own claim
/// always wins.
fn strongest(mut claims: Vec<(Prefix, u64, u32)>) -> Vec<(Prefix, u32)> {
    claims.sort_unstable();
    let mut owners: Vec<(Prefix, u32)> = Vec::with_capacity(claims.len());
    for (prefix, _, slot) in claims {
        match owners.last_mut() {
            Some((last, owner)) if *last == prefix => *owner = slot,
            _ => owners.push((prefix, slot)),
        }
    }
    owners
}

#[cfg(test)]
mod tests;
