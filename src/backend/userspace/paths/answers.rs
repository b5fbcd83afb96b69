//! How many requests of one peer are answered: two token buckets. In clear, anybody can send
//! requests in a peer's name. Those from the port that the peer is known to use have a bucket of
//! their own.
//!
//! Invariant: requests from other ports do not use up what requests from the known port may get.

use crate::time::Nanos;

/// Answers at once: a whole search for the path MTU.
const BURST: u64 = 200;
/// Time in which one more answer is allowed: 100 in a second.
const INTERVAL_NANOS: u64 = 10_000_000;

/// The answers that one peer may still get.
#[derive(Debug)]
pub(super) struct Answers {
    /// The port from which the peer sends control messages: it has sent a valid reply from it.
    port: Option<u16>,
    known: Bucket,
    others: Bucket,
}

impl Answers {
    pub(super) fn new(now: Nanos) -> Self {
        let bucket = || Bucket { left: BURST, since: now };
        Self { port: None, known: bucket(), others: bucket() }
    }

    /// A valid reply has come from this port. Nobody else knows the nonce of the request.
    pub(super) fn know(&mut self, port: u16) {
        self.port = Some(port);
    }

    /// Whether one more request, from this port, is answered.
    pub(super) fn allow(&mut self, port: u16, now: Nanos) -> bool {
        let is_known = self.port == Some(port);
        if is_known { self.known.take(now) } else { self.others.take(now) }
    }
}

#[derive(Debug)]
struct Bucket {
    left: u64,
    since: Nanos,
}

impl Bucket {
    fn take(&mut self, now: Nanos) -> bool {
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
        let allowed = |answers: &mut Answers, at| (0..1000).filter(|_| answers.allow(9, Nanos(at))).count();
        assert_eq!(allowed(&mut answers, 1), 200);
        assert_eq!(allowed(&mut answers, 1_000_000_000), 100);
        assert_eq!(allowed(&mut answers, 1_000_000_001), 0);
        assert_eq!(allowed(&mut answers, 60_000_000_000), 200);
    }

    #[test]
    fn stranger_does_not_use_up_the_answers_of_the_peer() {
        let mut answers = Answers::new(Nanos(0));
        answers.know(40_000);
        assert_eq!((0..1000).filter(|_| answers.allow(8285, Nanos(1))).count(), 200);
        assert!((0..200).all(|_| answers.allow(40_000, Nanos(1))));
        assert!(!answers.allow(40_000, Nanos(1)));
    }
}
