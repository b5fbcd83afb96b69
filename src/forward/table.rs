//! The forwarding table: the prefixes of a FIB and the peers that they lead to, as one snapshot.
//!
//! It never changes after it was published: a change of routes is a new table.
//!
//! Invariant: every number in the FIB is the number of one of the peers.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::path_mtu::PathLimits;
use super::peers::{Peer, Peers};
use super::sessions::Sessions;
use crate::packet::Family;
use crate::route::{self, Compiled, Fib, Local, Networks, Public, Remark, Rib, Target, Unreachable};

/// Where a destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop<'a> {
    /// The destination is in our own subnets.
    Local,
    /// The destination is behind this peer.
    Peer(&'a Peer),
}

/// The forwarding table.
#[derive(Debug, Default)]
pub struct Table {
    generation: u64,
    device_v4: Option<IpAddr>,
    device_v6: Option<IpAddr>,
    fib: Fib,
    peers: Peers,
    unreachable: Vec<Unreachable>,
    remarks: Box<[Remark]>,
    /// The public addresses of our own lease.
    public: Public,
}

impl Table {
    /// Compiles the table of `rib` for the host `local`. `generation` is the caller's number for
    /// this table.
    #[must_use]
    pub fn compile(generation: u64, rib: &Rib, networks: &Networks, local: &Local) -> Self {
        let Compiled { fib, peers, by_address, unreachable, remarks, public } =
            route::compile(rib, networks, local);
        Self {
            generation,
            device_v4: local.device_address(Family::V4),
            device_v6: local.device_address(Family::V6),
            fib,
            peers: Peers::new(peers, by_address, local.mtu),
            unreachable,
            remarks: remarks.into(),
            public,
        }
    }

    /// Whether a packet with this source may leave this host. The sources are our subnets, which
    /// contain the address of the overlay device, and the public addresses of our own lease, since
    /// this host answers pods from them.
    #[must_use]
    #[inline]
    pub fn is_ours(&self, source: IpAddr) -> bool {
        self.lookup(source) == Some(Hop::Local) || self.public.contains(source)
    }

    /// The public addresses of our own lease.
    #[must_use]
    pub fn own_public(&self) -> Public {
        self.public
    }

    /// Whether this host has a subnet. The table that a worker starts with has none.
    #[must_use]
    pub fn has_own_subnet(&self) -> bool {
        self.device_v4.is_some() || self.device_v6.is_some()
    }

    /// Gives each peer with sealed packets its session; sessions outlive tables.
    pub fn equip(&mut self, sessions: &mut Sessions) {
        self.peers.equip(sessions);
    }

    /// Limits the inner packets to each peer that announces the MTU of its link to what this link
    /// takes. `encryption` is the number of bytes that encryption adds to a packet.
    pub fn limit_to_links(&mut self, encryption: u16) {
        self.peers.limit_to_links(encryption);
    }

    /// Limits the inner packets to peers to what their paths take, by address. Where a path is too
    /// narrow for IPv6 and cannot be helped, the peer's IPv6 subnets have no route.
    pub fn limit_mtus(&mut self, paths: &BTreeMap<IpAddr, PathLimits>) {
        self.peers.limit_mtus(paths);
        for peer in self.peers.all() {
            let Some(reason) = peer.narrow_reason(Family::V6) else { continue };
            let is_v6 = |subnet: &&IpNet| matches!(subnet, IpNet::V6(_));
            let subnets: Vec<IpNet> = peer.subnets.iter().filter(is_v6).copied().collect();
            if !subnets.is_empty() {
                self.unreachable.push(Unreachable { name: peer.name.clone(), subnets, reason });
            }
        }
    }

    /// Where packets to `dst` go; `None` if no lease contains it.
    #[must_use]
    #[inline]
    pub fn lookup(&self, dst: IpAddr) -> Option<Hop<'_>> {
        match self.fib.lookup(dst)? {
            Target::Local => Some(Hop::Local),
            Target::Peer(number) => Some(Hop::Peer(&self.peers.all()[number as usize])),
        }
    }

    /// The peer that sends from the underlay address `address`.
    #[must_use]
    #[inline]
    pub fn peer_by_address(&self, address: IpAddr) -> Option<&Peer> {
        self.peers.by_address(address)
    }

    /// Whether packets to any peer are sealed.
    #[must_use]
    #[inline]
    pub fn seals(&self) -> bool {
        self.peers.seals()
    }

    /// The address of the overlay device in a family: the source of ICMP errors.
    #[must_use]
    pub fn device_address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.device_v4,
            Family::V6 => self.device_v6,
        }
    }

    /// All peers, in the order of their subnets.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        self.peers.all()
    }

    /// The leases without a route.
    #[must_use]
    pub fn unreachable(&self) -> &[Unreachable] {
        &self.unreachable
    }

    /// What the operator must know about single leases.
    #[must_use]
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// The caller's number for this table.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}
