//! Compiles a RIB into a FIB and the list of its hosts.
//!
//! It does not publish the result, and keeps nothing between two calls.
//!
//! Invariant: each lease but our own is either routed, or reported as [`Unreachable`] with a
//! reason; only a lease of this host that lies in our own subnets needs neither.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::abilities::Abilities;
use super::address::Address;
use super::adjacency::Adjacency;
use super::encryption_policy::Protection;
use super::fib::{FIRST_PEER, Fib, LOCAL};
use super::lease::{Dialect, Lease, Origin, Public};
use super::local::Local;
use super::networks::Networks;
use super::overlap;
use super::prefix_table::{Prefix, PrefixTable, Regular};
use super::remark::{Remark, RemarkKind};
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
    /// What the operator must know about single leases.
    pub remarks: Vec<Remark>,
    /// The public addresses of our own lease.
    pub public: Public,
}

/// Number of remarks of one kind that are kept. A writer to the store may cause as many as it
/// likes.
const MOST_REMARKS: usize = 32;

/// How the owner of a lease is reached, or why it is not.
type Path = Result<Reached, UnreachableReason>;

/// How the owner of a lease is reached.
#[derive(Clone, Copy)]
struct Reached {
    address: IpAddr,
    /// Index of the lease that describes the daemon at the address.
    speaker: usize,
    abilities: Abilities,
    protection: Protection,
}

/// Compiles the routes of `rib` for the host `local`.
#[must_use]
pub fn compile(rib: &Rib, networks: &Networks, local: &Local) -> Compiled {
    let own = own_lease(rib, local);
    let others = rib.leases().filter(|lease| lease.subnets != local.subnets && !is_within(lease, &own));
    let leases: Vec<&Lease> = std::iter::once(&own).chain(others).collect();
    let losers = overlap::losers(&leases);
    let mut remarks = remarks(&leases, &losers, networks);
    let paths = paths(&leases, &losers, local, &mut remarks);
    limit(&mut remarks);

    let mut claims = Claims::default();
    for subnet in &local.subnets {
        claims.add(*subnet, LOCAL, u64::MAX);
    }
    let reached = |path: &Path| path.as_ref().ok().map(|reached| reached.address);
    let (numbers, by_address) = number_peers(paths.iter().filter_map(reached));
    let mut numbers = numbers.into_iter();
    let mut peers: Vec<Adjacency> = Vec::with_capacity(by_address.len());
    let mut unreachable = Vec::new();
    for (lease, path) in leases.iter().zip(paths).skip(1) {
        let lost = |subnets, reason| Unreachable { name: lease.name.clone(), subnets, reason };
        let Reached { address, speaker, abilities, protection } = match path {
            Ok(reached) => reached,
            Err(reason) => {
                unreachable.push(lost(lease.subnets.clone(), reason));
                continue;
            }
        };
        let number = numbers.next().unwrap_or_default();
        let index = number as usize;
        if index == peers.len() {
            let (name, public) = (leases[speaker].name.clone(), leases[speaker].public);
            let subnets = Vec::with_capacity(lease.subnets.len());
            let endpoint = SocketAddr::new(address, local.port);
            peers.push(Adjacency { name, endpoint, public, subnets, abilities, protection });
        }
        peers[index].public.complete(lease.public);
        let is_accepted = |subnet: &IpNet| matches!(subnet, IpNet::V4(_)) || abilities.ipv6;
        let (accepted, left_out): (Vec<IpNet>, Vec<IpNet>) =
            lease.subnets.iter().copied().partition(is_accepted);
        for subnet in accepted.into_iter().filter(|subnet| !is_ours(&own, subnet)) {
            peers[index].subnets.push(subnet);
            claims.add(subnet, FIRST_PEER + number, lease.revision);
        }
        if !left_out.is_empty() {
            unreachable.push(lost(left_out, UnreachableReason::NoIpv6));
        }
    }
    let v4 = networks.v4.map(|(net, len)| Regular::new(IpNet::V4(net), len));
    let v6 = networks.v6.map(|(net, len)| Regular::new(IpNet::V6(net), len));
    let fib = Fib {
        v4: PrefixTable::compile(v4, strongest(claims.v4)),
        v6: PrefixTable::compile(v6, strongest(claims.v6)),
    };
    Compiled { fib, peers, by_address, unreachable, remarks, public: own.public }
}

/// Our own lease. The store's may be gone, or name an address that we do not use any more.
fn own_lease(rib: &Rib, local: &Local) -> Lease {
    let stored = rib.leases().find(|lease| lease.subnets == local.subnets);
    let mut public = stored.map(|lease| lease.public).unwrap_or_default();
    match local.public {
        IpAddr::V4(v4) => public.v4 = Some(v4),
        IpAddr::V6(v6) => public.v6 = Some(v6),
    }
    Lease {
        name: stored.map_or_else(|| "this host".to_owned(), |lease| lease.name.clone()),
        subnets: local.subnets.clone(),
        public,
        dialect: Dialect::Flannel,
        revision: u64::MAX,
        origin: stored.map_or_else(Origin::default, |lease| lease.origin.clone()),
    }
}

fn is_ours(own: &Lease, subnet: &IpNet) -> bool {
    own.subnets.iter().any(|ours| ours.contains(subnet))
}

/// Whether a lease is an older one of this host for a part of our own subnets: a host that becomes
/// dual-stack has two.
fn is_within(lease: &Lease, own: &Lease) -> bool {
    lease.subnets.iter().all(|subnet| is_ours(own, subnet)) && lease.is_same_host(own)
}

/// Remarks about single leases: overlaps and unusual lengths.
fn remarks(leases: &[&Lease], losers: &[Option<usize>], networks: &Networks) -> Vec<Remark> {
    let usual = |subnet: &IpNet| match subnet {
        IpNet::V4(_) => networks.v4.map(|(_, len)| len),
        IpNet::V6(_) => networks.v6.map(|(_, len)| len),
    };
    let mut remarks = Vec::new();
    for (lease, loser) in leases.iter().zip(losers).skip(1) {
        let mut remark = |kind| remarks.push(Remark { key: lease.origin.key.clone(), kind });
        if let Some(winner) = loser.map(|winner| leases[winner]) {
            let (other, host) = (winner.origin.key.clone(), winner.name.clone());
            remark(RemarkKind::Overlap { other, host });
            continue;
        }
        if lease.dialect == Dialect::Unreadable {
            remark(RemarkKind::Unreadable);
        }
        if lease.origin.has_invalid_name {
            remark(RemarkKind::Name);
        }
        for subnet in &lease.subnets {
            if let Some(usual) = usual(subnet).filter(|usual| *usual != subnet.prefix_len()) {
                remark(RemarkKind::Length { subnet: *subnet, usual });
            }
        }
    }
    remarks
}

/// Keeps the first [`MOST_REMARKS`] of each kind, so that remarks cost no more than leases do.
fn limit(remarks: &mut Vec<Remark>) {
    let mut kept: Vec<(std::mem::Discriminant<RemarkKind>, usize)> = Vec::new();
    remarks.retain(|remark| {
        let kind = std::mem::discriminant(&remark.kind);
        let at = kept.iter().position(|(known, _)| *known == kind).unwrap_or_else(|| {
            kept.push((kind, 0));
            kept.len() - 1
        });
        kept[at].1 += 1;
        kept[at].1 <= MOST_REMARKS
    });
}

/// How the owner of each lease is reached. Our own lease comes first, and its path has no meaning.
fn paths(leases: &[&Lease], losers: &[Option<usize>], local: &Local, remarks: &mut Vec<Remark>) -> Vec<Path> {
    let address = |lease: &Lease| -> Result<IpAddr, UnreachableReason> {
        let address = public_address(lease, local)?;
        match &lease.dialect {
            Dialect::Other(backend) => Err(UnreachableReason::OtherBackend(backend.clone())),
            Dialect::Flannel | Dialect::Hopsack(_) | Dialect::Unreadable => Ok(address),
        }
    };
    let own = Err(UnreachableReason::OwnPublicAddress(local.public));
    let addresses: Vec<Result<IpAddr, UnreachableReason>> =
        std::iter::once(own).chain(leases[1..].iter().map(|lease| address(lease))).collect();
    let mut by_address: Vec<(IpAddr, usize)> =
        addresses.iter().enumerate().filter_map(|(at, it)| Some((*it.as_ref().ok()?, at))).collect();
    by_address.sort_unstable();
    let mut verdicts = Vec::with_capacity(leases.len());
    verdicts.resize(leases.len(), None);
    for group in by_address.chunk_by(|one, other| one.0 == other.0) {
        let of_group = group.iter().map(|(_, at)| (leases[*at], losers[*at].is_none())).collect();
        let Some(all) = Address::new(group[0].0, of_group) else { continue };
        remarks.extend(all.remarks());
        let speaker = group.iter().find(|(_, at)| std::ptr::eq(leases[*at], all.speaker));
        let speaker = speaker.map_or(group[0].1, |(_, at)| *at);
        let verdict = all.verdict(local).map(|(abilities, protection)| Reached {
            address: all.ip,
            speaker,
            abilities,
            protection,
        });
        for (_, at) in group {
            verdicts[*at] = Some(verdict.clone());
        }
    }
    for (lease, address) in leases.iter().zip(&addresses).skip(1) {
        let kind = match address {
            Err(UnreachableReason::OwnPublicAddress(address) | UnreachableReason::OwnAddress(address)) => {
                RemarkKind::OwnAddress { address: *address }
            }
            Err(UnreachableReason::Broadcast(address)) => RemarkKind::Broadcast { address: *address },
            _ => continue,
        };
        remarks.push(Remark { key: lease.origin.key.clone(), kind });
    }
    let path = |((address, loser), verdict): ((Result<_, _>, &Option<usize>), Option<Path>)| {
        if let Some(winner) = loser {
            return Err(UnreachableReason::Overlap(leases[*winner].origin.key.clone()));
        }
        let address: IpAddr = address?;
        verdict.unwrap_or(Err(UnreachableReason::NoPublicAddress(address)))
    };
    addresses.into_iter().zip(losers).zip(verdicts).map(path).collect()
}

fn public_address(lease: &Lease, local: &Local) -> Result<IpAddr, UnreachableReason> {
    let family = Family::of(local.public);
    let address = lease.public.of(family).ok_or(UnreachableReason::NoPublicAddress(local.public))?;
    if address == local.public {
        return Err(UnreachableReason::OwnPublicAddress(address));
    }
    if local.nets.iter().any(|net| net.addr() == address) {
        return Err(UnreachableReason::OwnAddress(address));
    }
    // A link of /31 or /32 has no broadcast address.
    let is_broadcast = |net: &&IpNet| match net {
        IpNet::V4(net) => net.prefix_len() <= 30 && IpAddr::V4(net.broadcast()) == address,
        IpNet::V6(_) => false,
    };
    if local.nets.iter().any(|net| is_broadcast(&net)) {
        return Err(UnreachableReason::Broadcast(address));
    }
    Ok(address)
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
