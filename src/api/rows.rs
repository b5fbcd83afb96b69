//! Rows of the lists that the daemon answers: peers, routes, drops.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// A peer: another host that packets can be sent to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerRow {
    /// Name of the peer in the store.
    pub name: String,
    /// Underlay address and UDP port of the peer.
    pub endpoint: String,
    /// Subnets of the peer's lease.
    pub subnets: Vec<String>,
    /// Length in bytes of the longest inner packet that reaches the peer in one piece.
    pub mtu: u16,
    /// How `mtu` was learned: `interface`, `peer`, `route`, `probe` or `quic`.
    #[serde(default)]
    pub mtu_source: String,
    /// Why packets of some kind do not reach the peer, as one sentence.
    #[serde(default)]
    pub trouble: Option<String>,
    /// Smoothed round-trip time of the keep-alives in milliseconds; `None` before the first answer,
    /// and for peers that answer none.
    #[serde(default)]
    pub rtt_ms: Option<f64>,
    /// Share of the last keep-alives that the peer has not answered, in percent.
    #[serde(default)]
    pub loss_percent: Option<u8>,
    /// Seconds since the last answer, if three keep-alives in a row were not answered.
    #[serde(default)]
    pub silent_seconds: Option<u64>,
    /// What carries the packets to the peer: `kernel` (the fast path) or `engine`.
    #[serde(default)]
    pub path: String,
    /// Why it is the engine.
    #[serde(default)]
    pub path_reason: Option<String>,
    /// Transport of the packets: `udp`, `sealed` or `quic`.
    pub transport: String,
    /// Encryption in use, in words; `none` means that packets are sent in clear.
    pub encryption: String,
    /// Age of the keys in seconds; `None` means that there are no keys.
    pub key_age_seconds: Option<u64>,
}

/// A route of the overlay: one subnet and the host that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRow {
    /// Prefix of the subnet.
    pub subnet: String,
    /// Name of the host that holds the subnet's lease.
    pub host: String,
    /// Address and port that packets for the subnet are sent to, or `local` for this host's own
    /// subnet.
    pub next_hop: String,
    /// Length in bytes of the longest inner packet that the route takes.
    pub mtu: u16,
}

/// A counter of dropped packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRow {
    /// `egress` for packets read from the overlay device, `ingress` for datagrams from the network.
    pub direction: String,
    /// Reason of the drops, as in the metric label `reason`.
    pub reason: String,
    /// Number of dropped packets.
    pub packets: u64,
    /// Explanation of the reason, as one sentence.
    pub meaning: String,
}
