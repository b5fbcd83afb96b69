//! What operators see of the connections: written by the endpoint's thread, read by anybody.
//!
//! It decides nothing.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Counters and the state of each peer.
#[derive(Debug, Default)]
pub struct QuicStatus {
    peers: Mutex<BTreeMap<IpAddr, PeerStatus>>,
    handshakes: AtomicU64,
    failures: AtomicU64,
    refused: AtomicU64,
    rekeys: AtomicU64,
    queue_drops: AtomicU64,
}

/// One peer.
#[derive(Debug, Clone, Default)]
pub struct PeerStatus {
    /// Since when there is a connection; `None`: there is none.
    pub since: Option<Instant>,
    /// Why the last handshake failed, if none has succeeded since.
    pub trouble: Option<String>,
    /// The longest inner packet that the connection takes, in bytes; 0: not known.
    pub mtu: u16,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Handshakes that authenticated a peer.
    pub handshakes: u64,
    /// Handshakes that did not.
    pub failures: u64,
    /// Connections from where no peer that encrypts is.
    pub refused: u64,
    /// Times that sealed packets got new keys.
    pub rekeys: u64,
    /// Peers with a connection.
    pub connected: u64,
}

impl QuicStatus {
    /// One peer's state.
    #[must_use]
    pub fn peer(&self, address: IpAddr) -> PeerStatus {
        self.peers().get(&address).cloned().unwrap_or_default()
    }

    /// All counts.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            handshakes: get(&self.handshakes),
            failures: get(&self.failures),
            refused: get(&self.refused),
            rekeys: get(&self.rekeys),
            connected: self.peers().values().filter(|peer| peer.since.is_some()).count() as u64,
        }
    }

    pub(super) fn change(&self, address: IpAddr, change: impl FnOnce(&mut PeerStatus)) {
        change(self.peers().entry(address).or_default());
    }

    pub(super) fn forget(&self, address: IpAddr) {
        self.peers().remove(&address);
    }

    pub(super) fn connected(&self, address: IpAddr, mtu: u16) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        self.change(address, |peer| *peer = PeerStatus { since: Some(Instant::now()), trouble: None, mtu });
    }

    pub(super) fn failed(&self, address: IpAddr, trouble: Option<String>) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.change(address, |peer| peer.trouble = trouble.or(peer.trouble.take()));
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn rekeyed(&self) {
        self.rekeys.fetch_add(1, Ordering::Relaxed);
    }

    /// Datagrams that the kernel dropped because the endpoint's socket was full.
    #[must_use]
    pub fn queue_drops(&self) -> u64 {
        self.queue_drops.load(Ordering::Relaxed)
    }

    pub(super) fn queue_dropped(&self, total: u64) {
        self.queue_drops.store(total, Ordering::Relaxed);
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<IpAddr, PeerStatus>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
