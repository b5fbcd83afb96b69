//! Snapshot: the last map with our lease in it, saved on disk, so that a node can start while etcd
//! is away.
//!
//! This file only guarantees that a snapshot is the one that was written. Whether it may be used is
//! decided by [`Snapshot::usable`].
//!
//! Invariant: a file is either complete and as it was written, or it is refused. It carries its
//! version and a checksum, and it is synced before it is renamed into place.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::host_files::boot_id;
use super::identity::NodeIdentity;
use super::own_lease::OwnLease;
use crate::files::replace;
use crate::store::error::SnapshotError;
use crate::store::flannel::Network;
use crate::store::watch::{Kv, Listing};

const MAP: &str = "map";
/// First word of the file. A format that this code cannot read has another one.
const MAGIC: &str = "hopsack-map-1";

/// The last map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// Prefix of all keys.
    pub(crate) prefix: String,
    /// Id of the node that wrote the snapshot.
    pub(crate) node_id: String,
    /// etcd's revision of the map.
    pub(crate) revision: i64,
    /// Text of the network configuration in etcd.
    pub(crate) config: String,
    /// When the map was up to date, in seconds since 1970.
    written: u64,
    /// Id of the boot that the map was last used in. A snapshot without it belongs to another boot.
    #[serde(default)]
    boot: String,
    /// Key of our lease.
    own: SavedKv,
    /// Subnets of our lease.
    subnets: Vec<IpNet>,
    /// Time to live of our lease.
    granted: Duration,
    /// When our lease expires, in seconds since 1970; `None` for a reservation.
    expires: Option<u64>,
    /// Keys of all leases.
    leases: Vec<SavedKv>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedKv {
    key: String,
    value: String,
    /// 0 in a map of version 0.1, which did not save it.
    #[serde(default)]
    create_revision: i64,
    mod_revision: i64,
    lease: i64,
}

impl SavedKv {
    fn of(kv: &Kv) -> Self {
        Self {
            key: kv.key.clone(),
            value: String::from_utf8_lossy(&kv.value).into_owned(),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            lease: kv.lease,
        }
    }

    fn kv(&self) -> Kv {
        Kv {
            key: self.key.clone(),
            value: self.value.clone().into_bytes(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            lease: self.lease,
        }
    }
}

impl Snapshot {
    /// A snapshot of `leases`, which were up to date at `(revision, time)`.
    pub(crate) fn new<'a>(
        node: &NodeIdentity,
        config: &str,
        own: &OwnLease,
        (revision, written): (i64, SystemTime),
        leases: impl Iterator<Item = &'a Kv>,
    ) -> Self {
        let since_1970 =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            prefix: node.keys.root(),
            node_id: node.identity.id.clone(),
            revision,
            config: config.to_owned(),
            written: since_1970(written),
            boot: boot_id(),
            own: SavedKv::of(&own.kv()),
            subnets: own.subnets.clone(),
            granted: own.granted,
            expires: own.expires.map(since_1970),
            leases: leases.map(SavedKv::of).collect(),
        }
    }

    /// Our lease in the snapshot.
    pub(crate) fn own(&self) -> OwnLease {
        OwnLease {
            key: self.own.key.clone(),
            subnets: self.subnets.clone(),
            value: self.own.value.clone(),
            created: self.own.create_revision,
            mod_revision: self.own.mod_revision,
            lease: self.own.lease,
            granted: self.granted,
            expires: self.expires.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
        }
    }

    /// Whether our lease has expired by `now`.
    pub(crate) fn has_expired(&self, now: SystemTime) -> bool {
        self.own().expires.is_some_and(|expires| expires < now)
    }

    /// Whether the snapshot may be used in place of etcd; if so, the network that it describes.
    ///
    /// While etcd does not answer and our lease has expired, this host cannot know which node has
    /// our subnet. If the host was not rebooted, it keeps using the map, as if the daemon had not
    /// restarted. Its pods run. Most likely no other node could take the subnet, because a node
    /// that cannot reach etcd can neither renew nor join (flannel#29). A host that was rebooted has
    /// no pods to lose and may have been down for days. It waits, so that it does not share a
    /// subnet (flannel#1289).
    pub(crate) fn usable(
        &self,
        node: &NodeIdentity,
        boot: &str,
        now: SystemTime,
    ) -> Result<Network, SnapshotError> {
        if self.prefix != node.keys.root() || self.node_id != node.identity.id {
            return Err(SnapshotError::OtherNode);
        }
        let is_required = |subnet: &IpNet| node.subnets.as_ref().is_none_or(|all| all.contains(subnet));
        if !self.subnets.iter().all(is_required) {
            return Err(SnapshotError::OtherSubnets);
        }
        if self.has_expired(now) && !self.is_of_boot(boot) {
            return Err(SnapshotError::LeaseExpired);
        }
        Network::parse(&self.config).map_err(|error| SnapshotError::Network(error.to_string()))
    }

    /// Records that the map is in use in this boot.
    pub(crate) fn taken_into_use(mut self, dir: &Path) -> Self {
        let boot = boot_id();
        if self.boot != boot {
            self.boot = boot;
            if let Err(error) = self.store(dir) {
                tracing::warn!(%error, "map not saved: another start without etcd will use the older one");
            }
        }
        self
    }

    /// Whether the host has not been rebooted since: pods with addresses of our subnet may be
    /// running.
    pub(crate) fn is_of_boot(&self, boot: &str) -> bool {
        !boot.is_empty() && self.boot == boot
    }

    /// When the map was up to date.
    pub(crate) fn written(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.written)
    }

    /// The map as a list.
    pub(crate) fn listing(&self) -> Listing {
        Listing { revision: self.revision, kvs: self.leases.iter().map(SavedKv::kv).collect() }
    }

    /// Reads the last map. Returns `None` if there is none.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>, SnapshotError> {
        let path = dir.join(MAP);
        match std::fs::read(&path) {
            Ok(bytes) => unpack(&path, &bytes).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(&path, &error)),
        }
    }

    /// Writes the map over the last one.
    pub(crate) fn store(&self, dir: &Path) -> Result<(), SnapshotError> {
        let path = dir.join(MAP);
        replace(&path, &pack(self), 0o644).map_err(|error| io_error(&path, &error))
    }

    /// The same snapshot, as if it had been written before a reboot.
    #[cfg(test)]
    pub(crate) fn of_boot(self, boot: &str) -> Self {
        Self { boot: boot.to_owned(), ..self }
    }
}

fn io_error(path: &Path, error: &std::io::Error) -> SnapshotError {
    SnapshotError::Io { path: path.display().to_string(), error: error.to_string() }
}

fn pack(snapshot: &Snapshot) -> Vec<u8> {
    let body = serde_json::to_vec(snapshot).expect("strings and numbers are plain JSON");
    let mut out = format!("{MAGIC} {:016x} {}\n", checksum(&body), body.len()).into_bytes();
    out.extend(body);
    out
}

fn unpack(path: &Path, bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
    let path = || path.display().to_string();
    let damaged = || SnapshotError::Damaged { path: path() };
    let line = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)?;
    let (head, body) = (std::str::from_utf8(&bytes[..line]).map_err(|_| damaged())?, &bytes[line + 1..]);
    match head.split(' ').collect::<Vec<_>>().as_slice() {
        [MAGIC, sum, len] => {
            let is_complete = *len == body.len().to_string() && *sum == format!("{:016x}", checksum(body));
            if !is_complete {
                return Err(damaged());
            }
            serde_json::from_slice(body)
                .map_err(|error| SnapshotError::NotAMap { path: path(), error: error.to_string() })
        }
        [other, ..] if other.starts_with("hopsack-map-") => {
            Err(SnapshotError::OtherVersion { path: path(), format: (*other).to_owned() })
        }
        _ => Err(damaged()),
    }
}

/// FNV-1a with 64 bits. It detects a torn write or a bad disk. It does not protect from forgery: a
/// forger could write the file anyway.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
