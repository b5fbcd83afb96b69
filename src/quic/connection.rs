//! A connection, and the ledger of the packets that quinn has in its hands.
//!
//! quinn keeps datagrams each way and tells nobody which of them it let go. It does count the DATAGRAM frames that it has sent
//! and received: so a packet is forwarded when its frame is sent, not when quinn takes it, and what was neither sent nor read
//! is known at the latest when the connection ends.
//!
//! Invariant: each packet handed to quinn is in [`Way::sent`]'s sum or in [`Way::unsent`]'s, once; each frame received was
//! read or is in [`Way::pushed_out`]'s sum.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use quinn::Connection;

/// One connection to a peer.
pub(super) struct Way {
    pub(super) connection: Connection,
    /// Its place in the order of the peer's connections, which the host with the lower address gives; 0: it has not said yet.
    pub(super) number: Cell<u64>,
    /// Lengths of packets in quinn's hands, the oldest first.
    handed: RefCell<VecDeque<u16>>,
    /// What quinn calls the room of an empty send buffer.
    empty: usize,
    /// Frames that had been sent at the last look.
    frames: Cell<u64>,
    /// Packets that were read, and those that are known to be lost to the receive buffer.
    read: Cell<u64>,
}

impl Way {
    /// Of a connection that has carried nothing.
    pub(super) fn new(connection: Connection, number: u64) -> Self {
        let empty = connection.datagram_send_buffer_space();
        let (handed, frames, read) = (RefCell::default(), Cell::new(0), Cell::new(0));
        Self { connection, number: Cell::new(number), handed, empty, frames, read }
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        self.connection.stable_id() == other.connection.stable_id()
    }

    /// quinn has taken a packet.
    pub(super) fn handed(&self, bytes: usize) {
        self.handed.borrow_mut().push_back(u16::try_from(bytes).unwrap_or(u16::MAX));
    }

    /// Packets that were sent since the last look, and their bytes.
    pub(super) fn sent(&self) -> (u64, u64) {
        let frames = self.connection.stats().frame_tx.datagram;
        let new = frames - self.frames.replace(frames);
        let mut handed = self.handed.borrow_mut();
        let count = usize::try_from(new).unwrap_or(usize::MAX).min(handed.len());
        (new, handed.drain(..count).map(u64::from).sum())
    }

    /// Packets that quinn has let go because the path has become too narrow for them. To be asked after [`Way::sent`].
    pub(super) fn too_long(&self) -> u64 {
        let mut handed = self.handed.borrow_mut();
        let is_empty = self.connection.datagram_send_buffer_space() >= self.empty;
        if is_empty { handed.drain(..).count() as u64 } else { 0 }
    }

    /// Packets that will not be sent: the connection has ended. To be asked after [`Way::sent`].
    pub(super) fn unsent(&self) -> u64 {
        self.handed.borrow_mut().drain(..).count() as u64
    }

    /// So many packets were read.
    pub(super) fn read(&self, packets: u64) {
        self.read.set(self.read.get() + packets);
    }

    /// Packets that were received and pushed out before they were read. To be asked when nothing is left to read.
    pub(super) fn pushed_out(&self) -> u64 {
        let frames = self.connection.stats().frame_rx.datagram;
        frames - self.read.replace(frames)
    }
}
