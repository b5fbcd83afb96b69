//! The etcd in memory itself, and what a test does to it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::data::{Backup, Data};
use crate::route::Abilities;
use crate::store::clock::Clock;
use crate::store::settings::{EtcdSettings, LEASE_TTL};

/// State of the connection of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Link {
    /// Calls are answered.
    #[default]
    Up,
    /// Calls fail at once, and open watches break.
    Refused,
    /// Calls get no answer and fail after their time limit. Open watches break when the ping fails.
    Silent,
    /// etcd refuses the client's credentials.
    Denied,
}

/// An etcd in memory. Clones are the same etcd.
#[derive(Debug, Clone)]
pub(crate) struct MemoryEtcd(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Counts changes of the state, so that watches wake up.
    changes: watch::Sender<u64>,
    clock: Clock,
}

/// Everything that changes.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) data: Data,
    pub(super) links: BTreeMap<String, (Link, Option<Instant>)>,
    /// Attempts to connect, with the time of each, by client.
    pub(super) attempts: BTreeMap<String, Vec<Instant>>,
    /// Number of calls by method.
    pub(super) calls: BTreeMap<&'static str, u64>,
    /// Watches that were opened before this number are over.
    pub(super) broken_before: u64,
    /// Watches that were opened before this number are cancelled.
    pub(super) cancelled_before: u64,
    /// Number of watches that were opened or refused.
    pub(super) opened: u64,
    /// Number of the watch that is refused; 0 means none.
    pub(super) refused: u64,
    /// Key and value that another writer writes just before the next guarded write.
    pub(super) before_next_write: Option<(String, String)>,
}

impl State {
    /// Lets the other writer write, if there is one.
    pub(super) fn write_of_another(&mut self) {
        if let Some((key, value)) = self.before_next_write.take() {
            self.data.put(&key, value.as_bytes(), 0);
        }
    }
}

impl MemoryEtcd {
    pub(crate) fn new() -> Self {
        let (changes, clock) = (watch::Sender::new(0), Clock::virtual_now());
        Self(Arc::new(Shared { state: Mutex::default(), changes, clock }))
    }

    /// Settings of a host that keeps its state in `dir`.
    pub(crate) fn settings(&self, host: &str, dir: &Path) -> EtcdSettings {
        EtcdSettings {
            endpoints: vec!["memory".into()],
            prefix: "/coreos.com/network".into(),
            tls: None,
            user: None,
            node_name: Some(host.to_owned()),
            state_dir: dir.join("state"),
            subnet_env: dir.join("subnet.env"),
            revoke_on_exit: false,
            abilities: Abilities::OURS,
            subnets: None,
            lease_ttl: LEASE_TTL,
        }
    }

    /// Cuts or restores the connection of one host.
    pub(crate) fn set_link(&self, host: &str, link: Link) {
        let silent_since = (link == Link::Silent).then(Instant::now);
        self.change(|state| state.links.insert(host.to_owned(), (link, silent_since)));
    }

    /// Writes a key without lease, as an operator or a flanneld would.
    pub(crate) fn put(&self, key: &str, value: &str) -> i64 {
        self.change(|state| state.data.put(key, value.as_bytes(), 0))
    }

    /// Writes a key with an etcd lease of a day, as a flanneld would.
    pub(crate) fn put_leased(&self, key: &str, value: &str) {
        self.change(|state| {
            let (lease, _) = state.data.grant(LEASE_TTL);
            state.data.put(key, value.as_bytes(), lease)
        });
    }

    /// Writes a key just before the next guarded write of any host: after the host has read the
    /// key, and before it writes.
    pub(crate) fn write_before_next_write(&self, key: &str, value: &str) {
        self.change(|state| state.before_next_write = Some((key.to_owned(), value.to_owned())));
    }

    /// Deletes a key.
    pub(crate) fn delete(&self, key: &str) {
        self.change(|state| state.data.delete(&[key.to_owned()]));
    }

    /// A key's value and etcd lease.
    pub(crate) fn value(&self, key: &str) -> Option<(String, i64)> {
        let state = self.state();
        let kv = state.data.get(key)?;
        Some((String::from_utf8_lossy(&kv.value).into_owned(), kv.lease))
    }

    /// All keys.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.state().data.keys()
    }

    pub(crate) fn revision(&self) -> i64 {
        self.state().data.revision()
    }

    /// Forgets all revisions before the current one.
    pub(crate) fn compact(&self) {
        self.change(|state| state.data.compact());
    }

    /// Ends an etcd lease at once, with its keys.
    pub(crate) fn revoke(&self, lease: i64) {
        self.change(|state| state.data.revoke(lease));
    }

    /// Time that an etcd lease has left.
    pub(crate) fn time_left(&self, lease: i64) -> Option<Duration> {
        self.state().data.time_to_live(lease).map(|(left, _)| left)
    }

    /// A copy of everything.
    pub(crate) fn backup(&self) -> Backup {
        self.state().data.backup()
    }

    /// Goes back to a backup, as after the loss of a cluster: open watches break.
    pub(crate) fn restore(&self, backup: Backup) {
        self.change(|state| {
            state.data.restore(backup);
            state.broken_before = state.opened + 1;
        });
    }

    /// Refuses one watch: the `nth` that is opened from now on.
    pub(crate) fn refuse_watch(&self, nth: u64) {
        self.change(|state| state.refused = state.opened + nth);
    }

    /// Cancels all open watches.
    pub(crate) fn cancel_watches(&self) {
        self.change(|state| state.cancelled_before = state.opened + 1);
    }

    /// Changes a key without telling any watch, as a defect in etcd or in our watch would.
    pub(crate) fn put_unwatched(&self, key: &str, value: &str) {
        self.change(|state| state.data.put_unwatched(key, value.as_bytes()));
    }

    /// Number of calls of a method: "list", "get", "txn", "grant", "revoke", "keep_alive",
    /// "time_to_live" or "watch".
    pub(crate) fn calls(&self, method: &str) -> u64 {
        self.state().calls.get(method).copied().unwrap_or(0)
    }

    /// Number of calls of all methods.
    pub(crate) fn all_calls(&self) -> u64 {
        self.state().calls.values().sum()
    }

    /// Times at which a host tried to connect.
    pub(crate) fn attempts(&self, host: &str) -> Vec<Instant> {
        self.state().attempts.get(host).cloned().unwrap_or_default()
    }

    /// Clock of the leases.
    pub(super) fn clock(&self) -> Clock {
        self.0.clock
    }

    /// Wakes whenever something changes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.0.changes.send_modify(|count| *count += 1);
        result
    }

    /// Ends the leases that have expired, at this time.
    pub(super) fn expire_at(&self, at: Instant) {
        let etcd = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            etcd.change(|state| state.data.expire());
        });
    }
}
