//! What operators see of the connections. The endpoint's thread writes it, other threads read it.
//!
//! It decides nothing.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use quinn::ConnectionError;

use super::handshake_error::HandshakeError;

/// Reasons for which a connection ended, as labels of a metric, in the order of the counters.
const END_REASONS: [&str; 5] = ["closed_here", "closed_by_peer", "reset", "timed_out", "error"];

/// Counters and the state of each peer.
#[derive(Debug, Default)]
pub struct QuicStatus {
    peers: Mutex<BTreeMap<IpAddr, QuicPeerStatus>>,
    handshakes: AtomicU64,
    failures: AtomicU64,
    refused: AtomicU64,
    validations: AtomicU64,
    ignored: AtomicU64,
    open: AtomicU64,
    rekeys: AtomicU64,
    revoked: AtomicU64,
    ended: [AtomicU64; END_REASONS.len()],
    queue_drops: AtomicU64,
}

/// State of one peer.
#[derive(Debug, Clone, Default)]
pub struct QuicPeerStatus {
    /// When the connection was made; `None` if there is no connection.
    pub since: Option<Instant>,
    /// Why the last handshake failed; `None` once a handshake has succeeded.
    pub last_error: Option<Arc<HandshakeError>>,
    /// Length in bytes of the longest inner packet that the connection takes; 0 if it is not known.
    pub mtu: u16,
}

/// Counts since the endpoint started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuicCounts {
    /// Handshakes that authenticated a peer.
    pub handshakes: u64,
    /// Handshakes that failed.
    pub failures: u64,
    /// Connections refused because no lease at their source address announces encryption.
    pub refused: u64,
    /// Attempts that had to validate their source address first.
    pub validations: u64,
    /// Attempts that were ignored, because too many handshakes were open or had begun.
    pub ignored: u64,
    /// Handshakes that other hosts have begun and that are not complete.
    pub open: u64,
    /// How often the keys of sealed packets were replaced.
    pub rekeys: u64,
    /// Certificates the connections and keys of which were removed.
    pub revoked: u64,
    /// Connections that ended while they were in use, by reason.
    pub ended: [(&'static str, u64); END_REASONS.len()],
    /// Peers to which there is a connection.
    pub connected: u64,
}

impl QuicStatus {
    /// State of the peer at an address.
    #[must_use]
    pub fn peer(&self, address: IpAddr) -> QuicPeerStatus {
        self.peers().get(&address).cloned().unwrap_or_default()
    }

    /// All counts.
    #[must_use]
    pub fn counts(&self) -> QuicCounts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        QuicCounts {
            handshakes: get(&self.handshakes),
            failures: get(&self.failures),
            refused: get(&self.refused),
            validations: get(&self.validations),
            ignored: get(&self.ignored),
            open: get(&self.open),
            rekeys: get(&self.rekeys),
            revoked: get(&self.revoked),
            ended: std::array::from_fn(|index| (END_REASONS[index], get(&self.ended[index]))),
            connected: self.peers().values().filter(|peer| peer.since.is_some()).count() as u64,
        }
    }

    /// Datagrams that the kernel dropped because the receive queue of the endpoint's socket was
    /// full.
    #[must_use]
    pub fn queue_drops(&self) -> u64 {
        self.queue_drops.load(Ordering::Relaxed)
    }

    pub(super) fn change(&self, address: IpAddr, change: impl FnOnce(&mut QuicPeerStatus)) {
        change(self.peers().entry(address).or_default());
    }

    pub(super) fn forget(&self, address: IpAddr) {
        self.peers().remove(&address);
    }

    pub(super) fn count_connected(&self, address: IpAddr, mtu: u16) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        let status = QuicPeerStatus { since: Some(Instant::now()), last_error: None, mtu };
        self.change(address, |peer| *peer = status);
    }

    /// `error`: what the peer's state shows; `None` if there is a connection in spite of the
    /// failure.
    pub(super) fn count_failed(&self, address: IpAddr, error: Option<Arc<HandshakeError>>) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.change(address, |peer| peer.last_error = error.or(peer.last_error.take()));
    }

    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_validation(&self) {
        self.validations.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_ignored(&self) {
        self.ignored.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_open(&self, open: u32) {
        self.open.store(open.into(), Ordering::Relaxed);
    }

    pub(super) fn count_rekey(&self) {
        self.rekeys.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_revoked(&self) {
        self.revoked.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_ended(&self, reason: &ConnectionError) {
        let index = match reason {
            ConnectionError::LocallyClosed => 0,
            ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) => 1,
            ConnectionError::Reset => 2,
            ConnectionError::TimedOut => 3,
            ConnectionError::VersionMismatch
            | ConnectionError::TransportError(_)
            | ConnectionError::CidsExhausted => 4,
        };
        self.ended[index].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_queue_drops(&self, total: u64) {
        self.queue_drops.store(total, Ordering::Relaxed);
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<IpAddr, QuicPeerStatus>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
