//! Verification of packets from peers: sources and destinations.
//!
//! It does not unpack datagrams.
//!
//! Invariant: with [`VerifySource::Subnet`], an accepted packet has a source that belongs to its
//! sender, and a destination in a subnet of ours.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::account::Counters;
use super::drops::DropReason;
use super::peers::Peer;
use super::table::{Hop, Table};
use crate::packet::IpPacket;

/// How strictly the source addresses of packets are verified. On the way out, only
/// [`VerifySource::Subnet`] verifies anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifySource {
    /// The inner source must belong to the peer that sent the datagram, and on the way out to this
    /// host: it is in one of the host's subnets, or a public address of its lease.
    #[default]
    Subnet,
    /// The outer source must be the address of a peer; the inner source is not verified.
    Peer,
    /// Nothing is verified: datagrams from any address are accepted, as flanneld does.
    Off,
}

/// Verifies a packet from a connection that has authenticated the peer at `from`. A refused packet
/// is counted.
#[inline]
pub fn admit_authenticated<'a>(
    table: &Table,
    from: IpAddr,
    packet: &'a [u8],
    counters: &Counters,
) -> Result<IpPacket<'a>, DropReason> {
    let peer = table.peer_by_address(from);
    let admitted = match peer {
        Some(_) => admit(table, peer, packet, VerifySource::Subnet),
        None => Err(DropReason::UnknownPeer),
    };
    admitted.inspect_err(|reason| match peer {
        Some(_) => counters.refused(*reason, from),
        None => counters.ingress.drop(*reason),
    })
}

/// Verifies everything that is required of bytes from a peer before they become a packet on the
/// TUN.
#[inline]
pub(super) fn admit<'a>(
    table: &Table,
    peer: Option<&Peer>,
    bytes: &'a [u8],
    verify: VerifySource,
) -> Result<IpPacket<'a>, DropReason> {
    let packet = IpPacket::parse(bytes).map_err(|_| DropReason::Malformed)?;
    match (table.lookup(packet.src()), peer) {
        (Some(Hop::Local), _) => return Err(DropReason::OwnSource),
        (Some(Hop::Peer(owner)), Some(sender)) if std::ptr::eq(owner, sender) => {}
        (_, Some(sender)) if sender.endpoint.ip() == packet.src() => {}
        (None, Some(sender)) if sender.public.contains(packet.src()) => {}
        _ if verify == VerifySource::Subnet => return Err(DropReason::SpoofedSource),
        _ => {}
    }
    // A packet for another host would be routed to the overlay device again, and circle until its
    // TTL ends.
    if table.lookup(packet.dst()) != Some(Hop::Local) {
        return Err(DropReason::Misrouted);
    }
    Ok(packet)
}
