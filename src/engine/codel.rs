//! When to tell a sender that its packets pile up: CoDel's law (RFC 8289 §5) for queues that do not say how long a packet stood
//! in them.
//!
//! A TUN device's queue and a socket's hold megabytes, first come, first served, and a ping that meets some bulk streams there
//! waits for all of it. What CoDel asks is whether the least that a packet waited within an interval was more than little; here
//! it is whether the queue was ever found empty. If it was not for [`INTERVAL`], it is longer than its streams need to keep
//! this worker busy, and one packet of bulk is marked, or dropped if it cannot be marked; then another, ever sooner, until
//! the queue has been empty.
//!
//! It touches no packet, and knows no flow: whoever has most in the queue is met most often.
//!
//! Invariant: while a queue is empty at least once an interval, nothing is asked for.

use crate::time::Nanos;

/// For how long a queue may go on without ever being empty, in nanoseconds: some round trips between hosts of one site, and a
/// time slice of the scheduler, in which it fills because nobody serves it.
const INTERVAL: u64 = 5_000_000;
/// Turns that it must have been served for as well: time in which the thread did not run does not count alone.
const TURNS: u32 = 8;
/// How soon after the last warning of one time the next is the same matter still, and needs no start from the beginning.
const MEMORY: u64 = 16 * INTERVAL;
/// Warnings beyond which the next comes no sooner, a sixteenth of an interval later: a flood does not listen, and what follows it is
/// not to pay for that.
const MOST: u32 = 256;

/// Of one queue.
#[derive(Debug, Default)]
pub(super) struct Codel {
    /// When it was last found empty, in nanoseconds.
    since: u64,
    /// How often it was served since.
    turns: u32,
    /// When to warn next; 0 if it does not stand.
    next: u64,
    /// Warnings given while it stands: the more, the sooner the next.
    count: u32,
}

impl Codel {
    /// It was found empty.
    pub(super) fn emptied(&mut self, now: Nanos) {
        (self.since, self.turns) = (now.0, 0);
        if now.0.saturating_sub(self.next) > MEMORY {
            self.count = 0;
        }
    }

    /// A turn took something out of it and left something. Says whether one sender is to be warned.
    pub(super) fn stands(&mut self, now: Nanos) -> bool {
        self.turns += 1;
        if self.turns < TURNS || now.0.saturating_sub(self.since) < INTERVAL || now.0 < self.next {
            return false;
        }
        self.count = (self.count + 1).min(MOST);
        self.next = now.0 + INTERVAL / u64::from(self.count.isqrt());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Warnings of a queue that a turn each tenth of a millisecond serves, from `from` to `to` milliseconds.
    fn serve(queue: &mut Codel, from: u64, to: u64, mut is_empty: impl FnMut(u64) -> bool) -> Vec<u64> {
        let mut warned = Vec::new();
        for tenth in 10 * from..10 * to {
            let now = Nanos(tenth * MS / 10);
            if is_empty(tenth) {
                queue.emptied(now);
            } else if queue.stands(now) {
                warned.push(tenth);
            }
        }
        warned
    }

    #[test]
    fn who_is_empty_now_and_then_is_left_alone_and_who_never_is_warns_ever_sooner() {
        let mut queue = Codel::default();
        queue.emptied(Nanos(1000 * MS));
        assert!(
            serve(&mut queue, 1000, 2000, |tenth| tenth % 49 == 0).is_empty(),
            "a busy queue is no standing one"
        );
        let warned = serve(&mut queue, 2000, 2100, |_| false);
        assert!((20_040..=20_050).contains(&warned[0]), "{warned:?}");
        let gaps: Vec<u64> = warned.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.is_sorted_by(|one, next| one >= next) && gaps[0] == 50, "{gaps:?}");
        assert!(gaps.last().is_some_and(|gap| *gap < 15), "{gaps:?}");
        let again = serve(&mut queue, 2101, 2120, |tenth| tenth == 21_010);
        assert_eq!(again.first(), Some(&21_060), "an interval after it was empty");
        assert!(again[1] - again[0] < 15, "it is the same matter still: {again:?}");
        let flood = serve(&mut queue, 2200, 4000, |_| false);
        assert!(
            flood.windows(2).all(|pair| pair[1] - pair[0] >= 3),
            "three tenths of a millisecond at least"
        );
        let later = serve(&mut queue, 5000, 5012, |tenth| tenth == 50_000);
        assert_eq!(later, [50_050, 50_100], "and later it is another");
    }

    #[test]
    fn time_in_which_nobody_served_it_is_not_enough() {
        let mut queue = Codel::default();
        queue.emptied(Nanos(1000 * MS));
        let late = Nanos(1100 * MS);
        let warned: Vec<bool> = (0..9).map(|_| queue.stands(late)).collect();
        assert_eq!(warned.iter().position(|warned| *warned), Some(7));
    }
}
