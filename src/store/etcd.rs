//! The production store: Flannel's layout in etcd, shared with flannelds in UDP mode.
//!
//! [`EtcdStore::open`] joins: it finds or takes our subnet and reads the map, from etcd, or, if that is away, from what
//! the last run left on disk. From then on an agent, a task of its own, watches and keeps the lease; [`EtcdStore::next`]
//! hands over what it says. What the operator may do to the store by hand is in [`commands`].
//!
//! Invariant: a node forwards for a subnet only while nobody else is known to hold it. etcd away is no reason to stop,
//! another owner always is ([`Update::Lost`]).
//!
//! Sources: flannel-io/flannel `pkg/subnet/etcd`; etcd's API guarantees (a watch is ordered, and complete from its start
//! revision on or cancelled).
#![forbid(unsafe_code)]

pub(super) mod acquire;
mod agent;
mod backoff;
pub(super) mod client;
mod health;
mod liveness;
pub(super) mod map;
mod renew;
mod snapshot;
mod watch;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch as watch_channel};
use tokio::time::Instant;

use acquire::{Acquired, NoLease, Node, Own};
use agent::{Agent, Command};
use backoff::Backoff;
use client::{Endpoints, Failure, FailureKind, Session};
pub use health::{Health, Renewals, Resyncs};
use snapshot::Snapshot;

use super::error::{ErrorCode, SnapshotError, StoreError};
use super::flannel::{Attributes, DEFAULT_PORT, Identity, Keys, Network};
use super::settings::EtcdSettings;
use super::update::{Cluster, Notice, NoticeCode, Opened, Update};
use crate::route::{Abilities, Announced, Lease, Public};

/// How long a start without map on disk waits for etcd before it fails, and the service manager tries again.
const START_PATIENCE: Duration = Duration::from_secs(15);
/// Updates that wait for the node; when there are more, the agent waits, and with it etcd's stream.
const QUEUE: usize = 64;
/// For a clean stop.
const CLOSE_PATIENCE: Duration = Duration::from_secs(8);

/// An open store.
#[derive(Debug)]
pub struct EtcdStore {
    updates: mpsc::Receiver<Update>,
    commands: mpsc::Sender<Command>,
    health: watch_channel::Receiver<Health>,
    description: String,
}

impl EtcdStore {
    /// Joins the cluster as the host that is reached at `addresses`: of each family the first is published.
    pub async fn open(config: &EtcdSettings, addresses: &[IpAddr]) -> Result<(Self, Opened), StoreError> {
        let mut endpoints =
            Endpoints::new(config).map_err(|text| StoreError::new(ErrorCode::Credentials, text))?;
        let node = Node {
            keys: Keys::new(&config.prefix),
            identity: Identity {
                id: snapshot::node_id(&config.state_dir)
                    .map_err(|text| StoreError::new(ErrorCode::NodeId, text))?,
                name: config.node_name.clone().unwrap_or_else(|| snapshot::host_name(addresses)),
                abilities: Abilities { secure: config.announced, ..Abilities::OURS },
            },
            public: public(addresses),
            ttl: config.lease_ttl,
        };
        if node.public == Public::default() {
            return Err(StoreError::new(
                ErrorCode::NoAddress,
                "this host has no address at which other hosts reach it: set node.public_ip",
            ));
        }
        let saved = Snapshot::load(&config.state_dir);
        let usable = saved
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .map(|saved| usable(saved, &node, &snapshot::boot_id(), SystemTime::now()));
        let (joined, complaint) = match (join(&mut endpoints, &node, config, &saved, &usable).await, usable) {
            (Ok((session, acquired)), _) => (Joined::Now(Box::new(session), Box::new(acquired)), saved.err()),
            (Err(NoLease::Refused(error)), _) => return Err(error),
            (Err(NoLease::Failed(failure)), Some(Ok(network))) => {
                let saved = saved.ok().flatten().expect("a usable map is there");
                let saved = Box::new(saved.taken_up(&config.state_dir));
                (Joined::Before(saved, Box::new(network), failure), None)
            }
            (Err(NoLease::Failed(failure)), unusable) => {
                let refused = saved.err().or_else(|| unusable.and_then(Result::err));
                return Err(failure.into_error().with_snapshot(refused));
            }
        };
        Ok(start(endpoints, node, config, joined, complaint))
    }

    /// Waits for the next update. Cancel safe: nothing is lost if the future is dropped. After [`Update::Lost`] nothing
    /// follows.
    pub async fn next(&mut self) -> Update {
        match self.updates.recv().await {
            Some(update) => update,
            None => std::future::pending().await,
        }
    }

    /// Reads the whole list soon.
    pub fn reload(&mut self) {
        // A full queue holds such a wish already.
        let _ = self.commands.try_send(Command::Relist);
    }

    /// An update that is waiting.
    pub fn try_next(&mut self) -> Option<Update> {
        self.updates.try_recv().ok()
    }

    /// Publishes other addresses of this host in its lease, in the same key. `false`: not now, try again.
    pub fn readdress(&mut self, addresses: &[IpAddr]) -> bool {
        self.commands.try_send(Command::Readdress(public(addresses))).is_ok()
    }

    /// Looks at our key now.
    pub fn verify(&mut self) {
        // With a full queue there is enough to do that ends in a look at it.
        let _ = self.commands.try_send(Command::Verify);
    }

    /// Our lease tells this of encryption from here on.
    pub fn announce(&mut self, announced: Announced) {
        let _ = self.commands.try_send(Command::Announce(announced));
    }

    /// How the store is now.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// For `status`.
    #[must_use]
    pub fn describe(&self) -> String {
        self.description.clone()
    }

    /// A clean stop: the map is written to disk, and the lease given back if that is configured.
    pub async fn close(mut self) -> Result<(), String> {
        let (done, answer) = oneshot::channel();
        let closing = async {
            // The agent may be waiting for us to take what it says.
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
        let late =
            || Err("etcd does not answer: the lease could not be given back, it runs out by itself".into());
        tokio::time::timeout(CLOSE_PATIENCE, closing).await.unwrap_or_else(|_| late())
    }
}

/// Of each family the first.
fn public(addresses: &[IpAddr]) -> Public {
    let mut public = Public::default();
    for address in addresses {
        match address {
            IpAddr::V4(v4) => public.v4 = public.v4.or(Some(*v4)),
            IpAddr::V6(v6) => public.v6 = public.v6.or(Some(*v6)),
        }
    }
    public
}

/// Whether a map from disk may stand in for etcd, and the network that it has.
///
/// With etcd away nobody can say whose our subnet is once our lease has run out. A host that was up all the time goes on
/// with it, as a daemon that was not restarted would: its pods run, and most likely nobody could take it, because who
/// cannot reach etcd can neither renew nor join (USERS: flannel#29). A host that was started anew has no pods to lose and
/// may have been away for days: it waits, rather than share a subnet (flannel#1289).
fn usable(saved: &Snapshot, node: &Node, boot: &str, now: SystemTime) -> Result<Network, SnapshotError> {
    if saved.prefix != node.keys.root() || saved.node_id != node.identity.id {
        return Err(SnapshotError::OtherNode);
    }
    if saved.ran_out(now) && !saved.is_of_boot(boot) {
        return Err(SnapshotError::LeaseExpired);
    }
    Network::parse(&saved.config).map_err(SnapshotError::Network)
}

/// How we joined.
enum Joined {
    /// etcd was there.
    Now(Box<Session>, Box<Acquired>),
    /// It was not, and the map is the last run's.
    Before(Box<Snapshot>, Box<Network>, Failure),
}

/// Asks each endpoint once; without a map to fall back on, again and again for a while.
async fn join(
    endpoints: &mut Endpoints,
    node: &Node,
    config: &EtcdSettings,
    saved: &Result<Option<Snapshot>, SnapshotError>,
    usable: &Option<Result<Network, SnapshotError>>,
) -> Result<(Session, Acquired), NoLease> {
    let mut previous: Vec<Vec<IpNet>> = Vec::new();
    previous.extend(saved.as_ref().ok().and_then(Option::as_ref).map(|saved| saved.own().subnets));
    previous.extend(snapshot::subnet_env(&config.subnet_env));
    let patience = if matches!(usable, Some(Ok(_))) { Duration::ZERO } else { START_PATIENCE };
    let (started, mut backoff, mut asked) = (Instant::now(), Backoff::default(), 0);
    loop {
        let failure = match ask(endpoints, node, &previous).await {
            Err(NoLease::Failed(failure)) => failure,
            joined => return joined,
        };
        asked += 1;
        let pointless = failure.kind == FailureKind::Denied || started.elapsed() >= patience;
        if asked >= endpoints.len() && pointless {
            return Err(NoLease::Failed(failure));
        }
        if asked % endpoints.len() == 0 {
            tokio::time::sleep(backoff.next()).await;
        }
    }
}

async fn ask(
    endpoints: &mut Endpoints,
    node: &Node,
    previous: &[Vec<IpNet>],
) -> Result<(Session, Acquired), NoLease> {
    let mut session = endpoints.connect().await?;
    let acquired = acquire::acquire(&mut session, node, previous).await?;
    Ok((session, acquired))
}

/// Our lease, for the node.
fn own_lease(own: &Own, node: &Node) -> Lease {
    let revision = u64::try_from(own.mod_revision).unwrap_or(0);
    Attributes::ours(node.public, &node.identity).lease(&own.subnets, revision)
}

/// Sets the agent going.
fn start(
    endpoints: Endpoints,
    node: Node,
    config: &EtcdSettings,
    joined: Joined,
    complaint: Option<SnapshotError>,
) -> (EtcdStore, Opened) {
    let (updates, from_agent) = mpsc::channel(QUEUE);
    let (to_agent, commands) = mpsc::channel(8);
    let health = watch_channel::Sender::new(Health::default());
    let description = format!("etcd {} under {}", config.endpoints.join(", "), config.prefix);
    let (mut own, network, text, map, session, bad) = match joined {
        Joined::Now(session, acquired) => {
            health.send_modify(|health| health.resyncs.start = 1);
            let Acquired { own, network, config, map, bad } = *acquired;
            (own, network, config, map, Some(*session), bad)
        }
        Joined::Before(saved, network, failure) => {
            let mut map = map::Map::new(&node.keys, network.networks());
            let bad = map.list(&saved.listing());
            let mut away = format!("started without etcd ({failure}), from the map on disk");
            if saved.ran_out(SystemTime::now()) {
                away += "; the lease of this node has run out, its subnet is kept until etcd says that it is another's";
            }
            // Nothing fits in a new channel but what we put there ourselves.
            let _ = updates.try_send(Update::Trouble(away.clone()));
            health.send_modify(|health| {
                health.trouble = Some(away);
                health.stale_since = Some(saved.written());
            });
            (saved.own(), *network, saved.config, map, None, bad)
        }
    };
    // Later versions and other addresses say something else in the same key.
    own.value = node.value();
    if let Some(sentence) = watch::about_bad(&bad) {
        let _ = updates.try_send(Update::Notice(Notice::new(NoticeCode::InvalidKeys, sentence)));
    }
    if let Some(complaint) = complaint {
        let text = format!("the map on disk was refused: {complaint}");
        let _ = updates.try_send(Update::Notice(Notice::new(NoticeCode::SnapshotRefused, text)));
    }
    let opened = Opened {
        cluster: Cluster { networks: network.networks(), port: Some(network.port.unwrap_or(DEFAULT_PORT)) },
        lease: own_lease(&own, &node),
        snapshot: map.snapshot(),
    };
    let agent = Agent {
        endpoints,
        node,
        network,
        config: text,
        own,
        map,
        seen: session.is_some(),
        state_dir: config.state_dir.clone(),
        revoke_on_exit: config.revoke_on_exit,
        updates,
        commands,
        in_trouble: session.is_none(),
        moved: false,
        health: health.clone(),
        clashes: std::collections::BTreeSet::new(),
    };
    agent.note_all();
    tokio::spawn(agent.run(session));
    (EtcdStore { updates: from_agent, commands: to_agent, health: health.subscribe(), description }, opened)
}
