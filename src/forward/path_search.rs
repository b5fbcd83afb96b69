//! The search for the MTU of a path, by probes that the peer acknowledges (after RFC 8899).
//!
//! It sends nothing and has no clock: its owner sends the probes of a round, says which were
//! answered, and ends the round. Lengths are those of datagrams, in bytes of UDP payload.
//!
//! A path is taken for as wide as the links at its ends until a probe of that length is lost. Then
//! a trial begins. Congestion loses probes too, and it loses long ones more often, because a short
//! one still fits into a queue that is nearly full. So a trial sends many pairs of probes, one long
//! and one short, over several seconds. The long length counts as too long only if no probe of it
//! was answered while most of the short ones were. Meanwhile, a few rounds of several probes find
//! the longest length that passes, to the byte.
//!
//! Invariant: the length in force was acknowledged, or it is [`PathSearch::top`] and no trial has
//! shown that it is too long, or it is the least that any path takes. Only a trial makes it
//! smaller. One answer makes it larger.
#![forbid(unsafe_code)]

/// Pairs of probes in a trial. If a full queue drops nine of ten long probes, all 60 are lost with
/// a probability of 0.2 %.
const PAIRS: u32 = 60;
/// Pairs in a trial of a path on which the last trials have found another reason for loss.
const MOST_PAIRS: u32 = 4 * PAIRS;
/// Probes of different length in a round of the search.
const PROBES: u16 = 8;
/// The least that any path takes: an IPv4 packet of 552 bytes.
const LEAST: u16 = 552 - 28;

/// The state of the search for one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSearch {
    top: u16,
    in_force: u16,
    /// Whether the length in force was acknowledged, or found by a trial.
    confirmed: bool,
    /// Pairs that the next trial has.
    pairs: u32,
    /// The lengths of the probes of this round.
    round: Vec<u16>,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Probes of the length in force are sent now and then.
    Rest { is_answered: bool },
    /// Is the length in force too long? The longest acknowledged length is `low`, or nothing was
    /// acknowledged. Probes of `high` were lost.
    Trial { low: u16, high: u16, sent: u32, short_answers: u32 },
    /// Does the path take more than the length in force? Probes of `high` were lost.
    Raise { high: u16 },
}

/// A probe of a pair. See [`PathSearch::pair`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbePart {
    /// It is not of a pair, but of a round.
    Round,
    /// It is the short one.
    Short,
    /// It has the length in force.
    Long,
}

impl PathSearch {
    /// Begins with a path that takes datagrams of `top` bytes, unless probes show otherwise.
    #[must_use]
    pub fn new(top: u16) -> Self {
        let state = State::Rest { is_answered: false };
        Self { top, in_force: top, confirmed: false, pairs: PAIRS, round: Vec::new(), state }
    }

    /// The longest datagram that the links at both ends take.
    #[must_use]
    pub fn top(&self) -> u16 {
        self.top
    }

    /// The longest datagram that is sent.
    #[must_use]
    pub fn in_force(&self) -> u16 {
        self.in_force
    }

    /// The longest datagram that the path takes, once a probe has shown it.
    #[must_use]
    pub fn learned(&self) -> Option<u16> {
        let is_known = self.in_force < self.top || self.confirmed;
        is_known.then_some(self.in_force)
    }

    /// Whether the length in force may be too long, or too short, and the search goes on.
    #[must_use]
    pub fn is_searching(&self) -> bool {
        !matches!(self.state, State::Rest { .. })
    }

    /// Whether a trial sends pairs of probes.
    #[must_use]
    pub fn has_trial(&self) -> bool {
        matches!(self.state, State::Trial { .. })
    }

    /// Whether longer lengths are tried.
    #[must_use]
    pub fn is_raising(&self) -> bool {
        matches!(self.state, State::Raise { .. })
    }

    /// Whether the next round should follow at once.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.is_searching() || !self.confirmed
    }

    /// Begins to try longer lengths, if there are any. The length in force stays until a longer
    /// probe is answered.
    pub fn raise(&mut self) {
        if self.in_force < self.top && !self.is_urgent() {
            self.state = State::Raise { high: self.top.saturating_add(1) };
        }
    }

    /// Begins a round. Returns the lengths of its probes.
    pub fn probes(&mut self) -> &[u16] {
        self.round = match &mut self.state {
            State::Rest { is_answered } => {
                *is_answered = false;
                vec![self.in_force]
            }
            // Each is sent twice, so that a single loss does not count.
            State::Trial { low, high, .. } => {
                let least = (*low).max(LEAST - 1);
                spread(least, *high).chain(spread(least, *high)).collect()
            }
            State::Raise { high } => spread(self.in_force, *high).collect(),
        };
        &self.round
    }

    /// The next pair of probes of a trial: the length of the short one, which is 0 if none was
    /// acknowledged yet, and of the long one. To be called every 100 ms. `None`: there is no trial.
    pub fn pair(&mut self) -> Option<(u16, u16)> {
        let State::Trial { low, sent, short_answers, .. } = &mut self.state else { return None };
        if *sent < self.pairs {
            *sent += 1;
            return Some((*low, self.in_force));
        }
        // No long one was answered. If many short ones were not answered either, the length is not
        // the reason.
        if *short_answers * 4 >= *sent * 3 {
            self.in_force = (*low).max(LEAST);
        }
        self.rest();
        None
    }

    /// A probe was answered.
    pub fn answered(&mut self, length: u16, part: ProbePart) {
        let is_in_force = length >= self.in_force;
        if is_in_force {
            (self.in_force, self.confirmed) = (length.min(self.top), true);
        }
        match &mut self.state {
            State::Rest { is_answered } => *is_answered |= is_in_force,
            State::Trial { .. } if is_in_force => {
                self.pairs = (self.pairs * 2).min(MOST_PAIRS);
                self.rest();
            }
            State::Trial { low, high, short_answers, .. } => {
                *short_answers += u32::from(part == ProbePart::Short);
                if part == ProbePart::Round {
                    *low = length.max(*low);
                    if *low >= *high {
                        *high = self.in_force;
                    }
                }
            }
            State::Raise { high } if length >= *high => *high = self.top.saturating_add(1),
            State::Raise { .. } => {}
        }
    }

    /// Ends a round: its probes that were not answered are lost. The peer is alive, or the owner
    /// does not call this.
    pub fn end_round(&mut self) {
        let round = std::mem::take(&mut self.round);
        let lost = |passes: u16| round.iter().copied().filter(|length| *length > passes).min();
        match &mut self.state {
            State::Rest { .. } if round.is_empty() => {}
            State::Rest { is_answered: true } => self.pairs = (self.pairs / 2).max(PAIRS),
            State::Rest { .. } if self.in_force <= LEAST => self.confirmed = true,
            State::Rest { .. } => {
                self.state = State::Trial { low: 0, high: self.in_force, sent: 0, short_answers: 0 };
            }
            State::Trial { low, high, .. } => *high = lost(*low).unwrap_or(*high),
            State::Raise { high } => {
                *high = lost(self.in_force).unwrap_or(*high);
                if *high - self.in_force <= 1 {
                    self.rest();
                }
            }
        }
    }

    fn rest(&mut self) {
        self.confirmed = true;
        self.round.clear();
        self.state = State::Rest { is_answered: false };
    }
}

/// The lengths of a round between `low` and `high`, both excluded. The last one is the longest.
fn spread(low: u16, high: u16) -> impl Iterator<Item = u16> + use<> {
    let span = high.saturating_sub(low).saturating_sub(1);
    let count = PROBES.min(span);
    let step = move |n: u16| u32::from(span) * u32::from(n) / u32::from(count);
    (1..=count).map(move |n| low.saturating_add(u16::try_from(step(n)).unwrap_or(u16::MAX)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Makes a round, with two pairs if there is a trial. `takes` says which probes pass.
    fn round(search: &mut PathSearch, mut takes: impl FnMut(u16) -> bool) {
        let passed: Vec<u16> = search.probes().to_vec().into_iter().filter(|length| takes(*length)).collect();
        passed.into_iter().for_each(|length| search.answered(length, ProbePart::Round));
        for _ in 0..2 {
            let Some((short, long)) = search.pair() else { break };
            for (length, part) in [(short, ProbePart::Short), (long, ProbePart::Long)] {
                if takes(length) {
                    search.answered(length, part);
                }
            }
        }
        search.end_round();
    }

    /// Makes rounds until the search rests. Returns their number.
    fn search(search: &mut PathSearch, path: u16) -> u32 {
        let mut rounds = 0;
        while rounds == 0 || search.is_urgent() {
            round(search, |length| length <= path);
            rounds += 1;
            assert!(rounds <= MOST_PAIRS, "{search:?}");
        }
        rounds
    }

    /// Numbers below 100 that look random.
    fn random() -> impl FnMut() -> u64 {
        let mut state = 1u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % 100
        }
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
        round(&mut path, |length| length < 1000);
        assert_eq!((path.learned(), path.is_searching()), (None, true));
        round(&mut path, |_| true);
        assert_eq!((path.learned(), path.is_urgent()), (Some(1472), false));
    }

    /// A queue that is nearly full has room for short probes only, most of the time.
    #[test]
    fn congestion_is_no_narrow_path() {
        for percent in [10, 20, 50] {
            let mut path = PathSearch::new(1472);
            search(&mut path, 9000);
            let mut random = random();
            for _ in 0..5000 {
                round(&mut path, |length| length <= 644 || random() < percent);
                assert_eq!(path.in_force(), 1472, "{percent} % of the long probes pass");
            }
        }
    }

    /// Without answers to short probes, the length is not the reason.
    #[test]
    fn loss_of_all_lengths_is_no_narrow_path() {
        let mut path = PathSearch::new(1472);
        search(&mut path, 9000);
        let mut random = random();
        for _ in 0..5000 {
            round(&mut path, |length| length < 1000 && random() < 50);
            assert_eq!(path.in_force(), 1472);
        }
    }

    #[test]
    fn path_that_becomes_wider_is_found_again() {
        let mut path = PathSearch::new(1472);
        search(&mut path, 972);
        assert_eq!(path.learned(), Some(972));
        for wider in [1000, 1372, 9000] {
            path.raise();
            assert!(path.is_raising());
            assert!(search(&mut path, wider) <= 5, "rounds");
            assert_eq!(path.learned(), Some(wider.min(1472)));
        }
        path.raise();
        assert!(!path.is_raising(), "there is nothing more");
    }

    proptest! {
        /// The search ends at exactly what the path takes, within few rounds.
        #[test]
        fn search_finds_the_path(top in 600..9000u16, path in 400..9000u16, next in 400..9000u16) {
            let mut found = PathSearch::new(top);
            let rounds = search(&mut found, path);
            prop_assert_eq!(found.learned(), Some(path.clamp(LEAST, top)));
            prop_assert!(rounds <= PAIRS / 2 + 2, "{} rounds", rounds);
            // The path changes while the host runs.
            search(&mut found, next);
            found.raise();
            search(&mut found, next);
            prop_assert_eq!(found.learned(), Some(next.clamp(LEAST, top)));
        }
    }
}
