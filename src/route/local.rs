//! This host's own part of the overlay.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;

use super::encryption_policy::Policy;
use crate::packet::Family;

/// This host's own subnets and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Subnets of our own lease, which identify it.
    pub subnets: Vec<IpNet>,
    /// Addresses of this host's interfaces, each with the prefix of its link. No other host has
    /// one of them, or the broadcast address of one of the links.
    pub nets: Vec<IpNet>,
    /// Our public address on the underlay. All endpoints have its family.
    pub public: IpAddr,
    /// The UDP port on which every host of the cluster receives.
    pub port: u16,
    /// The longest inner packet that fits into one underlay packet, in bytes.
    pub mtu: u16,
    /// The encryption policy of this host.
    pub policy: Policy,
}

impl Local {
    /// The address of the overlay device in a family: the base of our first subnet, as in Flannel.
    /// It is the source of ICMP errors.
    #[must_use]
    pub fn device_address(&self, family: Family) -> Option<IpAddr> {
        self.subnets.iter().map(IpNet::network).find(|base| Family::of(*base) == family)
    }
}
