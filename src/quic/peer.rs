//! One peer: what waits for it, its connections, and the attempts to have one.
//!
//! It decides nothing and sends nothing: who dials is [`super::connect`]'s matter, who pumps [`super::carry`]'s.
//!
//! Invariant: at most one connection is in use, and of those whose numbers are known it is the one with the greatest.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell, RefMut};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use quinn::Connection;
use tokio::sync::Notify;

use super::connection::Way;
use super::queue::Queue;

/// A trouble with one peer is told once in this time.
const WARN: Duration = Duration::from_secs(60);

/// One peer.
pub(super) struct Line {
    pub(super) address: IpAddr,
    queue: RefCell<Queue>,
    /// Since when packets wait without a connection.
    pub(super) waiting: Cell<Option<Instant>>,
    /// Something to do for the pump.
    pub(super) work: Notify,
    current: RefCell<Option<Rc<Way>>>,
    /// Connections that live and are not in use.
    spare: RefCell<Vec<Rc<Way>>>,
    /// The greatest number that a connection has got.
    last_number: Cell<u64>,
    pub(super) active: Cell<Instant>,
    pub(super) gone: Cell<bool>,
    pub(super) dialling: Cell<bool>,
    pub(super) failures: Cell<u32>,
    pub(super) retry_at: Cell<Instant>,
    told: Cell<Option<Instant>>,
    /// Packets that were sealed for it when it was asked last.
    pub(super) sealed: Cell<u64>,
}

impl Line {
    pub(super) fn new(address: IpAddr) -> Self {
        let now = Instant::now();
        Self {
            address,
            queue: RefCell::default(),
            waiting: Cell::new(None),
            work: Notify::new(),
            current: RefCell::new(None),
            spare: RefCell::default(),
            last_number: Cell::new(0),
            active: Cell::new(now),
            gone: Cell::new(false),
            dialling: Cell::new(false),
            failures: Cell::new(0),
            retry_at: Cell::new(now),
            told: Cell::new(None),
            sealed: Cell::new(0),
        }
    }

    /// The connection in use.
    pub(super) fn way(&self) -> Option<Rc<Way>> {
        self.current.borrow().clone()
    }

    pub(super) fn connection(&self) -> Option<Connection> {
        self.current.borrow().as_ref().map(|way| way.connection.clone())
    }

    pub(super) fn is_connected(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// All that live, the one in use first.
    pub(super) fn ways(&self) -> Vec<Rc<Way>> {
        self.current.borrow().iter().chain(self.spare.borrow().iter()).cloned().collect()
    }

    pub(super) fn is_current(&self, way: &Way) -> bool {
        self.current.borrow().as_ref().is_some_and(|current| current.is(way))
    }

    /// A number greater than all before, also those of an earlier process: of a clock that was not set back.
    pub(super) fn next_number(&self) -> u64 {
        let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let now = u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX);
        now.max(self.last_number.get().saturating_add(1))
    }

    /// Takes in a connection, or what is known of its number since. Returns whether it is in use from here on and was not
    /// before.
    pub(super) fn enter(&self, way: &Rc<Way>) -> bool {
        self.last_number.set(self.last_number.get().max(way.number.get()));
        if self.is_current(way) {
            return false;
        }
        let mut current = self.current.borrow_mut();
        // Without numbers the later one; with one, that whose place is known.
        let wins = current.as_ref().is_none_or(|current| way.number.get() >= current.number.get());
        let mut spare = self.spare.borrow_mut();
        spare.retain(|spare| !spare.is(way));
        if wins {
            spare.extend(current.replace(way.clone()));
        } else {
            spare.push(way.clone());
        }
        wins
    }

    /// A connection has ended. Returns whether it was in use; then the greatest of the others is.
    pub(super) fn leave(&self, way: &Way) -> bool {
        let mut spare = self.spare.borrow_mut();
        spare.retain(|spare| !spare.is(way));
        let was_current = self.is_current(way);
        if was_current {
            let next = spare.iter().max_by_key(|way| way.number.get()).cloned();
            spare.retain(|spare| next.as_ref().is_none_or(|next| !next.is(spare)));
            *self.current.borrow_mut() = next;
        }
        was_current
    }

    /// Parts with all connections.
    pub(super) fn clear(&self) -> Vec<Rc<Way>> {
        let ways = self.ways();
        self.current.borrow_mut().take();
        self.spare.borrow_mut().clear();
        ways
    }

    pub(super) fn has_work(&self) -> bool {
        self.queue().bytes() > 0
    }

    /// What waits.
    pub(super) fn queue(&self) -> RefMut<'_, Queue> {
        self.queue.borrow_mut()
    }

    /// Whether something about this peer should be told again.
    pub(super) fn may_tell(&self) -> bool {
        may_tell(&self.told)
    }

    /// What was told is over.
    pub(super) fn is_well(&self) {
        self.told.set(None);
        self.waiting.set(None);
        self.failures.set(0);
        self.active.set(Instant::now());
    }
}

/// At most once in [`WARN`].
pub(super) fn may_tell(told: &Cell<Option<Instant>>) -> bool {
    let due = told.get().is_none_or(|at| at.elapsed() >= WARN);
    if due {
        told.set(Some(Instant::now()));
    }
    due
}
