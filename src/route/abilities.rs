//! What a host accepts beyond Flannel's format.
#![forbid(unsafe_code)]

use super::encryption_policy::Announced;
use crate::packet::{Family, outer_overhead};

/// MTU in bytes that is assumed of the link of a host that announces none: Ethernet's.
const ASSUMED_LINK_MTU: u16 = 1500;

/// What a hopsack daemon accepts in addition to bare IPv4 packets, as its lease announces it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// It accepts bare IPv6 packets (first nibble 6).
    pub ipv6: bool,
    /// It accepts control messages (first nibble 2).
    pub control: bool,
    /// It accepts bundles of small packets (first nibble 3).
    pub bundles: bool,
    /// It accepts sealed packets (first nibble 1).
    pub sealed: bool,
    /// It reads the outer ECN field and applies it to the inner packet (RFC 6040).
    pub ecn: bool,
    /// It can receive by the kernel fast path. Whether it does is in its answers to keep-alives.
    pub fast: bool,
    /// How it encrypts packets; `None`: it does not encrypt.
    pub secure: Option<Announced>,
    /// MTU of its link to the other hosts, in bytes of the whole IP packet; `None`: not announced.
    pub link_mtu: Option<u16>,
    /// Whether the host has announced nothing, and these are only assumed: a map file does not say
    /// which version a host runs.
    pub is_assumed: bool,
}

impl Abilities {
    /// What this version of hopsack accepts.
    pub const OURS: Self = Self {
        ipv6: true,
        control: true,
        bundles: true,
        sealed: false,
        ecn: true,
        fast: false,
        secure: None,
        link_mtu: None,
        is_assumed: false,
    };

    /// Longest datagram that the host's link takes on an underlay of this family, in bytes of UDP
    /// payload. Two hosts on one network may have links of different MTU, and a link drops a longer
    /// datagram without an answer.
    #[must_use]
    #[inline]
    pub fn longest_datagram(&self, underlay: Family) -> u16 {
        self.link_mtu.unwrap_or(ASSUMED_LINK_MTU).saturating_sub(outer_overhead(underlay))
    }
}
