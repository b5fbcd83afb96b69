//! The file store: a static cluster in a TOML file, for clusters without etcd and for tests.
//!
//! The store looks at the file every half second and reads it when it has changed. A wrong edit is
//! refused with line and column, and the last good map stays in use. The store hands out no
//! subnets: the file names those of every host. The format is described in [`Map`].
#![forbid(unsafe_code)]

mod map;

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use map::{Map, MapError, MapProblem};

use super::error::{ErrorCode, StoreError};
use super::update::{Cluster, Opened, Update};
use crate::route::{Change, Lease};

/// Interval between two looks at the file (one `stat`).
const INTERVAL: Duration = Duration::from_millis(500);

/// The open file.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    own: Box<Lease>,
    cluster: Cluster,
    revision: u64,
    /// Stamp of the file when it was read last; `None` forces a read.
    seen: Option<Stamp>,
    in_trouble: bool,
}

/// Device, inode, size and modification time. An editor that writes in place and one that renames
/// both change it.
type Stamp = (u64, u64, u64, i64, i64);

impl FileStore {
    /// Reads `path`, and finds the host that has the first of `addresses` that is listed.
    pub fn open(path: &Path, addresses: &[IpAddr]) -> Result<(Self, Opened), StoreError> {
        let seen = stamp(path);
        let text = std::fs::read_to_string(path).map_err(|error| {
            StoreError::new(
                ErrorCode::FileUnreadable,
                format!(
                    "cannot read the cluster file {}: {error}; write it (see configs/cluster.toml), or name another file \
                     with store.path",
                    path.display()
                ),
            )
        })?;
        let map = Map::parse(&text).map_err(|error| {
            StoreError::new(ErrorCode::FileInvalid, format!("{}: {error}", path.display()))
        })?;
        let host_at = |address: &IpAddr| {
            map.leases.iter().find(|lease| lease.public.iter().any(|listed| listed == *address)).cloned()
        };
        let Some(own) = addresses.iter().find_map(host_at) else {
            let ours: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            return Err(StoreError::new(
                ErrorCode::HostNotListed,
                format!(
                    "{} lists no host with the address {} of this host: add it under [[hosts]], or set node.public_ip",
                    path.display(),
                    ours.join(" or "),
                ),
            ));
        };
        let opened = Opened { cluster: map.cluster.clone(), lease: own.clone(), snapshot: map.snapshot(1) };
        let (own, cluster) = (Box::new(own), map.cluster);
        let store = Self { path: path.to_owned(), own, cluster, revision: 1, seen, in_trouble: false };
        Ok((store, opened))
    }

    /// Path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file says that this host has `address`.
    #[must_use]
    pub fn admits(&self, address: IpAddr) -> bool {
        self.own.public.iter().any(|listed| listed == address)
    }

    /// Makes the next [`FileStore::next`] read the file even if it has not changed.
    pub fn reload(&mut self) {
        self.seen = None;
    }

    /// Waits until the file has changed. Cancel safe.
    pub async fn next(&mut self) -> Update {
        loop {
            let now = stamp(&self.path);
            if now != self.seen || now.is_none() && !self.in_trouble {
                self.seen = now;
                return self.read();
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    fn read(&mut self) -> Update {
        let map = std::fs::read_to_string(&self.path)
            .map_err(|error| format!("cannot read {}: {error}", self.path.display()))
            .and_then(|text| Map::parse(&text).map_err(|error| format!("{}: {error}", self.path.display())));
        match map.and_then(|map| self.accept(map)) {
            Ok(snapshot) => {
                self.in_trouble = false;
                Update::Change(snapshot, Instant::now())
            }
            Err(problem) => {
                self.in_trouble = true;
                Update::Trouble(problem)
            }
        }
    }

    /// Takes a new map. A change that a running node cannot follow is refused like a wrong edit.
    fn accept(&mut self, map: Map) -> Result<Change, String> {
        let path = self.path.display();
        if map.cluster != self.cluster {
            return Err(format!(
                "{path}: the networks or subnet lengths changed: restart hopsack on every host"
            ));
        }
        let is_own = |lease: &&Lease| lease.name == self.own.name && lease.subnets == self.own.subnets;
        let Some(own) = map.leases.iter().find(is_own) else {
            let name = &self.own.name;
            return Err(format!(
                "{path}: the entry of this host ({name:?}) is gone, or its subnets changed: restart hopsack on this host"
            ));
        };
        *self.own = own.clone();
        self.revision += 1;
        Ok(map.snapshot(self.revision))
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = r#"
network = "10.244.0.0/16"

[[hosts]]
name = "alpha"
public = ["192.0.2.1"]
subnets = ["10.244.1.0/24"]

[[hosts]]
name = "beta"
public = ["192.0.2.2"]
subnets = ["10.244.2.0/24"]
"#;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_edit_leaves_the_last_map_in_use() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("cluster.toml");
        std::fs::write(&path, VALID).expect("written");
        let addresses = [address("192.0.2.9"), address("192.0.2.2")];
        let (mut store, opened) = FileStore::open(&path, &addresses).expect("valid");
        assert_eq!(opened.lease.name, "beta");
        assert!(store.admits(address("192.0.2.2")) && !store.admits(address("192.0.2.9")));

        std::fs::write(&path, VALID.replace("10.244.1.0/24", "10.244.1.0/240")).expect("written");
        let Update::Trouble(problem) = store.next().await else { panic!("the wrong edit was taken") };
        assert!(problem.contains("line 7, column 12"), "{problem}");

        std::fs::write(&path, VALID.replace("beta", "gamma")).expect("written");
        assert!(matches!(store.next().await, Update::Trouble(_)), "our own entry is gone");

        std::fs::write(&path, VALID.replace("10.244.1.0/24", "10.244.9.0/24")).expect("written");
        let Update::Change(Change::Snapshot { leases, revision }, _) = store.next().await else {
            panic!("the edit was refused")
        };
        assert_eq!((leases[0].subnets[0].to_string(), revision), ("10.244.9.0/24".to_owned(), 2));

        std::fs::remove_file(&path).expect("removed");
        assert!(matches!(store.next().await, Update::Trouble(_)));
    }

    #[test]
    fn host_that_is_not_listed_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("cluster.toml");
        let code = || FileStore::open(&path, &[address("192.0.2.77")]).expect_err("refused").code;
        assert_eq!(code(), ErrorCode::FileUnreadable);
        std::fs::write(&path, "network = 7").expect("written");
        assert_eq!(code(), ErrorCode::FileInvalid);
        std::fs::write(&path, VALID).expect("written");
        assert_eq!(code(), ErrorCode::HostNotListed);
    }
}
