//! The hosts that routes lead to, as their leases describe them.
//!
//! It has no state that changes while routes stay the same: `forward::Peers` adds it.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use ipnet::IpNet;

use super::abilities::Abilities;
use super::encryption_policy::Protection;
use super::lease::Public;

/// A host that packets can be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adjacency {
    /// The host's name in the store.
    pub name: String,
    /// The address and port at which the host's daemon receives.
    pub endpoint: SocketAddr,
    /// The host's public addresses, which its own packets to pods may have as their source.
    pub public: Public,
    /// The host's subnets that have a route.
    pub subnets: Vec<IpNet>,
    /// What the host accepts in addition to bare IPv4 packets; nothing for a plain flanneld.
    pub abilities: Abilities,
    /// How packets to and from the host are protected.
    pub protection: Protection,
}
