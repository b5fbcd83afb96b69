//! Which attempts of other hosts to connect are answered.
//!
//! An attempt costs this host some cryptography and memory, and everybody can send one with the
//! source address of a peer. So the number of open handshakes is bounded, for each peer and in all.
//! Once more than a few are open, the source address must be validated first (RFC 9000 section
//! 8.1.2). An answer to that needs no memory, and the validation token proves that the sender
//! receives what is sent to that address. Handshakes with and without a validated address are
//! counted apart, so that forged addresses take no place of the host itself.
//!
//! Something else than the host may receive at a peer's address too: a pod behind masquerade. It
//! does not get the port from which the host dials, so attempts from that port are counted apart.
//!
//! It makes no handshake and reads no clock. Invariant: there are never more open handshakes than
//! [`MOST_OPEN`], of one peer never more than twice [`MOST_OPEN_OF_PEER`], and of senders with an
//! address that is not validated never more than [`MOST_UNVALIDATED`].
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Most open handshakes.
const MOST_OPEN: u32 = 64;
/// Most open handshakes of one peer with a validated address: from the port of its endpoint, and as
/// many from other ports.
const MOST_OPEN_OF_PEER: u32 = 4;
/// Most open handshakes without a validated address.
const MOST_UNVALIDATED: u32 = 4;
/// Handshakes of one peer with a validated address that may begin at once, and in each second after
/// that: from the port of its endpoint, and as many from other ports.
const HANDSHAKES: (u32, u32) = (32, 8);
/// Requests for a validation, at once and in each second.
const VALIDATIONS: (u32, u32) = (1000, 1000);
/// Refusals, at once and in each second.
const REFUSALS: (u32, u32) = (100, 100);

/// What is done about an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The handshake begins.
    Answer(Open),
    /// The sender must show first that it receives what is sent to its address.
    Validate,
    /// The attempt is ignored.
    Ignore,
}

/// An open handshake. It must be given back by [`Admission::closed`]. The source is `None` if it is
/// not validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) struct Open(Option<Source>);

/// The address of a peer, and whether the attempt comes from the port of the peer's endpoint.
pub(super) type Source = (IpAddr, bool);

/// Counts open handshakes.
#[derive(Debug)]
pub(super) struct Admission {
    open: u32,
    unvalidated: u32,
    peers: BTreeMap<Source, Slot>,
    validations: Budget,
    refusals: Budget,
}

/// Handshakes of one peer.
#[derive(Debug)]
struct Slot {
    open: u32,
    budget: Budget,
}

impl Admission {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            open: 0,
            unvalidated: 0,
            peers: BTreeMap::new(),
            validations: Budget::new(VALIDATIONS, now),
            refusals: Budget::new(REFUSALS, now),
        }
    }

    /// Decides about an attempt of a peer.
    pub(super) fn decide(&mut self, from: Source, is_validated: bool, now: Instant) -> Verdict {
        if !is_validated {
            return self.decide_unvalidated(now);
        }
        self.peers.retain(|_, slot| slot.open > 0 || !slot.budget.is_full(now));
        let new = || Slot { open: 0, budget: Budget::new(HANDSHAKES, now) };
        let slot = self.peers.entry(from).or_insert_with(new);
        let has_room = self.open < MOST_OPEN && slot.open < MOST_OPEN_OF_PEER;
        if !has_room || !slot.budget.take(now) {
            return Verdict::Ignore;
        }
        slot.open += 1;
        self.open += 1;
        Verdict::Answer(Open(Some(from)))
    }

    fn decide_unvalidated(&mut self, now: Instant) -> Verdict {
        if self.open < MOST_UNVALIDATED {
            self.unvalidated += 1;
            self.open += 1;
            return Verdict::Answer(Open(None));
        }
        if self.validations.take(now) { Verdict::Validate } else { Verdict::Ignore }
    }

    /// Whether an attempt may be refused, which tells its sender to try again soon. If not, it is
    /// ignored.
    pub(super) fn may_refuse(&mut self, now: Instant) -> bool {
        self.refusals.take(now)
    }

    /// A handshake has succeeded or failed.
    pub(super) fn closed(&mut self, Open(from): Open) {
        self.open -= 1;
        self.unvalidated -= u32::from(from.is_none());
        if let Some(slot) = from.and_then(|from| self.peers.get_mut(&from)) {
            slot.open -= 1;
        }
    }

    /// Number of open handshakes.
    pub(super) fn open(&self) -> u32 {
        self.open
    }
}

/// A token bucket.
#[derive(Debug)]
struct Budget {
    most: u32,
    a_second: u32,
    left: f64,
    filled_at: Instant,
}

impl Budget {
    fn new((most, a_second): (u32, u32), now: Instant) -> Self {
        Self { most, a_second, left: most.into(), filled_at: now }
    }

    fn fill(&mut self, now: Instant) {
        let elapsed: Duration = now.saturating_duration_since(self.filled_at);
        self.left = elapsed.as_secs_f64().mul_add(self.a_second.into(), self.left).min(self.most.into());
        self.filled_at = now;
    }

    fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let has_some = self.left >= 1.0;
        self.left -= if has_some { 1.0 } else { 0.0 };
        has_some
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left >= self.most.into()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn source(number: u8, is_endpoint: bool) -> Source {
        (Ipv4Addr::new(192, 0, 2, number).into(), is_endpoint)
    }

    #[test]
    fn flood_without_validation_gets_few_handshakes() {
        let start = Instant::now();
        let mut admission = Admission::new(start);
        let verdicts: Vec<_> = (0..900).map(|_| admission.decide(source(1, true), false, start)).collect();
        let answered = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Answer(_))).count();
        assert_eq!(answered, 4);
        assert!(verdicts[4..].iter().all(|verdict| *verdict == Verdict::Validate));
        // The host itself validates its address, and gets in.
        assert!(matches!(admission.decide(source(1, true), true, start), Verdict::Answer(_)));
        // Another peer does, too.
        assert!(matches!(admission.decide(source(2, true), true, start), Verdict::Answer(_)));
    }

    #[test]
    fn pod_behind_masquerade_does_not_lock_out_its_host() {
        let mut now = Instant::now();
        let mut admission = Admission::new(now);
        let mut answered = 0;
        // The pod validates its address each time, and lets each handshake fail at once.
        for millisecond in 0..10_000 {
            now += Duration::from_millis(1);
            if let Verdict::Answer(open) = admission.decide(source(1, false), true, now) {
                answered += 1;
                admission.closed(open);
            }
            if millisecond % 500 == 0 {
                let Verdict::Answer(open) = admission.decide(source(1, true), true, now) else {
                    panic!("the host is locked out");
                };
                admission.closed(open);
            }
        }
        assert!((105..=115).contains(&answered), "32 at once and 8 a second: {answered}");
    }

    #[test]
    fn refusals_are_limited() {
        let start = Instant::now();
        let mut admission = Admission::new(start);
        assert_eq!((0..10_000).filter(|_| admission.may_refuse(start)).count(), 100);
        assert!(admission.may_refuse(start + Duration::from_secs(1)));
    }

    proptest! {
        #[test]
        fn bounds_hold(steps in proptest::collection::vec((0..40_u8, any::<bool>(), any::<bool>(), 0..5_u8), 1..400)) {
            let mut now = Instant::now();
            let mut admission = Admission::new(now);
            let mut open: Vec<Open> = Vec::new();
            for (peer, is_endpoint, is_validated, close) in steps {
                now += Duration::from_millis(50);
                if let Verdict::Answer(new) = admission.decide(source(peer, is_endpoint), is_validated, now) {
                    open.push(new);
                }
                if close == 0 && !open.is_empty() {
                    admission.closed(open.swap_remove(usize::from(peer) % open.len()));
                }
                prop_assert_eq!(admission.open() as usize, open.len());
                prop_assert!(admission.open() <= MOST_OPEN && admission.unvalidated <= MOST_UNVALIDATED);
                prop_assert!(admission.peers.values().all(|slot| slot.open <= MOST_OPEN_OF_PEER));
            }
            open.into_iter().for_each(|open| admission.closed(open));
            now += Duration::from_secs(60);
            let _ = admission.decide(source(99, true), true, now);
            prop_assert_eq!(admission.peers.len(), 1, "peers are forgotten");
        }
    }
}
