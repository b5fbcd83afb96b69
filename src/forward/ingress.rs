//! The way in: from a peer to the TUN.
//!
//! It does not write: the engine does, through [`ToTun`].
//!
//! Invariant: each packet in a datagram is pushed, or counted under one drop reason; a datagram of
//! an unknown sender is one drop; a control message is taken, or is one drop.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::account::Counters;
use super::admit::{VerifySource, admit};
use super::bulk::MIN_BULK_BYTES;
use super::drops::DropReason;
use super::output::ToTun;
use super::peers::Peer;
use super::table::{Hop, Table};
use crate::packet::control::{self, Control};
use crate::packet::ecn::{Ecn, Marker};
use crate::packet::{IpPacket, Malformed, Train, bundle};
use crate::route::Protection;
use crate::seal::{self, OpenError};
use crate::time::Nanos;

/// What one UDP receive delivered.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The outer source address.
    pub from: IpAddr,
    /// The outer ECN field.
    pub ecn: Ecn,
    /// The received datagrams.
    pub train: Train<'a>,
}

/// What ingress keeps between packets: a buffer for an opened datagram, a buffer for a marked
/// packet, and the time.
#[derive(Debug)]
pub struct IngressState {
    opened: Box<[u8]>,
    marker: Marker,
    /// Whether to mark or drop the next bulk packet.
    should_mark: bool,
    now: Nanos,
}

impl Default for IngressState {
    fn default() -> Self {
        /// Room for the longest UDP datagram.
        const ROOM_BYTES: usize = 65_536;
        Self {
            opened: vec![0; ROOM_BYTES].into(),
            marker: Marker::default(),
            should_mark: false,
            now: Nanos::ZERO,
        }
    }
}

impl IngressState {
    /// Sets the time of the following datagrams, since keys expire.
    pub fn set_time(&mut self, now: Nanos) {
        self.now = now;
    }

    /// Sets whether the next bulk packet is marked, because the queue of the socket has not been
    /// empty for a while.
    pub fn mark_next_bulk(&mut self, should_mark: bool) {
        self.should_mark = should_mark;
    }
}

/// Forwards from a peer to the TUN: find the sender, open what is sealed, unpack each datagram,
/// verify each packet, apply the outer ECN field, push.
#[inline]
pub fn ingress<T: ToTun>(
    table: &Table,
    Arrival { from, ecn, train }: Arrival<'_>,
    verify: VerifySource,
    state: &mut IngressState,
    counters: &Counters,
    to_tun: &mut T,
) {
    let IngressState { opened, marker, should_mark, now } = state;
    let peer = table.peer_by_address(from);
    if peer.is_none() && verify != VerifySource::Off {
        return refuse_unknown(table, train, counters);
    }
    let keys = peer.and_then(|peer| peer.session.as_ref()).map(|session| session.keys());
    let is_clear = peer.is_none_or(|peer| peer.protection == Protection::Clear);
    let mut take = |bytes: &[u8], to_tun: &mut T| match admit(table, peer, bytes, verify) {
        Ok(packet) if *should_mark && bytes.len() >= MIN_BULK_BYTES => {
            *should_mark = false;
            match marker.apply(packet, Ecn::Ce) {
                Some(packet) => {
                    counters.queue_marks.add(1);
                    to_tun.push(packet);
                }
                None => counters.ingress.drop(DropReason::StandingQueue),
            }
        }
        Ok(packet) => match marker.apply(packet, ecn) {
            Some(packet) => to_tun.push(packet),
            None => counters.ingress.drop(DropReason::Unmarkable),
        },
        Err(reason) if peer.is_some() => counters.refused(reason, from),
        Err(reason) => counters.ingress.drop(reason),
    };
    for datagram in train.datagrams() {
        match nibble(datagram) {
            seal::NIBBLE => {
                let packet = match &keys {
                    Some(keys) => keys.open(datagram, opened, *now),
                    None => Err(OpenError::NoKey),
                };
                match packet {
                    Ok(bytes) => {
                        counters.opened.add(1);
                        match nibble(bytes) {
                            control::NIBBLE => take_control(bytes, peer, counters, to_tun),
                            _ => unpack(bytes, counters, &mut |bytes| take(bytes, to_tun)),
                        }
                    }
                    Err(error) => counters.ingress.drop(error.into()),
                }
            }
            4 | 6 | bundle::NIBBLE | control::NIBBLE if !is_clear => {
                counters.ingress.drop(DropReason::Cleartext);
            }
            control::NIBBLE => take_control(datagram, peer, counters, to_tun),
            _ => unpack(datagram, counters, &mut |bytes| take(bytes, to_tun)),
        }
    }
}

/// Takes a control message. Without a lease at its source address, nobody could answer it.
#[cold]
fn take_control(datagram: &[u8], peer: Option<&Peer>, counters: &Counters, to_tun: &mut impl ToTun) {
    match (Control::parse(datagram), peer) {
        (Ok(Some(message)), Some(peer)) => {
            counters.control_messages.add(1);
            to_tun.control(peer.endpoint.ip(), message);
        }
        (Ok(Some(_)), None) => counters.ingress.drop(DropReason::UnknownPeer),
        (Ok(None), _) => counters.ingress.drop(DropReason::UnknownType),
        (Err(Malformed), _) => counters.ingress.drop(DropReason::Malformed),
    }
}

/// The first four bits, which tell the type of a datagram. An empty datagram counts as a bare
/// packet, which is malformed.
#[inline]
fn nibble(datagram: &[u8]) -> u8 {
    datagram.first().map_or(4, |byte| byte >> 4)
}

/// Takes the packets out of a datagram that is in clear or was opened.
#[inline]
fn unpack(datagram: &[u8], counters: &Counters, take: &mut impl FnMut(&[u8])) {
    match nibble(datagram) {
        4 | 6 => take(datagram),
        bundle::NIBBLE => unbundle(datagram, counters, take),
        // A sealed datagram never contains a sealed datagram.
        _ => counters.ingress.drop(DropReason::UnknownType),
    }
}

/// Drops the datagrams of an unknown sender. The sender may be a host that uses our subnet: if its
/// lease expired while it was away, it is not a peer any more. An operator finds it by the counter
/// alone, because anybody can send such a datagram.
#[cold]
fn refuse_unknown(table: &Table, train: Train<'_>, counters: &Counters) {
    for datagram in train.datagrams() {
        // For a bundle, only the first packet is inspected.
        let first = bundle::entries(datagram).ok().and_then(|mut entries| entries.next()?.ok());
        let packet = IpPacket::parse(first.unwrap_or(datagram));
        let source = packet.ok().and_then(|packet| table.lookup(packet.src()));
        let reason = if source == Some(Hop::Local) { DropReason::OwnSource } else { DropReason::UnknownPeer };
        counters.ingress.drop(reason);
    }
}

/// Takes the packets out of a bundle. A malformed entry and all bytes after it are one drop.
#[inline]
fn unbundle(datagram: &[u8], counters: &Counters, take: &mut impl FnMut(&[u8])) {
    counters.ingress_bundles.add(1);
    let Ok(entries) = bundle::entries(datagram) else { return counters.ingress.drop(DropReason::Malformed) };
    for entry in entries {
        match entry {
            Ok(packet) => take(packet),
            Err(Malformed) => counters.ingress.drop(DropReason::Malformed),
        }
    }
}
