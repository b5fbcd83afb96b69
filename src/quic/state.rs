//! What all tasks of the endpoint's thread share: the socket, the peers, and the ways out.
//!
//! It decides nothing. The tasks are in the files named for what they do (`connect`, `datagrams`,
//! `keys`, `lifecycle`, `maintenance`).
//!
//! Invariant: there is at most one [`QuicPeer`] for each underlay address.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{ClientConfig, Connection, Endpoint};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::admission::Admission;
use super::error::QuicError;
use super::event::QuicEvent;
use super::handshakes::HandshakeThread;
use super::options::QuicOptions;
use super::peer::QuicPeer;
use super::socket::TrainSocket;
use super::status::QuicStatus;
use super::tls;
use super::warning_limit::WarningLimit;
use crate::api::ProblemCode;
use crate::engine::{EngineView, SlowPathWriter};
use crate::forward::{DropReason, Peer, Table};
use crate::pki::{Claim, Trust};
use crate::route::{Announced, Mode, Protection};

/// State of the endpoint's thread.
pub(super) struct EndpointState {
    pub(super) endpoint: Endpoint,
    pub(super) handshakes: HandshakeThread,
    pub(super) admission: RefCell<Admission>,
    /// The socket, and the task that sends its unfinished trains.
    pub(super) socket: RefCell<(Arc<TrainSocket>, AbortHandle)>,
    pub(super) client_config: RefCell<ClientConfig>,
    pub(super) trust: RefCell<Trust>,
    /// Grows with each new certificate or rule of trust of this host.
    pub(super) identity_number: Cell<u64>,
    /// How long connections and keys stay after their certificate is not the peer's any more.
    pub(super) revoke_after: Duration,
    pub(super) view: EngineView,
    pub(super) status: Arc<QuicStatus>,
    /// Address and port of the socket.
    pub(super) local_address: Cell<SocketAddr>,
    /// The address to which the socket could not move yet.
    pub(super) pending_move: Cell<Option<PendingMove>>,
    pub(super) writer: RefCell<SlowPathWriter>,
    pub(super) peers: RefCell<BTreeMap<IpAddr, Rc<QuicPeer>>>,
    events: mpsc::UnboundedSender<QuicEvent>,
    pub(super) max_payload_bytes: u16,
    pub(super) idle_timeout: Duration,
    /// Whether all peers were dialled once after the start.
    pub(super) has_dialled_all: Cell<bool>,
    pub(super) unknown_source_warning: WarningLimit,
}

impl EndpointState {
    /// Binds the socket.
    pub(super) fn new(
        options: QuicOptions,
        status: Arc<QuicStatus>,
        events: mpsc::UnboundedSender<QuicEvent>,
    ) -> Result<Rc<Self>, QuicError> {
        let QuicOptions {
            address,
            max_payload_bytes,
            identity,
            trust,
            reset_key,
            idle_timeout,
            revoke_after,
            view,
            writer,
        } = options;
        let handshakes = HandshakeThread::start()?;
        let (endpoint, socket, client_config) =
            tls::endpoint(address, max_payload_bytes, &reset_key, (&identity, &trust), handshakes.runtime())?;
        Ok(Rc::new(Self {
            endpoint,
            handshakes,
            admission: RefCell::new(Admission::new(Instant::now())),
            socket: RefCell::new(with_train_task(socket)),
            client_config: RefCell::new(client_config),
            trust: RefCell::new(trust),
            identity_number: Cell::new(0),
            revoke_after,
            view,
            status,
            local_address: Cell::new(address),
            pending_move: Cell::new(None),
            writer: RefCell::new(writer),
            peers: RefCell::default(),
            events,
            max_payload_bytes,
            idle_timeout,
            has_dialled_all: Cell::new(false),
            unknown_source_warning: WarningLimit::default(),
        }))
    }

    /// The state of the peer at an address. If there is none, makes it and starts its task.
    pub(super) fn peer(self: &Rc<Self>, address: IpAddr) -> Rc<QuicPeer> {
        let mut peers = self.peers.borrow_mut();
        let made = peers.entry(address).or_insert_with(|| {
            let peer = Rc::new(QuicPeer::new(address, self.identity_number.get()));
            tokio::task::spawn_local(self.clone().send_packets(peer.clone()));
            peer
        });
        made.clone()
    }

    /// A snapshot of all peers, so that a loop over them may change the map.
    pub(super) fn all_peers(&self) -> Vec<Rc<QuicPeer>> {
        self.peers.borrow().values().cloned().collect()
    }

    /// Counts packets that will not leave this host.
    pub(super) fn drop_egress(&self, reason: DropReason, packets: u64) {
        self.writer.borrow().account().counters.egress.drop_many(reason, packets);
    }

    /// Counts received packets that will not reach the overlay device.
    pub(super) fn drop_ingress(&self, reason: DropReason, packets: u64) {
        self.writer.borrow().account().counters.ingress.drop_many(reason, packets);
    }

    /// Reports a problem, or its end if there is no cause.
    pub(super) fn report_problem(&self, code: ProblemCode, object: String, cause: Option<String>) {
        // The send fails only if the node has stopped already.
        let _ = self.events.send(QuicEvent::Problem { code, object, cause });
    }

    /// Shows the path MTU to a peer, and reports it to the node if it has changed.
    pub(super) fn report_path_mtu(&self, peer: &QuicPeer, mtu: u16) {
        let mut is_new = false;
        self.status.change(peer.address, |status| is_new = std::mem::replace(&mut status.mtu, mtu) != mtu);
        if is_new {
            // The send fails only if the node has stopped already.
            let _ = self.events.send(QuicEvent::PathMtu { peer: peer.address, mtu });
        }
    }
}

/// A move of the socket that has failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingMove {
    /// Address to which the socket is to move.
    pub(super) to: IpAddr,
    pub(super) failures: u32,
    /// No attempt starts before this time.
    pub(super) retry_at: Instant,
}

/// The peer at an address, if packets to it must be encrypted.
pub(super) fn encrypting_peer(table: &Table, address: IpAddr) -> Option<(&Peer, Announced)> {
    let peer = table.peer_by_address(address)?;
    let announced = peer.abilities.secure.filter(|_| peer.protection != Protection::Clear)?;
    (announced.mode != Mode::None).then_some((peer, announced))
}

/// What a peer's lease says about it.
pub(super) fn claim(route: &Peer, announced: Announced) -> Claim<'_> {
    Claim { name: &route.name, fingerprint: announced.fingerprint, subnets: &route.subnets }
}

/// Length in bytes of the longest inner packet that a connection takes.
pub(super) fn inner_mtu(connection: &Connection) -> u16 {
    connection.max_datagram_size().and_then(|size| u16::try_from(size).ok()).unwrap_or(u16::MAX)
}

/// Starts the task that sends a socket's unfinished trains.
pub(super) fn with_train_task(socket: Arc<TrainSocket>) -> (Arc<TrainSocket>, AbortHandle) {
    // The task must run among quinn's tasks, outside of the local set, so that a turn of it comes
    // after a turn of theirs.
    let task = tokio::spawn(socket.clone().send_trains());
    (socket, task.abort_handle())
}
