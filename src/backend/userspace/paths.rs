//! The paths to peers that answer control messages: which peers can be reached, how long an answer
//! takes, how many are lost, and how long a datagram may be.
//!
//! One task sends keep-alives and probes, and answers those of peers. It runs on the main thread;
//! the workers only pass on what they receive. The wire format is in
//! [`packet::control`](crate::packet::control).
//!
//! Invariant: the task sends at most [`KEEP_ALIVES`] keep-alives in a tick, and at most
//! [`SEARCHES`] peers are probed at the same time, however many peers there are.

mod answers;
mod fragments;
mod path;
mod probing;
mod sender;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use path::Path;
pub(super) use path::PathHealth;
use sender::Sender;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::sockets::ControlSockets;
use crate::engine::{ControlArrival, EngineView};
use crate::forward::{Peer, Table};
use crate::packet::control::Kind;
use crate::packet::{Family, min_mtu, outer_overhead};
use crate::quic::QuicStatus;
use crate::route::Protection;
use crate::sys::now;
use crate::time::Nanos;

/// Time between two rounds of the task.
const TICK: Duration = Duration::from_millis(100);
/// Keep-alives in a tick: 50 in a second.
const KEEP_ALIVES: usize = 5;
/// Ticks between two looks at all peers.
const LOOK: u32 = 5;
/// Paths that are searched for their MTU at the same time.
const SEARCHES: usize = 32;

/// What the task has found, for reports. The task writes it, other threads read it.
#[derive(Debug, Default)]
pub(super) struct Health {
    paths: Mutex<BTreeMap<IpAddr, PathHealth>>,
    refused_sends: AtomicU64,
    /// Whether this host receives by the kernel fast path: answers to peers say so.
    is_fast: AtomicBool,
    /// Peers that are told otherwise, and until when.
    denied: Mutex<BTreeMap<IpAddr, Nanos>>,
}

impl Health {
    /// The path to a peer; `None` if the peer answers no control messages.
    pub(super) fn of(&self, peer: IpAddr) -> Option<PathHealth> {
        self.paths().get(&peer).copied()
    }

    /// All paths.
    pub(super) fn all(&self) -> BTreeMap<IpAddr, PathHealth> {
        self.paths().clone()
    }

    /// From now on this host receives by the kernel fast path, or does not.
    pub(super) fn set_fast(&self, is_fast: bool) {
        self.is_fast.store(is_fast, Ordering::Relaxed);
    }

    /// Whether the answer to a peer says that this host receives by the kernel fast path.
    fn is_fast_for(&self, peer: IpAddr, now: Nanos) -> bool {
        let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        denied.retain(|_, until| now < *until);
        self.is_fast.load(Ordering::Relaxed) && !denied.contains_key(&peer)
    }

    /// Until then, answers to a peer say that this host does not receive by the kernel fast path.
    pub(super) fn deny_fast(&self, peer: IpAddr, until: Nanos) {
        let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        if denied.insert(peer, until).is_none() {
            tracing::warn!(%peer, "the kernel fast path does not get the datagrams of a peer: its engine sends them");
        }
    }

    /// Keep-alives that a packet filter of this host has refused.
    pub(super) fn refused_sends(&self) -> u64 {
        self.refused_sends.load(Ordering::Relaxed)
    }

    fn paths(&self) -> MutexGuard<'_, BTreeMap<IpAddr, PathHealth>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has changed about the path to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathChange {
    /// Its MTU was learned: bytes of underlay packet. `None`: it is not known any more.
    Mtu(Option<u32>),
    /// Whether datagrams that are longer than the path arrive in fragments.
    Fragments(bool),
    /// The peer receives by the kernel fast path, or does not any more.
    Fast(bool),
}

/// The running task.
#[derive(Debug)]
pub(super) struct Paths {
    reports: mpsc::UnboundedReceiver<(IpAddr, PathChange)>,
    sockets: mpsc::UnboundedSender<ControlSockets>,
    health: Arc<Health>,
    task: JoinHandle<()>,
}

impl Paths {
    /// Starts the task, which sends by `socket` to the peers of `view`'s engine. `connections`: the
    /// encrypted ones.
    pub(super) fn start(
        view: EngineView,
        socket: ControlSockets,
        connections: Option<Arc<QuicStatus>>,
    ) -> Self {
        let (sender, reports) = mpsc::unbounded_channel();
        let (sockets, new_sockets) = mpsc::unbounded_channel();
        let health = Arc::<Health>::default();
        let task = Task {
            sender: Sender::new(socket, view.workers()),
            view,
            paths: BTreeMap::new(),
            reports: sender,
            health: health.clone(),
            connections,
            ticks: 0,
        };
        Self { reports, sockets, health, task: tokio::spawn(task.run(new_sockets)) }
    }

    /// What is known of the paths.
    pub(super) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// From now on the task sends by another socket.
    pub(super) fn relocate(&self, socket: ControlSockets) {
        // The task ends only with this value.
        let _ = self.sockets.send(socket);
    }

    /// Waits for the next change to the path of a peer. Cancel safe.
    pub(super) async fn next(&mut self) -> (IpAddr, PathChange) {
        match self.reports.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    view: EngineView,
    sender: Sender,
    paths: BTreeMap<IpAddr, Path>,
    reports: mpsc::UnboundedSender<(IpAddr, PathChange)>,
    health: Arc<Health>,
    connections: Option<Arc<QuicStatus>>,
    ticks: u32,
}

impl Task {
    async fn run(mut self, mut sockets: mpsc::UnboundedReceiver<ControlSockets>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (inbox, mut arrivals) = (self.view.control_inbox().clone(), Vec::new());
        loop {
            tokio::select! {
                () = inbox.wait() => {}
                _ = tick.tick() => self.tick(now()),
                Some(socket) = sockets.recv() => self.sender = Sender::new(socket, self.view.workers()),
                else => return,
            }
            inbox.take(&mut arrivals);
            let table = self.view.table();
            for arrival in arrivals.drain(..) {
                self.arrived(&table, arrival);
            }
        }
    }

    /// Handles a message of a peer.
    fn arrived(&mut self, table: &Table, ControlArrival { from, port, message, at }: ControlArrival) {
        let Some(peer) = table.peer_by_address(from).filter(|peer| answers_control(peer)) else { return };
        let path = self.paths.entry(from).or_insert_with(|| Path::new(top(peer), at));
        match message.kind {
            Kind::Reply => {
                let was_fast = path.is_fast();
                path.answered(message, port, at);
                if let Some(is_fast) = path.is_fast().filter(|is_fast| was_fast != Some(*is_fast)) {
                    // The receiver is gone only if the backend has stopped.
                    let _ = self.reports.send((from, PathChange::Fast(is_fast)));
                }
            }
            Kind::Request => {
                if path.may_answer(port, at) {
                    let is_fast = self.health.is_fast_for(from, at);
                    // A lost answer is as good as a lost question.
                    let _ = self.sender.send(peer, message.reply(is_fast), 0, at);
                }
            }
        }
    }

    fn tick(&mut self, now: Nanos) {
        let table = self.view.table();
        let looks = self.ticks.is_multiple_of(LOOK);
        self.ticks = self.ticks.wrapping_add(1);
        if looks {
            self.follow(&table, now);
        }
        for (peer, errno) in self.sender.refused() {
            if let Some(path) = self.paths.get_mut(&peer) {
                path.refused(errno, now);
            }
        }
        self.keep_alive(&table, now);
        if self.sender.may_probe() {
            self.probe(&table, now);
        }
        if looks {
            let health = self.paths.iter().map(|(peer, path)| (*peer, path.health(now))).collect();
            *self.health.paths() = health;
        }
    }

    /// Forgets peers that are gone, and begins with new ones.
    fn follow(&mut self, table: &Table, now: Nanos) {
        let is_there = |address: &IpAddr| table.peer_by_address(*address).is_some_and(is_watched);
        self.paths.retain(|address, _| is_there(address));
        let is_fast = self.health.is_fast.load(Ordering::Relaxed);
        for peer in table.peers().iter().filter(|peer| is_watched(peer)) {
            let path = self.paths.entry(peer.endpoint.ip()).or_insert_with(|| Path::new(top(peer), now));
            if answers_control(peer) {
                path.set_top(top(peer));
                if !peer.abilities.is_assumed {
                    path.set_announced();
                }
            }
            path.expire(now);
            path.set_may_be_used(is_fast && path.is_fast() == Some(true));
            if peer.take_traffic() {
                path.used(now);
            }
        }
    }

    /// Asks the peers that are due: those with traffic first, then those that were not asked for
    /// the longest time.
    fn keep_alive(&mut self, table: &Table, now: Nanos) {
        let mut due: Vec<(bool, Nanos, IpAddr)> = self
            .paths
            .iter()
            .filter(|(_, path)| path.is_due(now))
            .map(|(peer, path)| (path.is_idle(now), path.asked_at(), *peer))
            .collect();
        due.sort_unstable();
        for (.., address) in due.into_iter().take(KEEP_ALIVES) {
            let (Some(peer), Some(path)) = (table.peer_by_address(address), self.paths.get_mut(&address))
            else {
                continue;
            };
            if !answers_control(peer) {
                let connections = self.connections.as_ref();
                let is_connected = connections.is_some_and(|known| known.peer(address).since.is_some());
                path.connected(is_connected || peer.can_seal(), now);
                continue;
            }
            let request = path.keep_alive(now);
            if let Err(errno) = self.sender.send(peer, request, 0, now)
                && errno != libc::ENOKEY
            {
                path.refused(errno, now);
                self.health.refused_sends.fetch_add(u64::from(errno == libc::EPERM), Ordering::Relaxed);
            }
        }
    }

    /// Sends the probes that are due.
    fn probe(&mut self, table: &Table, now: Nanos) {
        let due = self.paths.iter_mut().filter(|(_, path)| path.has_probes(now)).take(SEARCHES);
        for (address, path) in due {
            let Some(peer) = table.peer_by_address(*address).filter(|peer| answers_control(peer)) else {
                continue;
            };
            let requests = path.probes(now);
            if let Some(mtu) = path.take_change() {
                let overhead = u32::from(outer_overhead(Family::of(*address)));
                let mtu = mtu.map(|payload| u32::from(payload) + overhead);
                // The receiver is gone only if the backend has stopped.
                let _ = self.reports.send((*address, PathChange::Mtu(mtu)));
            }
            for request in requests {
                let length = usize::from(request.length);
                // One that does not leave is as good as a lost one.
                let _ = self.sender.send(peer, request, length, now);
            }
        }
        self.probe_fragments(table, now);
    }

    /// Sends probes that must be fragmented to peers with a path that is too narrow for IPv6.
    fn probe_fragments(&mut self, table: &Table, now: Nanos) {
        let mut left = SEARCHES;
        for (address, path) in &mut self.paths {
            let Some(peer) = table.peer_by_address(*address).filter(|peer| answers_control(peer)) else {
                continue;
            };
            let has_v6 = peer.abilities.ipv6 && peer.subnets.iter().any(|subnet| subnet.addr().is_ipv6());
            let needed = min_mtu(Family::V6).min(peer.own_mtu).saturating_add(overhead(peer));
            let probe =
                if left > 0 { path.fragment_probe(if has_v6 { needed } else { 0 }, now) } else { None };
            if let Some(request) = probe {
                left -= 1;
                // One that does not leave is as good as a lost one.
                let _ = self.sender.send_in_fragments(peer, request, needed.into(), now);
            }
            if let Some(arrive) = path.take_fragments_change() {
                // The receiver is gone only if the backend has stopped.
                let _ = self.reports.send((*address, PathChange::Fragments(arrive)));
            }
        }
    }
}

/// Whether this host can know if it reaches a peer: the peer answers control messages, or there is
/// an encrypted connection to it.
fn is_watched(peer: &Peer) -> bool {
    peer.protection != Protection::Clear || peer.abilities.control
}

/// Whether a peer can be sent control messages, and answers them.
fn answers_control(peer: &Peer) -> bool {
    peer.abilities.control
        && match peer.protection {
            Protection::Clear => true,
            Protection::Sealed => peer.can_seal(),
            Protection::Quic => false,
        }
}

/// The longest datagram to a peer that the links at both ends take.
fn top(peer: &Peer) -> u16 {
    peer.widest_mtu.saturating_add(overhead(peer))
}

/// Bytes by which datagrams to a peer are longer than their content.
fn overhead(peer: &Peer) -> u16 {
    u16::try_from(peer.overhead()).unwrap_or(u16::MAX)
}
