//! The use of the veth pair: in which order it is taken into use, left and mended.
//!
//! It says what is to be done next, and does nothing itself. Invariant: packets are sent into the
//! pair only while the program is attached to its far end, and the program stays attached for a
//! second after the last packet was sent.

use super::super::veth_pair::{Ends, VethPair};
use super::gro::GroChoice;
use crate::desired::Desired;
use crate::fastpath::FastPath;

/// The veth pair of this host.
#[derive(Debug)]
pub(super) struct Merging {
    pub(super) pair: VethPair,
    pub(super) choice: GroChoice,
    /// The pair to the far end of which the program is attached.
    attached: Option<Ends>,
    /// The pair into which the program sends segments.
    used: Option<Ends>,
    /// Nothing more is to be done before the next second.
    is_resting: bool,
    /// Whether the reconciler was told that the pair must exist.
    is_desired: bool,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Put settings with [`Merging::near`] into force.
    Configure,
    /// Attach the program to [`Merging::far`] also, or not any more.
    Link,
}

impl Merging {
    pub(super) fn new(overlay: &str) -> Self {
        let (pair, choice) = (VethPair::of(overlay), GroChoice::default());
        Self { pair, choice, attached: None, used: None, is_resting: false, is_desired: false }
    }

    /// Goes on with the pair of an earlier daemon, if the link at its far end stands.
    pub(super) fn adopt(&mut self, fast: &FastPath) {
        let ends = self.pair.ends().filter(|ends| fast.merges_at(ends.far));
        if ends.is_some() {
            self.choice = GroChoice::adopted();
            (self.attached, self.used) = (ends, ends);
        }
    }

    /// The fast path is off.
    pub(super) fn stop(&mut self) {
        self.choice = GroChoice::default();
        (self.attached, self.used) = (None, None);
    }

    /// Interface index of the end into which segments are sent.
    pub(super) fn near(&self) -> Option<u32> {
        self.used.map(|ends| ends.near)
    }

    /// Name of the end to which the program is attached.
    pub(super) fn far(&self) -> Option<String> {
        self.attached.map(|_| self.pair.far.clone())
    }

    /// What the kernel should hold. The pair stays until the program is detached from it.
    pub(super) fn desired(&self) -> Desired {
        self.pair.desired(self.is_wanted())
    }

    fn is_wanted(&self) -> bool {
        self.choice.is_pair() || self.attached.is_some()
    }

    /// Whether the reconciler has to be told of another desired state.
    pub(super) fn has_desired_changed(&mut self) -> bool {
        let is_wanted = self.is_wanted();
        std::mem::replace(&mut self.is_desired, is_wanted) != is_wanted
    }

    /// The pair as it is, if it is to be used.
    pub(super) fn found(&self) -> Option<Ends> {
        if self.choice.is_pair() { self.pair.ends() } else { None }
    }

    /// A second has passed. `is_attached`: the program is at the far end. Returns whether another
    /// program has taken it away.
    pub(super) fn tick(&mut self, is_attached: bool, found: Option<Ends>) -> bool {
        self.is_resting = false;
        // A pair that is gone is the reconciler's to mend.
        let is_taken = self.used.is_some() && !is_attached && found == self.used;
        if is_taken {
            self.attached = None;
        }
        is_taken
    }

    /// The program cannot be attached to the far end now.
    pub(super) fn failed(&mut self) {
        (self.attached, self.is_resting) = (None, true);
    }

    /// What is to be done next, if the pair is as `found`.
    pub(super) fn next(&mut self, found: Option<Ends>) -> Option<Action> {
        let must_leave = self.used.is_some() && (self.used != found || self.attached != found);
        if must_leave {
            self.used = None;
            // Packets may still be in a pair that is not gone.
            self.is_resting = !self.choice.is_pair();
            return Some(Action::Configure);
        }
        if self.is_resting {
            return None;
        }
        if self.attached != found {
            self.attached = found;
            return Some(Action::Link);
        }
        if self.used != self.attached {
            self.used = self.attached;
            return Some(Action::Configure);
        }
        None
    }

    /// Whether segments go through the pair is not what was chosen.
    pub(super) fn is_waiting(&self) -> bool {
        self.choice.is_pair() && self.used.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Option<Ends> = Some(Ends { near: 5, far: 4 });

    fn actions(merging: &mut Merging, found: Option<Ends>) -> Vec<Action> {
        std::iter::from_fn(|| merging.next(found)).take(9).collect()
    }

    fn used() -> Merging {
        let mut merging = Merging::new("hopsack0");
        merging.choice = GroChoice::adopted();
        assert!(merging.has_desired_changed() && merging.is_waiting());
        assert_eq!(actions(&mut merging, None), []);
        assert_eq!(actions(&mut merging, PAIR), [Action::Link, Action::Configure]);
        assert_eq!((merging.near(), merging.far().as_deref()), (Some(5), Some("hopsack0-gro1")));
        merging
    }

    #[test]
    fn new_pair_takes_the_place_of_one_that_is_gone() {
        let mut merging = used();
        assert_eq!(actions(&mut merging, None), [Action::Configure, Action::Link]);
        assert_eq!((merging.near(), merging.far()), (None, None));
        assert!(!merging.has_desired_changed(), "it is wanted all the time");
        let new = Some(Ends { near: 9, far: 8 });
        assert_eq!(actions(&mut merging, new), [Action::Link, Action::Configure]);
        assert_eq!(merging.near(), Some(9));
    }

    #[test]
    fn pair_that_is_left_is_detached_a_second_later() {
        let mut merging = used();
        merging.choice = GroChoice::default();
        assert_eq!(actions(&mut merging, None), [Action::Configure]);
        assert!(merging.near().is_none() && merging.far().is_some() && !merging.has_desired_changed());
        merging.tick(true, None);
        assert_eq!(actions(&mut merging, None), [Action::Link]);
        assert!(merging.has_desired_changed(), "now it can go");
    }

    #[test]
    fn detached_program_ends_the_use_until_it_is_back() {
        let mut merging = used();
        assert!(!merging.tick(true, PAIR));
        assert!(merging.tick(false, PAIR));
        assert_eq!(actions(&mut merging, PAIR), [Action::Configure, Action::Link, Action::Configure]);
        assert!(!merging.tick(false, None), "the pair is gone, not the program");
        // If it cannot be attached, the next try comes a second later.
        let mut merging = used();
        merging.tick(false, PAIR);
        assert_eq!(merging.next(PAIR), Some(Action::Configure));
        assert_eq!(merging.next(PAIR), Some(Action::Link));
        merging.failed();
        assert_eq!(actions(&mut merging, PAIR), []);
        merging.tick(false, PAIR);
        assert_eq!(actions(&mut merging, PAIR), [Action::Link, Action::Configure]);
    }
}
