//! The subnet-to-host map, wherever it is kept: what a node learns from a store, and nothing of how.
//!
//! [`Store::open`] finds this host in the map and returns an [`Opened`]: the cluster's networks, our own lease and the
//! first snapshot. [`Store::next`] waits for what comes after. A store knows leases, not packets; it never decides
//! what a change means for forwarding.
//!
//! Invariant: after `open` has succeeded no failure of the store is fatal: it is an [`Update::Trouble`], and the last
//! good map stays in force.
#![forbid(unsafe_code)]

pub mod etcd;
pub mod file;
pub mod flannel;
mod observe;

use std::net::IpAddr;
use std::time::Instant;

pub use observe::StorePart;

use crate::config;
use crate::route::{Announced, Change, Lease, Networks};

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The map itself is wrong, or has no place for us: configuration, exit code 2.
    #[error("{0}")]
    Invalid(String),
    /// The map cannot be reached, is not there yet, or is full for now: environment, exit code 1; trying again may help.
    #[error("{0}")]
    Unreachable(String),
}

/// What is true of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its address space.
    pub networks: Networks,
    /// The UDP port of every host; `None`: the store says none.
    pub port: Option<u16>,
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
    /// The map changed, and when the store said so.
    Change(Change, Instant),
    /// The store is in order again after an [`Update::Trouble`].
    Recovered,
    /// The map cannot be read; the last good one stays in force. One sentence for the operator.
    Trouble(String),
    /// The map is in force and up to date, but somebody should know this. One sentence for the operator.
    Notice(String),
    /// Our own lease belongs to somebody else. The node stops forwarding and exits with code 1; nothing follows.
    Lost(Lost),
}

/// Why a node must stop: two hosts in one subnet are worse than one host without.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Lost {
    /// Us, as the store names us.
    pub ours: String,
    /// Who has it now.
    pub theirs: String,
    /// One sentence that names both, and what mends it.
    pub reason: String,
}

/// An open store.
#[derive(Debug)]
pub enum Store {
    /// A static cluster in a file.
    File(file::FileStore),
    /// Flannel's layout in etcd.
    Etcd(etcd::EtcdStore),
}

impl Store {
    /// Opens the configured store as the host that is reached at one of `addresses` (in order of preference).
    pub async fn open(config: &config::Store, addresses: &[IpAddr]) -> Result<(Self, Opened), StoreError> {
        match config {
            config::Store::File { path } => {
                let (store, opened) = file::FileStore::open(path, addresses)?;
                Ok((Self::File(store), opened))
            }
            config::Store::Etcd(config) => {
                let (store, opened) = etcd::EtcdStore::open(config, addresses).await?;
                Ok((Self::Etcd(store), opened))
            }
        }
    }

    /// Waits for the next update. Cancel safe: nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Update {
        match self {
            Self::File(store) => store.next().await,
            Self::Etcd(store) => store.next().await,
        }
    }

    /// The next update, if one is waiting: what came together is put into effect together.
    pub fn try_next(&mut self) -> Option<Update> {
        match self {
            Self::File(_) => None,
            Self::Etcd(store) => store.try_next(),
        }
    }

    /// Looks again now (SIGHUP): at the file, or by a fresh list.
    pub fn reload(&mut self) {
        match self {
            Self::File(store) => store.reload(),
            Self::Etcd(store) => store.reload(),
        }
    }

    /// Whether this host may be reached at `address`: in a file, only what stands there.
    #[must_use]
    pub fn admits(&self, address: IpAddr) -> bool {
        match self {
            Self::File(store) => store.admits(address),
            Self::Etcd(_) => true,
        }
    }

    /// This host is reached at other addresses now: publishes them in our own lease, where the store lets us. `false`: the
    /// store has no time for it now; to be tried again.
    pub fn readdress(&mut self, addresses: &[IpAddr]) -> bool {
        match self {
            Self::File(_) => true,
            Self::Etcd(store) => store.readdress(addresses),
        }
    }

    /// Asks the store whether our lease is still ours, because something speaks against it. The answer, if it is not, is
    /// an [`Update::Lost`].
    pub fn verify(&mut self) {
        match self {
            Self::File(store) => store.reload(),
            Self::Etcd(store) => store.verify(),
        }
    }

    /// Our lease tells this of encryption from here on, where the store lets us; in a file it is written by hand.
    pub fn announce(&mut self, announced: Announced) {
        match self {
            Self::File(_) => {}
            Self::Etcd(store) => store.announce(announced),
        }
    }

    /// How the store is, where there is more to say than what [`Store::next`] brings.
    #[must_use]
    pub fn health(&self) -> Option<etcd::Health> {
        match self {
            Self::File(_) => None,
            Self::Etcd(store) => Some(store.health()),
        }
    }

    /// Leaves in order: keeps what a restart needs, and gives the lease back if the node leaves for good
    /// (`store.revoke_on_exit`). The error is one sentence.
    pub async fn close(self) -> Result<(), String> {
        match self {
            Self::File(_) => Ok(()),
            Self::Etcd(store) => store.close().await,
        }
    }

    /// What kind of store, and where: for `status`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::File(store) => format!("file {}", store.path().display()),
            Self::Etcd(store) => store.describe(),
        }
    }
}
