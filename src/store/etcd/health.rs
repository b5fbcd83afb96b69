//! Health of the store: plain numbers for metrics and `status`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::SystemTime;

/// A copy of what the agent knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether a watch is open, so that the map is up to date.
    pub connected: bool,
    /// Endpoint in use, or the one that was tried last.
    pub endpoint: String,
    /// What is wrong, if something is. The text is one sentence.
    pub trouble: Option<String>,
    /// etcd's revision that the map is at.
    pub revision: i64,
    /// Since when the map may be out of date; `None` if it is up to date. A dead endpoint is
    /// noticed within 9 s, so the true time may be that much earlier. After a start without etcd,
    /// this is when the map on disk was written.
    pub stale_since: Option<SystemTime>,
    /// Number of leases in the map, including our own.
    pub leases: usize,
    /// Invalid keys among the leases, with reasons.
    pub bad_keys: BTreeMap<String, String>,
    /// Number of taken subnets and number of subnets, for each family of the network.
    pub subnets: Vec<(u128, u128)>,
    /// Number of whole lists that were read, by cause.
    pub resyncs: Resyncs,
    /// Number of leases that a list found different from what the watch had reported.
    pub drift: u64,
    /// Number of renewals of our lease, by result.
    pub renewals: Renewals,
    /// When our lease expires unless it is renewed; `None` for a reservation.
    pub lease_expires: Option<SystemTime>,
}

/// Number of whole lists that were read, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resyncs {
    /// Lists at the start.
    pub start: u64,
    /// Lists because etcd had compacted our revision.
    pub compacted: u64,
    /// Lists because etcd was at a lower revision than we were: it was restored from a backup.
    pub rewound: u64,
    /// Periodic lists, about every five minutes.
    pub periodic: u64,
    /// Lists that were requested (SIGHUP).
    pub asked: u64,
}

/// Number of renewals of our lease, by result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Renewals {
    /// Renewals by a keep-alive.
    pub renewed: u64,
    /// Renewals that etcd did not answer.
    pub failed: u64,
    /// Renewals that created the lease again: it had expired or was deleted, and no node had taken
    /// it.
    pub recreated: u64,
    /// Renewals that rewrote the key: a writer without our node id had changed it.
    pub rewritten: u64,
}
