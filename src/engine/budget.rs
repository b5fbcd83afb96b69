//! [`Budget`]: how many packets a worker asks a queue for in one turn.
//!
//! A turn takes many short packets, so that a flood needs few system calls, but few super packets,
//! so that they are still in the cache when they leave and no packet waits for the copy of more
//! than [`TURN_BYTES`].
//!
//! It reads no queue. What the turns brought also shows whether the queue is ever empty, and the
//! budget tells that to [`Codel`].
//!
//! Invariant: a turn asks for at least one packet while the queue may have any, and for at most
//! `max`.

use super::codel::Codel;
use super::policy::{BULK_PACKET_BYTES, FOLLOW_UP_WINDOW, TURN_BYTES};
use crate::time::Nanos;

#[derive(Debug)]
pub(super) struct Budget {
    /// The number of packets that a turn may ask for at most.
    max: usize,
    /// The number of packets that the next turn asks for.
    next: usize,
    /// Packets in the last turn that was not empty.
    recent: usize,
    /// Average length of the `recent` packets in bytes.
    average_bytes: usize,
    /// When a turn last moved a single packet and did not ask for another.
    last_alone: Nanos,
    codel: Codel,
    /// Whether a sender of bulk should be warned that the queue is never empty.
    warns: bool,
}

impl Budget {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            next: 0,
            recent: 0,
            average_bytes: 0,
            last_alone: Nanos::ZERO,
            codel: Codel::default(),
            warns: false,
        }
    }

    /// How many packets the next turn asks for. It is 0 if the last turn emptied the queue.
    #[inline]
    pub(super) fn next(&self) -> usize {
        self.next
    }

    /// Asks for as many packets as a turn may bring, for a queue where asking for more costs
    /// nothing.
    pub(super) fn ask_for_all(&mut self) -> usize {
        self.next = self.limit();
        self.next
    }

    /// The queue is readable.
    pub(super) fn is_ready(&mut self, now: Nanos) {
        // The packet that came alone a moment ago was the first of several.
        let follows = now.since(self.last_alone) < FOLLOW_UP_WINDOW;
        let least = if follows { 2 } else { 1 };
        self.next = self.next.max(self.recent.max(least).min(self.limit()));
    }

    /// The queue may be readable.
    pub(super) fn may_be_ready(&mut self) {
        self.next = self.next.max(1);
    }

    /// A turn has brought `count` packets of `bytes` bytes in all.
    pub(super) fn brought(&mut self, count: usize, bytes: usize, now: Nanos) {
        if count > 0 {
            self.recent = count;
            self.average_bytes = (self.average_bytes * 7 + bytes / count) / 8;
        }
        // A longer packet is probably part of a stream, and the next one is in the queue already.
        let is_alone = count == 1 && self.next == 1 && bytes < BULK_PACKET_BYTES;
        if is_alone {
            self.last_alone = now;
        }
        let may_have_more = count > 0 && count == self.next && !is_alone;
        if may_have_more {
            self.warns = self.codel.not_emptied(now);
        } else {
            self.codel.emptied(now);
            self.warns = false;
        }
        self.next = if may_have_more { (2 * count).min(self.limit()) } else { 0 };
    }

    /// Whether a sender of bulk should be warned that the queue is never empty.
    #[inline]
    pub(super) fn warns(&self) -> bool {
        self.warns
    }

    fn limit(&self) -> usize {
        (TURN_BYTES / self.average_bytes.max(1)).clamp(2, self.max)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Nanos = Nanos::from_secs(1);

    /// Takes turns until a queue with `left` packets of `length` bytes is known to be empty.
    /// Returns how many packets each turn asked for.
    fn drain(budget: &mut Budget, mut left: usize, length: usize) -> Vec<usize> {
        let mut asked = Vec::new();
        while left > 0 || budget.next() > 0 {
            if budget.next() == 0 {
                budget.is_ready(NOW);
            }
            let count = budget.next().min(left);
            asked.push(budget.next());
            left -= count;
            budget.brought(count, count * length, NOW);
        }
        asked
    }

    #[test]
    fn turn_takes_many_short_or_few_long_packets() {
        let mut budget = Budget::new(32);
        assert_eq!(drain(&mut budget, 1, 100), [1], "a packet that comes alone");
        budget.is_ready(NOW + FOLLOW_UP_WINDOW);
        assert_eq!(budget.next(), 1, "the next one comes later");
        budget = Budget::new(32);
        assert_eq!(drain(&mut budget, 100, 100), [1, 2, 4, 8, 16, 32, 32, 32]);
        assert_eq!(drain(&mut budget, 40, 100), [5, 10, 20, 32]);
        for _ in 0..10 {
            drain(&mut budget, 20, 60_000);
        }
        assert!(drain(&mut budget, 20, 60_000).iter().all(|asked| *asked <= 4));
        assert!(drain(&mut budget, 1000, 100).contains(&32));
    }

    /// A turn calls [`Budget::brought`] for each direction, also for one that it did not ask.
    #[test]
    fn queue_management_starts_anew_after_idle_turn() {
        const BUSY_TURNS: u64 = 20;
        let mut budget = Budget::new(32);
        // Takes turns that never empty the queue, a millisecond apart. Returns how many there were
        // until one of them warned.
        let turns_until_warning = |budget: &mut Budget, start: Nanos| {
            (0..BUSY_TURNS).find(|turn| {
                budget.is_ready(start);
                let count = budget.next();
                budget.brought(count, count * 1500, start + Duration::from_millis(*turn));
                budget.warns()
            })
        };
        budget.brought(0, 0, NOW);
        let after_idle_turn = turns_until_warning(&mut budget, NOW);
        assert!(after_idle_turn.is_some_and(|turns| turns > 5), "{after_idle_turn:?}");
        let later = NOW + Duration::from_secs(1);
        budget.brought(0, 0, later);
        assert!(!budget.warns(), "an idle turn ends a warning");
        budget.brought(0, 0, later + Duration::from_secs(1));
        let again = turns_until_warning(&mut budget, later + Duration::from_secs(1));
        assert_eq!(again, after_idle_turn, "the second without packets does not count as a full queue");
    }
}
