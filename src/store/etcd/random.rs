//! Random numbers for jitter and for the choice of a subnet. Nothing secret depends on them.
//!
//! The standard library seeds its hash maps from the system's random numbers. Using that seed saves
//! a dependency.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// A random number.
pub(crate) fn number() -> u64 {
    RandomState::new().hash_one(0u8)
}

/// A random number below `bound`; 0 if `bound` is 0.
pub(crate) fn below(bound: u64) -> u64 {
    number().checked_rem(bound).unwrap_or(0)
}

/// A random time within `middle` ± `middle / parts`. With `parts` = 4: 0.75 to 1.25 × `middle`.
pub(crate) fn around(middle: Duration, parts: u32) -> Duration {
    let deviation = middle / parts;
    let nanos = u64::try_from(deviation.as_nanos() * 2).unwrap_or(u64::MAX);
    middle - deviation + Duration::from_nanos(below(nanos.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ() {
        let numbers: std::collections::BTreeSet<u64> = (0..1000).map(|_| below(1 << 40)).collect();
        assert!(numbers.len() > 990);
        assert_eq!(below(0), 0);
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        let minute = Duration::from_secs(60);
        for _ in 0..100 {
            assert!((minute * 3 / 4..=minute * 5 / 4).contains(&around(minute, 4)));
        }
    }
}
