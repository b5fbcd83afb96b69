//! When the path to one peer is probed: rounds of probes, and pauses between them.
//!
//! It sends nothing. What the lengths mean is the business of [`PathSearch`].
//!
//! Invariant: a path without traffic costs one search in [`RAISE_IDLE`] at most.

use std::time::Duration;

use crate::forward::{PathSearch, ProbePart};
use crate::time::Nanos;

/// How long a round of probes waits for answers at least. A slower path takes four round trips.
const ROUND: Duration = Duration::from_millis(200);
/// How long a round waits for answers at most.
const LONGEST_ROUND: Duration = Duration::from_secs(1);
/// Time between two probes of the length in force, to peers with traffic.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(2);
/// The same, to peers to which nobody counts the packets.
const UNKNOWN_INTERVAL: Duration = Duration::from_secs(5);
/// Time from a change of the path MTU until a longer length is tried. It doubles with each try.
const RAISE_SOON: Duration = Duration::from_secs(1);
/// Longest time between two tries, to peers with traffic.
const RAISE_INTERVAL: Duration = Duration::from_secs(60);
/// Longest time between two tries, to peers without traffic.
const RAISE_IDLE: Duration = Duration::from_secs(600);

/// Whether a path has traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    Used,
    /// The kernel fast path may carry packets, which nobody counts.
    Unknown,
    Idle,
}

/// A probe that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    /// Length of the datagram. 0: it has no padding.
    pub(super) length: u16,
    /// Its part in a pair of probes.
    pub(super) part: ProbePart,
}

/// The probes of one path.
#[derive(Debug)]
pub(super) struct Probing {
    search: PathSearch,
    /// When the round of probes, or the pause after it, ends; `None` before the first answer of the
    /// peer.
    round_ends: Option<Nanos>,
    /// Whether `round_ends` is the end of a pause.
    is_resting: bool,
    round_began: Nanos,
    /// When a longer length is tried next, and the time from the last try to that.
    raise_at: Nanos,
    raise_wait: Duration,
    /// The length in force before longer ones were tried.
    raise_from: Option<u16>,
    /// The longest datagram that was reported last.
    reported: Option<u16>,
}

impl Probing {
    pub(super) fn new(top: u16, now: Nanos) -> Self {
        Self {
            search: PathSearch::new(top),
            round_ends: None,
            is_resting: false,
            round_began: Nanos::ZERO,
            raise_at: now,
            raise_wait: RAISE_SOON,
            raise_from: None,
            reported: None,
        }
    }

    /// The links at the ends of the path take datagrams of this length.
    pub(super) fn set_top(&mut self, top: u16) {
        if self.search.top() != top {
            self.search = PathSearch::new(top);
            self.round_ends = self.round_ends.map(|_| Nanos::ZERO);
        }
    }

    /// The longest datagram that is sent in one piece.
    pub(super) fn in_force(&self) -> u16 {
        self.search.in_force()
    }

    /// Whether probes have shown what the path takes.
    pub(super) fn is_known(&self) -> bool {
        self.search.learned().is_some()
    }

    /// The peer has answered. From its first answer on, the path is probed.
    pub(super) fn heard(&mut self, now: Nanos) {
        self.round_ends.get_or_insert(now);
    }

    /// A packet was sent to the peer after a time without any.
    pub(super) fn used_again(&mut self, now: Nanos) {
        if self.is_resting {
            self.round_ends = Some(now);
        }
        (self.raise_at, self.raise_wait) = (now, RAISE_SOON);
    }

    /// A probe was answered.
    pub(super) fn answered(&mut self, probe: Probe, now: Nanos) {
        let before = self.search.in_force();
        self.search.answered(probe.length, probe.part);
        self.follow(before, now);
    }

    /// Whether a round of probes is over, or the first one may begin.
    pub(super) fn ends_round(&self, now: Nanos) -> bool {
        self.round_ends.is_some_and(|ends| now >= ends)
    }

    /// Ends a round. `heard_at`: when the last answer of the peer came. If it does not answer at
    /// all, that says nothing about its path's MTU.
    pub(super) fn end_round(&mut self, heard_at: Nanos, usage: Usage, now: Nanos) {
        if !self.is_resting && heard_at >= self.round_began {
            self.search.end_round();
        }
        if let Some(from) = self.raise_from.filter(|_| !self.search.is_raising()) {
            self.raise_from = None;
            let longest = if usage == Usage::Idle { RAISE_IDLE } else { RAISE_INTERVAL };
            let has_raised = self.search.in_force() > from;
            self.raise_wait = if has_raised { RAISE_SOON } else { (self.raise_wait * 2).min(longest) };
            self.raise_at = now + self.raise_wait;
        }
    }

    /// The longest datagram that the path takes, if that has changed since the last call. The
    /// length in force stays until the search has ended.
    pub(super) fn take_change(&mut self) -> Option<Option<u16>> {
        let learned = self.search.learned();
        (!self.search.is_searching() && learned != self.reported).then(|| {
            self.reported = learned;
            learned
        })
    }

    /// Begins a round, or a pause. Returns the probes of the round.
    pub(super) fn begin_round(
        &mut self,
        rtt: Option<Duration>,
        (usage, is_silent): (Usage, bool),
        now: Nanos,
    ) -> Vec<Probe> {
        let may_raise = !is_silent && !self.search.is_urgent() && now >= self.raise_at;
        if may_raise {
            self.search.raise();
            self.raise_from = self.search.is_raising().then(|| self.search.in_force());
        }
        let may_rest = !self.search.is_urgent() && (!self.is_resting || usage == Usage::Idle);
        if may_rest || is_silent {
            self.is_resting = true;
            let pause = if usage == Usage::Used { CONFIRM_INTERVAL } else { UNKNOWN_INTERVAL };
            let is_narrow = self.search.in_force() < self.search.top();
            self.round_ends = Some(now + if is_narrow { pause.min(self.raise_wait) } else { pause });
            return Vec::new();
        }
        (self.is_resting, self.round_began) = (false, now);
        let wait = rtt.map_or(ROUND, |rtt| (rtt * 4).clamp(ROUND, LONGEST_ROUND));
        self.round_ends = Some(now + wait);
        // The shortest one shows that the peer answers at all.
        let lengths = self.search.probes().iter().chain([&0]);
        lengths.map(|length| Probe { length: *length, part: ProbePart::Round }).collect()
    }

    /// The next pair of probes of a trial. To be called every 100 ms.
    pub(super) fn pair(&mut self, now: Nanos) -> Option<[Probe; 2]> {
        let before = self.search.in_force();
        let pair = self.search.pair();
        self.follow(before, now);
        let (short, long) = pair?;
        let probe = |length, part| Probe { length, part };
        Some([probe(short, ProbePart::Short), probe(long, ProbePart::Long)])
    }

    /// Whether [`Probing::pair`] has something to do.
    pub(super) fn has_pair(&self) -> bool {
        self.search.has_trial()
    }

    /// A length that has become smaller may be wrong: longer ones are tried soon.
    fn follow(&mut self, before: u16, now: Nanos) {
        if self.search.in_force() < before {
            (self.raise_at, self.raise_wait) = (now + RAISE_SOON, RAISE_SOON);
        }
    }
}
