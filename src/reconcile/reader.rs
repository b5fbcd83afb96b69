//! Read access to the kernel, for parts that only ask: the search for the underlay, and `explain`.

use std::net::IpAddr;

#[cfg(test)]
use super::recording::Recording;
use crate::netlink::{Address, Link, Netlink, NetlinkError, Way};
use crate::packet::Family;

/// Reads the state of a host's kernel. Clones read the same kernel.
#[derive(Debug, Clone)]
pub enum Reader {
    /// The kernel of this host.
    Linux(Netlink),
    /// A host in memory.
    #[cfg(test)]
    Recording(Recording),
}

impl Reader {
    /// All devices.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        match self {
            Self::Linux(netlink) => netlink.links().await,
            #[cfg(test)]
            Self::Recording(recording) => Ok(recording.host().links.clone()),
        }
    }

    /// One device; `None` if there is no device of this name.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        match self {
            Self::Linux(netlink) => netlink.link(name).await,
            #[cfg(test)]
            Self::Recording(recording) => {
                Ok(recording.host().links.iter().find(|link| link.name == name).cloned())
            }
        }
    }

    /// All addresses.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        match self {
            Self::Linux(netlink) => netlink.addresses().await,
            #[cfg(test)]
            Self::Recording(recording) => Ok(recording.host().addresses.clone()),
        }
    }

    /// The index of the device of a family's default route.
    pub async fn default_interface(&self, family: Family) -> Result<Option<u32>, NetlinkError> {
        match self {
            Self::Linux(netlink) => netlink.default_interface(family).await,
            #[cfg(test)]
            Self::Recording(recording) => Ok(recording.default_interface(family)),
        }
    }

    /// The index of the device by which this host sends packets for `to`.
    pub async fn interface_to(&self, to: IpAddr) -> Result<Option<u32>, NetlinkError> {
        match self {
            Self::Linux(netlink) => netlink.interface_to(to).await,
            #[cfg(test)]
            Self::Recording(_) => Ok(None),
        }
    }

    /// What this host's kernel does with packets for `to`.
    pub async fn route_to(&self, to: IpAddr) -> Result<Way, NetlinkError> {
        match self {
            Self::Linux(netlink) => netlink.route_to(to).await,
            #[cfg(test)]
            Self::Recording(_) => Ok(Way::NoRoute),
        }
    }
}
