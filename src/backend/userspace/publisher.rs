//! The publisher: compiles the RIB into a [`Table`] and hands it to the engine.
//!
//! It decides nothing about leases and touches no kernel route: the one route to the overlay device
//! stays.
//!
//! Invariant: after [`Publisher::apply`] has returned, every worker looks up its next packet in the
//! new map. No worker frees a table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;

use crate::config::SecurityConfig;
use crate::engine::EngineView;
use crate::forward::{PathLimits, Sessions, Table};
use crate::packet::Family;
use crate::quic;
use crate::route::{Local, Networks, Rib, Unreachable};
use crate::seal::Lifetime;

/// The table in use, with what outlives it.
#[derive(Debug)]
pub(super) struct Publisher {
    view: EngineView,
    networks: Networks,
    local: Local,
    /// Leases without a route in the table in use.
    unreachable: BTreeSet<Unreachable>,
    /// Keys of sealed packets.
    sessions: Sessions,
    /// What is known of the paths to peers.
    paths: BTreeMap<IpAddr, PathLimits>,
    /// Earlier tables that a worker may still use. An idle worker keeps the table of its last turn.
    retired: Vec<Arc<Table>>,
}

impl Publisher {
    pub(super) fn new(view: EngineView, networks: Networks, local: Local, sessions: Sessions) -> Self {
        Self {
            view,
            networks,
            local,
            unreachable: BTreeSet::new(),
            sessions,
            paths: BTreeMap::new(),
            retired: Vec::new(),
        }
    }

    /// Changes what is known of the path to a peer, for the next [`Publisher::apply`]. Returns the
    /// MTU of the peer if the table changes by it.
    pub(super) fn change_path(&mut self, peer: IpAddr, change: impl FnOnce(&mut PathLimits)) -> Option<u16> {
        let table = self.view.table();
        let protection = table.peer_by_address(peer)?.protection;
        let limits = self.paths.entry(peer).or_default();
        let inner = |limits: &PathLimits| {
            let (mtu, _) = limits.inner(self.local.mtu, Family::of(peer), protection);
            (mtu, limits.fragments)
        };
        let before = inner(limits);
        change(limits);
        let after = inner(limits);
        (before != after).then_some(after.0)
    }

    pub(super) fn local(&self) -> &Local {
        &self.local
    }

    pub(super) fn networks(&self) -> &Networks {
        &self.networks
    }

    /// Records another address or MTU of this host, for the next [`Publisher::apply`].
    pub(super) fn relocate(&mut self, local: Local) {
        self.local = local;
    }

    /// Compiles and publishes. Returns when the table was in use; logs the leases that have no
    /// route from now on.
    pub(super) fn apply(&mut self, rib: &Rib) -> Instant {
        let generation = self.view.table().generation() + 1;
        let mut table = Table::compile(generation, rib, &self.networks, &self.local);
        table.equip(&mut self.sessions);
        // A peer that is gone may come back by another path.
        self.paths.retain(|address, _| table.peer_by_address(*address).is_some());
        table.limit_to_links(quic::OVERHEAD_BYTES);
        table.limit_mtus(&self.paths);
        let (unreachable, peers) = (table.unreachable().to_vec(), table.peers().len());
        let last = self.view.publish(table);
        let published = Instant::now();
        self.retired.push(last);
        self.retired.retain(|table| Arc::strong_count(table) > 1);
        tracing::debug!(generation, peers, "route table published");
        for new in unreachable.iter().filter(|lease| !self.unreachable.contains(*lease)) {
            tracing::warn!(host = new.name, reason = %new.reason, "no route to host");
        }
        self.unreachable = unreachable.into_iter().collect();
        published
    }
}

/// Sessions with the key lifetime of the configuration.
pub(super) fn sessions(security: &SecurityConfig) -> Sessions {
    let rekey_after = security.rekey;
    let seal_for = rekey_after.saturating_mul(2);
    Sessions::new(Lifetime { rekey_after, seal_for, ..Lifetime::default() })
}
