//! Chance: for jitter, and for the choice of a subnet. Nothing secret depends on it.
//!
//! The standard library seeds its hash maps from the system's random numbers; that is all that is used, and saves a
//! dependency.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// A random number.
pub(crate) fn number() -> u64 {
    RandomState::new().hash_one(0u8)
}

/// A random number below `bound`; 0 if that is 0.
pub(crate) fn below(bound: u64) -> u64 {
    number().checked_rem(bound).unwrap_or(0)
}

/// `whole`, give or take a part of it: `parts` = 4 means from three to five quarters.
pub(crate) fn around(whole: Duration, parts: u32) -> Duration {
    let part = whole / parts;
    let nanos = u64::try_from(part.as_nanos() * 2).unwrap_or(u64::MAX);
    whole - part + Duration::from_nanos(below(nanos.saturating_add(1)))
}

/// Waits between attempts: 100 ms doubling to 5 s, each anything from half of that on.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(5);

    pub(crate) fn next(&mut self) -> Duration {
        let doubled = Self::FIRST * (1 << self.attempts.min(6));
        self.attempts = self.attempts.saturating_add(1);
        let wait = doubled.min(Self::MOST);
        wait / 2 + around(wait / 4, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_in_their_bounds() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
        for (n, wait) in waits.iter().enumerate() {
            let whole = Duration::from_millis(100 << n.min(6)).min(Duration::from_secs(5));
            assert!((whole / 2..=whole).contains(wait), "{n}: {wait:?}");
        }
        let minute = Duration::from_secs(60);
        for _ in 0..100 {
            assert!((minute * 3 / 4..=minute * 5 / 4).contains(&around(minute, 4)));
        }
    }

    #[test]
    fn numbers_differ() {
        let numbers: std::collections::BTreeSet<u64> = (0..1000).map(|_| below(1 << 40)).collect();
        assert!(numbers.len() > 990);
        assert_eq!(below(0), 0);
    }
}
