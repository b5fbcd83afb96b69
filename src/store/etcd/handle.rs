//! The open etcd store: the node's end of the channels to the agent.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::acquire::Acquired;
use super::agent::{Agent, Command};
use super::connection::Endpoints;
use super::events::invalid_notice;
use super::health::Health;
use super::identity::{NodeIdentity, published};
use super::join::{Joined, identity, join};
use super::lease_cache::{self, LeaseCache};
#[cfg(test)]
use super::memory::{MemoryEndpoints, MemoryEtcd};
use super::record::LeaseDecoder;
use super::state::State;
use crate::route::Abilities;
use crate::store::error::StoreError;
use crate::store::flannel::{Attributes, DEFAULT_PORT};
use crate::store::settings::EtcdSettings;
use crate::store::update::{Cluster, Notice, NoticeCode, Opened, Update};
use crate::store::watch::ListWatch;

/// Number of updates that may wait for the node. When there are more, the agent waits, and with it
/// etcd's stream.
const QUEUE: usize = 64;
/// Time limit of a clean stop.
const CLOSE_PATIENCE: Duration = Duration::from_secs(8);

/// An open store.
#[derive(Debug)]
pub struct EtcdStore {
    updates: mpsc::Receiver<Update>,
    commands: mpsc::Sender<Command>,
    health: watch::Receiver<Health>,
    description: String,
}

impl EtcdStore {
    /// Joins the cluster as the host that has `addresses`. The first one is published.
    pub async fn open(settings: &EtcdSettings, addresses: &[IpAddr]) -> Result<(Self, Opened), StoreError> {
        Self::open_at(Endpoints::new(settings)?, settings, addresses).await
    }

    /// Like [`EtcdStore::open`], with an etcd in memory: for tests in virtual time. See
    /// [`MemoryEtcd`].
    #[cfg(test)]
    pub(crate) async fn open_memory(
        etcd: &MemoryEtcd,
        settings: &EtcdSettings,
        addresses: &[IpAddr],
    ) -> Result<(Self, Opened), StoreError> {
        let host = settings.node_name.as_deref().expect("a test names its hosts");
        Self::open_at(Endpoints::Memory(MemoryEndpoints::new(etcd, host)), settings, addresses).await
    }

    async fn open_at(
        mut endpoints: Endpoints,
        settings: &EtcdSettings,
        addresses: &[IpAddr],
    ) -> Result<(Self, Opened), StoreError> {
        let node = identity(settings, addresses)?;
        let joined = join(&mut endpoints, &node, settings).await?;
        Ok(start(endpoints, node, settings, joined))
    }

    /// Waits for the next update. Cancel safe: dropping the future loses nothing. After
    /// [`Update::Lost`] nothing follows.
    pub async fn next(&mut self) -> Update {
        match self.updates.recv().await {
            Some(update) => update,
            None => std::future::pending().await,
        }
    }

    /// Returns an update that is waiting.
    pub fn try_next(&mut self) -> Option<Update> {
        self.updates.try_recv().ok()
    }

    /// Compares the map with a list soon.
    pub fn reload(&mut self) {
        // If the queue is full, it holds such a request already.
        let _ = self.commands.try_send(Command::Relist);
    }

    /// Publishes other addresses of this host in its lease. The key stays the same. Returns `false`
    /// if the agent is too busy now; the caller tries again.
    pub fn readdress(&mut self, addresses: &[IpAddr]) -> bool {
        self.commands.try_send(Command::Readdress(published(addresses))).is_ok()
    }

    /// Checks now whether our lease is still ours.
    pub fn verify(&mut self) {
        // If the queue is full, the requests in it lead to the same check.
        let _ = self.commands.try_send(Command::Verify);
    }

    /// Changes what our lease announces. Returns `false` if the agent is too busy now; the caller
    /// tries again.
    pub fn announce(&mut self, abilities: Abilities) -> bool {
        self.commands.try_send(Command::Announce(abilities)).is_ok()
    }

    /// State of the connection and of our lease.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Kind and place of the store, for `status`.
    #[must_use]
    pub fn describe(&self) -> String {
        self.description.clone()
    }

    /// Closes the store: writes the map to disk, and gives the lease back if that is configured.
    pub async fn close(mut self) -> Result<(), String> {
        let (done, answer) = oneshot::channel();
        let closing = async {
            // The agent may be waiting until we take its updates.
            let drain = async { while self.updates.recv().await.is_some() {} };
            let close = async {
                match self.commands.send(Command::Close(done)).await {
                    Ok(()) => answer.await.unwrap_or(Ok(())),
                    // The agent has ended: the lease is lost.
                    Err(_) => Ok(()),
                }
            };
            tokio::select! { biased; result = close => result, () = drain => Ok(()) }
        };
        let timed_out =
            || Err("etcd does not answer, so the lease could not be given back: it expires by itself".into());
        tokio::time::timeout(CLOSE_PATIENCE, closing).await.unwrap_or_else(|_| timed_out())
    }
}

/// Starts the agent.
fn start(
    endpoints: Endpoints,
    node: NodeIdentity,
    settings: &EtcdSettings,
    joined: Joined,
) -> (EtcdStore, Opened) {
    let (updates, from_agent) = mpsc::channel(QUEUE);
    let (to_agent, commands) = mpsc::channel(8);
    let health = watch::Sender::new(Health::default());
    let clock = endpoints.clock();
    let (mut first, mut causes) = (Vec::new(), BTreeMap::new());
    let (session, acquired) = match joined {
        Joined::ByEtcd(session, acquired, refused) => {
            health.send_modify(|health| health.resyncs.start = 1);
            first.extend(refused.map(|error| {
                let text = format!("the map on disk was refused: {error}");
                Update::Notice(Notice::new(NoticeCode::SnapshotRefused, text))
            }));
            (Some(*session), *acquired)
        }
        Joined::BySnapshot(snapshot, network, failure) => {
            let (endpoint, what) = failure.parts();
            causes.insert(endpoint.to_owned(), what.to_owned());
            let mut cache = LeaseCache::new(LeaseDecoder::new(&node.keys, network.networks()));
            let invalid = cache.replace(&snapshot.listing());
            let mut sentence = format!("started without etcd ({failure}), by the map on disk");
            if snapshot.has_expired(clock.now()) {
                sentence += "; the lease of this node has expired, and its subnet is kept until etcd says that another \
                             node has it";
            }
            first.push(Update::Trouble(sentence.clone()));
            health.send_modify(|health| {
                health.trouble = Some(sentence);
                health.stale_since = Some(snapshot.written());
            });
            let own = snapshot.own();
            (None, Acquired { own, network: *network, config: snapshot.config, cache, invalid })
        }
    };
    let Acquired { mut own, network, config, cache, invalid } = acquired;
    // A later version, or another address, writes another value into the same key.
    own.value = node.value();
    first.extend(invalid_notice(&invalid).map(Update::Notice));
    for update in first {
        // The new channel has room for them.
        let _ = updates.try_send(update);
    }
    let revision = u64::try_from(own.mod_revision).unwrap_or(0);
    let opened = Opened {
        cluster: Cluster { networks: network.networks(), port: Some(network.port.unwrap_or(DEFAULT_PORT)) },
        lease: Attributes::ours(node.public, &node.identity).lease(&own.subnets, revision),
        snapshot: lease_cache::snapshot(&cache),
    };
    let agent = Agent {
        endpoints,
        clock,
        leases: ListWatch::new(node.keys.root(), cache),
        node,
        network,
        config,
        own,
        state: if session.is_some() { State::Current } else { State::FromDisk },
        state_dir: settings.state_dir.clone(),
        revoke_on_exit: settings.revoke_on_exit,
        updates,
        commands,
        health: health.clone(),
        causes,
        conflicts: BTreeSet::new(),
    };
    agent.update_all_health();
    tokio::spawn(agent.run(session));
    let description = format!("etcd {} under {}", settings.endpoints.join(", "), settings.prefix);
    let store =
        EtcdStore { updates: from_agent, commands: to_agent, health: health.subscribe(), description };
    (store, opened)
}
