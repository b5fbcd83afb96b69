//! The map of subnets to hosts, wherever it is kept.
//!
//! [`Store::open`] finds this host in the map and returns [`Opened`]: the cluster's networks, our
//! lease and the first snapshot. [`Store::next`] waits for the changes that follow. A store knows
//! leases and no packets. It never decides what a change means for forwarding.
//!
//! Invariant: after `open` has succeeded, no failure of the store is fatal. A failure is an
//! [`Update::Trouble`], and the last good map stays in use.
#![forbid(unsafe_code)]

pub mod admin;
mod clock;
mod error;
pub mod etcd;
pub mod file;
pub mod flannel;
mod observe;
mod settings;
mod update;
mod watch;

use std::net::IpAddr;

pub use error::{ErrorCode, SnapshotError, StoreError};
pub use observe::StorePart;
pub use settings::{EtcdSettings, LEASE_TTL, Settings, Tls};
pub use update::{Cluster, Lost, LostCause, Notice, NoticeCode, Opened, Update};

use crate::route::Abilities;

/// An open store.
#[derive(Debug)]
pub enum Store {
    /// A static cluster in a file.
    File(file::FileStore),
    /// Flannel's layout in etcd.
    Etcd(etcd::EtcdStore),
}

impl Store {
    /// Opens the store for the host that has `addresses` (in order of preference).
    pub async fn open(settings: &Settings, addresses: &[IpAddr]) -> Result<(Self, Opened), StoreError> {
        match settings {
            Settings::File { path } => {
                let (store, opened) = file::FileStore::open(path, addresses)?;
                Ok((Self::File(store), opened))
            }
            Settings::Etcd(settings) => {
                let (store, opened) = etcd::EtcdStore::open(settings, addresses).await?;
                Ok((Self::Etcd(store), opened))
            }
        }
    }

    /// Like [`Store::open`], with an etcd in memory: for tests in virtual time. [`etcd::memory`]
    /// says how to use it.
    #[cfg(test)]
    pub(crate) async fn open_memory(
        etcd: &etcd::memory::MemoryEtcd,
        settings: &EtcdSettings,
        addresses: &[IpAddr],
    ) -> Result<(Self, Opened), StoreError> {
        let (store, opened) = etcd::EtcdStore::open_memory(etcd, settings, addresses).await?;
        Ok((Self::Etcd(store), opened))
    }

    /// Waits for the next update. Cancel safe: dropping the future loses nothing.
    pub async fn next(&mut self) -> Update {
        match self {
            Self::File(store) => store.next().await,
            Self::Etcd(store) => store.next().await,
        }
    }

    /// Returns the next update if one is waiting, so that the node can put several into effect
    /// together.
    pub fn try_next(&mut self) -> Option<Update> {
        match self {
            Self::File(_) => None,
            Self::Etcd(store) => store.try_next(),
        }
    }

    /// Reads the whole map again soon (on SIGHUP).
    pub fn reload(&mut self) {
        match self {
            Self::File(store) => store.reload(),
            Self::Etcd(store) => store.reload(),
        }
    }

    /// Whether the store allows this host to be reached at `address`. A cluster file allows only
    /// the addresses that it lists for this host.
    #[must_use]
    pub fn admits(&self, address: IpAddr) -> bool {
        match self {
            Self::File(store) => store.admits(address),
            Self::Etcd(_) => true,
        }
    }

    /// Publishes new addresses of this host in its lease, if the store can be written. Returns
    /// `false` if the store is too busy now; the caller tries again.
    pub fn readdress(&mut self, addresses: &[IpAddr]) -> bool {
        match self {
            Self::File(_) => true,
            Self::Etcd(store) => store.readdress(addresses),
        }
    }

    /// Asks the store whether our lease is still ours. If it is not, the answer is an
    /// [`Update::Lost`].
    pub fn verify(&mut self) {
        match self {
            Self::File(store) => store.reload(),
            Self::Etcd(store) => store.verify(),
        }
    }

    /// Changes what our lease announces, if the store can be written. In a cluster file the
    /// operator writes this. Returns `false` if the store is too busy now; the caller tries again.
    pub fn announce(&mut self, abilities: Abilities) -> bool {
        match self {
            Self::File(_) => true,
            Self::Etcd(store) => store.announce(abilities),
        }
    }

    /// State of the connection and of our lease, for stores that have them.
    #[must_use]
    pub fn health(&self) -> Option<etcd::Health> {
        match self {
            Self::File(_) => None,
            Self::Etcd(store) => Some(store.health()),
        }
    }

    /// Closes the store: saves what a restart needs, and gives the lease back if
    /// `store.revoke_on_exit` is set. The error is one sentence.
    pub async fn close(self) -> Result<(), String> {
        match self {
            Self::File(_) => Ok(()),
            Self::Etcd(store) => store.close().await,
        }
    }

    /// Kind and place of the store, for `status`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::File(store) => format!("file {}", store.path().display()),
            Self::Etcd(store) => store.describe(),
        }
    }
}
