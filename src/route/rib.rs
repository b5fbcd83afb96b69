//! The routing information base: applies the changes of a store.
//!
//! It does not know which host is ours, and routes nothing.
//!
//! Invariant: a change with an older revision than the known one has no effect.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::change::{Change, Event};
use super::lease::Lease;

/// The routing information base: the last known state of every lease.
#[derive(Debug, Clone, Default)]
pub struct Rib {
    /// The leases by their subnets. A deleted lease stays as a tombstone until the next snapshot,
    /// so that a late Put with an older revision does not bring it back.
    entries: BTreeMap<Vec<IpNet>, Entry>,
    /// Revision of the last snapshot.
    snapshot: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    revision: u64,
    lease: Option<Lease>,
}

impl Rib {
    /// Applies a change. Returns whether any lease is different now.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Snapshot { leases, revision } => self.replace(leases, revision),
            Change::Delta(events) => {
                let mut changed = false;
                for event in events {
                    changed |= match event {
                        Event::Put(lease) => {
                            let (key, revision) = (lease.subnets.clone(), lease.revision);
                            self.set(key, Entry { revision, lease: Some(lease) })
                        }
                        Event::Delete { subnets, revision } => {
                            self.set(subnets, Entry { revision, lease: None })
                        }
                    };
                }
                changed
            }
        }
    }

    /// The leases, ordered by subnet.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.entries.values().filter_map(|entry| entry.lease.as_ref())
    }

    fn replace(&mut self, leases: Vec<Lease>, revision: u64) -> bool {
        if revision < self.snapshot {
            return false;
        }
        self.snapshot = revision;
        let listed: BTreeMap<_, _> = leases
            .into_iter()
            .map(|lease| (lease.subnets.clone(), Entry { revision: lease.revision, lease: Some(lease) }))
            .collect();
        // A delta that arrived before the list can be newer than the list.
        let newer = |entry: &Entry| entry.revision > revision;
        let before: Vec<Lease> = self.leases().cloned().collect();
        self.entries.retain(|_, entry| newer(entry));
        for (key, entry) in listed {
            self.entries.entry(key).or_insert(entry);
        }
        !self.leases().eq(before.iter())
    }

    fn set(&mut self, key: Vec<IpNet>, entry: Entry) -> bool {
        let known = self.entries.get(&key);
        let stale = known.map_or(self.snapshot, |known| known.revision) >= entry.revision;
        if stale {
            return false;
        }
        let before = self.entries.insert(key, entry.clone()).and_then(|known| known.lease);
        before.map(without_revision) != entry.lease.map(without_revision)
    }
}

/// The lease without its revision. A renewal changes only the revision, which does not matter for
/// packets.
fn without_revision(mut lease: Lease) -> Lease {
    lease.revision = 0;
    lease
}

#[cfg(test)]
mod tests;
