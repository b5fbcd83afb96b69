//! The search for the MTU of a path, by probes that the peer acknowledges (after RFC 8899).
//!
//! It sends nothing and has no clock: its owner sends the probes of a round, waits a moment, and
//! says which of them were answered. Lengths are those of datagrams, in bytes of UDP payload.
//!
//! A path is taken for as wide as the links at its ends until a probe of that length is lost
//! several times. Then a few rounds of several probes narrow it down to the byte.
//!
//! Invariant: the length in force was acknowledged, or it is [`PathSearch::top`] and no probe of it
//! was lost [`LOSSES`] times, or it is the least that any path takes.
#![forbid(unsafe_code)]

/// Lost probes in a row after which a length counts as too long.
const LOSSES: u32 = 3;
/// Probes of different length in a round of the search.
const PROBES: u16 = 8;
/// The least that any path takes: an IPv4 packet of 552 bytes.
const LEAST: u16 = 552 - 28;

/// The state of the search for one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSearch {
    top: u16,
    in_force: u16,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Probes of the length in force are sent now and then. So many were lost in a row.
    Confirm { lost: u32, confirmed: bool },
    /// The longest acknowledged length is `low`, or that is [`LEAST`]. Probes of `high` were lost.
    Search { low: u16, high: u16 },
}

impl PathSearch {
    /// Begins with a path that takes datagrams of `top` bytes, unless probes show otherwise.
    #[must_use]
    pub fn new(top: u16) -> Self {
        Self { top, in_force: top, state: State::Confirm { lost: 0, confirmed: false } }
    }

    /// The longest datagram that the links at both ends take.
    #[must_use]
    pub fn top(&self) -> u16 {
        self.top
    }

    /// The longest datagram that the path takes, once a probe has shown it.
    #[must_use]
    pub fn learned(&self) -> Option<u16> {
        let is_known =
            self.in_force < self.top || matches!(self.state, State::Confirm { confirmed: true, .. });
        is_known.then_some(self.in_force)
    }

    /// Whether the length in force is too long, and a shorter one is not found yet.
    #[must_use]
    pub fn is_searching(&self) -> bool {
        matches!(self.state, State::Search { .. })
    }

    /// Whether the next round should follow at once.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        match self.state {
            State::Confirm { lost, confirmed } => lost > 0 || !confirmed,
            State::Search { .. } => true,
        }
    }

    /// The lengths of the probes of a round.
    pub fn probes(&self) -> impl Iterator<Item = u16> + use<> {
        let (low, high, count) = match self.state {
            State::Confirm { .. } => (0, self.in_force, 1),
            State::Search { low, high } => (low, high - 1, PROBES.min(high - low - 1)),
        };
        let span = u32::from(high - low);
        (1..=count)
            .map(move |n| low + u16::try_from(span * u32::from(n) / u32::from(count)).unwrap_or(u16::MAX))
    }

    /// A round is over. `acknowledged` is the longest probe that was answered. The peer is alive,
    /// or the owner does not call this.
    pub fn round(&mut self, acknowledged: Option<u16>) {
        match self.state {
            State::Confirm { .. } if acknowledged.is_some_and(|length| length >= self.in_force) => {
                self.state = State::Confirm { lost: 0, confirmed: true };
            }
            State::Confirm { lost, confirmed } if lost + 1 < LOSSES => {
                self.state = State::Confirm { lost: lost + 1, confirmed };
            }
            State::Confirm { .. } => {
                self.state = State::Search { low: LEAST.min(self.in_force), high: self.in_force };
                self.end_if_found();
            }
            State::Search { low, high } => {
                let lengths = || self.probes();
                let reached = acknowledged.unwrap_or(0).max(low);
                let lost = lengths().find(|length| *length > reached).unwrap_or(high);
                self.state = State::Search { low: reached, high: lost };
                self.end_if_found();
            }
        }
    }

    /// Tries the longest length again: the path may have become wider, or the probes were lost for
    /// another reason. The length in force stays until a probe is answered.
    #[must_use]
    pub fn raised(&self) -> Option<u16> {
        (self.in_force < self.top && !self.is_urgent()).then_some(self.top)
    }

    /// The probe of [`PathSearch::raised`] was answered.
    pub fn raise(&mut self) {
        self.in_force = self.top;
        self.state = State::Confirm { lost: 0, confirmed: true };
    }

    fn end_if_found(&mut self) {
        if let State::Search { low, high } = self.state
            && high - low <= 1
        {
            self.in_force = low;
            self.state = State::Confirm { lost: 0, confirmed: true };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Makes rounds until the search rests. Returns their number.
    fn search(search: &mut PathSearch, path: u16) -> usize {
        let mut rounds = 0;
        while rounds == 0 || search.is_urgent() {
            search.round(search.probes().filter(|length| *length <= path).max());
            rounds += 1;
            assert!(rounds < 20, "{search:?}");
        }
        rounds
    }

    #[test]
    fn wide_path_costs_one_probe() {
        let mut wide = PathSearch::new(1472);
        assert_eq!(wide.learned(), None);
        assert_eq!((search(&mut wide, 9000), wide.learned()), (1, Some(1472)));
    }

    #[test]
    fn one_lost_probe_changes_nothing() {
        let mut path = PathSearch::new(1472);
        path.round(None);
        path.round(None);
        path.round(Some(1472));
        assert_eq!((path.learned(), path.is_urgent()), (Some(1472), false));
    }

    #[test]
    fn path_that_becomes_wider_is_found_again() {
        let mut path = PathSearch::new(1472);
        assert_eq!(path.raised(), None);
        search(&mut path, 1272);
        assert_eq!(path.raised(), Some(1472));
        path.raise();
        assert_eq!((path.learned(), path.raised()), (Some(1472), None));
    }

    proptest! {
        /// The search ends at exactly what the path takes, within few rounds.
        #[test]
        fn search_finds_the_path(top in 600..9000u16, path in 400..9000u16) {
            let mut found = PathSearch::new(top);
            let rounds = search(&mut found, path);
            prop_assert_eq!(found.learned(), Some(path.clamp(LEAST, top)));
            prop_assert!(rounds <= 10, "{} rounds", rounds);
            // The path changes while the host runs.
            search(&mut found, 700);
            let known = found.learned().expect("known");
            prop_assert_eq!(known, path.clamp(LEAST, top).min(700));
        }
    }
}
