//! The subnet-to-host map, wherever it is kept: what a node learns from a store, and nothing of how.
//!
//! [`Store::open`] finds this host in the map and returns an [`Opened`]: the cluster's networks, our own lease and the
//! first snapshot. [`Store::next`] waits for what comes after. A store knows leases, not packets; it never decides
//! what a change means for forwarding.
//!
//! Invariant: after `open` has succeeded no failure of the store is fatal: it is an [`Update::Trouble`], and the last
//! good map stays in force.
#![forbid(unsafe_code)]

pub mod file;

use std::net::IpAddr;

use crate::config;
use crate::route::{Change, Lease, Networks};

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The map itself is wrong, or we are not in it: configuration, exit code 2.
    #[error("{0}")]
    Invalid(String),
    /// The map cannot be reached: environment, exit code 1.
    #[error("{0}")]
    Unreachable(String),
}

/// What is true of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its address space.
    pub networks: Networks,
}

/// What a node learns when it joins.
#[derive(Debug)]
pub struct Opened {
    /// The cluster.
    pub cluster: Cluster,
    /// Our own lease.
    pub lease: Lease,
    /// All leases, as a [`Change::Snapshot`].
    pub snapshot: Change,
}

/// What happened after.
#[derive(Debug)]
pub enum Update {
    /// The map changed.
    Change(Change),
    /// The map cannot be read; the last good one stays in force. One sentence for the operator.
    Trouble(String),
}

/// An open store.
#[derive(Debug)]
pub enum Store {
    /// A static cluster in a file.
    File(file::FileStore),
}

impl Store {
    /// Opens the configured store as the host that is reached at one of `addresses` (in order of preference).
    pub async fn open(config: &config::Store, addresses: &[IpAddr]) -> Result<(Self, Opened), StoreError> {
        match config {
            config::Store::File { path } => {
                let (store, opened) = file::FileStore::open(path, addresses)?;
                Ok((Self::File(store), opened))
            }
        }
    }

    /// Waits for the next update. Cancel safe: nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Update {
        match self {
            Self::File(store) => store.next().await,
        }
    }

    /// Looks again now, where the store has to be looked at (SIGHUP).
    pub fn reload(&mut self) {
        match self {
            Self::File(store) => store.reload(),
        }
    }

    /// What kind of store, and where: for `status`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::File(store) => format!("file {}", store.path().display()),
        }
    }
}
