//! Work that is done at regular intervals: waiting packets, path MTUs, idle connections, old keys,
//! certificates that are not trusted any more.
//!
//! It does not change the FIB: it reports path MTUs to the node.
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::close_reason::CloseReason;
use super::connection::TrackedConnection;
use super::keys::session;
use super::peer::{MAX_WAIT, QuicPeer};
use super::shown::ShownCertificate;
use super::state::{EndpointState, claim, encrypting_peer, inner_mtu};
use crate::api::ProblemCode;
use crate::forward::{DropReason, Table};
use crate::pki::{Untrusted, verify::would_accept};

impl EndpointState {
    /// Called twice a second.
    pub(super) fn tick(self: &Rc<Self>) {
        let table = self.view.table();
        self.collect_socket_counters();
        self.retry_move();
        for peer in self.all_peers() {
            if peer.waiting_since.get().is_some_and(|since| since.elapsed() >= MAX_WAIT) {
                peer.waiting_since.set(None);
                self.drop_waiting(&peer);
            }
            for tracked in peer.connections() {
                self.count_sent(&tracked);
                self.drop_egress(DropReason::TooBig, tracked.take_too_long());
            }
            self.expire_keys(&peer, &table);
            self.check_certificates(&peer, &table);
            self.check_connection(&peer, &table);
        }
    }

    /// Closes connections and removes keys that depend on a certificate which does not belong to
    /// the peer any more. The peer has some time to show the new one first: its lease may announce
    /// the new certificate before the peer uses it.
    ///
    /// If the lease has subnets that the certificate does not contain, there is no such time:
    /// packets for these subnets would reach a host that must not have them.
    pub(super) fn check_certificates(&self, peer: &QuicPeer, table: &Table) {
        for shown in peer.certificates() {
            let Err(untrusted) = self.check_shown(peer, &shown, table) else { continue };
            let is_subnet = matches!(untrusted, Untrusted::Subnets { .. });
            if is_subnet || shown.untrusted_for().is_some_and(|since| since >= self.revoke_after) {
                self.revoke(peer, &shown, table, untrusted);
            }
        }
        peer.forget_certificates(session(table, peer).as_deref());
    }

    fn revoke(&self, peer: &QuicPeer, shown: &ShownCertificate, table: &Table, untrusted: Untrusted) {
        let connections = peer.connections();
        let is_shown =
            |tracked: &&Rc<TrackedConnection>| tracked.certificate.fingerprint == shown.fingerprint;
        for tracked in connections.iter().filter(is_shown) {
            CloseReason::Untrusted.close(&tracked.connection);
        }
        if let Some(session) = session(table, peer) {
            session.revoke(&shown.fingerprint.0);
        }
        peer.forget_certificate(shown);
        self.status.count_revoked();
        let host = table.peer_by_address(peer.address).map_or("?", |route| route.name.as_str());
        tracing::warn!(
            host, peer = %peer.address, fingerprint = %shown.fingerprint, reason = %untrusted,
            "certificate does not belong to the peer any more: its connections and keys are removed"
        );
        if connections.iter().all(|tracked| is_shown(&tracked)) {
            self.report_untrusted(peer, &untrusted);
            self.status.count_failed(peer.address, Some(Arc::new(untrusted.into())));
        }
    }

    /// Raises the problem that a peer has no certificate of its own.
    pub(super) fn report_untrusted(&self, peer: &QuicPeer, untrusted: &Untrusted) {
        let cause = Some(untrusted.to_string());
        self.report_problem(ProblemCode::PeerCertificate, peer.address.to_string(), cause);
        peer.has_problem.set(true);
    }

    /// Ends that problem.
    pub(super) fn end_problem(&self, peer: &QuicPeer) {
        if peer.has_problem.replace(false) {
            self.report_problem(ProblemCode::PeerCertificate, peer.address.to_string(), None);
        }
    }

    /// Whether a certificate still belongs to the peer, by the leases and the rule of trust that
    /// are in force.
    fn check_shown(&self, peer: &QuicPeer, shown: &ShownCertificate, table: &Table) -> Result<(), Untrusted> {
        let (route, announced) = encrypting_peer(table, peer.address).ok_or(Untrusted::None)?;
        let claim = claim(route, announced);
        shown.check(&claim, self.identity_number.get(), |shown| {
            let trust = self.trust.borrow();
            trust.admits(&shown.chain, &claim)?;
            match would_accept(&trust, &shown.chain, shown.accepted_at) {
                true => Ok(()),
                false => Err(Untrusted::Authority),
            }
        })
    }

    /// Replaces the connection in use if its certificate or keys are old. Closes it if it is idle.
    fn check_connection(self: &Rc<Self>, peer: &Rc<QuicPeer>, table: &Table) {
        let Some(tracked) = peer.current() else { return };
        self.report_path_mtu(peer, inner_mtu(&tracked.connection));
        if self.check_shown(peer, &tracked.certificate, table).is_err() {
            // The lease announces another certificate: the peer has renewed it, and shows the new
            // one in a new handshake.
            self.dial(peer);
        } else if peer.dialled_with.get() < self.identity_number.get() {
            // This host has a new certificate, and the peer has not seen it: an attempt was lost.
            self.dial(peer);
        } else if self.has_sealed_packets(peer) {
            peer.active_at.set(Instant::now());
            self.dial_if_rekey_is_due(peer, table);
        } else if peer.active_at.get().elapsed() >= self.idle_timeout {
            CloseReason::Idle.close(&tracked.connection);
        } else {
            self.dial_if_rekey_is_due(peer, table);
        }
    }

    /// Adds the socket's counters to those of the data path.
    pub(super) fn collect_socket_counters(&self) {
        let (socket, writer) = (&self.socket.borrow().0, self.writer.borrow());
        let (passed, counters) = (socket.counters(), &writer.account().counters);
        counters.egress_sends.add(passed.sends.swap(0, Ordering::Relaxed));
        counters.udp_receives.add(passed.receives.swap(0, Ordering::Relaxed));
        counters.udp_datagrams.add(passed.datagrams.swap(0, Ordering::Relaxed));
        self.status.set_queue_drops(socket.queue_drops());
    }
}
