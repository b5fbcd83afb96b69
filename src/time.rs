//! Monotonic time as plain numbers, for code that must not read a clock.
//!
//! The caller reads the clock (`sys::now`) and passes [`Nanos`] in, so that pure modules and tests
//! decide what time it is. A point in time is a [`Nanos`]; a length of time is a [`Duration`].
//!
//! Invariant: arithmetic saturates; no operation panics or wraps.
#![forbid(unsafe_code)]

use core::ops::{Add, AddAssign, Sub};
// `core::time` has a length of time but, unlike `std::time`, no clock.
use core::time::Duration;

/// A point in monotonic time, in nanoseconds since an arbitrary fixed start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    /// The start of the clock.
    pub const ZERO: Self = Self(0);
    /// Later than any time that a clock shows; an instant that never comes.
    pub const MAX: Self = Self(u64::MAX);

    /// The point in time this many seconds after the start of the clock.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// The point in time this many milliseconds after the start of the clock.
    #[must_use]
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(milliseconds.saturating_mul(1_000_000))
    }

    /// The point in time this many microseconds after the start of the clock.
    #[must_use]
    pub const fn from_micros(microseconds: u64) -> Self {
        Self(microseconds.saturating_mul(1000))
    }

    /// The time that has passed since `earlier`; zero if `earlier` is the later of the two.
    #[must_use]
    #[inline]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The point in time `duration` after this one, at most [`Nanos::MAX`].
    #[must_use]
    #[inline]
    pub const fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(whole_nanos(duration)))
    }

    /// The point in time `duration` before this one, at least [`Nanos::ZERO`].
    #[must_use]
    #[inline]
    pub const fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(whole_nanos(duration)))
    }
}

/// The length of `duration` in nanoseconds; `u64::MAX` for more than 584 years.
#[inline]
#[allow(clippy::cast_possible_truncation)] // The value was compared with u64::MAX before the cast.
const fn whole_nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 }
}

/// Saturates, as [`Nanos::saturating_add`] does.
impl Add<Duration> for Nanos {
    type Output = Self;

    #[inline]
    fn add(self, duration: Duration) -> Self {
        self.saturating_add(duration)
    }
}

/// Saturates, as [`Nanos::saturating_add`] does.
impl AddAssign<Duration> for Nanos {
    #[inline]
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

/// Saturates, as [`Nanos::saturating_sub`] does.
impl Sub<Duration> for Nanos {
    type Output = Self;

    #[inline]
    fn sub(self, duration: Duration) -> Self {
        self.saturating_sub(duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        let second = Duration::from_secs(1);
        assert_eq!(Nanos::from_secs(2) + second, Nanos::from_millis(3000));
        assert_eq!(Nanos::from_micros(1_000_000) - second, Nanos::ZERO);
        assert_eq!(Nanos::MAX + second, Nanos::MAX);
        assert_eq!(Nanos(7) + Duration::MAX, Nanos::MAX);
        assert_eq!(Nanos(7) - Duration::MAX, Nanos::ZERO);
        assert_eq!(Nanos::from_secs(3).since(Nanos::from_secs(1)), 2 * second);
        assert_eq!(Nanos::from_secs(1).since(Nanos::from_secs(3)), Duration::ZERO);
    }
}
