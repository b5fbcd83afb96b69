//! A lease: one host's claim to a part of the overlay.
//!
//! It does not know how a store encodes it.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::abilities::Abilities;
use crate::packet::Family;

/// The public addresses of a host on the underlay, at most one of each family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Public {
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl Public {
    /// The address of one family.
    #[must_use]
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub fn shares(self, other: Self) -> bool {
        let is_same_v4 = self.v4.is_some() && self.v4 == other.v4;
        is_same_v4 || self.v6.is_some() && self.v6 == other.v6
    }

    /// Whether this is one of the addresses.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.of(Family::of(address)) == Some(address)
    }

    /// Adds the address of a family that has none yet.
    pub fn complete(&mut self, other: Self) {
        self.v4 = self.v4.or(other.v4);
        self.v6 = self.v6.or(other.v6);
    }

    /// The addresses that exist, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// The packet formats that a host accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dialect {
    /// The host runs a plain flanneld in UDP mode, which accepts only bare IPv4 packets. It would
    /// read IPv6 as IPv4.
    Flannel,
    /// The host runs a hopsack daemon.
    Hopsack(Abilities),
    /// The host runs a hopsack daemon that announces encryption in a form that this version cannot
    /// read.
    Unreadable,
    /// The host runs another backend of Flannel, with this name. It has no socket that accepts our
    /// packets.
    Other(String),
}

/// A host's claim to a part of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The host's name in the store.
    pub name: String,
    /// The subnets that the host owns, in the store's order. They identify the lease, and are never
    /// empty.
    pub subnets: Vec<IpNet>,
    /// The host's public addresses.
    pub public: Public,
    /// The packet formats that the host accepts.
    pub dialect: Dialect,
    /// The store's revision that wrote this lease; later revisions are higher.
    pub revision: u64,
    /// Where the lease comes from.
    pub origin: Origin,
}

/// Where a lease comes from: its key in the store, and its writer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Key of the lease in the store; in a cluster file, the name of the host.
    pub key: String,
    /// Id of the node that wrote the lease; `None` if the node does not run hopsack.
    pub node: Option<String>,
    /// The store's revision that created the key. Later writes of the key do not change it.
    pub created: u64,
    /// Whether the writer's name was invalid, so that its node id stands for it.
    pub has_invalid_name: bool,
}

impl Lease {
    /// Whether two leases belong to one host: they have the same node id or, if one of them has no
    /// node id, a public address in common.
    #[must_use]
    pub fn is_same_host(&self, other: &Self) -> bool {
        match (&self.origin.node, &other.origin.node) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => self.public.shares(other.public),
        }
    }
}
