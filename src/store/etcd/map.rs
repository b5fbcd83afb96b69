//! The leases as etcd's keys tell them: pure, fed by a list and by single events, whichever comes.
//!
//! It decides what is a lease and what is none; a key or value that is none costs that key alone and is remembered with
//! its reason. It does not decide what a lease means for routes.
//!
//! Invariant: after any history the map equals one made of a fresh list (property test
//! `any_history_ends_in_a_fresh_list`), and so does a RIB that applied what the map returned.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::client::{Kv, Listing};
use crate::route::{Change, Event, Lease, Networks, Public};
use crate::store::flannel::{Attributes, Key, Keys};

/// A lease and the key that says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kv: Kv,
    pub(crate) subnets: Vec<IpNet>,
    pub(crate) attributes: Attributes,
}

impl Record {
    /// Its etcd lease, if it runs out.
    pub(crate) fn is_reserved(&self) -> bool {
        self.kv.lease == 0
    }

    /// Whether it claims an address of `public`.
    pub(crate) fn claims(&self, public: &Public) -> bool {
        self.attributes.public.iter().any(|theirs| public.iter().any(|ours: IpAddr| ours == theirs))
    }

    /// Who wrote it, if that was a hopsack.
    pub(crate) fn node_id(&self) -> Option<&str> {
        self.attributes.identity.as_ref().map(|identity| identity.id.as_str())
    }

    fn lease(&self, base: u64) -> Lease {
        self.attributes.lease(&self.subnets, exposed(base, self.kv.mod_revision))
    }
}

/// What a key turned out to be.
#[derive(Debug)]
pub(crate) enum Reading {
    Lease(Record),
    /// The name says which subnets are meant, if it does.
    Bad(Option<Vec<IpNet>>, String),
    Config,
    Other,
}

/// Reads one key. `networks`: where leases must lie; `None`: anywhere.
pub(crate) fn read(keys: &Keys, networks: Option<&Networks>, kv: &Kv) -> Reading {
    match keys.read(&kv.key) {
        Key::Config => Reading::Config,
        Key::Other => Reading::Other,
        Key::Bad(reason) => Reading::Bad(None, reason),
        Key::Lease(subnets) => match Attributes::parse(&kv.value) {
            Err(reason) => Reading::Bad(Some(subnets), reason),
            // 0.0.0.0/0 under a lease's name must not draw all packets to one host.
            Ok(_) if networks.is_some_and(|networks| !inside(networks, &subnets)) => {
                Reading::Bad(Some(subnets), "its subnet is outside the network of this cluster".into())
            }
            Ok(attributes) => Reading::Lease(Record { kv: kv.clone(), subnets, attributes }),
        },
    }
}

fn inside(networks: &Networks, subnets: &[IpNet]) -> bool {
    subnets.iter().all(|subnet| networks.iter().any(|network| network.contains(subnet) && network != *subnet))
}

/// Revisions of a store that lost its history go on above the old ones.
fn exposed(base: u64, revision: i64) -> u64 {
    base + u64::try_from(revision).unwrap_or(0)
}

/// All leases.
#[derive(Debug, Clone)]
pub(crate) struct Map {
    keys: Keys,
    networks: Networks,
    records: BTreeMap<String, Record>,
    bad: BTreeMap<String, String>,
    revision: i64,
    base: u64,
}

impl Map {
    pub(crate) fn new(keys: &Keys, networks: Networks) -> Self {
        let (records, bad) = (BTreeMap::new(), BTreeMap::new());
        Self { keys: keys.clone(), networks, records, bad, revision: 0, base: 0 }
    }

    /// Takes a list for all there is. Returns the keys that are newly bad.
    pub(crate) fn list(&mut self, listing: &Listing) -> Vec<(String, String)> {
        if listing.revision < self.revision {
            self.base = exposed(self.base, self.revision);
        }
        let known = std::mem::take(&mut self.bad);
        self.records.clear();
        for kv in &listing.kvs {
            match read(&self.keys, Some(&self.networks), kv) {
                Reading::Lease(record) => drop(self.records.insert(kv.key.clone(), record)),
                Reading::Bad(_, reason) => drop(self.bad.insert(kv.key.clone(), reason)),
                Reading::Config | Reading::Other => {}
            }
        }
        self.revision = listing.revision;
        let new = |(key, reason): &(&String, &String)| known.get(*key) != Some(*reason);
        self.bad.iter().filter(new).map(|(key, reason)| (key.clone(), reason.clone())).collect()
    }

    /// Takes a written key. Returns what it means for routes, and why it is bad if it is.
    pub(crate) fn put(&mut self, kv: &Kv) -> (Option<Event>, Option<String>) {
        if kv.mod_revision <= self.known(&kv.key) {
            return (None, None);
        }
        match read(&self.keys, Some(&self.networks), kv) {
            Reading::Lease(record) => {
                let event = Event::Put(record.lease(self.base));
                self.bad.remove(&kv.key);
                self.records.insert(kv.key.clone(), record);
                (Some(event), None)
            }
            Reading::Bad(_, reason) => {
                let event = self.remove(&kv.key, kv.mod_revision);
                let known = self.bad.insert(kv.key.clone(), reason.clone());
                (event, (known.as_ref() != Some(&reason)).then_some(reason))
            }
            Reading::Config | Reading::Other => (None, None),
        }
    }

    /// Takes a deleted key. Returns what it means for routes.
    pub(crate) fn delete(&mut self, key: &str, revision: i64) -> Option<Event> {
        if revision <= self.known(key) {
            return None;
        }
        self.bad.remove(key);
        self.remove(key, revision)
    }

    /// Everything up to `revision` was delivered.
    pub(crate) fn reached(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    /// The whole map for the node.
    pub(crate) fn snapshot(&self) -> Change {
        let leases = self.records.values().map(|record| record.lease(self.base)).collect();
        Change::Snapshot { leases, revision: exposed(self.base, self.revision) }
    }

    /// etcd's revision.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    pub(crate) fn record(&self, key: &str) -> Option<&Record> {
        self.records.get(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Keys that are no leases though they stand where leases do, with reasons.
    pub(crate) fn bad(&self) -> &BTreeMap<String, String> {
        &self.bad
    }

    /// Leases of `self` and `other` that differ or are in one of them only.
    pub(crate) fn differences<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let here = self.records.iter().filter(|(key, record)| other.records.get(*key) != Some(record));
        let there = other.records.keys().filter(|key| !self.records.contains_key(*key));
        here.map(|(key, _)| key.as_str()).chain(there.map(String::as_str)).collect()
    }

    /// Up to which revision we know of a key.
    fn known(&self, key: &str) -> i64 {
        self.records.get(key).map_or(0, |record| record.kv.mod_revision).max(self.revision)
    }

    fn remove(&mut self, key: &str, revision: i64) -> Option<Event> {
        let record = self.records.remove(key)?;
        Some(Event::Delete { subnets: record.subnets, revision: exposed(self.base, revision) })
    }
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
