//! Packets and connections: what waits for whom, what leaves by which connection, what comes in.
//!
//! One task a peer ([`Line`]) pumps packets into the connection in use, one a connection ([`Way`]) reads what comes; all run
//! on the endpoint's thread. How a connection comes about is [`super::connect`]'s matter.
//!
//! Invariant: each packet that was taken from the workers is counted once, as forwarded or under one drop reason; so is each
//! that came in a DATAGRAM frame.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, SendDatagramError, VarInt};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::connection::Way;
use super::peer::Line;
use super::socket::Socket;
use super::status::QuicStatus;
use super::{QuicError, Report, Setup, tls};
use crate::engine::{SlowPathPackets, SlowPathWriter, View};
use crate::forward::DropReason;
use crate::pki::{Identity, Trust};
use crate::route::{Announced, Fib, Mode, Peer, Protection};
use crate::sys::udp;

/// How long packets wait for a connection.
pub(super) const HOLD: Duration = Duration::from_secs(2);
/// Bytes that wait for one peer: 3 ms of what a connection carries (2.8 Gbit/s, benches/README.md).
const ROOM: usize = 1 << 20;
/// A connection that another has taken the place of still brings what is under way.
const LINGER: Duration = Duration::from_secs(1);
/// Datagrams that are merged before the device is written to.
const BATCH: u64 = 128;

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
    /// With the task that sends its trains.
    socket: RefCell<(Arc<Socket>, AbortHandle)>,
    pub(super) client: RefCell<ClientConfig>,
    pub(super) trust: RefCell<Trust>,
    pub(super) view: View,
    pub(super) board: Arc<QuicStatus>,
    pub(super) ours: Cell<SocketAddr>,
    entrance: RefCell<SlowPathWriter>,
    lines: RefCell<BTreeMap<IpAddr, Rc<Line>>>,
    reports: mpsc::UnboundedSender<Report>,
    payload: u16,
    idle: Duration,
    started: Cell<bool>,
    pub(super) stranger_told: Cell<Option<Instant>>,
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
        board: Arc<QuicStatus>,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Result<Rc<Self>, QuicError> {
        let Setup { address, payload, identity, trust, reset_key, idle, view, entrance } = setup;
        let (endpoint, socket, client) = tls::endpoint(address, payload, &reset_key, (&identity, &trust))?;
        Ok(Rc::new(Self {
            endpoint,
            socket: RefCell::new(sending(socket)),
            client: RefCell::new(client),
            trust: RefCell::new(trust),
            view,
            board,
            ours: Cell::new(address),
            entrance: RefCell::new(entrance),
            lines: RefCell::default(),
            reports,
            payload,
            idle,
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
        let slow_path = self.view.slow_path().clone();
        loop {
            let parcels = slow_path.take().await;
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

    fn enqueue(self: &Rc<Self>, parcel: SlowPathPackets) {
        let line = self.line(parcel.to);
        line.queue().push(parcel);
        while line.queue().bytes() > ROOM {
            let Some(oldest) = line.queue().pop_oldest() else { break };
            let reason = if line.is_connected() { DropReason::Congested } else { DropReason::Unconnected };
            self.drop_packets(reason, oldest.count());
        }
        if line.is_connected() {
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
        while !line.gone.get() {
            let way = line.way();
            // Without a connection nothing is taken out: it waits for one.
            let (Some(way), Some(mut parcel)) = (way.as_ref(), way.as_ref().and_then(|_| line.queue().pop()))
            else {
                line.work.notified().await;
                continue;
            };
            line.active.set(Instant::now());
            self.settle(way);
            while let Some(packet) = parcel.take_next() {
                match way.connection.send_datagram_wait(packet.clone()).await {
                    Ok(()) => way.handed(packet.len()),
                    Err(SendDatagramError::TooLarge) => self.too_big(&line, &way.connection, &packet),
                    Err(
                        SendDatagramError::ConnectionLost(_)
                        | SendDatagramError::Disabled
                        | SendDatagramError::UnsupportedByPeer,
                    ) => {
                        let stride = packet.len();
                        line.queue().put_back(parcel);
                        line.queue().put_back(SlowPathPackets { to: line.address, bytes: packet, stride });
                        self.lost(&line, way);
                        break;
                    }
                }
            }
        }
        self.give_up(&line);
    }

    /// Counts what a connection has sent.
    fn settle(&self, way: &Way) {
        let (packets, bytes) = way.sent();
        if packets > 0 {
            let entrance = self.entrance.borrow();
            entrance.account().counters.egress.forwarded_many(packets, bytes);
        }
    }

    /// Drops what waits for a peer.
    fn give_up(&self, line: &Line) {
        let mut queue = line.queue();
        while let Some(parcel) = queue.pop() {
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

    /// A connection has authenticated the peer: packets may come by it from here on, and go by it if it is the greatest.
    pub(super) fn enter(self: &Rc<Self>, line: &Rc<Line>, way: &Rc<Way>, name: &str) {
        tokio::task::spawn_local(self.clone().read(line.clone(), way.clone()));
        self.board.connected(line.address, inner_mtu(&way.connection));
        line.is_well();
        self.place(line, way, name);
    }

    /// The connection's place in the peer's order is known, or is another than before.
    pub(super) fn place(self: &Rc<Self>, line: &Rc<Line>, way: &Rc<Way>, name: &str) {
        let before = line.way();
        if line.enter(way) {
            let mtu = inner_mtu(&way.connection);
            self.report(line, mtu);
            let peer = way.connection.remote_address();
            match &before {
                None => tracing::info!(host = name, %peer, mtu, "packets to and from it are encrypted"),
                Some(_) => tracing::debug!(host = name, %peer, mtu, "a new connection to it took over"),
            }
            line.work.notify_one();
        }
        let (line, spare) = (line.clone(), line.ways().split_off(1));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(LINGER).await;
            for way in spare.iter().filter(|way| !line.is_current(way)) {
                way.connection.close(Goodbye::Replaced.code(), b"a newer connection is there");
            }
        });
    }

    /// From a connection to the overlay device, until it ends.
    async fn read(self: Rc<Self>, line: Rc<Line>, way: Rc<Way>) {
        let connection = &way.connection;
        while let Ok(first) = connection.read_datagram().await {
            line.active.set(Instant::now());
            let fib = self.view.fib();
            let mut entrance = self.entrance.borrow_mut();
            // What is not admitted has been counted.
            let _ = entrance.admit(&fib, line.address, &first);
            let mut count = 1;
            while count < BATCH {
                let Some(Ok(next)) = connection.read_datagram().now_or_never() else { break };
                let _ = entrance.admit(&fib, line.address, &next);
                count += 1;
            }
            entrance.flush();
            way.read(count);
            if count < BATCH {
                entrance.account().counters.ingress.drop_many(DropReason::Congested, way.pushed_out());
            }
        }
        let pushed_out = way.pushed_out();
        self.entrance.borrow().account().counters.ingress.drop_many(DropReason::Congested, pushed_out);
        self.lost(&line, &way);
    }

    /// A connection has ended. If it was in use, another that lives takes its place; without one it is made anew if there is
    /// anything to send, or if the peer may have been restarted.
    fn lost(self: &Rc<Self>, line: &Rc<Line>, way: &Rc<Way>) {
        self.settle(way);
        self.drop_packets(DropReason::Unconnected, way.unsent());
        if !line.leave(way) {
            return;
        }
        line.work.notify_one();
        let reason = way.connection.close_reason();
        if let Some(reason) = &reason {
            tracing::info!(peer = %line.address, %reason, "a connection ended");
        }
        if line.is_connected() {
            return;
        }
        self.board.change(line.address, |peer| peer.since = None);
        self.key_lost(line);
        if line.has_work() {
            line.waiting.set(Some(Instant::now()));
        }
        let is_sudden = matches!(reason, Some(ConnectionError::Reset | ConnectionError::TimedOut));
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
            for way in line.clear() {
                way.connection.close(Goodbye::NoLease.code(), b"the lease is gone");
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
        let moved = udp::bind(address).and_then(Socket::new).and_then(|socket| {
            self.endpoint.rebind_abstract(socket.clone())?;
            Ok(socket)
        });
        match moved {
            Ok(socket) => {
                let (_, task) = self.socket.replace(sending(socket));
                task.abort();
            }
            Err(error) => return tracing::error!(%address, %error, "QUIC stays at the old address"),
        }
        self.ours.set(address);
        let lines: Vec<Rc<Line>> = self.lines.borrow().values().cloned().collect();
        for line in &lines {
            for way in line.clear() {
                way.connection.close(Goodbye::Replaced.code(), b"this host has another address");
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
        self.tally();
        let lines: Vec<Rc<Line>> = self.lines.borrow().values().cloned().collect();
        for line in lines {
            if line.waiting.get().is_some_and(|since| since.elapsed() >= HOLD) {
                line.waiting.set(None);
                self.give_up(&line);
            }
            for way in line.ways() {
                self.settle(&way);
                self.drop_packets(DropReason::TooBig, way.too_long());
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
            } else if line.active.get().elapsed() >= self.idle {
                connection.close(Goodbye::Idle.code(), b"idle");
            } else {
                self.dial_if_due(&line, &fib);
            }
        }
    }

    /// Counts what passed the socket.
    fn tally(&self) {
        let (socket, entrance) = (&self.socket.borrow().0, self.entrance.borrow());
        let (tally, counters) = (socket.tally(), &entrance.account().counters);
        counters.egress_sends.add(tally.sends.swap(0, Ordering::Relaxed));
        counters.udp_receives.add(tally.receives.swap(0, Ordering::Relaxed));
        counters.udp_datagrams.add(tally.datagrams.swap(0, Ordering::Relaxed));
        self.board.queue_dropped(socket.queue_drops());
    }

    /// Says goodbye. What waits is counted, and what workers put aside from here on they count themselves.
    pub(super) async fn close(self: Rc<Self>) {
        /// Long enough for one packet to each peer.
        const PATIENCE: Duration = Duration::from_millis(300);
        let left: u64 = self.view.slow_path().close().iter().map(SlowPathPackets::count).sum();
        self.drop_packets(DropReason::Unconnected, left);
        self.endpoint.close(Goodbye::Stopping.code(), b"stopping");
        let _ = tokio::time::timeout(PATIENCE, self.endpoint.wait_idle()).await;
        let lines: Vec<Rc<Line>> = self.lines.borrow().values().cloned().collect();
        for line in lines {
            self.give_up(&line);
            for way in line.clear() {
                self.settle(&way);
                self.drop_packets(DropReason::Unconnected, way.unsent());
            }
        }
        self.tally();
    }

    /// Where a peer's endpoint is.
    pub(super) fn remote(line: &Line, announced: Announced) -> SocketAddr {
        SocketAddr::new(line.address, announced.port)
    }
}

/// A socket, and the task without which its trains stand still.
fn sending(socket: Arc<Socket>) -> (Arc<Socket>, AbortHandle) {
    // Among the tasks of quinn, not among ours: it must see them run in between.
    let task = tokio::spawn(socket.clone().send_trains());
    (socket, task.abort_handle())
}

/// The longest inner packet that a connection takes.
fn inner_mtu(connection: &Connection) -> u16 {
    connection.max_datagram_size().and_then(|size| u16::try_from(size).ok()).unwrap_or(u16::MAX)
}
