//! The null backend: it announces nothing, wants nothing of the kernel and moves no packets.
//!
//! With it the whole control plane of a node runs in tests, without a device, a socket or a thread.

use crate::route::{Local, Rib};

/// A backend that only counts the leases of other hosts.
#[derive(Debug)]
pub struct Null {
    local: Local,
    peers: usize,
}

impl Null {
    pub(super) fn new(local: Local) -> Self {
        Self { local, peers: 0 }
    }

    pub(super) fn apply(&mut self, rib: &Rib) {
        self.peers = rib.leases().filter(|lease| lease.subnets != self.local.subnets).count();
    }

    pub(super) fn peers(&self) -> usize {
        self.peers
    }

    pub(super) fn relocate(&mut self, local: &Local) {
        self.local = local.clone();
    }
}
