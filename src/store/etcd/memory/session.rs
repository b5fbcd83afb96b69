//! Connections to the etcd in memory: the calls of [`crate::store::etcd::connection::Session`].
#![forbid(unsafe_code)]

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::server::{Link, MemoryEtcd, State};
use crate::store::clock::Clock;
use crate::store::etcd::failure::{Failure, FailureKind};
use crate::store::etcd::grpc::{PATIENCE, PING, PING_PATIENCE, no_answer};
use crate::store::etcd::guard::{Guard, Written};
use crate::store::watch::{Kv, Listing, Message};

const ENDPOINT: &str = "memory";

/// How one host connects.
#[derive(Debug)]
pub(crate) struct MemoryEndpoints {
    etcd: MemoryEtcd,
    host: String,
}

impl MemoryEndpoints {
    pub(in crate::store::etcd) fn new(etcd: &MemoryEtcd, host: &str) -> Self {
        Self { etcd: etcd.clone(), host: host.to_owned() }
    }

    pub(in crate::store::etcd) async fn connect(&mut self) -> Result<MemorySession, Failure> {
        let host = self.host.clone();
        self.etcd.state().attempts.entry(host.clone()).or_default().push(Instant::now());
        let session = MemorySession { etcd: self.etcd.clone(), host };
        session.ready().await?;
        Ok(session)
    }

    pub(in crate::store::etcd) fn clock(&self) -> Clock {
        self.etcd.clock()
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct MemorySession {
    etcd: MemoryEtcd,
    host: String,
}

#[allow(clippy::unused_self, reason = "it has the methods of the real session")]
impl MemorySession {
    pub(in crate::store::etcd) fn endpoint(&self) -> &str {
        ENDPOINT
    }

    /// Waits until the link answers, at most as long as a call may take.
    async fn ready(&self) -> Result<(), Failure> {
        tokio::task::yield_now().await;
        let mut changes = self.etcd.changes();
        let until = Instant::now() + PATIENCE;
        loop {
            match link(&self.etcd.state(), &self.host).0 {
                Link::Up => return Ok(()),
                Link::Refused => return Err(Failure::unreachable(ENDPOINT, "connection refused")),
                Link::Denied => return Err(Failure::new(ENDPOINT, "permission denied", FailureKind::Denied)),
                Link::Silent => {}
            }
            if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
                return Err(no_answer(ENDPOINT));
            }
        }
    }

    async fn call<T>(&self, method: &'static str, call: impl FnOnce(&mut State) -> T) -> Result<T, Failure> {
        self.ready().await?;
        Ok(self.etcd.change(|state| {
            *state.calls.entry(method).or_default() += 1;
            call(state)
        }))
    }

    pub(in crate::store::etcd) async fn list(
        &mut self,
        prefix: &str,
        at: Option<i64>,
    ) -> Result<Listing, Failure> {
        let (kvs, newest) =
            self.call("list", |state| (state.data.list(prefix, at), state.data.revision())).await?;
        let gone = || Failure::new(ENDPOINT, "the revision is not there", FailureKind::RevisionGone);
        Ok(Listing { revision: at.unwrap_or(newest), kvs: kvs.ok_or_else(gone)? })
    }

    pub(in crate::store::etcd) async fn get(&mut self, key: &str) -> Result<Option<Kv>, Failure> {
        self.call("get", |state| state.data.get(key).cloned()).await
    }

    pub(in crate::store::etcd) async fn put(
        &mut self,
        key: &str,
        value: &str,
        lease: i64,
        guard: &Guard,
    ) -> Result<Written, Failure> {
        self.call("txn", |state| {
            state.write_of_another();
            if !state.data.holds(key, guard) {
                return Ok(Written::Not(state.data.get(key).cloned()));
            }
            if lease != 0 && state.data.time_to_live(lease).is_none() {
                return Err(Failure::unreachable(ENDPOINT, "requested lease not found"));
            }
            Ok(Written::At(state.data.put(key, value.as_bytes(), lease)))
        })
        .await?
    }

    pub(in crate::store::etcd) async fn delete(
        &mut self,
        key: &str,
        guard: &Guard,
    ) -> Result<Written, Failure> {
        self.call("txn", |state| {
            state.write_of_another();
            match state.data.holds(key, guard) {
                true => Written::At(state.data.delete(&[key.to_owned()])),
                false => Written::Not(state.data.get(key).cloned()),
            }
        })
        .await
    }

    pub(in crate::store::etcd) async fn grant(&mut self, ttl: Duration) -> Result<(i64, Duration), Failure> {
        let (lease, expires) = self.call("grant", |state| state.data.grant(ttl)).await?;
        self.etcd.expire_at(expires);
        Ok((lease, ttl))
    }

    pub(in crate::store::etcd) async fn revoke(&mut self, lease: i64) -> Result<(), Failure> {
        let existed = self.call("revoke", |state| state.data.revoke(lease)).await?;
        if existed { Ok(()) } else { Err(Failure::unreachable(ENDPOINT, "requested lease not found")) }
    }

    pub(in crate::store::etcd) async fn keep_alive(&mut self, lease: i64) -> Result<bool, Failure> {
        let expires = self.call("keep_alive", |state| state.data.keep_alive(lease)).await?;
        expires.into_iter().for_each(|expires| self.etcd.expire_at(expires));
        Ok(expires.is_some())
    }

    pub(in crate::store::etcd) async fn time_to_live(
        &mut self,
        lease: i64,
    ) -> Result<Option<(Duration, Duration)>, Failure> {
        self.call("time_to_live", |state| state.data.time_to_live(lease)).await
    }

    pub(in crate::store::etcd) async fn watch(
        &mut self,
        prefix: &str,
        from: i64,
    ) -> Result<MemoryWatch, Failure> {
        let number = self
            .call("watch", |state| {
                state.opened += 1;
                (state.opened != state.refused).then_some(state.opened)
            })
            .await?
            .ok_or_else(|| Failure::unreachable(ENDPOINT, "connection reset"))?;
        Ok(MemoryWatch {
            etcd: self.etcd.clone(),
            host: self.host.clone(),
            changes: self.etcd.changes(),
            prefix: prefix.to_owned(),
            next: from,
            number,
            is_open: false,
        })
    }
}

fn link(state: &State, host: &str) -> (Link, Option<Instant>) {
    state.links.get(host).copied().unwrap_or_default()
}

/// An open watch: a position in the history.
#[derive(Debug)]
pub(crate) struct MemoryWatch {
    etcd: MemoryEtcd,
    host: String,
    changes: watch::Receiver<u64>,
    prefix: String,
    /// Revision of the next event.
    next: i64,
    number: u64,
    is_open: bool,
}

impl MemoryWatch {
    /// Waits for the next message. Cancel safe.
    pub(in crate::store::etcd) async fn message(&mut self) -> Result<Message, Failure> {
        loop {
            self.changes.mark_unchanged();
            let silent_since = match self.look() {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => None,
                Err(Some(silent_since)) => Some(silent_since),
                Err(None) => return Err(Failure::unreachable(ENDPOINT, "the watch broke")),
            };
            let Some(silent_since) = silent_since else {
                let _ = self.changes.changed().await;
                continue;
            };
            let until = silent_since + PING + PING_PATIENCE;
            if tokio::time::timeout_at(until, self.changes.changed()).await.is_err() {
                return Err(Failure::unreachable(ENDPOINT, "the watch broke: no answer to a ping"));
            }
        }
    }

    /// The next message, if there is one. The error is `None` if the watch is broken, and otherwise
    /// since when the link is silent.
    fn look(&mut self) -> Result<Option<Message>, Option<Instant>> {
        let state = self.etcd.state();
        match link(&state, &self.host) {
            (Link::Up | Link::Denied, _) => {}
            (Link::Silent, since) => return Err(since),
            (Link::Refused, _) => return Err(None),
        }
        if self.number < state.broken_before {
            return Err(None);
        }
        if self.number < state.cancelled_before {
            return Ok(Some(Message::Cancelled("by the test".into())));
        }
        let revision = state.data.revision();
        if !self.is_open {
            self.is_open = true;
            return Ok(Some(Message::Opened(revision)));
        }
        match state.data.events(&self.prefix, self.next) {
            None => Ok(Some(Message::Compacted)),
            Some(events) => {
                self.next = revision + 1;
                Ok((!events.is_empty()).then_some(Message::Events(events, revision)))
            }
        }
    }
}
