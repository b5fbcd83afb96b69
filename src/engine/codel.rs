//! [`Codel`]: when to warn a sender that its packets pile up. It is the control law of CoDel (RFC
//! 8289 §5), for queues that do not tell how long a packet waited in them.
//!
//! The queues of a TUN device and of a socket hold megabytes in the order of arrival, so a ping
//! behind a few bulk streams waits for all of that. CoDel asks whether the shortest wait within an
//! interval was longer than a target. Here the question is whether the queue was ever found empty.
//! If it was not for [`INTERVAL`], it is longer than its streams need to keep the worker busy. Then
//! one bulk packet is marked, or dropped if it cannot be marked, and then another one, ever sooner,
//! until the queue has been empty.
//!
//! It touches no packet and knows no flow: the flow with most packets in the queue is hit most
//! often.
//!
//! Invariant: while a queue is empty at least once in an interval, there are no warnings.

use std::time::Duration;

use crate::time::Nanos;

/// How long a queue may be without ever being empty: several round trips between hosts of one site,
/// and a time slice of the kernel's scheduler, in which the queue fills because its thread does not
/// run.
const INTERVAL: Duration = Duration::from_millis(5);
/// Turns in which the queue must have been served as well, so that time in which the thread did not
/// run is not enough.
const MIN_TURNS: u32 = 8;
/// How long after the last warning the count goes on, if the queue fills again, and need not start
/// from one.
const MEMORY: Duration = INTERVAL.saturating_mul(16);
/// The count beyond which warnings come no sooner, a sixteenth of an interval apart. A flood does
/// not react to warnings, and the traffic after it should not suffer from a long count.
const MAX_COUNT: u32 = 256;

/// The state of one queue.
#[derive(Debug, Default)]
pub(super) struct Codel {
    /// When the queue was last found empty.
    last_empty: Nanos,
    /// Turns that the queue was served in since then.
    turns: u32,
    /// When the next warning is due; the start of the clock if there was no warning yet.
    next_warning: Nanos,
    /// Warnings so far: the more there were, the sooner the next one comes.
    count: u32,
}

impl Codel {
    /// A turn found the queue empty.
    pub(super) fn emptied(&mut self, now: Nanos) {
        (self.last_empty, self.turns) = (now, 0);
        if now.since(self.next_warning) > MEMORY {
            self.count = 0;
        }
    }

    /// A turn took packets out of the queue and left some. Returns whether one sender should be
    /// warned.
    pub(super) fn not_emptied(&mut self, now: Nanos) -> bool {
        self.turns += 1;
        let is_too_long = self.turns >= MIN_TURNS && now.since(self.last_empty) >= INTERVAL;
        if !is_too_long || now < self.next_warning {
            return false;
        }
        self.count = (self.count + 1).min(MAX_COUNT);
        self.next_warning = now + INTERVAL / self.count.isqrt();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves a queue every tenth of a millisecond, from `from` to `to` milliseconds. Returns when
    /// it warned, in tenths of a millisecond.
    fn serve(queue: &mut Codel, from: u64, to: u64, mut is_empty: impl FnMut(u64) -> bool) -> Vec<u64> {
        let mut warned = Vec::new();
        for tenth in 10 * from..10 * to {
            let now = Nanos::from_micros(tenth * 100);
            if is_empty(tenth) {
                queue.emptied(now);
            } else if queue.not_emptied(now) {
                warned.push(tenth);
            }
        }
        warned
    }

    #[test]
    fn warnings_come_sooner_while_queue_is_never_empty() {
        let mut queue = Codel::default();
        queue.emptied(Nanos::from_secs(1));
        assert!(
            serve(&mut queue, 1000, 2000, |tenth| tenth % 49 == 0).is_empty(),
            "busy, but empty at times"
        );
        let warned = serve(&mut queue, 2000, 2100, |_| false);
        assert!((20_040..=20_050).contains(&warned[0]), "{warned:?}");
        let gaps: Vec<u64> = warned.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.is_sorted_by(|one, next| one >= next) && gaps[0] == 50, "{gaps:?}");
        assert!(gaps.last().is_some_and(|gap| *gap < 15), "{gaps:?}");
        let again = serve(&mut queue, 2101, 2120, |tenth| tenth == 21_010);
        assert_eq!(again.first(), Some(&21_060), "an interval after it was empty");
        assert!(again[1] - again[0] < 15, "the count goes on: {again:?}");
        let flood = serve(&mut queue, 2200, 4000, |_| false);
        assert!(flood.windows(2).all(|pair| pair[1] - pair[0] >= 3), "at least 0.3 ms apart");
        let later = serve(&mut queue, 5000, 5012, |tenth| tenth == 50_000);
        assert_eq!(later, [50_050, 50_100], "the count starts from one");
    }

    #[test]
    fn time_without_service_does_not_count() {
        let mut queue = Codel::default();
        queue.emptied(Nanos::from_secs(1));
        let late = Nanos::from_millis(1100);
        let warned: Vec<bool> = (0..9).map(|_| queue.not_emptied(late)).collect();
        assert_eq!(warned.iter().position(|warned| *warned), Some(7));
    }
}
