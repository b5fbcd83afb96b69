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
use crate::forward::{Sessions, Table};
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
    /// Path MTUs of peers where they are known: longest inner packet in bytes.
    path_mtus: BTreeMap<IpAddr, u16>,
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
            path_mtus: BTreeMap::new(),
            retired: Vec::new(),
        }
    }

    /// Records the path MTU of a peer, for the next [`Publisher::apply`]. Returns whether the table
    /// changes by it.
    pub(super) fn set_path_mtu(&mut self, peer: IpAddr, mtu: u16) -> bool {
        let before = self.path_mtus.insert(peer, mtu);
        let is_limit = |mtu: u16| mtu < self.local.mtu;
        before != Some(mtu) && (is_limit(mtu) || before.is_some_and(is_limit))
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
        table.limit_to_links(quic::OVERHEAD_BYTES);
        table.limit_mtus(&self.path_mtus);
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
