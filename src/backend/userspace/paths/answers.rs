//! How many requests of one peer are answered: a token bucket.

use crate::time::Nanos;

/// Answers at once: a whole search for the path MTU.
const BURST: u64 = 200;
/// Time in which one more answer is allowed: 100 in a second.
const INTERVAL_NANOS: u64 = 10_000_000;

/// The answers that one peer may still get.
#[derive(Debug)]
pub(super) struct Answers {
    left: u64,
    since: Nanos,
}

impl Answers {
    pub(super) fn new(now: Nanos) -> Self {
        Self { left: BURST, since: now }
    }

    /// Whether one more request is answered.
    pub(super) fn allow(&mut self, now: Nanos) -> bool {
        let new = u64::try_from(now.since(self.since).as_nanos()).unwrap_or(u64::MAX) / INTERVAL_NANOS;
        if new > 0 {
            self.left = self.left.saturating_add(new).min(BURST);
            self.since = now;
        }
        let is_allowed = self.left > 0;
        self.left -= u64::from(is_allowed);
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_rate_limited() {
        let mut answers = Answers::new(Nanos(0));
        let allowed = |answers: &mut Answers, at| (0..1000).filter(|_| answers.allow(Nanos(at))).count();
        assert_eq!(allowed(&mut answers, 1), 200);
        assert_eq!(allowed(&mut answers, 1_000_000_000), 100);
        assert_eq!(allowed(&mut answers, 1_000_000_001), 0);
        assert_eq!(allowed(&mut answers, 60_000_000_000), 200);
    }
}
