//! What a host accepts beyond Flannel's format.
#![forbid(unsafe_code)]

use super::encryption_policy::Announced;

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
    /// How it encrypts packets; `None`: it does not encrypt.
    pub secure: Option<Announced>,
}

impl Abilities {
    /// What this version of hopsack accepts.
    pub const OURS: Self =
        Self { ipv6: true, control: false, bundles: true, sealed: false, ecn: true, secure: None };
}
