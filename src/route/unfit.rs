//! Addresses that cannot be the underlay address of a host.
//!
//! An underlay address inside the overlay would make the tunnel carry itself (RFC 2473 4.1.2).
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::networks::Networks;

/// Why an address cannot be the underlay address of a host. "It" is the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The address is in 0.0.0.0/8 or is `::`.
    #[error("it names no host (0.0.0.0/8, ::)")]
    NoHost,
    /// The address is in 127.0.0.0/8 or is `::1`.
    #[error("it is a loopback address")]
    Loopback,
    /// The address belongs to a group of hosts.
    #[error("it is a multicast address")]
    Multicast,
    /// The address is in 240.0.0.0/4.
    #[error("it is reserved (240.0.0.0/4)")]
    Reserved,
    /// The address is in fe80::/10.
    #[error("it is valid on one link only (fe80::/10)")]
    LinkLocal,
    /// The address is an IPv4 address in IPv6 form.
    #[error("it is an IPv4 address in IPv6 form (::ffff:0:0/96)")]
    Mapped,
    /// The address is inside the overlay.
    #[error("it lies in the overlay's network {0}, so that the tunnel would carry itself")]
    InOverlay(IpNet),
}

/// Why an address cannot be an underlay address in any cluster; `None` if it can.
#[must_use]
pub fn unfit(address: IpAddr) -> Option<Unfit> {
    match address {
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some(Unfit::NoHost),
        IpAddr::V4(v4) if v4.is_loopback() => Some(Unfit::Loopback),
        IpAddr::V4(v4) if v4.is_multicast() => Some(Unfit::Multicast),
        IpAddr::V4(v4) if v4 >= Ipv4Addr::new(240, 0, 0, 0) => Some(Unfit::Reserved),
        IpAddr::V6(v6) if v6.is_unspecified() => Some(Unfit::NoHost),
        IpAddr::V6(v6) if v6.is_loopback() => Some(Unfit::Loopback),
        IpAddr::V6(v6) if v6.is_multicast() => Some(Unfit::Multicast),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(Unfit::LinkLocal),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some(Unfit::Mapped),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Why an address cannot be an underlay address in a cluster with these networks.
#[must_use]
pub fn unfit_in(networks: &Networks, address: IpAddr) -> Option<Unfit> {
    let inside = networks.iter().find(|network| network.contains(&address));
    unfit(address).or_else(|| inside.map(Unfit::InOverlay))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_no_host_has_are_unfit() {
        let networks = Networks {
            v4: Some(("10.244.0.0/16".parse().expect("net"), 24)),
            v6: Some(("fd00:244::/48".parse().expect("net"), 64)),
        };
        let check = |text: &str| unfit_in(&networks, text.parse().expect("an address"));
        for (reason, addresses) in [
            (Unfit::NoHost, vec!["0.0.0.0", "0.1.2.3", "::"]),
            (Unfit::Loopback, vec!["127.0.0.1", "127.255.0.9", "::1"]),
            (Unfit::Multicast, vec!["224.0.0.1", "239.255.255.255", "ff02::1"]),
            (Unfit::Reserved, vec!["240.0.0.1", "255.255.255.255"]),
            (Unfit::LinkLocal, vec!["fe80::1", "febf::1"]),
            (Unfit::Mapped, vec!["::ffff:192.0.2.1"]),
            (Unfit::InOverlay("10.244.0.0/16".parse().expect("net")), vec!["10.244.9.9"]),
            (Unfit::InOverlay("fd00:244::/48".parse().expect("net")), vec!["fd00:244::9"]),
        ] {
            for address in addresses {
                assert_eq!(check(address), Some(reason), "{address}");
            }
        }
        for fine in ["192.0.2.1", "10.0.0.1", "169.254.1.1", "223.255.255.255", "2001:db8::1", "fd00::1"] {
            assert_eq!(check(fine), None, "{fine}");
        }
    }
}
