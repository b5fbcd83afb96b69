//! Backends: how the map of subnets is put into effect.
//!
//! The userspace backend compiles the RIB into a [`Table`] and hands it to the engine; the packets then take our own data
//! path. It decides nothing about leases and touches no kernel route: the one route to the overlay device stays.
//!
//! Invariant: after [`Userspace::apply`] returns, the next packet of every worker meets the new map.
#![forbid(unsafe_code)]

mod observe;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

pub use observe::FibPart;

use crate::engine::EngineView;
use crate::forward::{Sessions, Table};
use crate::route::{Local, Networks, Rib, Unreachable};

/// Our own data path as backend.
#[derive(Debug)]
pub struct Userspace {
    view: EngineView,
    networks: Networks,
    local: Local,
    /// Out of reach by the table in force.
    lost: BTreeSet<Unreachable>,
    /// Keys outlive tables.
    sessions: Sessions,
    /// What the ways to peers take, where that is known.
    paths: BTreeMap<IpAddr, u16>,
}

impl Userspace {
    /// For an engine that runs already.
    #[must_use]
    pub fn new(view: EngineView, networks: Networks, local: Local, sessions: Sessions) -> Self {
        Self { view, networks, local, lost: BTreeSet::new(), sessions, paths: BTreeMap::new() }
    }

    /// The way to a peer takes inner packets of so many bytes: in force from the next [`Userspace::apply`] on. Returns
    /// whether that is news.
    pub fn narrow(&mut self, peer: IpAddr, mtu: u16) -> bool {
        let before = self.paths.insert(peer, mtu);
        let is_narrow = |mtu: u16| mtu < self.local.mtu;
        before != Some(mtu) && (is_narrow(mtu) || before.is_some_and(is_narrow))
    }

    /// Our own part in the overlay is another from the next [`Userspace::apply`] on.
    pub fn relocate(&mut self, local: Local) {
        self.local = local;
    }

    /// Compiles and publishes. Returns when it was in force; logs the leases that are newly out of reach.
    pub fn apply(&mut self, rib: &Rib) -> Instant {
        let before = self.view.fib();
        let mut fib = Table::compile(before.generation() + 1, rib, &self.networks, &self.local);
        fib.equip(&mut self.sessions);
        fib.limit_mtus(&self.paths);
        let (lost, peers) = (fib.unreachable().to_vec(), fib.peers().len());
        self.view.publish(fib);
        let published = Instant::now();
        tracing::debug!(generation = before.generation() + 1, peers, "routes are in force");
        for lost in lost.iter().filter(|lost| !self.lost.contains(*lost)) {
            tracing::warn!(host = lost.name, "no route to it: {}", lost.reason);
        }
        self.lost = lost.into_iter().collect();
        published
    }
}
