//! How much a worker asks one of its ends for in one turn.
//!
//! Many short packets, so that a flood needs few system calls; few super packets, so that they are in the cache still when
//! they leave, and no packet waits for more than [`TURN_BYTES`] to be copied (DATAPLANE.md §3: a copy of 64 KiB costs 3 to
//! 4 us hot, 9 to 12 cold). What turns bring also tells whether the queue behind an end stands ([`Codel`]).

use super::codel::Codel;
use crate::time::Nanos;

/// Bytes that a turn should bring at most.
const TURN_BYTES: usize = 128 * 1024;

/// Whoever comes within so many nanoseconds of one that came alone may bring others: to ask whether there is another costs
/// a lone packet's round trip a system call, and is left to the wait.
const CLOSE: u64 = 30_000;
/// Whoever is longer is a piece of something, and has followers.
const SHORT: usize = 1024;

#[derive(Debug)]
pub(super) struct Budget {
    /// What a turn may ask for at most.
    most: usize,
    /// What the next turn asks for.
    next: usize,
    /// What the last turn that brought something brought.
    recent: usize,
    /// How long that was, on average.
    usual: usize,
    /// When a packet last came that nothing was asked for beside, in nanoseconds.
    alone: u64,
    standing: Codel,
    /// Whether a sender is to be warned of what stands.
    warns: bool,
}

impl Budget {
    pub(super) fn new(most: usize) -> Self {
        Self { most, next: 0, recent: 0, usual: 0, alone: 0, standing: Codel::default(), warns: false }
    }

    /// What the next turn asks for; 0 if the last one emptied the queue.
    pub(super) fn next(&self) -> usize {
        self.next
    }

    /// Asks for as much as a turn may bring, where asking for more costs nothing.
    pub(super) fn ask_for_all(&mut self) -> usize {
        self.next = self.limit();
        self.next
    }

    /// There is something in the queue.
    pub(super) fn is_ready(&mut self, now: Nanos) {
        // What came alone a moment ago was the first of many.
        let is_close = now.0.saturating_sub(self.alone) < CLOSE;
        let least = if is_close { 2 } else { 1 };
        self.next = self.next.max(self.recent.max(least).min(self.limit()));
    }

    /// There may be something in the queue.
    pub(super) fn may_be_ready(&mut self) {
        self.next = self.next.max(1);
    }

    /// The turn brought so many, of so many bytes together, at this time.
    pub(super) fn brought(&mut self, count: usize, bytes: usize, now: Nanos) {
        if count > 0 {
            self.recent = count;
            self.usual = (self.usual * 7 + bytes / count) / 8;
        }
        let is_alone = count == 1 && self.next == 1 && bytes < SHORT;
        if is_alone {
            self.alone = now.0;
        }
        let may_have_more = count > 0 && count == self.next && !is_alone;
        if may_have_more {
            self.warns = self.standing.stands(now);
        } else {
            self.standing.emptied(now);
            self.warns = false;
        }
        self.next = if may_have_more { (2 * count).min(self.limit()) } else { 0 };
    }

    /// Whether a sender of bulk is to be told that the queue stands.
    pub(super) fn warns(&self) -> bool {
        self.warns
    }

    fn limit(&self) -> usize {
        (TURN_BYTES / self.usual.max(1)).clamp(2, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns until the queue, in which `left` packets of `length` bytes stand, is known to be empty.
    fn drain(budget: &mut Budget, mut left: usize, length: usize) -> Vec<usize> {
        let mut asked = Vec::new();
        let now = Nanos(1_000_000_000);
        while left > 0 || budget.next() > 0 {
            if budget.next() == 0 {
                budget.is_ready(now);
            }
            let count = budget.next().min(left);
            asked.push(budget.next());
            left -= count;
            budget.brought(count, count * length, now);
        }
        asked
    }

    #[test]
    fn short_packets_come_many_at_a_time_and_long_ones_few() {
        let mut budget = Budget::new(32);
        assert_eq!(drain(&mut budget, 1, 100), [1], "one that comes alone");
        budget.is_ready(Nanos(1_000_000_000 + CLOSE));
        assert_eq!(budget.next(), 1, "and another, later");
        budget = Budget::new(32);
        assert_eq!(drain(&mut budget, 100, 100), [1, 2, 4, 8, 16, 32, 32, 32]);
        assert_eq!(drain(&mut budget, 40, 100), [5, 10, 20, 32]);
        for _ in 0..10 {
            drain(&mut budget, 20, 60_000);
        }
        assert!(drain(&mut budget, 20, 60_000).iter().all(|asked| *asked <= 4));
        assert!(drain(&mut budget, 1000, 100).contains(&32));
    }
}
