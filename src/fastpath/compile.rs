//! Turns a forwarding table into the routes of the program.
//!
//! It does not know how a peer is reached, or whether it can receive by the fast path: the caller
//! says so.
//!
//! Invariant: a route of kind `Peer` or `Local` says about each address that it matches what the
//! table says (property test `fast_path_routes_follow_the_table`). Where the map cannot say it, the
//! daemon decides.
#![forbid(unsafe_code)]

use std::collections::btree_map::Entry;
use std::net::IpAddr;

use ipnet::IpNet;

use super::layout::{Route, RouteKind};
use super::routes::Routes;
use crate::forward::{Hop, Peer, Table};
use crate::packet::Family;
use crate::route::Protection;

/// How packets to a peer can leave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reach {
    /// Interface index of the device that leads to the peer.
    pub underlay: u32,
    /// Whether the peer can receive by the fast path at this moment, and the interface is one to
    /// which the program can send.
    pub may_send: bool,
}

/// The routes of `table`, for a host with the subnets `own`.
pub fn routes_of(table: &Table, own: &[IpNet], reach: impl Fn(&Peer) -> Reach) -> Routes {
    let mut routes = Routes::new();
    for peer in table.peers() {
        let reach = reach(peer);
        for subnet in &peer.subnets {
            let route = peer_route(peer, subnet, reach);
            match routes.entry(*subnet) {
                Entry::Vacant(entry) => {
                    entry.insert(route);
                }
                // Two addresses of one host have leases for the same subnet. The table knows which
                // lease is the later one.
                Entry::Occupied(mut entry) if entry.get().peer != route.peer => {
                    entry.insert(Route::DAEMON);
                }
                Entry::Occupied(_) => {}
            }
        }
    }
    routes.extend(own.iter().map(|subnet| (*subnet, Route::LOCAL)));
    for peer in table.peers() {
        add_addresses(&mut routes, table, peer);
    }
    routes
}

fn peer_route(peer: &Peer, subnet: &IpNet, reach: Reach) -> Route {
    // The program sends over IPv4 only.
    let IpAddr::V4(address) = peer.endpoint.ip() else { return Route::DAEMON };
    let family = Family::of(subnet.addr());
    let is_clear = peer.protection == Protection::Clear;
    // What is longer than the path takes leaves the daemon in fragments.
    let mtu = if peer.is_too_narrow(family) { 0 } else { peer.mtu.min(peer.longest(family)) };
    Route {
        kind: RouteKind::Peer,
        may_send: reach.may_send && is_clear,
        is_clear,
        ecn: peer.abilities.ecn,
        mtu,
        peer: address,
        underlay: reach.underlay,
    }
}

/// A peer's own addresses are inner sources of the peer. Other hosts have routes to them, so they
/// are no destinations of the overlay.
fn add_addresses(routes: &mut Routes, table: &Table, peer: &Peer) {
    let IpAddr::V4(endpoint) = peer.endpoint.ip() else { return };
    let is_clear = peer.protection == Protection::Clear;
    let route = Route { kind: RouteKind::Host, is_clear, peer: endpoint, ..Route::DAEMON };
    let is_local = |address: IpAddr| table.lookup(address) == Some(Hop::Local);
    // With the address of a peer, the sender may use the address even inside another's subnet.
    if !is_local(endpoint.into()) {
        routes.entry(host(endpoint.into())).or_insert(route);
    }
    // Any other public address counts only if no subnet has it.
    let others = [peer.public.v4.map(IpAddr::V4), peer.public.v6.map(IpAddr::V6)];
    for address in others.into_iter().flatten().filter(|address| *address != IpAddr::V4(endpoint)) {
        let is_endpoint = table.peer_by_address(address).is_some();
        if table.lookup(address).is_none() && !is_endpoint && !address.is_unspecified() {
            routes.entry(host(address)).or_insert(route);
        }
    }
}

fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}
