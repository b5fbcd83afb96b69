//! Verification of packets from peers: sources and destinations.
//!
//! It does not unpack datagrams.
//!
//! Invariant: with [`VerifySource::Subnet`], an accepted packet has a source in a subnet of its
//! sender, and a destination in one of ours.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::account::Counters;
use super::drops::DropReason;
use super::peers::Peer;
use super::table::{Hop, Table};
use crate::packet::IpPacket;

/// How strictly the source addresses of received packets are verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifySource {
    /// The inner source must be in a subnet of the peer that sent the datagram.
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
    admitted.inspect_err(|reason| counters.refused(*reason, from))
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
