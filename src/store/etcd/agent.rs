//! The agent: the task behind an open etcd store. This file holds its data and its bookkeeping.
//!
//! `run.rs` has the loop over connections, `events.rs` what the agent does about changes in etcd.
//! What the agent learns leaves by a channel, so that the node may drop its future at any await.
//! The agent never decides what a change means for packets.
//!
//! Invariant: the updates that went through the channel, folded by a RIB, are etcd's state at
//! `Health::revision`.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tokio::sync::{mpsc, oneshot, watch};

use super::connection::{Endpoints, Session};
use super::failure::Failure;
use super::health::Health;
use super::identity::NodeIdentity;
use super::own_lease::OwnLease;
use super::record::LeaseDecoder;
use super::renew::{self, Outcome, Renewal};
use super::snapshot::Snapshot;
use super::state::State;
use crate::route::{Abilities, Public};
use crate::store::clock::Clock;
use crate::store::flannel::Network;
use crate::store::update::{Lost, Notice, Update};
use crate::store::watch::ListWatch;

/// What the node asks of the agent.
#[derive(Debug)]
pub(crate) enum Command {
    /// Compare the map with a list.
    Relist,
    /// Publish these addresses.
    Readdress(Public),
    /// Check whether our lease is still ours.
    Verify,
    /// Announce these abilities.
    Announce(Abilities),
    /// Save, give the lease back if so configured, and end.
    Close(oneshot::Sender<Result<(), String>>),
}

/// Why the work on a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// A call failed or the watch broke.
    Failed(Failure),
    /// Another node has our lease.
    Lost(Lost),
    /// Our address changed: the connection may depend on the old one, which would take seconds to
    /// notice.
    Moved,
    /// The store was closed or dropped.
    Closed,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Data of the agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) endpoints: Endpoints,
    pub(crate) clock: Clock,
    pub(crate) node: NodeIdentity,
    pub(crate) network: Network,
    /// Text of the network configuration in etcd.
    pub(crate) config: String,
    pub(crate) own: OwnLease,
    pub(crate) leases: ListWatch<LeaseDecoder, Session>,
    pub(crate) state: State,
    pub(crate) state_dir: PathBuf,
    pub(crate) revoke_on_exit: bool,
    pub(crate) updates: mpsc::Sender<Update>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) health: watch::Sender<Health>,
    /// What happened last at each endpoint, during an outage.
    pub(crate) causes: BTreeMap<String, String>,
    /// Keys of leases with our address that were reported.
    pub(crate) conflicts: BTreeSet<String>,
}

impl Agent {
    /// Sends an update to the node. If the node does not listen any more, nothing needs to be sent.
    pub(crate) async fn send(&self, update: Update) {
        let _ = self.updates.send(update).await;
    }

    pub(crate) async fn notify(&self, notice: Notice) {
        self.send(Update::Notice(notice)).await;
    }

    /// Renews our lease.
    pub(crate) async fn renew(&mut self, session: &mut Session) -> Result<(), End> {
        match renew::renew(session, &self.node, self.clock, &mut self.own).await {
            Ok(Renewal::Lost(lost)) => Err(End::Lost(lost)),
            Ok(Renewal::Done(outcome, notice)) => {
                self.health.send_modify(|health| match outcome {
                    Outcome::Renewed => health.renewals.renewed += 1,
                    Outcome::Rewritten => health.renewals.rewritten += 1,
                    Outcome::Recreated => health.renewals.recreated += 1,
                });
                if let Some(notice) = notice {
                    self.notify(notice).await;
                }
                self.update_health();
                Ok(())
            }
            Err(failure) => {
                self.health.send_modify(|health| health.renewals.failed += 1);
                Err(failure.into())
            }
        }
    }

    pub(crate) fn set_abilities(&mut self, abilities: Abilities) {
        self.node.identity.abilities = abilities;
        self.own.value = self.node.value();
    }

    pub(crate) fn set_public(&mut self, public: Public) {
        self.state = self.state.moved();
        self.node.public = public;
        self.own.value = self.node.value();
    }

    /// Reports an outage: to `health` each time, to the node when it begins and when an endpoint
    /// fails for another cause than before. The first failure often says only that a connection
    /// broke; the next one says why there is no other.
    pub(crate) async fn report_outage(&mut self, failure: &Failure) {
        let sentence = format!("etcd: {failure}; the last map stays in use");
        let now = self.clock.now();
        self.health.send_modify(|health| {
            health.connected = false;
            health.stale_since.get_or_insert(now);
            health.trouble = Some(sentence.clone());
        });
        if !self.state.is_outage() {
            self.causes.clear();
        }
        self.state = self.state.failed();
        let (endpoint, what) = failure.parts();
        let before = self.causes.insert(endpoint.to_owned(), what.to_owned());
        if before.as_deref() != Some(what) {
            self.send(Update::Trouble(sentence)).await;
        }
    }

    /// Reports that the watch is open.
    pub(crate) async fn report_watching(&mut self) {
        self.health.send_modify(|health| {
            health.connected = true;
            health.stale_since = None;
            health.trouble = None;
        });
        let was_outage = self.state.is_outage();
        self.state = self.state.watching();
        if was_outage {
            self.send(Update::Recovered).await;
        }
        self.update_health();
    }

    /// Updates those parts of `health` that may change a thousand times a second.
    pub(crate) fn update_health(&self) {
        self.health.send_modify(|health| {
            health.revision = self.leases.cache().revision();
            health.leases = self.leases.cache().len();
            health.lease_expires = self.own.expires;
        });
    }

    /// Updates the invalid keys in `health`.
    pub(crate) fn update_invalid(&self) {
        self.health.send_modify(|health| health.bad_keys.clone_from(self.leases.cache().invalid()));
    }

    /// Updates all of `health`, which looks at every lease.
    pub(crate) fn update_all_health(&self) {
        let cache = self.leases.cache();
        let taken: Vec<_> = cache.objects().flat_map(|record| &record.subnets).copied().collect();
        self.update_invalid();
        self.health.send_modify(|health| {
            health.subnets = self.network.pools().map(|pool| (pool.used(&taken), pool.capacity())).collect();
        });
        self.update_health();
    }

    /// Writes the map to disk. This takes milliseconds; packets are handled by other threads.
    pub(crate) fn save(&self) {
        let cache = self.leases.cache();
        let up_to_date = self.health.borrow().stale_since.unwrap_or_else(|| self.clock.now());
        let leases = cache.objects().map(|record| &record.kv);
        let snapshot =
            Snapshot::new(&self.node, &self.config, &self.own, (cache.revision(), up_to_date), leases);
        if let Err(error) = snapshot.store(&self.state_dir) {
            tracing::warn!(%error, "map not saved: a start without etcd will use an older one");
        }
    }
}
