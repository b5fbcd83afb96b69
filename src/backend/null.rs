//! The null backend: it announces nothing, wants nothing of the kernel and moves no packets.
//!
//! With it the whole control plane of a node runs in tests, without a device, a socket or a thread.

use crate::route::{Compiled, Local, Networks, Remark, Rib, compile};

/// A backend that only counts the hosts that it could send to.
#[derive(Debug)]
pub struct Null {
    networks: Networks,
    local: Local,
    peers: usize,
    remarks: Vec<Remark>,
}

impl Null {
    pub(super) fn new(networks: Networks, local: Local) -> Self {
        Self { networks, local, peers: 0, remarks: Vec::new() }
    }

    pub(super) fn apply(&mut self, rib: &Rib) {
        let Compiled { peers, remarks, .. } = compile(rib, &self.networks, &self.local);
        (self.peers, self.remarks) = (peers.len(), remarks);
    }

    pub(super) fn peers(&self) -> usize {
        self.peers
    }

    pub(super) fn remarks(&self) -> Vec<Remark> {
        self.remarks.clone()
    }

    pub(super) fn relocate(&mut self, local: &Local) {
        self.local = local.clone();
    }
}
