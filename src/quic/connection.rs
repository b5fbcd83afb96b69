//! A connection, with a record of the packets that quinn holds.
//!
//! quinn buffers datagrams in both directions and does not tell which of them it discards. It does
//! count the DATAGRAM frames that it sent and received. So a packet counts as forwarded when its
//! frame is sent, not when quinn takes the packet. A packet that was neither sent nor read is found
//! at the latest when the connection ends.
//!
//! Invariant: each packet given to quinn is counted once, in [`TrackedConnection::take_sent`],
//! [`TrackedConnection::take_too_long`] or [`TrackedConnection::take_unsent`]. Each frame received
//! was read, or is counted in [`TrackedConnection::take_overwritten`].
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use quinn::Connection;

use super::shown::ShownCertificate;

/// One connection to a peer.
pub(super) struct TrackedConnection {
    pub(super) connection: Connection,
    /// The certificate that the peer has shown.
    pub(super) certificate: Rc<ShownCertificate>,
    /// Position in the order of the peer's connections: the highest number is in use. The leader
    /// assigns it. [`super::numbering::UNNUMBERED`] until then.
    pub(super) number: Cell<u64>,
    /// Lengths in bytes of the packets that quinn holds, the oldest first.
    held: RefCell<VecDeque<u16>>,
    /// Free bytes that quinn reports for an empty send buffer.
    empty_buffer_bytes: usize,
    /// Frames that had been sent when they were counted last.
    frames_sent: Cell<u64>,
    /// Packets that were read, plus those known to be lost in the receive buffer.
    packets_read: Cell<u64>,
}

impl TrackedConnection {
    /// Tracks a connection that has carried no packets yet.
    pub(super) fn new(connection: Connection, certificate: Rc<ShownCertificate>, number: u64) -> Self {
        let empty_buffer_bytes = connection.datagram_send_buffer_space();
        Self {
            connection,
            certificate,
            number: Cell::new(number),
            held: RefCell::default(),
            empty_buffer_bytes,
            frames_sent: Cell::new(0),
            packets_read: Cell::new(0),
        }
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.connection.stable_id() == other.connection.stable_id()
    }

    /// Records that quinn has taken a packet.
    pub(super) fn record_held(&self, bytes: usize) {
        self.held.borrow_mut().push_back(u16::try_from(bytes).unwrap_or(u16::MAX));
    }

    /// Packets that were sent since the last call, and their bytes.
    pub(super) fn take_sent(&self) -> (u64, u64) {
        let frames = self.connection.stats().frame_tx.datagram;
        let new = frames - self.frames_sent.replace(frames);
        let mut held = self.held.borrow_mut();
        let count = usize::try_from(new).unwrap_or(usize::MAX).min(held.len());
        (new, held.drain(..count).map(u64::from).sum())
    }

    /// Packets that quinn has discarded because the path MTU fell below their length. Must be
    /// called after [`TrackedConnection::take_sent`].
    pub(super) fn take_too_long(&self) -> u64 {
        let mut held = self.held.borrow_mut();
        let is_empty = self.connection.datagram_send_buffer_space() >= self.empty_buffer_bytes;
        if is_empty { held.drain(..).count() as u64 } else { 0 }
    }

    /// Packets that will not be sent because the connection has ended. Must be called after
    /// [`TrackedConnection::take_sent`].
    pub(super) fn take_unsent(&self) -> u64 {
        self.held.borrow_mut().drain(..).count() as u64
    }

    /// Records that packets were read.
    pub(super) fn record_read(&self, packets: u64) {
        self.packets_read.set(self.packets_read.get() + packets);
    }

    /// Received packets that later ones overwrote before they were read. Must be called when
    /// nothing is left to read.
    pub(super) fn take_overwritten(&self) -> u64 {
        let frames = self.connection.stats().frame_rx.datagram;
        frames - self.packets_read.replace(frames)
    }
}
