//! The way out: from the TUN to a peer.
//!
//! It does not send: it writes packets where the engine will send them from.
//!
//! Invariant: each packet of a frame is committed to one exit, or counted under one drop reason.
//! With [`VerifySource::Subnet`], a committed packet has a source that belongs to this host.
#![forbid(unsafe_code)]

use super::account::Counters;
use super::admit::VerifySource;
use super::bulk::MIN_BULK_BYTES;
use super::drops::DropReason;
use super::frame::Frame;
use super::output::{Exit, Reservation, ToNet, ToTun};
use super::peers::Peer;
use super::table::{Hop, Table};
use super::train_meta::TrainMeta;
use crate::packet::icmp::{self, Limiter, MAX_ERROR, Problem};
use crate::packet::{IpPacket, Train, ecn};
use crate::route::Protection;
use crate::time::Nanos;

/// What egress keeps between packets: the rate limit of ICMP errors, and a buffer for one error.
#[derive(Debug)]
pub struct EgressState {
    /// Whether to mark or drop the next bulk packet.
    should_mark: bool,
    verify: VerifySource,
    limiter: Limiter,
    scratch: Box<[u8; MAX_ERROR]>,
}

impl EgressState {
    /// Creates the state, which verifies sources. The ICMP rate limit starts at `now`.
    #[must_use]
    pub fn new(now: Nanos) -> Self {
        Self {
            should_mark: false,
            verify: VerifySource::Subnet,
            limiter: Limiter::new(now),
            scratch: Box::new([0; MAX_ERROR]),
        }
    }

    /// Sets how strictly sources are verified.
    pub fn verify(&mut self, verify: VerifySource) {
        self.verify = verify;
    }

    /// Whether a packet is dropped for its source. A multicast packet is dropped anyway, as such.
    /// Without a subnet, a host cannot tell which sources are its own.
    #[inline]
    fn is_foreign(&self, table: &Table, packet: &IpPacket<'_>) -> bool {
        self.verify == VerifySource::Subnet
            && !table.is_ours(packet.src())
            && !packet.dst().is_multicast()
            && table.has_own_subnet()
    }

    /// Sets whether the next bulk packet is marked, because the queue of the TUN has not been empty
    /// for a while.
    pub fn mark_next_bulk(&mut self, should_mark: bool) {
        self.should_mark = should_mark;
    }

    /// Marks the last packet of the train in `room`, or drops it if its transport does not support
    /// ECN. Returns the number of bytes of the train that are sent.
    #[cold]
    fn mark_last(&mut self, room: &mut [u8], train: TrainMeta, counters: &Counters) -> usize {
        self.should_mark = false;
        let last = (train.bytes - 1) / train.stride * train.stride;
        if ecn::mark(&mut room[last..train.bytes]) {
            counters.queue_marks.add(1);
            return train.bytes;
        }
        counters.egress.drop(DropReason::StandingQueue);
        last
    }

    /// Drops the packets of a train, which are of one flow, for `reason`. Their sender gets one
    /// ICMP error, if the rate limit allows it.
    pub fn refuse(
        &mut self,
        table: &Table,
        train: Train<'_>,
        (reason, problem): (DropReason, Problem),
        now: Nanos,
        counters: &Counters,
        to_tun: &mut impl ToTun,
    ) {
        counters.egress.drop_many(reason, train.count());
        let first = train.datagrams().next().and_then(|first| IpPacket::parse(first).ok());
        let Some(packet) = first else { return };
        let Some(from) = table.device_address(packet.family()) else { return };
        let Some(error) = icmp::error(&mut self.scratch, from, &packet, problem) else { return };
        if !self.limiter.allow(&packet, problem, now) {
            counters.icmp_suppressed.add(1);
            return;
        }
        match problem {
            Problem::NoRoute => counters.icmp_unreachable.add(1),
            Problem::TooBig { .. } => counters.icmp_too_big.add(1),
        }
        to_tun.reply(error);
    }
}

/// Forwards from the TUN to a peer: parse, verify, look up, reserve, split, commit.
///
/// Nobody is told about a packet with a foreign source: its ICMP error would go to a host that has
/// not sent it.
#[inline]
pub fn egress(
    table: &Table,
    frame: Frame<'_>,
    now: Nanos,
    state: &mut EgressState,
    counters: &Counters,
    to_net: &mut impl ToNet,
    to_tun: &mut impl ToTun,
) {
    let Ok((packet, plan)) = frame.plan() else { return counters.egress.drop(DropReason::Malformed) };
    if state.is_foreign(table, &packet) {
        return counters.egress.drop_many(DropReason::ForeignSource, plan.count());
    }
    let dst = packet.dst();
    let hop = table.lookup(dst);
    let family = packet.family();
    let fits =
        |peer: &Peer| plan.stride() <= usize::from(peer.longest(family)) && !peer.is_too_narrow(family);
    let exit = match hop {
        Some(Hop::Peer(peer)) if fits(peer) => {
            let is_ready = peer.protection == Protection::Clear || peer.can_seal();
            if is_ready { Exit::Socket(peer) } else { Exit::SlowPath(peer) }
        }
        _ => Exit::Refused,
    };
    let meta = TrainMeta { bytes: plan.len(), stride: plan.stride(), ecn: packet.ecn() };
    let mut reservation = to_net.reserve(exit, meta);
    let Ok(train) = plan.write(reservation.buffer()) else {
        return counters.egress.drop_many(DropReason::Malformed, plan.count());
    };
    if let Exit::Socket(peer) | Exit::SlowPath(peer) = exit {
        peer.traffic.mark();
    }
    match exit {
        Exit::Socket(_) => {
            let is_marked = state.should_mark && meta.bytes >= MIN_BULK_BYTES;
            let bytes =
                if is_marked { state.mark_last(reservation.buffer(), meta, counters) } else { meta.bytes };
            if bytes > 0 {
                reservation.commit(bytes);
            }
        }
        Exit::SlowPath(_) => reservation.commit(meta.bytes),
        Exit::Refused => {
            let refusal = match hop {
                Some(Hop::Peer(peer)) if peer.is_too_narrow(family) => {
                    (DropReason::NarrowPath, Problem::NoRoute)
                }
                Some(Hop::Peer(peer)) => (DropReason::TooBig, Problem::TooBig { mtu: peer.longest(family) }),
                Some(Hop::Local) => (DropReason::OwnSubnet, Problem::NoRoute),
                None if dst.is_multicast() => (DropReason::Multicast, Problem::NoRoute),
                None => (DropReason::NoRoute, Problem::NoRoute),
            };
            state.refuse(table, train, refusal, now, counters, to_tun);
        }
    }
}
