//! The answer to `hopsack explain`: what this host does with a packet for one address.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Result for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The packet is sent to the host that holds the address.
    Sent,
    /// The packet waits for an encrypted connection, and is dropped if none is made in time.
    Waits,
    /// The packet does not leave this host.
    Local,
    /// The kernel routes the packet by another interface than the overlay device.
    Elsewhere,
    /// The packet is dropped.
    Dropped,
}

/// Kind of a [`Step`]. The codes are stable; scripts and tests may depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepCode {
    /// The kernel routes the packet to the overlay device.
    KernelToOverlay,
    /// The kernel routes the packet to another interface.
    KernelToOtherDevice,
    /// The address belongs to this host itself.
    KernelToThisHost,
    /// The kernel has no route for the address.
    KernelNoRoute,
    /// The source address is verified: a packet with a source that is not this host's is dropped.
    SourceVerified,
    /// The address is in the subnet of a peer.
    RouteToPeer,
    /// The address is in this host's own subnet, and an interface here carries it.
    RouteOwnSubnet,
    /// The address is in this host's own subnet, but no interface here carries it.
    RouteOwnSubnetMissing,
    /// The address is in the subnet of a host that no packet can be sent to.
    RouteUnreachable,
    /// The address is a multicast address, which the overlay does not carry.
    RouteMulticast,
    /// The address is in the overlay's networks, but no lease holds it.
    RouteNoLease,
    /// The address lies outside the overlay's networks.
    RouteOutside,
    /// The packet is sent in clear.
    SendClear,
    /// The kernel fast path carries the packet, or why it does not.
    FastPath,
    /// The packet is sealed by a worker and sent by UDP.
    SendSealed,
    /// The packet is sent in a QUIC connection.
    SendQuic,
    /// The packet waits until the encrypted connection to the peer is made.
    WaitForConnection,
    /// The kernel routes the datagram to the overlay device again.
    NextHopInOverlay,
    /// The next hop is an address of this host itself.
    NextHopThisHost,
    /// The kernel has no route for the next hop.
    NextHopNoRoute,
    /// A route of the kernel refuses datagrams for the next hop.
    NextHopUnreachable,
    /// A blackhole route of the kernel drops datagrams for the next hop.
    NextHopBlackhole,
    /// The daemon is newer than this program, which does not know the code.
    #[serde(other)]
    Unknown,
}

/// One decision about the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Kind of the decision.
    pub code: StepCode,
    /// The decision and its reason, as a clause about the packet.
    pub sentence: String,
}

/// What this host does with a packet for one address. A field that does not apply is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Destination address that was asked about.
    pub address: IpAddr,
    /// Result for the packet.
    pub outcome: Outcome,
    /// The result and its reason, as one sentence.
    pub sentence: String,
    /// Decisions about the packet, in the order in which they are made.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// Reason of the drop, as in `hopsack drops` and in the metrics.
    pub drop: Option<String>,
    /// Interface by which the kernel sends the packet; `None` if the kernel has no route.
    pub device: Option<String>,
    /// Subnet of the overlay that contains the address.
    pub subnet: Option<String>,
    /// Name of the host that holds the subnet's lease.
    pub host: Option<String>,
    /// Abilities that the host's lease announces, in words.
    pub announced: Option<String>,
    /// Kind and location of the store that the map comes from.
    pub store: String,
    /// Seconds since the map in use was last known to be up to date.
    pub map_age_seconds: u64,
    /// Underlay address and port to which the datagrams are sent.
    pub next_hop: Option<String>,
    /// Name of the engine that moves packets, and the number of its workers.
    pub engine: String,
    /// Length in bytes of the longest inner packet that reaches the host in one piece.
    pub mtu: Option<u16>,
    /// How `mtu` was learned: `interface`, `peer`, `route`, `probe` or `quic`.
    #[serde(default)]
    pub mtu_source: Option<String>,
    /// What is wrong with the path to the host, as one sentence.
    #[serde(default)]
    pub trouble: Option<String>,
    /// Transport of the packets: `udp`, `sealed` or `quic`.
    pub transport: Option<String>,
    /// Encryption in use, or the reason why there is none, in words.
    pub encryption: Option<String>,
    /// Keys in use, if packets are sealed.
    pub keys: Option<KeyState>,
    /// State of the encrypted connection, in words.
    pub connection: Option<String>,
    /// Format of the datagrams and the bytes that it adds, in words.
    pub frame: Option<String>,
    /// Counters of this host that show whether packets get through. They are sums over all peers.
    pub counters: Vec<CounterRow>,
}

impl Explanation {
    /// An explanation without any part's facts.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self {
            address,
            outcome: Outcome::Dropped,
            sentence: String::new(),
            steps: Vec::new(),
            drop: None,
            device: None,
            subnet: None,
            host: None,
            announced: None,
            store: String::new(),
            map_age_seconds: 0,
            next_hop: None,
            engine: String::new(),
            mtu: None,
            mtu_source: None,
            trouble: None,
            transport: None,
            encryption: None,
            keys: None,
            connection: None,
            frame: None,
            counters: Vec::new(),
        }
    }

    /// Adds a decision about the packet.
    pub fn step(&mut self, code: StepCode, sentence: impl Into<String>) {
        self.steps.push(Step { code, sentence: sentence.into() });
    }

    /// Whether some part made this decision.
    #[must_use]
    pub fn has(&self, code: StepCode) -> bool {
        self.steps.iter().any(|step| step.code == code)
    }
}

/// State of the keys that seal packets to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyState {
    /// Name of the algorithm.
    pub suite: String,
    /// Number of the handshake that the keys come from, modulo 256.
    pub epoch: u8,
    /// Age of the keys in seconds.
    pub age_seconds: u64,
    /// Number of datagrams sealed with the keys.
    pub packets: u64,
    /// Number of key changes since the first keys.
    pub rekeys: u64,
    /// Name derived from the keys. Both hosts show the same name if they have the same keys.
    pub name: String,
}

/// A counter that is worth a look for the address in question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterRow {
    /// Direction and drop reason, or what else is counted.
    pub name: String,
    /// Value of the counter.
    pub value: u64,
}
