//! The production store: Flannel's layout in etcd, shared with flannelds that use the UDP backend.
//!
//! [`EtcdStore::open`] joins: it finds or takes our subnet and reads the map from etcd, or, while
//! etcd does not answer, from the snapshot that the last run left on disk. From then on an agent, a
//! task of its own, watches the map and renews the lease. [`EtcdStore::next`] returns what the
//! agent reports.
//!
//! Invariant: a node forwards for a subnet only while no other node is known to hold it. An outage
//! of etcd is no reason to stop; another owner always is ([`Lost`](super::Lost)).
//!
//! Sources: flannel-io/flannel `pkg/subnet/etcd`; etcd's API guarantees (the events of a watch are
//! ordered, and either complete from its start revision on, or the watch is cancelled).
#![forbid(unsafe_code)]

pub(super) mod acquire;
mod agent;
mod backoff;
mod choice;
pub(super) mod connection;
mod events;
pub(super) mod failure;
mod grpc;
pub(super) mod guard;
mod handle;
mod health;
pub(super) mod holdings;
pub(super) mod host_files;
mod identity;
mod join;
mod lease_cache;
mod liveness;
#[cfg(test)]
pub(crate) mod memory;
mod own_lease;
mod random;
pub(super) mod record;
mod renew;
mod run;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;

pub use handle::EtcdStore;
pub use health::{Health, Renewals, Resyncs};
