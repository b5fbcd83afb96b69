//! The rate limit of ICMP errors.
//!
//! It does not write or send errors.
//!
//! Invariant: a group of receivers gets at most [`Limiter::BURST`] errors at once, and
//! [`Limiter::RATE`] per second in the long run.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::time::Nanos;

/// Limits the rate of ICMP errors with a token bucket for each of [`Limiter::BUCKETS`] groups of
/// receivers. So one pod that floods an address without an owner does not use up the errors for the
/// others.
#[derive(Debug)]
pub struct Limiter {
    buckets: [Bucket; Self::BUCKETS],
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Unspent credit in nanoseconds; one error costs [`Limiter::COST_NS`].
    credit_ns: u64,
    filled: Nanos,
}

impl Limiter {
    /// Number of groups of receivers, each with a limit of its own.
    pub const BUCKETS: usize = 64;
    /// Errors per second for each group, in the long run.
    pub const RATE: u64 = 10;
    /// Errors that one group may get at once.
    pub const BURST: u64 = 10;
    const COST_NS: u64 = 1_000_000_000 / Self::RATE;

    /// Creates a limiter with full buckets.
    #[must_use]
    pub fn new(now: Nanos) -> Self {
        Self { buckets: [Bucket { credit_ns: Self::BURST * Self::COST_NS, filled: now }; Self::BUCKETS] }
    }

    /// Takes one token for an error to `receiver`. Returns whether the error may be sent.
    pub fn allow(&mut self, receiver: IpAddr, now: Nanos) -> bool {
        let bucket = &mut self.buckets[Self::group(receiver)];
        let elapsed_ns = u64::try_from(now.since(bucket.filled).as_nanos()).unwrap_or(u64::MAX);
        bucket.credit_ns = bucket.credit_ns.saturating_add(elapsed_ns).min(Self::BURST * Self::COST_NS);
        bucket.filled = now;
        let allowed = bucket.credit_ns >= Self::COST_NS;
        if allowed {
            bucket.credit_ns -= Self::COST_NS;
        }
        allowed
    }

    /// The group of a receiver: multiplicative hashing (Knuth, TAOCP 6.4) of the low 32 bits, which
    /// puts neighbours in a subnet into different groups.
    fn group(receiver: IpAddr) -> usize {
        let low = match receiver {
            IpAddr::V4(v4) => v4.to_bits(),
            IpAddr::V6(v6) => {
                let octets = v6.octets();
                u32::from_be_bytes([octets[12], octets[13], octets[14], octets[15]])
            }
        };
        (low.wrapping_mul(2_654_435_769) >> (32 - Self::BUCKETS.trailing_zeros())) as usize
    }
}

const _: () = assert!(Limiter::BUCKETS.is_power_of_two());

impl Default for Limiter {
    fn default() -> Self {
        Self::new(Nanos::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_a_rate() {
        let (a, b) = (IpAddr::from([10, 1, 0, 2]), IpAddr::from([10, 1, 0, 3]));
        let mut limiter = Limiter::new(Nanos::ZERO);
        let burst = (0..1000).filter(|_| limiter.allow(a, Nanos::ZERO)).count() as u64;
        assert_eq!(burst, Limiter::BURST);
        assert!(limiter.allow(b, Nanos::ZERO), "another receiver is not affected");
        // One attempt each millisecond, for ten seconds.
        let later = (1..=10_000).filter(|ms| limiter.allow(a, Nanos::from_millis(*ms))).count() as u64;
        assert_eq!(later, 10 * Limiter::RATE);
    }
}
