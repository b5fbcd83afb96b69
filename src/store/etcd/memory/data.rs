//! Keys, revisions, history and leases of the etcd in memory.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::store::etcd::guard::Guard;
use crate::store::watch::{KeyEvent, Kv};

/// Everything that etcd stores.
#[derive(Debug, Clone)]
pub(super) struct Data {
    revision: i64,
    compacted: i64,
    keys: BTreeMap<String, Kv>,
    history: Vec<KeyEvent>,
    leases: BTreeMap<i64, Lease>,
    last_lease: i64,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    granted: Duration,
    expires: Instant,
}

/// A copy of everything, for [`Data::restore`].
#[derive(Debug, Clone)]
pub(crate) struct Backup(Data);

impl Default for Data {
    /// As in etcd, an empty store is at revision 1.
    fn default() -> Self {
        Self {
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            history: Vec::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
        }
    }
}

impl Data {
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    pub(super) fn get(&self, key: &str) -> Option<&Kv> {
        self.keys.get(key)
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    /// All keys with a prefix as they were at a revision; `None` if that revision is not there.
    pub(super) fn list(&self, prefix: &str, at: Option<i64>) -> Option<Vec<Kv>> {
        let with_prefix = |kv: &&Kv| kv.key.starts_with(prefix);
        let Some(at) = at.filter(|at| *at > 0) else {
            return Some(self.keys.values().filter(with_prefix).cloned().collect());
        };
        if at < self.compacted || at > self.revision {
            return None;
        }
        let mut keys = BTreeMap::new();
        for event in self.history.iter().take_while(|event| event.key().1 <= at) {
            match event {
                KeyEvent::Put(kv) => drop(keys.insert(kv.key.as_str(), kv)),
                KeyEvent::Delete(key, _) => drop(keys.remove(key.as_str())),
            }
        }
        Some(keys.into_values().filter(with_prefix).cloned().collect())
    }

    /// Events from a revision on; `None` if that revision was compacted.
    pub(super) fn events(&self, prefix: &str, from: i64) -> Option<Vec<KeyEvent>> {
        if from < self.compacted {
            return None;
        }
        let wanted = |event: &&KeyEvent| event.key().1 >= from && event.key().0.starts_with(prefix);
        Some(self.history.iter().filter(wanted).cloned().collect())
    }

    pub(super) fn holds(&self, key: &str, guard: &Guard) -> bool {
        let with_prefix = |prefix: &str| -> Vec<&Kv> {
            self.keys.values().filter(|kv| kv.key.starts_with(prefix)).collect()
        };
        match guard {
            Guard::NoKey(prefix) => with_prefix(prefix).is_empty(),
            Guard::Unwritten(prefix, revision) => {
                let written_since = |kv: &&Kv| kv.mod_revision > *revision;
                !self.keys.contains_key(key) && !with_prefix(prefix).iter().any(written_since)
            }
            Guard::Version(revision) => self.get(key).map_or(0, |kv| kv.mod_revision) == *revision,
        }
    }

    pub(super) fn put(&mut self, key: &str, value: &[u8], lease: i64) -> i64 {
        self.revision += 1;
        let kv = self.kv(key, value, lease);
        self.history.push(KeyEvent::Put(kv.clone()));
        self.keys.insert(key.to_owned(), kv);
        self.revision
    }

    /// A key that is written at the current revision.
    fn kv(&self, key: &str, value: &[u8], lease: i64) -> Kv {
        let (revision, known) = (self.revision, self.get(key));
        Kv {
            key: key.to_owned(),
            value: value.to_vec(),
            create_revision: known.map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            lease,
        }
    }

    /// Rewrites history: the key had this value all the time, and no watch delivers it.
    pub(super) fn put_unwatched(&mut self, key: &str, value: &[u8]) {
        let kv = self.kv(key, value, 0);
        self.history.push(KeyEvent::Put(kv.clone()));
        self.keys.insert(key.to_owned(), kv);
    }

    /// Deletes those keys that exist, at one revision.
    pub(super) fn delete(&mut self, keys: &[String]) -> i64 {
        let existing: Vec<&String> = keys.iter().filter(|key| self.keys.contains_key(*key)).collect();
        if existing.is_empty() {
            return self.revision;
        }
        self.revision += 1;
        for key in existing {
            self.keys.remove(key);
            self.history.push(KeyEvent::Delete(key.clone(), self.revision));
        }
        self.revision
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.revision;
    }

    /// Creates a lease. Returns its id and when it expires.
    pub(super) fn grant(&mut self, ttl: Duration) -> (i64, Instant) {
        self.last_lease += 1;
        let expires = Instant::now() + ttl;
        self.leases.insert(self.last_lease, Lease { granted: ttl, expires });
        (self.last_lease, expires)
    }

    /// Returns whether the lease exists.
    pub(super) fn revoke(&mut self, lease: i64) -> bool {
        let attached = self.keys.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone());
        let attached: Vec<String> = attached.collect();
        self.delete(&attached);
        self.leases.remove(&lease).is_some()
    }

    /// Returns when the lease expires now, if it exists.
    pub(super) fn keep_alive(&mut self, lease: i64) -> Option<Instant> {
        let lease = self.leases.get_mut(&lease)?;
        lease.expires = Instant::now() + lease.granted;
        Some(lease.expires)
    }

    /// Time left and whole time of a lease, if it exists.
    pub(super) fn time_to_live(&self, lease: i64) -> Option<(Duration, Duration)> {
        let lease = self.leases.get(&lease)?;
        Some((lease.expires.saturating_duration_since(Instant::now()), lease.granted))
    }

    /// Ends the leases that have expired.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let over = self.leases.iter().filter(|(_, lease)| lease.expires <= now).map(|(id, _)| *id);
        let over: Vec<i64> = over.collect();
        for lease in over {
            self.revoke(lease);
        }
    }

    pub(super) fn backup(&self) -> Backup {
        Backup(self.clone())
    }

    pub(super) fn restore(&mut self, backup: Backup) {
        *self = backup.0;
    }
}
