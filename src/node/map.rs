//! The map of subnets as the store has reported it, and the changes that are not in effect yet.
//!
//! The whole table is made anew for a change. A change is in effect at once after a quiet time;
//! those of a storm are put into effect together, at a [`Pace`] that follows from the size of the
//! table.

use std::net::IpAddr;

use tokio::time::Instant;

use super::pace::Pace;
use crate::backend::Backend;
use crate::desired::Desired;
use crate::packet::Family;
use crate::route::{Change, Rib};

/// The map.
#[derive(Debug)]
pub(super) struct Map {
    rib: Rib,
    /// When the store reported the changes that are in the RIB, but not in effect.
    changed_at: Vec<Instant>,
    /// Whether the backend has a change that is not in effect.
    is_stale: bool,
    pace: Pace,
}

impl Map {
    /// The first map, which is not in effect yet.
    pub(super) fn new(snapshot: Change) -> Self {
        let mut rib = Rib::default();
        rib.apply(snapshot);
        Self { rib, changed_at: Vec::new(), is_stale: false, pace: Pace::new(Instant::now()) }
    }

    /// Takes a change that the store reported at `changed_at`.
    pub(super) fn take(&mut self, change: Change, changed_at: Instant) {
        if self.rib.apply(change) {
            self.changed_at.push(changed_at);
        }
    }

    /// The backend has learned something that becomes part of the table.
    pub(super) fn mark_stale(&mut self) {
        self.is_stale = true;
    }

    /// Whether a change is not in effect.
    pub(super) fn is_pending(&self) -> bool {
        self.is_stale || !self.changed_at.is_empty()
    }

    /// When the next publication may take place.
    pub(super) fn due(&self) -> Instant {
        self.pace.due()
    }

    /// Puts the map into effect.
    pub(super) fn publish(&mut self, backend: &mut Backend) {
        let start = std::time::Instant::now();
        backend.apply(&self.rib, &self.changed_at);
        self.changed_at.clear();
        self.is_stale = false;
        self.pace.done(start.elapsed(), Instant::now());
    }

    /// Addresses of the other hosts, of the family of `ours`.
    pub(super) fn peer_addresses(&self, ours: IpAddr) -> impl Iterator<Item = IpAddr> {
        let family = Family::of(ours);
        self.rib.leases().filter_map(move |lease| lease.public.of(family)).filter(move |peer| *peer != ours)
    }

    /// What the kernel should hold for this map.
    pub(super) fn desired(&self, backend: &Backend) -> Desired {
        backend.desired(&self.rib)
    }
}
