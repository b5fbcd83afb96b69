//! The answer to `hopsack status`.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::problem::Problem;

/// A thread of the engine, and how the kernel schedules it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadRow {
    /// Name of the thread.
    pub name: String,
    /// Policy: `other` (ordinary), `fifo` (real-time) or `unknown`.
    pub policy: String,
    /// Time slice in microseconds, of an ordinary thread; `None` if the kernel does not tell
    /// (before Linux 6.12).
    pub slice_us: Option<u64>,
    /// Nice value.
    pub nice: i32,
}

/// The kernel fast path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastPathStatus {
    /// Whether it is on.
    pub is_on: bool,
    /// Why it is off.
    pub reason: String,
    /// Underlay devices to which the program is attached.
    pub devices: Vec<String>,
    /// Programs of others at the same hooks, in words.
    pub others: Vec<String>,
    /// How often the program was detached by others and had to be attached again.
    pub repairs: u64,
    /// Number of peers to which packets leave by it.
    pub peers: usize,
    /// Number of packets that it has sent.
    pub egress_packets: u64,
    /// Number of packets that it has received.
    pub ingress_packets: u64,
    /// The veth pair that merges TCP segments.
    #[serde(default)]
    pub gro: GroStatus,
}

/// The veth pair that merges TCP segments, on underlays that deliver them one by one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroStatus {
    /// Whether single segments go through it.
    pub is_used: bool,
    /// Why they do or do not.
    pub reason: String,
    /// Number of segments that have left it.
    pub segments: u64,
    /// Number of packets and super packets as which they left it.
    pub packets: u64,
    /// Number of super packets among them.
    pub super_packets: u64,
}

/// State of the daemon, its place in the cluster and its sums of packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the running daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// True once the start is complete. Until then the daemon answers requests with an error.
    pub ready: bool,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// Name of this host in the store.
    pub node: String,
    /// Underlay address at which peers reach this host.
    pub public_ip: IpAddr,
    /// Name of the underlay interface.
    pub interface: String,
    /// Name of the overlay device.
    pub device: String,
    /// MTU of the overlay device in bytes.
    pub mtu: u16,
    /// UDP port of the overlay, the same on every host.
    pub port: u16,
    /// Subnets of this host's lease.
    pub subnets: Vec<String>,
    /// Address ranges of the whole overlay.
    pub networks: Vec<String>,
    /// Name of the engine that moves packets.
    pub engine: String,
    /// Number of the engine's workers.
    pub workers: usize,
    /// Reason why this engine runs, and the offloads in use.
    pub engine_reason: String,
    /// Threads of the engine, and how the kernel schedules each of them now.
    #[serde(default)]
    pub threads: Vec<ThreadRow>,
    /// The kernel fast path.
    #[serde(default)]
    pub fast_path: FastPathStatus,
    /// Kind and location of the store.
    pub store: String,
    /// Cause of the problem `store_unavailable`, if there is one. The last good map stays in use
    /// meanwhile.
    pub store_trouble: Option<String>,
    /// Seconds since the map in use was last known to be up to date; 0 while the store keeps it up
    /// to date.
    pub map_age_seconds: u64,
    /// Seconds until this host's lease expires unless it is renewed; negative if it has expired;
    /// `None` if it never expires.
    pub lease_expires_seconds: Option<i64>,
    /// Cause of the problem `underlay_address` or `underlay_mtu`, if there is one.
    pub underlay_trouble: Option<String>,
    /// Cause of the problem `duplicate_subnet`, if there is one.
    pub alarm: Option<String>,
    /// Encryption between hosts, in words.
    pub encryption: String,
    /// Number of peers.
    pub peers: usize,
    /// Hosts in the store to which no packet can be sent, each with the reason.
    pub unreachable: Vec<String>,
    /// Number of packets sent to peers.
    pub egress_packets: u64,
    /// Number of bytes in the packets sent to peers.
    pub egress_bytes: u64,
    /// Number of packets received from peers.
    pub ingress_packets: u64,
    /// Number of bytes in the packets received from peers.
    pub ingress_bytes: u64,
    /// Number of dropped packets, over all reasons; `hopsack drops` lists them by reason.
    pub dropped_packets: u64,
    /// Problems that last, the one that changed last first.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

impl Default for Status {
    /// A status without any part's facts: empty texts, zeros, and no encryption.
    fn default() -> Self {
        Self {
            version: String::new(),
            pid: 0,
            ready: false,
            uptime_seconds: 0,
            node: String::new(),
            public_ip: Ipv4Addr::UNSPECIFIED.into(),
            interface: String::new(),
            device: String::new(),
            mtu: 0,
            port: 0,
            subnets: Vec::new(),
            networks: Vec::new(),
            engine: String::new(),
            workers: 0,
            engine_reason: String::new(),
            threads: Vec::new(),
            fast_path: FastPathStatus::default(),
            store: String::new(),
            store_trouble: None,
            map_age_seconds: 0,
            lease_expires_seconds: None,
            underlay_trouble: None,
            alarm: None,
            encryption: "none".to_owned(),
            peers: 0,
            unreachable: Vec::new(),
            egress_packets: 0,
            egress_bytes: 0,
            ingress_packets: 0,
            ingress_bytes: 0,
            dropped_packets: 0,
            problems: Vec::new(),
        }
    }
}
