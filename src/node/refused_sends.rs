//! Datagrams that the kernel refused to send because a packet filter forbids them (EPERM).
//!
//! Invariant: the problem lasts from the first refusal until no datagram was refused for
//! [`QUIET`].

use std::time::Duration;

use tokio::time::Instant;

/// Time without a refusal after which the problem is over.
const QUIET: Duration = Duration::from_secs(10);

/// Watches the count of refused datagrams.
#[derive(Debug, Default)]
pub(super) struct RefusedSends {
    count: u64,
    last: Option<Instant>,
}

impl RefusedSends {
    /// Takes the count of all refused datagrams. Returns whether datagrams are being refused.
    pub(super) fn check(&mut self, count: u64, now: Instant) -> bool {
        if count != self.count {
            (self.count, self.last) = (count, Some(now));
        }
        self.last.is_some_and(|last| now.duration_since(last) < QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problem_ends_after_a_while_without_refusals() {
        let (mut sends, start) = (RefusedSends::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!sends.check(0, after(0)));
        assert!(sends.check(3, after(1)));
        assert!(sends.check(4, after(9)) && sends.check(4, after(18)));
        assert!(!sends.check(4, after(19)));
    }
}
