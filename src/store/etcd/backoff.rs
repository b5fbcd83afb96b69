//! Backoff: how long to wait before the next attempt to reach etcd.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::random;

/// Waits of 100 ms, doubling up to 5 s. Each wait is shortened by a random part of at most one
/// half.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    /// Longest wait.
    pub(crate) const LIMIT: Duration = Duration::from_secs(5);

    pub(crate) fn next(&mut self) -> Duration {
        let doubled = Self::FIRST * (1 << self.attempts.min(6));
        self.attempts = self.attempts.saturating_add(1);
        let wait = doubled.min(Self::LIMIT);
        wait / 2 + random::around(wait / 4, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
        for (n, wait) in waits.iter().enumerate() {
            let longest = Duration::from_millis(100 << n.min(6)).min(Duration::from_secs(5));
            assert!((longest / 2..=longest).contains(wait), "{n}: {wait:?}");
        }
    }
}
