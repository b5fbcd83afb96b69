//! Backends: how the map of subnets is put into effect.
//!
//! The userspace backend compiles the RIB into a [`Fib`] and hands it to the engine; the packets then take our own data
//! path. It decides nothing about leases and touches no kernel route: the one route to the overlay device stays.
//!
//! Invariant: after [`Userspace::apply`] returns, the next packet of every worker meets the new map.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use crate::engine::View;
use crate::route::{Fib, Local, Networks, Rib};

/// Our own data path as backend.
#[derive(Debug)]
pub struct Userspace {
    view: View,
    networks: Networks,
    local: Local,
}

impl Userspace {
    /// For an engine that runs already.
    #[must_use]
    pub fn new(view: View, networks: Networks, local: Local) -> Self {
        Self { view, networks, local }
    }

    /// Compiles and publishes. Returns how long that took; logs the leases that are newly out of reach.
    pub fn apply(&self, rib: &Rib) -> Duration {
        let start = Instant::now();
        let before = self.view.fib();
        let fib = Fib::compile(before.generation() + 1, rib, &self.networks, &self.local);
        for lost in fib.unreachable().iter().filter(|lost| !before.unreachable().contains(lost)) {
            tracing::warn!(host = lost.name, "no route to it: {}", lost.reason);
        }
        tracing::info!(generation = fib.generation(), peers = fib.peers().len(), "routes are in force");
        self.view.publish(fib);
        start.elapsed()
    }
}
