//! How the store is: plain numbers, for metrics and `status`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::SystemTime;

/// A copy of what the agent knows about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// A watch is open: the map is up to date.
    pub connected: bool,
    /// The endpoint in use, or tried last.
    pub endpoint: String,
    /// What is wrong, if something is.
    pub trouble: Option<String>,
    /// etcd's revision that the map is at.
    pub revision: i64,
    /// Since when the map may be out of date; `None`: it is not. A dead endpoint is noticed within 9 s, so the truth may
    /// be that much earlier. After a start without etcd: when the map on disk was written.
    pub stale_since: Option<SystemTime>,
    /// Leases in the map, ours included.
    pub leases: usize,
    /// Keys that stand where leases do and are none, with reasons.
    pub bad_keys: BTreeMap<String, String>,
    /// Subnets that are taken, and subnets that there are, in each family of the network.
    pub subnets: Vec<(u128, u128)>,
    /// Whole lists that were read, by cause.
    pub resyncs: Resyncs,
    /// Leases that a periodic list found different from what the watch had told.
    pub drift: u64,
    /// Renewals of our lease, by result.
    pub renewals: Renewals,
    /// When our lease runs out if it is not renewed; `None`: it is a reservation.
    pub lease_expires: Option<SystemTime>,
}

/// Why the whole list was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resyncs {
    /// At the start.
    pub start: u64,
    /// etcd had forgotten the revision that we were at.
    pub compacted: u64,
    /// etcd had a lower revision than we: it lost its history.
    pub rewound: u64,
    /// Every five minutes or so.
    pub periodic: u64,
    /// Somebody asked (SIGHUP).
    pub asked: u64,
}

/// What became of our lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Renewals {
    /// It has its whole time again.
    pub renewed: u64,
    /// etcd did not answer.
    pub failed: u64,
    /// It had run out or been deleted, and nobody had taken it.
    pub recreated: u64,
    /// Somebody without node id had written over it.
    pub rewritten: u64,
}
