//! The address space of the overlay.
#![forbid(unsafe_code)]

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The address space of the overlay, and the prefix length of one host's subnet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Networks {
    /// IPv4 network and subnet length.
    pub v4: Option<(Ipv4Net, u8)>,
    /// IPv6 network and subnet length.
    pub v6: Option<(Ipv6Net, u8)>,
}

impl Networks {
    /// The networks that exist, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.map(|(net, _)| IpNet::V4(net));
        let v6 = self.v6.map(|(net, _)| IpNet::V6(net));
        v4.into_iter().chain(v6)
    }
}
