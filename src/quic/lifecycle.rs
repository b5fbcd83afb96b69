//! What changes connections: a new one, one that ends, and commands of the node.
//!
//! It does not make connections ([`super::connect`]) and moves no packets ([`super::datagrams`]).
//!
//! Invariant: a connection that another one has replaced stays open for [`LINGER`], so that packets
//! under way still arrive.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use quinn::ConnectionError;

use super::backoff::pause;
use super::close_reason::CloseReason;
use super::connection::TrackedConnection;
use super::peer::QuicPeer;
use super::socket::TrainSocket;
use super::state::{EndpointState, PendingMove, encrypting_peer, inner_mtu, with_train_task};
use super::tls;
use crate::api::ProblemCode;
use crate::engine::SlowPathPackets;
use crate::forward::{DropReason, Table};
use crate::pki::{Identity, Trust};
use crate::sys::udp;

/// How long a replaced connection stays open.
const LINGER: Duration = Duration::from_secs(1);
/// How long a stop waits until the close frames are sent: time for one packet to each peer.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);

impl EndpointState {
    /// A connection has authenticated the peer: accepts packets from it, and sends through it if it
    /// has the highest number.
    pub(super) fn connected(
        self: &Rc<Self>,
        peer: &Rc<QuicPeer>,
        tracked: &Rc<TrackedConnection>,
        name: &str,
    ) {
        tokio::task::spawn_local(self.clone().receive_packets(peer.clone(), tracked.clone()));
        self.status.count_connected(peer.address, inner_mtu(&tracked.connection));
        peer.record_success();
        self.end_problem(peer);
        self.select_connection(peer, tracked, name);
    }

    /// Puts a connection into use if it has the highest number, and closes the replaced ones later.
    /// Called for a new connection, and when the number of a connection has become known.
    pub(super) fn select_connection(
        self: &Rc<Self>,
        peer: &Rc<QuicPeer>,
        tracked: &Rc<TrackedConnection>,
        name: &str,
    ) {
        let was_connected = peer.is_connected();
        if peer.add(tracked) {
            let mtu = inner_mtu(&tracked.connection);
            self.report_path_mtu(peer, mtu);
            let remote = tracked.connection.remote_address();
            if was_connected {
                tracing::debug!(host = name, peer = %remote, mtu, "encrypted connection replaced");
            } else {
                tracing::info!(host = name, peer = %remote, mtu, "encrypted connection established");
            }
            peer.wake.notify_one();
        }
        let (peer, spare) = (peer.clone(), peer.connections().split_off(1));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(LINGER).await;
            for tracked in spare.iter().filter(|tracked| !peer.is_current(tracked)) {
                CloseReason::Replaced.close(&tracked.connection);
            }
        });
    }

    /// A connection has ended. If it was in use, another open one takes its place. If there is
    /// none, dials again if packets wait, or if the peer may have been restarted.
    pub(super) fn connection_ended(self: &Rc<Self>, peer: &Rc<QuicPeer>, tracked: &Rc<TrackedConnection>) {
        self.drop_unsent(tracked);
        if !peer.remove(tracked) {
            return;
        }
        peer.wake.notify_one();
        let reason = tracked.connection.close_reason();
        if let Some(reason) = &reason {
            self.status.count_ended(reason);
            tracing::info!(peer = %peer.address, %reason, "encrypted connection ended");
        }
        if peer.is_connected() {
            return;
        }
        self.status.change(peer.address, |status| status.since = None);
        self.forget_keys(peer);
        if peer.has_waiting_packets() {
            peer.waiting_since.set(Some(Instant::now()));
        }
        let may_have_restarted = matches!(reason, Some(ConnectionError::Reset | ConnectionError::TimedOut));
        if peer.has_waiting_packets() || may_have_restarted {
            self.dial(peer);
        }
    }

    /// The FIB has changed: closes the connections to peers that are no longer in it.
    pub(super) fn refresh(self: &Rc<Self>) {
        let table = self.view.table();
        let is_gone = |peer: &Rc<QuicPeer>| encrypting_peer(&table, peer.address).is_none();
        for peer in self.all_peers().into_iter().filter(is_gone) {
            self.peers.borrow_mut().remove(&peer.address);
            peer.is_gone.set(true);
            for tracked in peer.remove_all() {
                CloseReason::NoLease.close(&tracked.connection);
            }
            self.status.forget(peer.address);
            self.end_problem(&peer);
            peer.wake.notify_one();
        }
        for peer in self.all_peers() {
            self.check_certificates(&peer, &table);
        }
        // A new process dials all peers once: connections that they have to an earlier process of
        // this host are useless. The first table may be empty, if this host was the first to join.
        if !table.peers().is_empty() && !self.has_dialled_all.replace(true) {
            self.dial_all(&table);
        }
    }

    fn dial_all(self: &Rc<Self>, table: &Table) {
        for route in table.peers() {
            let address = route.endpoint.ip();
            if encrypting_peer(table, address).is_some() {
                self.dial(&self.peer(address));
            }
        }
    }

    /// This host has another underlay address. Peers refuse a connection that moves, so all of them
    /// end and are made again. If the socket cannot move, it stays where it is and is moved later.
    pub(super) fn relocate(self: &Rc<Self>, public: IpAddr) {
        let address = SocketAddr::new(public, self.local_address.get().port());
        let moved = udp::bind(address).and_then(TrainSocket::new).and_then(|socket| {
            // quinn keeps the socket before this one until a packet arrives. Its address could not
            // be used again meanwhile, so this socket takes that place too.
            self.endpoint.rebind_abstract(socket.clone())?;
            self.endpoint.rebind_abstract(socket.clone())?;
            Ok(socket)
        });
        let object = || format!("UDP port {}", address.port());
        match moved {
            Ok(socket) => {
                let (_, old_task) = self.socket.replace(with_train_task(socket));
                old_task.abort();
            }
            Err(error) => {
                let cause = format!(
                    "the QUIC socket cannot move to this host's new address {address}: {error}; encrypted \
                     connections cannot be made until it can: free the port, or set security.port"
                );
                self.report_problem(ProblemCode::QuicSocket, object(), Some(cause));
                let failures = self.pending_move.get().map_or(1, |pending| pending.failures + 1);
                let retry_at = Instant::now() + pause(failures);
                self.pending_move.set(Some(PendingMove { to: public, failures, retry_at }));
                return;
            }
        }
        if self.pending_move.take().is_some() {
            self.report_problem(ProblemCode::QuicSocket, object(), None);
        }
        self.local_address.set(address);
        for peer in self.all_peers() {
            for tracked in peer.remove_all() {
                CloseReason::Moved.close(&tracked.connection);
            }
            self.status.change(peer.address, |status| status.since = None);
            // Peers take a host at another address for another host, and cannot open packets that
            // were sealed with the old keys.
            self.forget_keys(&peer);
        }
        self.dial_all(&self.view.table());
    }

    /// Tries again to move the socket, if a move has failed and the pause is over.
    pub(super) fn retry_move(self: &Rc<Self>) {
        if let Some(pending) = self.pending_move.get().filter(|pending| pending.retry_at <= Instant::now()) {
            self.relocate(pending.to);
        }
    }

    /// This host has another certificate or another trust: replaces all connections, one by one.
    pub(super) fn renew(self: &Rc<Self>, identity: &Identity, trust: Trust) {
        match tls::configs(self.max_payload_bytes, identity, &trust) {
            Ok((server_config, client_config)) => {
                self.endpoint.set_server_config(Some(server_config));
                *self.client_config.borrow_mut() = client_config;
                *self.trust.borrow_mut() = trust;
                self.identity_number.set(self.identity_number.get() + 1);
                self.dial_all(&self.view.table());
            }
            Err(error) => {
                tracing::error!(%error, "new certificate not usable: the old one stays in use");
            }
        }
    }

    /// Closes all connections. Counts the packets that wait as dropped. From here on the workers
    /// count the packets that they would have handed over.
    pub(super) async fn close(self: Rc<Self>) {
        let left: u64 = self.view.slow_path().close().iter().map(SlowPathPackets::count).sum();
        self.drop_egress(DropReason::Unconnected, left);
        let reason = CloseReason::Stopping;
        self.endpoint.close(reason.code(), reason.text());
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
        for peer in self.all_peers() {
            self.drop_waiting(&peer);
            for tracked in peer.remove_all() {
                self.drop_unsent(&tracked);
            }
        }
        self.collect_socket_counters();
    }
}
