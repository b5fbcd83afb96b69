//! The two address families, and what the overlay's outer headers cost in each.
#![forbid(unsafe_code)]

use std::net::IpAddr;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Bytes that the overlay adds to an inner packet on an underlay of this family: an IP header (20
/// or 40) and a UDP header (8).
#[must_use]
pub const fn outer_overhead(underlay: Family) -> u16 {
    match underlay {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

/// The smallest MTU that a path of the overlay may have, in bytes of inner packet: what every host
/// must accept in one datagram (RFC 791), and the minimum link MTU of IPv6 (RFC 8200). A pod cannot
/// send shorter IPv6 packets, and Linux does not go below 552 bytes for IPv4: a sender that is told
/// less sends the same packet again for ever.
#[must_use]
pub const fn min_mtu(family: Family) -> u16 {
    match family {
        Family::V4 => 576,
        Family::V6 => 1280,
    }
}
