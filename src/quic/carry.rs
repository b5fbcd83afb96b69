//! Packets and connections: what waits for whom, what leaves by which connection, what comes in.
//!
//! A [`Line`] is one peer: its queue, its connection in use, its attempts. One task a peer pumps packets into the
//! connection, one a connection reads what comes; all run on the endpoint's thread. How a connection comes about is
//! [`super::connect`]'s matter.
//!
//! Invariant: each packet that was taken from the workers is counted once, as forwarded or under one drop reason.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, SendDatagramError, VarInt};
use tokio::sync::{Notify, mpsc};

use super::board::Board;
use super::{QuicError, Report, Setup, tls};
use crate::engine::{Entrance, Parcel, View};
use crate::forward::DropReason;
use crate::pki::{Identity, Trust};
use crate::route::{Announced, Fib, Mode, Peer, Protection};
use crate::sys::udp;

/// How long packets wait for a connection.
pub(super) const HOLD: Duration = Duration::from_secs(2);
/// Bytes that wait for one peer: a few milliseconds of what a connection carries.
const ROOM: usize = 1 << 20;
/// A connection without packets for so long ends; the next packet brings it back.
const IDLE: Duration = Duration::from_secs(120);
/// A connection that another has taken the place of still brings what is under way.
const LINGER: Duration = Duration::from_secs(1);
/// Datagrams that are merged before the device is written to.
const BATCH: usize = 128;
/// A trouble with one peer is told once in this time.
const WARN: Duration = Duration::from_secs(60);

/// Why a connection is closed, as the peer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goodbye {
    /// The daemon ends.
    Stopping = 0,
    /// The certificate is not that of the lease at the peer's address.
    Untrusted = 1,
    /// A newer connection is there.
    Replaced = 2,
    /// No packets for a while.
    Idle = 3,
    /// The lease is gone, or does not announce encryption.
    NoLease = 4,
}

impl Goodbye {
    pub(super) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// All that the endpoint's thread has.
pub(super) struct Core {
    pub(super) endpoint: Endpoint,
    pub(super) client: RefCell<ClientConfig>,
    pub(super) trust: RefCell<Trust>,
    pub(super) view: View,
    pub(super) board: Arc<Board>,
    pub(super) ours: Cell<SocketAddr>,
    entrance: RefCell<Entrance>,
    lines: RefCell<BTreeMap<IpAddr, Rc<Line>>>,
    reports: mpsc::UnboundedSender<Report>,
    payload: u16,
    started: Cell<bool>,
    pub(super) stranger_told: Cell<Option<Instant>>,
}

/// One peer.
pub(super) struct Line {
    pub(super) address: IpAddr,
    queue: RefCell<VecDeque<Parcel>>,
    queued: Cell<usize>,
    /// Since when packets wait without a connection.
    waiting: Cell<Option<Instant>>,
    /// Something to do for the pump.
    work: Notify,
    current: RefCell<Option<Connection>>,
    active: Cell<Instant>,
    gone: Cell<bool>,
    pub(super) dialling: Cell<bool>,
    pub(super) failures: Cell<u32>,
    pub(super) retry_at: Cell<Instant>,
    told: Cell<Option<Instant>>,
    /// Packets that were sealed for it when it was asked last.
    pub(super) sealed: Cell<u64>,
}

impl Line {
    fn new(address: IpAddr) -> Self {
        let now = Instant::now();
        Self {
            address,
            queue: RefCell::default(),
            queued: Cell::new(0),
            waiting: Cell::new(None),
            work: Notify::new(),
            current: RefCell::new(None),
            active: Cell::new(now),
            gone: Cell::new(false),
            dialling: Cell::new(false),
            failures: Cell::new(0),
            retry_at: Cell::new(now),
            told: Cell::new(None),
            sealed: Cell::new(0),
        }
    }

    pub(super) fn connection(&self) -> Option<Connection> {
        self.current.borrow().clone()
    }

    pub(super) fn has_work(&self) -> bool {
        self.queued.get() > 0
    }

    fn is_current(&self, connection: &Connection) -> bool {
        self.current.borrow().as_ref().is_some_and(|current| current.stable_id() == connection.stable_id())
    }

    fn push(&self, parcel: Parcel) {
        self.queued.set(self.queued.get() + parcel.bytes.len());
        self.queue.borrow_mut().push_back(parcel);
    }

    fn put_back(&self, parcel: Parcel) {
        if !parcel.bytes.is_empty() {
            self.queued.set(self.queued.get() + parcel.bytes.len());
            self.queue.borrow_mut().push_front(parcel);
        }
    }

    fn pop(&self) -> Option<Parcel> {
        let parcel = self.queue.borrow_mut().pop_front()?;
        self.queued.set(self.queued.get() - parcel.bytes.len());
        Some(parcel)
    }

    /// Whether something about this peer should be told again.
    pub(super) fn may_tell(&self) -> bool {
        may_tell(&self.told)
    }
}

/// At most once in [`WARN`].
pub(super) fn may_tell(told: &Cell<Option<Instant>>) -> bool {
    let due = told.get().is_none_or(|at| at.elapsed() >= WARN);
    if due {
        told.set(Some(Instant::now()));
    }
    due
}

/// The peer at an address, if its packets are to be encrypted.
pub(super) fn protected(fib: &Fib, address: IpAddr) -> Option<(&Peer, Announced)> {
    let peer = fib.peer_by_address(address)?;
    let announced = peer.abilities.secure.filter(|_| peer.protection != Protection::Clear)?;
    (announced.mode != Mode::None).then_some((peer, announced))
}

impl Core {
    pub(super) fn new(
        setup: Setup,
        board: Arc<Board>,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Result<Rc<Self>, QuicError> {
        let Setup { address, payload, identity, trust, reset_key, view, entrance } = setup;
        let (endpoint, client) = tls::endpoint(address, payload, &reset_key, (&identity, &trust))?;
        Ok(Rc::new(Self {
            endpoint,
            client: RefCell::new(client),
            trust: RefCell::new(trust),
            view,
            board,
            ours: Cell::new(address),
            entrance: RefCell::new(entrance),
            lines: RefCell::default(),
            reports,
            payload,
            started: Cell::new(false),
            stranger_told: Cell::new(None),
        }))
    }

    /// A peer's line, made if it is not there.
    pub(super) fn line(self: &Rc<Self>, address: IpAddr) -> Rc<Line> {
        let mut lines = self.lines.borrow_mut();
        let made = lines.entry(address).or_insert_with(|| {
            let line = Rc::new(Line::new(address));
            tokio::task::spawn_local(self.clone().pump(line.clone()));
            line
        });
        made.clone()
    }

    /// Takes what the workers put aside, for ever.
    pub(super) async fn dispatch(self: Rc<Self>) {
        let side = self.view.side().clone();
        loop {
            let parcels = side.take().await;
            let fib = self.view.fib();
            for parcel in parcels {
                if protected(&fib, parcel.to).is_some() {
                    self.enqueue(parcel);
                } else {
                    self.drop_packets(DropReason::Unconnected, parcel.count());
                }
            }
        }
    }

    fn enqueue(self: &Rc<Self>, parcel: Parcel) {
        let line = self.line(parcel.to);
        line.push(parcel);
        while line.queued.get() > ROOM {
            let Some(oldest) = line.pop() else { break };
            let is_connected = line.current.borrow().is_some();
            let reason = if is_connected { DropReason::Congested } else { DropReason::Unconnected };
            self.drop_packets(reason, oldest.count());
        }
        if line.current.borrow().is_some() {
            line.work.notify_one();
        } else {
            if line.waiting.get().is_none() {
                line.waiting.set(Some(Instant::now()));
            }
            self.dial(&line);
        }
    }

    fn drop_packets(&self, reason: DropReason, count: u64) {
        self.entrance.borrow().account().counters.egress.drop_many(reason, count);
    }

    /// From a peer's queue into its connection, until the peer is gone.
    async fn pump(self: Rc<Self>, line: Rc<Line>) {
        let account = self.entrance.borrow().account().clone();
        while !line.gone.get() {
            let connection = line.connection();
            // Without a connection nothing is taken out: it waits for one.
            let (Some(connection), Some(mut parcel)) =
                (connection.as_ref(), connection.as_ref().and_then(|_| line.pop()))
            else {
                line.work.notified().await;
                continue;
            };
            line.active.set(Instant::now());
            account.counters.egress_sends.add(1);
            while let Some(packet) = parcel.take_next() {
                match connection.send_datagram_wait(packet.clone()).await {
                    Ok(()) => account.counters.egress.forwarded(packet.len()),
                    Err(SendDatagramError::TooLarge) => self.too_big(&line, connection, &packet),
                    Err(
                        SendDatagramError::ConnectionLost(_)
                        | SendDatagramError::Disabled
                        | SendDatagramError::UnsupportedByPeer,
                    ) => {
                        let stride = packet.len();
                        line.put_back(parcel);
                        line.put_back(Parcel { to: line.address, bytes: packet, stride });
                        self.lost(&line, connection);
                        break;
                    }
                }
            }
        }
        while let Some(parcel) = line.pop() {
            self.drop_packets(DropReason::Unconnected, parcel.count());
        }
    }

    /// The path is narrower than the packet's sender thinks.
    fn too_big(&self, line: &Line, connection: &Connection, packet: &[u8]) {
        let mtu = inner_mtu(connection);
        self.report(line, mtu);
        self.entrance.borrow_mut().too_big(&self.view.fib(), packet, mtu);
    }

    fn report(&self, line: &Line, mtu: u16) {
        let mut is_new = false;
        self.board.change(line.address, |peer| is_new = std::mem::replace(&mut peer.mtu, mtu) != mtu);
        if is_new {
            // The receiver is gone only when the node has stopped already.
            let _ = self.reports.send(Report::Path { peer: line.address, mtu });
        }
    }

    /// A connection has authenticated the peer: it takes the place of the one before.
    pub(super) fn take_over(self: &Rc<Self>, line: &Rc<Line>, connection: &Connection, name: &str) {
        let before = line.current.borrow_mut().replace(connection.clone());
        let mtu = inner_mtu(connection);
        self.board.connected(line.address, mtu);
        let _ = self.reports.send(Report::Path { peer: line.address, mtu });
        let peer = connection.remote_address();
        match &before {
            None => tracing::info!(host = name, %peer, mtu, "packets to and from it are encrypted"),
            Some(_) => tracing::debug!(host = name, %peer, mtu, "a new connection to it took over"),
        }
        for cell in [&line.waiting, &line.told] {
            cell.set(None);
        }
        line.failures.set(0);
        line.active.set(Instant::now());
        line.work.notify_one();
        tokio::task::spawn_local(self.clone().read(line.clone(), connection.clone()));
        if let Some(before) = before {
            tokio::task::spawn_local(async move {
                tokio::time::sleep(LINGER).await;
                before.close(Goodbye::Replaced.code(), b"a newer connection is there");
            });
        }
    }

    /// From a connection to the overlay device, until it ends.
    async fn read(self: Rc<Self>, line: Rc<Line>, connection: Connection) {
        while let Ok(first) = connection.read_datagram().await {
            line.active.set(Instant::now());
            let fib = self.view.fib();
            let mut entrance = self.entrance.borrow_mut();
            // What is not admitted has been counted.
            let _ = entrance.admit(&fib, line.address, &first);
            for _ in 1..BATCH {
                let Some(Ok(next)) = connection.read_datagram().now_or_never() else { break };
                let _ = entrance.admit(&fib, line.address, &next);
            }
            entrance.flush();
        }
        self.lost(&line, &connection);
    }

    /// A connection has ended. One that was in use is made anew if there is anything to send, or if the peer may have been
    /// restarted.
    fn lost(self: &Rc<Self>, line: &Rc<Line>, connection: &Connection) {
        if !line.is_current(connection) {
            return;
        }
        line.current.borrow_mut().take();
        self.board.change(line.address, |peer| peer.since = None);
        self.key_lost(line);
        let reason = connection.close_reason();
        let is_sudden = matches!(reason, Some(ConnectionError::Reset | ConnectionError::TimedOut));
        if let Some(reason) = &reason {
            tracing::info!(peer = %line.address, %reason, "a connection ended");
        }
        if line.has_work() {
            line.waiting.set(Some(Instant::now()));
        }
        if line.has_work() || is_sudden {
            self.dial(line);
        }
    }

    /// The FIB has changed.
    pub(super) fn refresh(self: &Rc<Self>) {
        let fib = self.view.fib();
        let leaving: Vec<Rc<Line>> = self
            .lines
            .borrow()
            .values()
            .filter(|line| protected(&fib, line.address).is_none())
            .cloned()
            .collect();
        for line in leaving {
            self.lines.borrow_mut().remove(&line.address);
            line.gone.set(true);
            if let Some(connection) = line.current.borrow_mut().take() {
                connection.close(Goodbye::NoLease.code(), b"the lease is gone");
            }
            self.board.forget(line.address);
            line.work.notify_one();
        }
        // Who starts tells its peers so: what they have of an earlier process is worth nothing.
        if !self.started.replace(true) {
            self.dial_all(&fib);
        }
    }

    fn dial_all(self: &Rc<Self>, fib: &Fib) {
        for peer in fib.peers() {
            let address = peer.endpoint.ip();
            if protected(fib, address).is_some() {
                self.dial(&self.line(address));
            }
        }
    }

    /// We are reached at another address: peers refuse a connection that moves, so all end, and are made anew.
    pub(super) fn relocate(self: &Rc<Self>, public: IpAddr) {
        let address = SocketAddr::new(public, self.ours.get().port());
        let moved = udp::bind(address).and_then(|socket| self.endpoint.rebind(socket));
        if let Err(error) = moved {
            return tracing::error!(%address, %error, "QUIC stays at the old address");
        }
        self.ours.set(address);
        let lines: Vec<Rc<Line>> = self.lines.borrow().values().cloned().collect();
        for line in &lines {
            let before = line.current.borrow_mut().take();
            if let Some(connection) = before {
                connection.close(Goodbye::Replaced.code(), b"this host has another address");
            }
            self.board.change(line.address, |peer| peer.since = None);
            // To its peers a host elsewhere is another: what was sealed for this one they could not open.
            self.key_lost(line);
        }
        self.dial_all(&self.view.fib());
    }

    /// Another certificate of ours, another trust: new connections take the place of all, one by one.
    pub(super) fn renew(self: &Rc<Self>, identity: &Identity, trust: Trust) {
        match tls::configs(self.payload, identity, &trust) {
            Ok((server, client)) => {
                self.endpoint.set_server_config(Some(server));
                *self.client.borrow_mut() = client;
                *self.trust.borrow_mut() = trust;
                self.dial_all(&self.view.fib());
            }
            Err(error) => tracing::error!(%error, "the old certificate stays in use"),
        }
    }

    /// Twice a second.
    pub(super) fn tick(self: &Rc<Self>) {
        let fib = self.view.fib();
        let lines: Vec<Rc<Line>> = self.lines.borrow().values().cloned().collect();
        for line in lines {
            if line.waiting.get().is_some_and(|since| since.elapsed() >= HOLD) {
                line.waiting.set(None);
                while let Some(parcel) = line.pop() {
                    self.drop_packets(DropReason::Unconnected, parcel.count());
                }
            }
            self.wear_out(&line, &fib);
            let Some(connection) = line.connection() else { continue };
            self.report(&line, inner_mtu(&connection));
            if !self.is_still_trusted(&line, &connection, &fib) {
                // The lease names another certificate by now: its owner has changed it, and answers with the new one.
                self.dial(&line);
            } else if self.is_in_use(&line) {
                line.active.set(Instant::now());
                self.dial_if_due(&line, &fib);
            } else if line.active.get().elapsed() >= IDLE {
                connection.close(Goodbye::Idle.code(), b"idle");
            } else {
                self.dial_if_due(&line, &fib);
            }
        }
    }

    /// Says goodbye.
    pub(super) async fn close(self: Rc<Self>) {
        /// Long enough for one packet to each peer.
        const PATIENCE: Duration = Duration::from_millis(300);
        self.endpoint.close(Goodbye::Stopping.code(), b"stopping");
        let _ = tokio::time::timeout(PATIENCE, self.endpoint.wait_idle()).await;
    }

    /// Where a peer's endpoint is.
    pub(super) fn remote(line: &Line, announced: Announced) -> SocketAddr {
        SocketAddr::new(line.address, announced.port)
    }
}

/// The longest inner packet that a connection takes.
fn inner_mtu(connection: &Connection) -> u16 {
    connection.max_datagram_size().and_then(|size| u16::try_from(size).ok()).unwrap_or(u16::MAX)
}
