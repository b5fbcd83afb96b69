//! What is known of the MTU of the path to a peer, and how it was learned.
//!
//! It learns nothing: the backend asks the routing table and sends probes, and the QUIC connection
//! finds its own path MTU.
//!
//! Invariant: nothing here comes from an ICMP message of the underlay, which anybody can forge.
#![forbid(unsafe_code)]

use crate::packet::{Family, outer_overhead};
use crate::route::Protection;
use crate::seal;

/// Less than any path takes, in bytes of inner packet. A smaller MTU of a route is an error of its
/// administrator; the bundles and trains of the engines rely on this limit.
const LEAST: u16 = 512;

/// How the path MTU in force was learned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathSource {
    /// It is the MTU of this host's own interface: nothing smaller is known.
    #[default]
    Interface,
    /// The peer has announced it as the MTU of its own link.
    PeerLink,
    /// The route to the peer has this MTU, or leaves by an interface that has it.
    Route,
    /// The peer has answered probes of this length.
    Probe,
    /// The QUIC connection has discovered it.
    Quic,
}

impl PathSource {
    /// The word in tables and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Interface => "interface",
            Self::PeerLink => "peer",
            Self::Route => "route",
            Self::Probe => "probe",
            Self::Quic => "quic",
        }
    }
}

/// What limits the datagrams to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathLimits {
    /// MTU of the route to the peer: bytes of underlay packet.
    pub route: Option<u32>,
    /// Longest underlay packet that the peer has acknowledged, in bytes.
    pub probe: Option<u32>,
    /// Longest inner packet that the QUIC connection takes, in bytes.
    pub quic: Option<u16>,
    /// Whether datagrams that are longer than the path arrive in fragments.
    pub fragments: bool,
}

impl Default for PathLimits {
    fn default() -> Self {
        Self { route: None, probe: None, quic: None, fragments: true }
    }
}

impl PathLimits {
    /// The longest inner packet that reaches a peer in one piece, and how that was learned. `own`
    /// is what our own interface allows.
    #[must_use]
    pub fn inner(self, own: u16, underlay: Family, protection: Protection) -> (u16, PathSource) {
        let sealing = if protection == Protection::Sealed { seal::OVERHEAD } else { 0 };
        let overhead = u32::from(outer_overhead(underlay)) + u32::try_from(sealing).unwrap_or(0);
        let outer = |mtu: u32| u16::try_from(mtu.saturating_sub(overhead)).unwrap_or(u16::MAX).max(LEAST);
        let is_by_quic = match protection {
            Protection::Clear => false,
            // Packets without a key go by QUIC. Probes say more about the others.
            Protection::Sealed => self.probe.is_none(),
            Protection::Quic => true,
        };
        let quic = self.quic.filter(|_| is_by_quic);
        let limits = [
            // The first one counts among equals: a probe has shown that the length passes.
            (self.probe.map_or(u16::MAX, outer), PathSource::Probe),
            (own, PathSource::Interface),
            (self.route.map_or(u16::MAX, outer), PathSource::Route),
            (quic.unwrap_or(u16::MAX).max(LEAST), PathSource::Quic),
        ];
        limits.into_iter().min_by_key(|(mtu, _)| *mtu).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smallest_limit_is_in_force() {
        let limits = PathLimits { route: Some(1400), quic: Some(1200), ..PathLimits::default() };
        let inner = |own, protection| limits.inner(own, Family::V4, protection);
        assert_eq!(inner(1472, Protection::Clear), (1372, PathSource::Route), "no packet goes by QUIC");
        assert_eq!(inner(1300, Protection::Clear), (1300, PathSource::Interface));
        assert_eq!(inner(1434, Protection::Quic), (1200, PathSource::Quic));
        let route = PathLimits { route: Some(1400), ..PathLimits::default() };
        assert_eq!(route.inner(1434, Family::V6, Protection::Sealed).0, 1400 - 48 - 28);
        let probed = PathLimits { probe: Some(1500), quic: Some(1200), ..PathLimits::default() };
        assert_eq!(probed.inner(1472, Family::V4, Protection::Clear), (1472, PathSource::Probe));
        assert_eq!(probed.inner(1434, Family::V4, Protection::Sealed), (1434, PathSource::Interface));
        assert_eq!(PathLimits::default().inner(1472, Family::V4, Protection::Clear).1, PathSource::Interface);
        let absurd = PathLimits { route: Some(68), ..PathLimits::default() };
        assert_eq!(absurd.inner(1472, Family::V4, Protection::Clear).0, LEAST);
    }
}
