//! The control socket: what a running node says of itself, and how it is asked.
//!
//! One JSON object a line in each direction over a unix socket: `{"command":"status"}` brings `{"ok":{...}}` or
//! `{"error":"..."}`. The answers ([`Status`], [`Peer`], [`Route`], [`Drop`], [`Explanation`]) are the structs that the commands print,
//! as tables for people or as JSON. It only tells; nothing here changes the node.
//!
//! Invariant: at most one daemon answers at a path, and a path whose daemon is dead is taken over.

mod explain;
mod socket;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

pub use explain::{Count, Explanation, Keys, Outcome};
pub use socket::{ControlError, Server, answers, ask};

use crate::engine::View;
use crate::forward::{Direction, DropReason};
use crate::netlink::Netlink;
use crate::quic::QuicStatus;
use crate::route::{Local, Policy, Protection};
use crate::store::etcd::Health;
use crate::sys::now;

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Request {
    /// [`Status`]
    Status,
    /// A list of [`Peer`]
    Peers,
    /// A list of [`Route`]
    Routes,
    /// A list of [`Drop`]
    Drops,
    /// An [`Explanation`]
    Explain {
        /// What is asked about.
        address: IpAddr,
    },
}

/// The node in one screen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// Of the daemon.
    pub pid: u32,
    /// Packets of all routes can pass. A node that does not stand yet answers with an error instead.
    pub ready: bool,
    /// Since the daemon started.
    pub uptime_seconds: u64,
    /// This host's name in the store.
    pub node: String,
    /// Its address on the underlay.
    pub public_ip: IpAddr,
    /// The underlay interface.
    pub interface: String,
    /// The overlay device.
    pub device: String,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// The UDP port.
    pub port: u16,
    /// This host's subnets.
    pub subnets: Vec<String>,
    /// The overlay's networks.
    pub networks: Vec<String>,
    /// What moves packets.
    pub engine: String,
    /// Its threads.
    pub workers: usize,
    /// Why this engine, and with which offloads.
    pub engine_reason: String,
    /// Where the map comes from.
    pub store: String,
    /// What is wrong with it; the last good map is in force.
    pub store_trouble: Option<String>,
    /// Since the map in force was last known to be right.
    pub map_age_seconds: u64,
    /// Seconds until our own lease runs out if it is not renewed, negative if it has; `None`: it does not run out.
    pub lease_expires_seconds: Option<i64>,
    /// What is wrong with our address or the underlay's MTU; forwarding goes on as before.
    pub underlay_trouble: Option<String>,
    /// Another host sends packets with a source in our own subnet.
    pub alarm: Option<String>,
    /// What this host does about encryption, in words.
    pub encryption: String,
    /// Hosts that packets can be sent to.
    pub peers: usize,
    /// Hosts in the store that cannot be reached, and why.
    pub unreachable: Vec<String>,
    /// Packets that left.
    pub egress_packets: u64,
    /// Their bytes.
    pub egress_bytes: u64,
    /// Packets that came in.
    pub ingress_packets: u64,
    /// Their bytes.
    pub ingress_bytes: u64,
    /// All drops together; `hopsack drops` tells them apart.
    pub dropped_packets: u64,
}

/// A host that packets can be sent to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Peer {
    /// Its name in the store.
    pub name: String,
    /// Its address and port.
    pub endpoint: String,
    /// What it owns.
    pub subnets: Vec<String>,
    /// The longest inner packet that it is sent, in bytes.
    pub mtu: u16,
    /// How its packets travel: `udp`, `sealed` or `quic`.
    pub transport: String,
    /// With what they are encrypted, in words; `none`: they are not.
    pub encryption: String,
    /// How old the keys are, in seconds, if there are any.
    pub key_age_seconds: Option<u64>,
}

/// A route.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Route {
    /// The prefix.
    pub subnet: String,
    /// The host that owns it.
    pub host: String,
    /// Where packets for it go: an address and port, or "local".
    pub next_hop: String,
    /// In bytes.
    pub mtu: u16,
}

/// Packets that went nowhere.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drop {
    /// `egress` (from the TUN) or `ingress` (from the network).
    pub direction: String,
    /// The metric label.
    pub reason: String,
    /// How many.
    pub packets: u64,
    /// What it means.
    pub meaning: String,
}

/// What is fixed while a node runs.
#[derive(Debug)]
pub struct Identity {
    /// This host's name in the store.
    pub name: String,
    /// The overlay's networks.
    pub networks: Vec<String>,
    /// The overlay device.
    pub device: String,
    /// Where the map comes from.
    pub store: String,
    /// Why this engine moves packets, and with which offloads.
    pub engine_reason: String,
    /// How packets are to be protected.
    pub policy: Policy,
    /// The encrypted connections, if there is an endpoint.
    pub board: Option<Arc<QuicStatus>>,
}

/// What changes.
#[derive(Debug)]
pub struct Facts {
    /// What is wrong with the store.
    pub trouble: Option<String>,
    /// When the map in force was last known to be right, if something is wrong with the store.
    pub map_since: Instant,
    /// What the store says of itself, if it has more to say than the rest here.
    pub health: Option<Health>,
    /// Our part in the overlay.
    pub local: Local,
    /// The underlay interface.
    pub interface: String,
    /// What is wrong with our address or the underlay's MTU.
    pub underlay_trouble: Option<String>,
    /// Who uses our subnet besides us.
    pub alarm: Option<String>,
}

impl Facts {
    /// Of a node whose map was just read.
    #[must_use]
    pub fn new(local: Local, interface: String) -> Self {
        let (trouble, health, underlay_trouble, alarm) = (None, None, None, None);
        Self { trouble, map_since: Instant::now(), health, local, interface, underlay_trouble, alarm }
    }

    /// How old the map in force may be; 0 while the store keeps it up to date.
    #[must_use]
    pub fn map_age(&self) -> Duration {
        match (&self.health, &self.trouble) {
            (Some(health), _) => {
                health.stale_since.and_then(|since| since.elapsed().ok()).unwrap_or_default()
            }
            (None, Some(_)) => self.map_since.elapsed(),
            (None, None) => Duration::ZERO,
        }
    }

    /// Something is wrong with the store.
    pub fn trouble(&mut self, problem: String) {
        if self.trouble.is_none() {
            self.map_since = Instant::now();
        }
        self.trouble = Some(problem);
    }
}

/// A node from its first moment on: what it waits for while it starts, then its [`State`].
#[derive(Debug)]
pub struct Watch {
    state: OnceLock<Arc<State>>,
    waiting: Mutex<String>,
}

impl Default for Watch {
    fn default() -> Self {
        Self { state: OnceLock::new(), waiting: Mutex::new("the node is starting".into()) }
    }
}

impl Watch {
    /// The node waits, and says for what.
    pub fn wait_for(&self, what: &str) {
        what.clone_into(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The node stands.
    pub fn attach(&self, state: Arc<State>) {
        // A node starts once.
        let _ = self.state.set(state);
    }

    /// The node, or what it waits for.
    pub fn ready(&self) -> Result<&Arc<State>, String> {
        let waiting = || self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.state.get().ok_or_else(waiting)
    }
}

/// A running node, as others may look at it: the source of the control socket's answers and of the metrics.
#[derive(Debug)]
pub struct State {
    /// Fixed at start.
    pub identity: Identity,
    /// The engine's counters and table.
    pub view: View,
    started: Instant,
    facts: Mutex<Facts>,
    netlink: Netlink,
}

impl State {
    /// With a map just read.
    #[must_use]
    pub fn new(identity: Identity, facts: Facts, view: View, netlink: Netlink) -> Self {
        Self { identity, view, started: Instant::now(), facts: Mutex::new(facts), netlink }
    }

    /// For reading and changing; held for a moment only.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Packets dropped by us, and by the kernel on our behalf, in both directions; what never happened is left out.
    pub async fn drops(&self) -> Vec<Drop> {
        let mut drops = Vec::new();
        let mut add = |direction: &str, reason: &str, packets: u64, meaning: &str| {
            if packets > 0 {
                let (direction, reason, meaning) = (direction.into(), reason.into(), meaning.into());
                drops.push(Drop { direction, reason, packets, meaning });
            }
        };
        for (name, pick) in DIRECTIONS {
            for reason in DropReason::ALL {
                let packets = self.sum(|direction| direction.dropped(reason), pick);
                add(name, reason.label(), packets, reason.sentence());
            }
        }
        let full = "the overlay device's queue was full, or no daemon had it open";
        add("egress", "device_queue_full", self.device_drops().await, full);
        let full = "the UDP socket's receive queue was full: this host gets more than one thread can take";
        let quic = self.identity.board.as_ref().map_or(0, |board| board.queue_drops());
        add("ingress", "socket_queue_full", self.view.socket_drops() + quic, full);
        drops
    }

    /// Sums over the workers.
    fn sum(&self, count: impl Fn(&Direction) -> u64, pick: Pick) -> u64 {
        self.view.accounts().iter().map(|account| count(pick(&account.counters))).sum()
    }

    async fn device_drops(&self) -> u64 {
        let link = self.netlink.link(&self.identity.device).await;
        link.ok().flatten().map_or(0, |link| link.tx_dropped)
    }

    async fn answer(&self, request: Request) -> serde_json::Result<serde_json::Value> {
        match request {
            Request::Status => serde_json::to_value(self.status().await),
            Request::Peers => serde_json::to_value(self.peers()),
            Request::Routes => serde_json::to_value(self.routes()),
            Request::Drops => serde_json::to_value(self.drops().await),
            Request::Explain { address } => serde_json::to_value(self.explain(address).await),
        }
    }

    async fn status(&self) -> Status {
        let dropped_packets = self.drops().await.iter().map(|drop| drop.packets).sum();
        let (facts, fib) = (self.facts(), self.view.fib());
        let local = &facts.local;
        let [(_, egress), (_, ingress)] = DIRECTIONS;
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            ready: true,
            uptime_seconds: self.started.elapsed().as_secs(),
            node: self.identity.name.clone(),
            public_ip: local.public,
            interface: facts.interface.clone(),
            device: self.identity.device.clone(),
            mtu: local.mtu,
            port: local.port,
            subnets: local.subnets.iter().map(ToString::to_string).collect(),
            networks: self.identity.networks.clone(),
            engine: self.view.engine().into(),
            workers: self.view.workers(),
            engine_reason: self.identity.engine_reason.clone(),
            store: self.identity.store.clone(),
            store_trouble: facts.trouble.clone(),
            map_age_seconds: facts.map_age().as_secs(),
            lease_expires_seconds: facts
                .health
                .as_ref()
                .and_then(|health| health.lease_expires)
                .map(seconds_until),
            underlay_trouble: facts.underlay_trouble.clone(),
            alarm: facts.alarm.clone(),
            encryption: self.encryption(),
            peers: fib.peers().len(),
            unreachable: fib
                .unreachable()
                .iter()
                .map(|lost| format!("{}: {}", lost.name, lost.reason))
                .collect(),
            egress_packets: self.sum(|direction| direction.packets.get(), egress),
            egress_bytes: self.sum(|direction| direction.bytes.get(), egress),
            ingress_packets: self.sum(|direction| direction.packets.get(), ingress),
            ingress_bytes: self.sum(|direction| direction.bytes.get(), ingress),
            dropped_packets,
        }
    }

    fn peers(&self) -> Vec<Peer> {
        let fib = self.view.fib();
        let peer = |peer: &crate::route::Peer| {
            let (transport, encryption, key_age_seconds) = self.protection(peer);
            Peer {
                name: peer.name.clone(),
                endpoint: peer.endpoint.to_string(),
                subnets: peer.subnets.iter().map(ToString::to_string).collect(),
                mtu: peer.mtu,
                transport: transport.into(),
                encryption,
                key_age_seconds,
            }
        };
        fib.peers().iter().map(peer).collect()
    }

    fn encryption(&self) -> String {
        let Policy { mode, require } = self.identity.policy;
        let others = if require { "others get nothing" } else { "others are sent clear packets" };
        match self.identity.board.as_ref().map(|board| board.counts()) {
            None => "none".into(),
            Some(counts) => format!(
                "{}, with hosts that encrypt too; {others}; {} connections, {} handshakes ({} failed)",
                mode.word(),
                counts.connected,
                counts.handshakes,
                counts.failures
            ),
        }
    }

    /// How a peer's packets travel, with what they are encrypted, and how old the keys are in seconds.
    fn protection(&self, peer: &crate::route::Peer) -> (&'static str, String, Option<u64>) {
        let transport = match peer.protection {
            Protection::Clear => return ("udp", "none".into(), None),
            Protection::Sealed => "sealed",
            Protection::Quic => "quic",
        };
        if let Some(keys) = peer.session.as_ref().and_then(|session| session.status(now())) {
            let text = format!("sealed by {}, epoch {}", keys.suite.name(), keys.epoch);
            return (transport, text, Some(keys.age / 1_000_000_000));
        }
        let status =
            self.identity.board.as_ref().map(|board| board.peer(peer.endpoint.ip())).unwrap_or_default();
        match (status.since, status.trouble) {
            (Some(since), _) => (transport, "QUIC, TLS 1.3".into(), Some(since.elapsed().as_secs())),
            (None, Some(trouble)) => (transport, format!("NO CONNECTION: {trouble}"), None),
            (None, None) => (transport, "QUIC, TLS 1.3; idle".into(), None),
        }
    }

    fn routes(&self) -> Vec<Route> {
        let (local, fib) = (self.facts().local.clone(), self.view.fib());
        let route = |subnet: &ipnet::IpNet, host: &str, next_hop: String, mtu| {
            (*subnet, Route { subnet: subnet.to_string(), host: host.into(), next_hop, mtu })
        };
        let own =
            local.subnets.iter().map(|subnet| route(subnet, &self.identity.name, "local".into(), local.mtu));
        let theirs = fib.peers().iter().flat_map(|peer| {
            peer.subnets.iter().map(|subnet| route(subnet, &peer.name, peer.endpoint.to_string(), peer.mtu))
        });
        let mut routes: Vec<_> = own.chain(theirs).collect();
        routes.sort_by_key(|(subnet, _)| *subnet);
        routes.into_iter().map(|(_, route)| route).collect()
    }
}

/// Negative if it is past.
fn seconds_until(time: SystemTime) -> i64 {
    let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::now()) {
        Ok(left) => seconds(left),
        Err(past) => -seconds(past.duration()),
    }
}

type Pick = fn(&crate::forward::Counters) -> &Direction;
const DIRECTIONS: [(&str, Pick); 2] =
    [("egress", |counters| &counters.egress), ("ingress", |counters| &counters.ingress)];
