//! When a certificate that expires is looked at again: the less time is left, the more often. One
//! that is not valid yet, because the clock was ahead when it was made, is looked at each minute.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::pki::Identity;

/// Times of the certificate in use.
#[derive(Debug)]
pub(super) struct Schedule {
    not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// From here on a new certificate is looked for.
    due: SystemTime,
    last_check: Instant,
}

impl Schedule {
    pub(super) fn of(identity: &Identity) -> Self {
        Self {
            not_before: identity.not_before(),
            not_after: identity.not_after(),
            due: identity.due(),
            last_check: Instant::now(),
        }
    }

    /// Whether to look for a new certificate now; if so, the next time is counted from here.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.should_check(SystemTime::now(), self.last_check.elapsed());
        if due {
            self.last_check = Instant::now();
        }
        due
    }

    /// Time between two checks of a certificate that is due.
    fn interval(&self, now: SystemTime) -> Duration {
        const SHORTEST: Duration = Duration::from_secs(1);
        const LONGEST: Duration = Duration::from_secs(3600);
        /// After it has expired, other parts report that as well.
        const EXPIRED: Duration = Duration::from_secs(60);
        const NOT_VALID_YET: Duration = Duration::from_secs(60);
        if now < self.not_before {
            return NOT_VALID_YET;
        }
        self.not_after.duration_since(now).map_or(EXPIRED, |left| (left / 8).clamp(SHORTEST, LONGEST))
    }

    fn should_check(&self, now: SystemTime, since: Duration) -> bool {
        let is_due = now >= self.due || now < self.not_before;
        is_due && since >= self.interval(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_become_more_frequent_until_expiry() {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let (start, hour) = (SystemTime::UNIX_EPOCH + 1000 * DAY, Duration::from_secs(3600));
        let schedule = Schedule {
            not_before: start,
            not_after: start + 365 * DAY,
            due: start + 335 * DAY,
            last_check: Instant::now(),
        };
        assert!(!schedule.should_check(start + 334 * DAY, 300 * DAY), "not due yet");
        assert!(schedule.should_check(start + 335 * DAY, hour));
        assert!(!schedule.should_check(start + 335 * DAY, hour - Duration::from_secs(1)));
        let left = |seconds| schedule.interval(schedule.not_after - Duration::from_secs(seconds)).as_secs();
        assert_eq!([80_000, 8_000, 80, 4].map(left), [3600, 1000, 10, 1]);
        assert_eq!(schedule.interval(schedule.not_after + DAY).as_secs(), 60);
        let (early, minute) = (schedule.not_before - hour, Duration::from_secs(60));
        assert!(schedule.should_check(early, minute), "the certificate is not valid yet");
        assert!(!schedule.should_check(early, minute / 2));
    }
}
