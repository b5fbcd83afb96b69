//! One peer: its waiting packets, its connections, and the state of attempts to connect.
//!
//! It decides nothing and sends nothing. `connect` decides when to dial, `datagrams` sends.
//!
//! Invariant: at most one connection is in use. Among those with a known number it is the one with
//! the highest.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell, RefMut};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::connection::TrackedConnection;
use super::numbering;
use super::queue::PeerQueue;
use super::shown::ShownCertificate;
use super::warning_limit::WarningLimit;
use crate::seal::Session;

/// How long packets wait for a connection.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(2);

/// State of one peer.
pub(super) struct QuicPeer {
    /// Address on the underlay.
    pub(super) address: IpAddr,
    queue: RefCell<PeerQueue>,
    /// Since when packets wait without a connection.
    pub(super) waiting_since: Cell<Option<Instant>>,
    /// Wakes the task that sends the waiting packets.
    pub(super) wake: Notify,
    current: RefCell<Option<Rc<TrackedConnection>>>,
    /// Open connections that are not in use.
    spare: RefCell<Vec<Rc<TrackedConnection>>>,
    /// Certificates on which connections and keys depend.
    certificates: RefCell<Vec<Rc<ShownCertificate>>>,
    /// The highest number of a connection so far.
    last_number: Cell<u64>,
    /// When packets passed last.
    pub(super) active_at: Cell<Instant>,
    /// Whether the peer has left the FIB.
    pub(super) is_gone: Cell<bool>,
    pub(super) is_dialling: Cell<bool>,
    /// Failed handshakes since the last success.
    pub(super) failures: Cell<u32>,
    /// No attempt starts before this time.
    pub(super) retry_at: Cell<Instant>,
    /// The number of the certificate and the trust with which this host has dialled the peer last,
    /// with success.
    pub(super) dialled_with: Cell<u64>,
    pub(super) warning: WarningLimit,
    /// Whether it was reported that the peer has no certificate of its own.
    pub(super) has_problem: Cell<bool>,
    /// Value of the session's counter of sealed packets when it was last read.
    pub(super) sealed_packets: Cell<u64>,
}

impl QuicPeer {
    pub(super) fn new(address: IpAddr, identity_number: u64) -> Self {
        let now = Instant::now();
        Self {
            address,
            queue: RefCell::default(),
            waiting_since: Cell::new(None),
            wake: Notify::new(),
            current: RefCell::new(None),
            spare: RefCell::default(),
            certificates: RefCell::default(),
            last_number: Cell::new(numbering::UNNUMBERED),
            active_at: Cell::new(now),
            is_gone: Cell::new(false),
            is_dialling: Cell::new(false),
            failures: Cell::new(0),
            retry_at: Cell::new(now),
            dialled_with: Cell::new(identity_number),
            warning: WarningLimit::default(),
            has_problem: Cell::new(false),
            sealed_packets: Cell::new(0),
        }
    }

    /// The connection in use, with its record.
    pub(super) fn current(&self) -> Option<Rc<TrackedConnection>> {
        self.current.borrow().clone()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// All open connections, the one in use first.
    pub(super) fn connections(&self) -> Vec<Rc<TrackedConnection>> {
        self.current.borrow().iter().chain(self.spare.borrow().iter()).cloned().collect()
    }

    pub(super) fn is_current(&self, tracked: &TrackedConnection) -> bool {
        self.current.borrow().as_ref().is_some_and(|current| current.is_same(tracked))
    }

    /// Records a certificate that the peer has shown. Returns the record of it.
    pub(super) fn record_certificate(&self, shown: ShownCertificate) -> Rc<ShownCertificate> {
        let shown = Rc::new(shown);
        let mut certificates = self.certificates.borrow_mut();
        certificates.retain(|known| known.fingerprint != shown.fingerprint);
        certificates.push(shown.clone());
        shown
    }

    /// Certificates on which connections and keys depend.
    pub(super) fn certificates(&self) -> Vec<Rc<ShownCertificate>> {
        self.certificates.borrow().clone()
    }

    /// Forgets a certificate that is not trusted any more.
    pub(super) fn forget_certificate(&self, revoked: &ShownCertificate) {
        self.certificates.borrow_mut().retain(|shown| shown.fingerprint != revoked.fingerprint);
    }

    /// Forgets certificates on which no connection depends, and none of the keys in `session`.
    pub(super) fn forget_certificates(&self, session: Option<&Session>) {
        let connections = self.connections();
        self.certificates.borrow_mut().retain(|shown| {
            let is_used =
                |tracked: &Rc<TrackedConnection>| tracked.certificate.fingerprint == shown.fingerprint;
            let has_keys = session.is_some_and(|session| session.depends_on(&shown.fingerprint.0));
            has_keys || connections.iter().any(is_used)
        });
    }

    /// A number for a new connection.
    pub(super) fn next_number(&self) -> u64 {
        numbering::next(self.last_number.get())
    }

    /// Adds a connection, or takes into account that its number is known now. Returns whether this
    /// has put the connection into use.
    pub(super) fn add(&self, tracked: &Rc<TrackedConnection>) -> bool {
        self.last_number.set(self.last_number.get().max(tracked.number.get()));
        if self.is_current(tracked) {
            return false;
        }
        let mut current = self.current.borrow_mut();
        // Among connections without a number the latest is used, and one with a number before
        // those.
        let wins = current.as_ref().is_none_or(|current| tracked.number.get() >= current.number.get());
        let mut spare = self.spare.borrow_mut();
        spare.retain(|spare| !spare.is_same(tracked));
        if wins {
            spare.extend(current.replace(tracked.clone()));
        } else {
            spare.push(tracked.clone());
        }
        wins
    }

    /// Removes a connection that has ended. Returns whether it was in use. If it was, the one with
    /// the highest number of the others takes its place.
    pub(super) fn remove(&self, tracked: &TrackedConnection) -> bool {
        let mut spare = self.spare.borrow_mut();
        spare.retain(|spare| !spare.is_same(tracked));
        let was_current = self.is_current(tracked);
        if was_current {
            let next = spare.iter().max_by_key(|tracked| tracked.number.get()).cloned();
            spare.retain(|spare| next.as_ref().is_none_or(|next| !next.is_same(spare)));
            *self.current.borrow_mut() = next;
        }
        was_current
    }

    /// Removes all connections and returns them.
    pub(super) fn remove_all(&self) -> Vec<Rc<TrackedConnection>> {
        let all = self.connections();
        self.current.borrow_mut().take();
        self.spare.borrow_mut().clear();
        all
    }

    pub(super) fn has_waiting_packets(&self) -> bool {
        self.queue().bytes() > 0
    }

    /// Packets that wait to be sent.
    pub(super) fn queue(&self) -> RefMut<'_, PeerQueue> {
        self.queue.borrow_mut()
    }

    /// A handshake has succeeded: forgets earlier failures.
    pub(super) fn record_success(&self) {
        self.warning.reset();
        self.waiting_since.set(None);
        self.failures.set(0);
        self.active_at.set(Instant::now());
    }
}
