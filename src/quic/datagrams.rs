//! Packets in DATAGRAM frames: from the workers into connections, and from connections to the
//! device.
//!
//! One task for each peer sends its waiting packets through the connection in use. One task for
//! each connection reads from it. All run on the endpoint's thread. [`super::connect`] makes the
//! connections.
//!
//! Invariant: each packet that was taken from the workers is counted once, as forwarded or under
//! one drop reason. The same holds for each packet that arrived in a DATAGRAM frame.
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::time::Instant;

use futures_util::FutureExt;
use quinn::{Connection, SendDatagramError};

use super::connection::TrackedConnection;
use super::peer::QuicPeer;
use super::state::{EndpointState, encrypting_peer, inner_mtu};
use crate::engine::SlowPathPackets;
use crate::forward::DropReason;

/// Most bytes that wait for one peer: 3 ms of what a connection carries (2.8 Gbit/s,
/// benches/README.md).
const QUEUE_BYTES: usize = 1 << 20;
/// Most packets that are merged before they are written to the device.
const READ_BATCH_PACKETS: u64 = 128;

impl EndpointState {
    /// Takes packets from the workers. It never returns.
    pub(super) async fn dispatch(self: Rc<Self>) {
        let slow_path = self.view.slow_path().clone();
        loop {
            let trains = slow_path.take().await;
            let table = self.view.table();
            for train in trains {
                if encrypting_peer(&table, train.to).is_some() {
                    self.enqueue(train);
                } else {
                    self.drop_egress(DropReason::Unconnected, train.count());
                }
            }
        }
    }

    fn enqueue(self: &Rc<Self>, train: SlowPathPackets) {
        let peer = self.peer(train.to);
        peer.queue().push(train);
        while peer.queue().bytes() > QUEUE_BYTES {
            let Some(oldest) = peer.queue().pop_oldest() else { break };
            let reason = if peer.is_connected() { DropReason::Congested } else { DropReason::Unconnected };
            self.drop_egress(reason, oldest.count());
        }
        if peer.is_connected() {
            peer.wake.notify_one();
        } else {
            if peer.waiting_since.get().is_none() {
                peer.waiting_since.set(Some(Instant::now()));
            }
            self.dial(&peer);
        }
    }

    /// Sends a peer's waiting packets through the connection in use, until the peer is gone.
    pub(super) async fn send_packets(self: Rc<Self>, peer: Rc<QuicPeer>) {
        while !peer.is_gone.get() {
            // Packets stay in the queue while there is no connection.
            let next = peer.current().and_then(|tracked| Some((tracked, peer.queue().pop()?)));
            let Some((tracked, train)) = next else {
                peer.wake.notified().await;
                continue;
            };
            peer.active_at.set(Instant::now());
            self.count_sent(&tracked);
            self.send_train(&peer, &tracked, train).await;
        }
        self.drop_waiting(&peer);
    }

    async fn send_train(
        self: &Rc<Self>,
        peer: &Rc<QuicPeer>,
        tracked: &Rc<TrackedConnection>,
        mut train: SlowPathPackets,
    ) {
        while let Some(packet) = train.take_next() {
            match tracked.connection.send_datagram_wait(packet.clone()).await {
                Ok(()) => tracked.record_held(packet.len()),
                Err(SendDatagramError::TooLarge) => self.refuse_too_long(peer, &tracked.connection, &packet),
                Err(
                    SendDatagramError::ConnectionLost(_)
                    | SendDatagramError::Disabled
                    | SendDatagramError::UnsupportedByPeer,
                ) => {
                    let stride = packet.len();
                    peer.queue().put_back(train);
                    peer.queue().put_back(SlowPathPackets { to: peer.address, bytes: packet, stride });
                    self.connection_ended(peer, tracked);
                    return;
                }
            }
        }
    }

    /// Counts the packets that a connection has sent.
    pub(super) fn count_sent(&self, tracked: &TrackedConnection) {
        let (packets, bytes) = tracked.take_sent();
        if packets > 0 {
            let writer = self.writer.borrow();
            writer.account().counters.egress.forwarded_many(packets, bytes);
        }
    }

    /// Counts the packets that a connection will not send because it has ended.
    pub(super) fn drop_unsent(&self, tracked: &TrackedConnection) {
        self.count_sent(tracked);
        self.drop_egress(DropReason::Unconnected, tracked.take_unsent());
    }

    /// Drops the packets that wait for a peer.
    pub(super) fn drop_waiting(&self, peer: &QuicPeer) {
        let mut queue = peer.queue();
        while let Some(train) = queue.pop() {
            self.drop_egress(DropReason::Unconnected, train.count());
        }
    }

    /// Drops a packet that is longer than the connection takes, and tells its sender the path MTU.
    fn refuse_too_long(&self, peer: &QuicPeer, connection: &Connection, packet: &[u8]) {
        let mtu = inner_mtu(connection);
        self.report_path_mtu(peer, mtu);
        self.writer.borrow_mut().too_big(&self.view.table(), packet, mtu);
    }

    /// Reads packets from a connection and writes them to the overlay device, until it ends.
    pub(super) async fn receive_packets(self: Rc<Self>, peer: Rc<QuicPeer>, tracked: Rc<TrackedConnection>) {
        let connection = &tracked.connection;
        while let Ok(first) = connection.read_datagram().await {
            peer.active_at.set(Instant::now());
            let table = self.view.table();
            let mut writer = self.writer.borrow_mut();
            // The writer counts the packets that it does not admit.
            let _ = writer.admit(&table, peer.address, &first);
            let mut packets = 1;
            while packets < READ_BATCH_PACKETS {
                let Some(Ok(next)) = connection.read_datagram().now_or_never() else { break };
                let _ = writer.admit(&table, peer.address, &next);
                packets += 1;
            }
            writer.flush();
            drop(writer);
            tracked.record_read(packets);
            if packets < READ_BATCH_PACKETS {
                self.drop_ingress(DropReason::Congested, tracked.take_overwritten());
            }
        }
        self.drop_ingress(DropReason::Congested, tracked.take_overwritten());
        self.connection_ended(&peer, &tracked);
    }
}
