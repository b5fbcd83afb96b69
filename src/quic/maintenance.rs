//! Work that is done at regular intervals: waiting packets, path MTUs, idle connections, old keys.
//!
//! It does not change the FIB: it reports path MTUs to the node.
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::close_reason::CloseReason;
use super::peer::{MAX_WAIT, QuicPeer};
use super::state::{EndpointState, inner_mtu};
use crate::forward::{DropReason, Table};

impl EndpointState {
    /// Called twice a second.
    pub(super) fn tick(self: &Rc<Self>) {
        let table = self.view.table();
        self.collect_socket_counters();
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
            self.check_connection(&peer, &table);
        }
    }

    /// Replaces the connection in use if its certificate or keys are old. Closes it if it is idle.
    fn check_connection(self: &Rc<Self>, peer: &Rc<QuicPeer>, table: &Table) {
        let Some(connection) = peer.connection() else { return };
        self.report_path_mtu(peer, inner_mtu(&connection));
        if !self.is_still_trusted(peer, &connection, table) {
            // The lease announces another certificate: the peer has renewed it, and shows the new
            // one in a new handshake.
            self.dial(peer);
        } else if self.has_sealed_packets(peer) {
            peer.active_at.set(Instant::now());
            self.dial_if_rekey_is_due(peer, table);
        } else if peer.active_at.get().elapsed() >= self.idle_timeout {
            CloseReason::Idle.close(&connection);
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
