//! A copy of all objects of one kind, fed by lists and by single events in any order. It is pure.
//!
//! An invalid key costs only itself: it is left out and remembered with its reason.
//!
//! Invariant: after any history the cache equals one that was made from a fresh list (property test
//! `any_history_ends_in_a_fresh_list` in `store/etcd`).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::decode::{Decode, Decoded, InvalidKey};
use super::source::{Kv, Listing};

/// A copy of all objects under a prefix.
#[derive(Debug, Clone)]
pub(crate) struct Cache<D: Decode> {
    decoder: D,
    /// Each object with the revision of its key.
    objects: BTreeMap<String, (i64, D::Object)>,
    invalid: BTreeMap<String, String>,
    revision: i64,
    base: u64,
}

/// A change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Changed<T> {
    /// The object is new or different.
    Put(T),
    /// The object is gone since this revision.
    Removed(T, i64),
}

/// What a written key turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PutResult<T> {
    /// The cache has this write or a later one already.
    Known,
    /// An object.
    Object(T),
    /// An invalid key: the object that it was before, and the reason unless it was known already.
    Invalid { removed: Option<Changed<T>>, news: Option<String> },
    /// A key with another meaning.
    Other,
}

impl<D: Decode> Cache<D> {
    pub(crate) fn new(decoder: D) -> Self {
        Self { decoder, objects: BTreeMap::new(), invalid: BTreeMap::new(), revision: 0, base: 0 }
    }

    /// Replaces everything by a list. Returns the keys that are invalid and were not known as such.
    pub(crate) fn replace(&mut self, listing: &Listing) -> Vec<InvalidKey> {
        if listing.revision < self.revision {
            self.base = self.exposed(self.revision);
        }
        let known = std::mem::take(&mut self.invalid);
        self.objects.clear();
        for kv in &listing.kvs {
            match self.decoder.decode(kv) {
                Decoded::Object(object) => {
                    self.objects.insert(kv.key.clone(), (kv.mod_revision, object));
                }
                Decoded::Invalid(reason) => {
                    self.invalid.insert(kv.key.clone(), reason);
                }
                Decoded::Other => {}
            }
        }
        self.revision = listing.revision;
        let is_new = |(key, reason): &(&String, &String)| known.get(*key) != Some(*reason);
        self.invalid.iter().filter(is_new).map(|(key, reason)| (key.clone(), reason.clone())).collect()
    }

    /// Takes a written key.
    pub(crate) fn put(&mut self, kv: &Kv) -> PutResult<D::Object> {
        if kv.mod_revision <= self.known(&kv.key) {
            return PutResult::Known;
        }
        match self.decoder.decode(kv) {
            Decoded::Object(object) => {
                self.invalid.remove(&kv.key);
                self.objects.insert(kv.key.clone(), (kv.mod_revision, object.clone()));
                PutResult::Object(object)
            }
            Decoded::Invalid(reason) => {
                let removed = self.remove(&kv.key, kv.mod_revision);
                let known = self.invalid.insert(kv.key.clone(), reason.clone());
                PutResult::Invalid { removed, news: (known.as_ref() != Some(&reason)).then_some(reason) }
            }
            Decoded::Other => PutResult::Other,
        }
    }

    /// Takes a deleted key. Returns the change.
    pub(crate) fn delete(&mut self, key: &str, revision: i64) -> Option<Changed<D::Object>> {
        if revision <= self.known(key) {
            return None;
        }
        self.invalid.remove(key);
        self.remove(key, revision)
    }

    /// Records that everything up to `revision` has been delivered.
    pub(crate) fn reached(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    /// Revision of the store that the cache equals.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// A revision as the rest of the process sees it: it never decreases, even if the store was
    /// restored from a backup.
    pub(crate) fn exposed(&self, revision: i64) -> u64 {
        self.base + u64::try_from(revision).unwrap_or(0)
    }

    pub(crate) fn objects(&self) -> impl Iterator<Item = &D::Object> {
        self.objects.values().map(|(_, object)| object)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&D::Object> {
        self.objects.get(key).map(|(_, object)| object)
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    /// Invalid keys with reasons.
    pub(crate) fn invalid(&self) -> &BTreeMap<String, String> {
        &self.invalid
    }

    /// Keys of objects that differ between `self` and `other`, or that only one of them has.
    pub(crate) fn differences<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let changed = self.objects.iter().filter(|(key, object)| other.objects.get(*key) != Some(object));
        let added = other.objects.keys().filter(|key| !self.objects.contains_key(*key));
        changed.map(|(key, _)| key.as_str()).chain(added.map(String::as_str)).collect()
    }

    /// Revision up to which the cache knows a key.
    fn known(&self, key: &str) -> i64 {
        self.objects.get(key).map_or(0, |(revision, _)| *revision).max(self.revision)
    }

    fn remove(&mut self, key: &str, revision: i64) -> Option<Changed<D::Object>> {
        self.objects.remove(key).map(|(_, object)| Changed::Removed(object, revision))
    }
}
