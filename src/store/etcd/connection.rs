//! The calls that the store makes to etcd, with the real client or, in tests, with an etcd in
//! memory.
//!
//! Endpoints are used one at a time, in turn. With a balanced channel, a dead member would get its
//! share of the calls for ever; here the next [`Endpoints::connect`] goes to another member.
//! Nothing here tries again: that is the agent's task.
//!
//! Invariant: both kinds of etcd behave the same in everything that the store relies on.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::failure::{Failure, FailureKind};
use super::grpc::{GrpcEndpoints, GrpcSession, GrpcWatch};
use super::guard::{Guard, Written};
#[cfg(test)]
use super::memory::{MemoryEndpoints, MemorySession, MemoryWatch};
use crate::store::clock::Clock;
use crate::store::error::StoreError;
use crate::store::settings::EtcdSettings;
use crate::store::watch::{Kv, Listing, Message, Messages, Source};

/// Calls a method of whichever kind of etcd it is.
macro_rules! either {
    ($self:expr, $inner:ident => $call:expr) => {
        match $self {
            Self::Grpc($inner) => $call,
            #[cfg(test)]
            Self::Memory($inner) => $call,
        }
    };
}

/// Where etcd is, and how to connect.
#[derive(Debug)]
pub(crate) enum Endpoints {
    Grpc(Box<GrpcEndpoints>),
    #[cfg(test)]
    Memory(MemoryEndpoints),
}

impl Endpoints {
    /// Checks that certificates and password can be read. They are read again at each connection.
    pub(crate) fn new(settings: &EtcdSettings) -> Result<Self, StoreError> {
        Ok(Self::Grpc(Box::new(GrpcEndpoints::new(settings)?)))
    }

    /// Number of endpoints.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Grpc(endpoints) => endpoints.len(),
            #[cfg(test)]
            Self::Memory(_) => 1,
        }
    }

    /// Connects to the next endpoint.
    pub(crate) async fn connect(&mut self) -> Result<Session, Failure> {
        match self {
            Self::Grpc(endpoints) => Ok(Session::Grpc(Box::new(endpoints.connect().await?))),
            #[cfg(test)]
            Self::Memory(endpoints) => endpoints.connect().await.map(Session::Memory),
        }
    }

    /// Makes the next connection go to the endpoint of the last one.
    pub(crate) fn repeat_endpoint(&mut self) {
        match self {
            Self::Grpc(endpoints) => endpoints.repeat_endpoint(),
            #[cfg(test)]
            Self::Memory(_) => {}
        }
    }

    /// Wall-clock time by which leases expire.
    pub(crate) fn clock(&self) -> Clock {
        match self {
            Self::Grpc(_) => Clock::System,
            #[cfg(test)]
            Self::Memory(endpoints) => endpoints.clock(),
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) enum Session {
    Grpc(Box<GrpcSession>),
    #[cfg(test)]
    Memory(MemorySession),
}

impl Session {
    /// URL of the endpoint.
    pub(crate) fn endpoint(&self) -> &str {
        either!(self, session => session.endpoint())
    }

    /// Reads all keys that begin with `prefix`, now or as they were at a revision.
    pub(crate) async fn list(&mut self, prefix: &str, at: Option<i64>) -> Result<Listing, Failure> {
        either!(self, session => session.list(prefix, at).await)
    }

    /// Reads one key.
    pub(crate) async fn get(&mut self, key: &str) -> Result<Option<Kv>, Failure> {
        either!(self, session => session.get(key).await)
    }

    /// Writes `key` if the guard holds, attached to an etcd lease (0: none).
    pub(crate) async fn put(
        &mut self,
        key: &str,
        value: &str,
        lease: i64,
        guard: &Guard,
    ) -> Result<Written, Failure> {
        either!(self, session => session.put(key, value, lease, guard).await)
    }

    /// Deletes `key` if the guard holds.
    pub(crate) async fn delete(&mut self, key: &str, guard: &Guard) -> Result<Written, Failure> {
        either!(self, session => session.delete(key, guard).await)
    }

    /// Creates an etcd lease. Returns its id and the time to live that etcd gave it.
    pub(crate) async fn grant(&mut self, ttl: Duration) -> Result<(i64, Duration), Failure> {
        either!(self, session => session.grant(ttl).await)
    }

    /// Ends an etcd lease and deletes its keys.
    pub(crate) async fn revoke(&mut self, lease: i64) -> Result<(), Failure> {
        either!(self, session => session.revoke(lease).await)
    }

    /// Gives an etcd lease its whole time to live again. Returns `false` if it has expired.
    pub(crate) async fn keep_alive(&mut self, lease: i64) -> Result<bool, Failure> {
        either!(self, session => session.keep_alive(lease).await)
    }

    /// Time that an etcd lease has left, and its whole time to live; `None` if it has expired.
    pub(crate) async fn time_to_live(&mut self, lease: i64) -> Result<Option<(Duration, Duration)>, Failure> {
        either!(self, session => session.time_to_live(lease).await)
    }
}

impl Source for Session {
    type Error = Failure;
    type Watch = WatchStream;

    async fn list(&mut self, prefix: &str, at: Option<i64>) -> Result<Listing, Failure> {
        Self::list(self, prefix, at).await
    }

    async fn watch(&mut self, prefix: &str, from: i64) -> Result<WatchStream, Failure> {
        match self {
            Self::Grpc(session) => session.watch(prefix, from).await.map(WatchStream::Grpc),
            #[cfg(test)]
            Self::Memory(session) => session.watch(prefix, from).await.map(WatchStream::Memory),
        }
    }

    fn is_revision_gone(error: &Failure) -> bool {
        error.kind == FailureKind::RevisionGone
    }
}

/// An open watch.
#[derive(Debug)]
pub(crate) enum WatchStream {
    Grpc(GrpcWatch),
    #[cfg(test)]
    Memory(MemoryWatch),
}

impl Messages for WatchStream {
    type Error = Failure;

    async fn message(&mut self) -> Result<Message, Failure> {
        either!(self, watch => watch.message().await)
    }
}
