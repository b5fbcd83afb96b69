//! Where forwarded packets go: the traits that engines implement.
//!
//! It does not know how an engine sends or writes.
//!
//! Invariant: each train that is committed, and each packet that is pushed, is counted exactly once
//! by the implementor.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::peers::Peer;
use super::train_meta::TrainMeta;
use crate::packet::IpPacket;
use crate::packet::control::Control;

/// How a train leaves this host.
#[derive(Debug, Clone, Copy)]
pub enum Exit<'a> {
    /// The worker's own socket sends it to this peer.
    Socket(&'a Peer),
    /// The slow path carries it to this peer, and counts it.
    SlowPath(&'a Peer),
    /// The train does not leave. The packet is written anyway, so that the ICMP error can quote it.
    Refused,
}

/// Takes the trains that must leave by UDP. The implementor counts each packet as sent, or as
/// dropped for [`DropReason::SendFailed`](super::DropReason::SendFailed).
///
/// The caller reserves room for a train, writes the train into this room, and commits it. The guard
/// holds the whole state of a reservation, so that dropping the guard forgets the reservation.
pub trait ToNet {
    /// The guard of a reservation.
    type Reservation<'a>: Reservation
    where
        Self: 'a;
    /// Reserves room for a train that leaves by `exit`.
    fn reserve<'a>(&'a mut self, exit: Exit<'a>, train: TrainMeta) -> Self::Reservation<'a>;
}

/// Room for one train. Dropping it forgets what was written.
pub trait Reservation {
    /// The reserved buffer. It can be shorter than the train if space is limited.
    fn buffer(&mut self) -> &mut [u8];
    /// Queues or sends the first `bytes` bytes of the room, which are whole packets. The
    /// implementor decides how packets are framed, bare or in bundles, within what the peer
    /// announces.
    ///
    /// A reservation for [`Exit::Refused`] is never committed: its caller reads what was written,
    /// and drops the guard.
    fn commit(self, bytes: usize);
}

/// Takes what ingress brings in: whole IP packets for the TUN, and control messages. The
/// implementor counts each packet that it gets by [`ToTun::push`] as delivered, or as dropped for
/// [`DropReason::WriteFailed`](super::DropReason::WriteFailed).
pub trait ToTun {
    /// Queues or writes a packet that came from a peer.
    fn push(&mut self, packet: IpPacket<'_>);
    /// Queues or writes an ICMP error about a packet that came from the TUN.
    fn reply(&mut self, error: &[u8]);
    /// Takes a control message of a peer. It may be forgotten, as the network may lose it.
    fn control(&mut self, _from: IpAddr, _message: Control) {}
}
