//! The map of subnets as the store has reported it, and the changes that are not in effect yet.
//!
//! A table of thousands of leases takes most of a millisecond to make. Changes that arrive within
//! [`SPACING`] go into one.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Backend;
use crate::desired::Desired;
use crate::route::{Change, Rib};

/// Shortest time between two publications.
const SPACING: Duration = Duration::from_millis(1);

/// The map.
#[derive(Debug)]
pub(super) struct Map {
    rib: Rib,
    /// When the store reported the changes that are in the RIB, but not in effect.
    changed_at: Vec<Instant>,
    published: Instant,
}

impl Map {
    /// The first map, which is not in effect yet.
    pub(super) fn new(snapshot: Change) -> Self {
        let mut rib = Rib::default();
        rib.apply(snapshot);
        Self { rib, changed_at: Vec::new(), published: Instant::now() }
    }

    /// Takes a change that the store reported at `changed_at`.
    pub(super) fn take(&mut self, change: Change, changed_at: Instant) {
        if self.rib.apply(change) {
            self.changed_at.push(changed_at);
        }
    }

    /// Whether a change is not in effect.
    pub(super) fn is_pending(&self) -> bool {
        !self.changed_at.is_empty()
    }

    /// When the next publication may take place.
    pub(super) fn due(&self) -> Instant {
        self.published + SPACING
    }

    /// Puts the map into effect.
    pub(super) fn publish(&mut self, backend: &mut Backend) {
        backend.apply(&self.rib, &self.changed_at);
        self.changed_at.clear();
        self.published = Instant::now();
    }

    /// What the kernel should hold for this map.
    pub(super) fn desired(&self, backend: &Backend) -> Desired {
        backend.desired(&self.rib)
    }
}
