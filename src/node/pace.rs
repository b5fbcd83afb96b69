//! The pace of work that looks at the whole map: it is done at once after a quiet time, and then
//! not again before several times its own duration has passed.
//!
//! A route table is made anew for each change, and that takes longer the more leases there are. A
//! key that some program writes hundreds of times a second must not cost a share of a CPU that
//! grows with the cluster. So the pace follows from the measured duration.
//!
//! It is pure: it reads no clock.
//!
//! Invariant: the work takes at most one part in `REST + 1` of the time, unless a single run of it
//! takes longer than `LONGEST / REST`.

use std::time::Duration;

use tokio::time::Instant;

/// How many times the duration of the work must pass before it is done again: 5 % of a CPU.
const REST: u32 = 20;
/// Shortest time between two runs. Changes that arrive within it are done together.
const SHORTEST: Duration = Duration::from_millis(1);
/// Longest time that a change waits, unless the work is being done when it comes.
const LONGEST: Duration = Duration::from_secs(1);

/// When the work may be done again.
#[derive(Debug)]
pub(super) struct Pace {
    due: Instant,
}

impl Pace {
    /// The work may be done at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now }
    }

    /// When the work may be done next.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// The work has ended now, and has taken this long.
    pub(super) fn done(&mut self, took: Duration, now: Instant) {
        self.due = now + took.saturating_mul(REST).clamp(SHORTEST, LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often the work is done while changes come at this interval for ten seconds, and how
    /// long
    /// a change waits at most until the work begins.
    fn storm(interval: Duration, took: Duration) -> (u32, Duration) {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (mut runs, mut longest, mut free, mut changed) = (0, Duration::ZERO, start, None);
        let changes = Duration::from_secs(10).as_nanos() / interval.as_nanos();
        for number in 0..u32::try_from(changes).expect("few enough") {
            let at = start + interval * number;
            // The work that became due before this change.
            if let Some(since) = changed
                && pace.due().max(free) <= at
            {
                let begin = pace.due().max(free).max(since);
                longest = longest.max(begin - since);
                (runs, free, changed) = (runs + 1, begin + took, None);
                pace.done(took, free);
            }
            changed = changed.or(Some(at));
        }
        (runs, longest)
    }

    #[test]
    fn single_change_is_done_at_once() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert!(pace.due() <= now);
        pace.done(Duration::from_millis(3), now);
        assert_eq!(pace.due(), now + Duration::from_millis(60));
        assert!(pace.due() <= now + LONGEST, "a second later the next change is done at once as well");
    }

    #[test]
    fn storm_costs_one_part_in_twenty() {
        let change = Duration::from_micros(1733);
        for took in [1, 3, 10, 50].map(Duration::from_millis) {
            let (runs, longest) = storm(change, took);
            let share = (took * runs).as_secs_f64() / 10.0;
            assert!((0.03..=0.05).contains(&share), "{runs} runs of {took:?}: {share}");
            assert!(longest <= took * (REST + 1), "{longest:?}");
        }
    }

    #[test]
    fn small_map_follows_every_change() {
        let (runs, longest) = storm(Duration::from_millis(2), Duration::from_micros(20));
        assert!(runs >= 4990, "{runs}");
        assert!(longest <= Duration::from_millis(1), "{longest:?}");
    }

    #[test]
    fn no_change_waits_much_longer_than_a_second() {
        let took = Duration::from_millis(200);
        let (_, longest) = storm(Duration::from_millis(2), took);
        assert!(longest <= took + LONGEST, "{longest:?}");
    }
}
