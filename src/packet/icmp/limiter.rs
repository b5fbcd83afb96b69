//! The rate limit of ICMP errors.
//!
//! A sender that is not told the MTU of its path hangs, so nobody may use up the errors of others.
//! Errors of both kinds have buckets of their own, one for each source address. A pod can forge the
//! addresses of its neighbours, though. So a "too big" error has a second chance in a bucket of its
//! flow, which a forger does not know: it has to guess addresses and ports, and the place of a flow
//! among the buckets depends on a random number.
//!
//! It does not write or send errors.
//!
//! Invariant: a source is told at most [`Limiter::BURST`] errors of a kind at once and
//! [`Limiter::RATE`] per second in the long run, and one more per second for each bucket of its
//! flows. There is a fixed number of buckets, so the errors in all are limited too.
#![forbid(unsafe_code)]

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;

use super::super::ip::IpPacket;
use super::problem::Problem;
use crate::time::Nanos;

/// Limits the rate of ICMP errors with token buckets.
#[derive(Debug)]
pub struct Limiter {
    unreachable: Buckets,
    too_big: Buckets,
    flows: Buckets,
    random: RandomState,
}

#[derive(Debug)]
struct Buckets(Box<[Bucket; Limiter::BUCKETS]>);

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Unspent credit in nanoseconds.
    credit_ns: u64,
    filled: Nanos,
}

impl Limiter {
    /// Number of buckets of each kind. IPv4 sources in a subnet of up to this many addresses do not
    /// share buckets.
    pub const BUCKETS: usize = 1024;
    /// Errors of a kind per second for a source, in the long run.
    pub const RATE: u64 = 10;
    /// Errors of a kind that a source may get at once.
    pub const BURST: u64 = 10;

    /// Creates a limiter with full buckets.
    #[must_use]
    pub fn new(now: Nanos) -> Self {
        let buckets = || Buckets::new(now);
        Self { unreachable: buckets(), too_big: buckets(), flows: buckets(), random: RandomState::new() }
    }

    /// Takes one token for an error about `packet`. Returns whether the error may be sent.
    pub fn allow(&mut self, packet: &IpPacket<'_>, problem: Problem, now: Nanos) -> bool {
        let source = self.place_of_source(packet.src());
        match problem {
            Problem::NoRoute => self.unreachable.take(source, (Self::RATE, Self::BURST), now),
            Problem::TooBig { .. } => {
                self.too_big.take(source, (Self::RATE, Self::BURST), now) || {
                    let flow = self.place_of_flow(packet);
                    self.flows.take(flow, (1, 1), now)
                }
            }
        }
    }

    /// Neighbours in an IPv4 subnet differ in their low bits. A sender in an IPv6 subnet may choose
    /// any of 2^64 addresses, so it must not know which ones share a bucket.
    fn place_of_source(&self, source: IpAddr) -> usize {
        match source {
            IpAddr::V4(v4) => v4.to_bits() as usize % Self::BUCKETS,
            IpAddr::V6(v6) => self.place(v6),
        }
    }

    /// Addresses and ports, or what other transports have in the place of ports.
    fn place_of_flow(&self, packet: &IpPacket<'_>) -> usize {
        let transport = packet.transport().filter(|transport| transport.first_fragment);
        let ports =
            transport.and_then(|transport| packet.bytes().get(transport.offset..transport.offset + 4));
        self.place((packet.src(), packet.dst(), ports))
    }

    fn place(&self, key: impl std::hash::Hash) -> usize {
        let place = self.random.hash_one(key) % Self::BUCKETS as u64;
        usize::try_from(place).unwrap_or_default()
    }
}

impl Buckets {
    fn new(now: Nanos) -> Self {
        // More than any burst: the first use cuts it.
        Self(Box::new([Bucket { credit_ns: u64::MAX, filled: now }; Limiter::BUCKETS]))
    }

    /// Takes one token of a bucket with this rate per second and burst.
    fn take(&mut self, place: usize, (rate, burst): (u64, u64), now: Nanos) -> bool {
        let cost_ns = 1_000_000_000 / rate;
        let bucket = &mut self.0[place];
        let elapsed_ns = u64::try_from(now.since(bucket.filled).as_nanos()).unwrap_or(u64::MAX);
        bucket.credit_ns = bucket.credit_ns.saturating_add(elapsed_ns).min(burst * cost_ns);
        bucket.filled = now;
        let allowed = bucket.credit_ns >= cost_ns;
        if allowed {
            bucket.credit_ns -= cost_ns;
        }
        allowed
    }
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new(Nanos::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const TOO_BIG: Problem = Problem::TooBig { mtu: 1300 };

    fn packet(src: [u8; 4], port: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4(src, [10, 1, 9, 9], 64).udp(port, 2);
        builder.write(&mut bytes, &[7; 20]).expect("it fits");
        bytes
    }

    fn allow(limiter: &mut Limiter, packet: &[u8], problem: Problem, now: Nanos) -> bool {
        limiter.allow(&IpPacket::parse(packet).expect("well formed"), problem, now)
    }

    #[test]
    fn a_burst_passes_and_then_a_rate() {
        let (a, b) = (packet([10, 1, 0, 2], 1), packet([10, 1, 0, 3], 1));
        for (problem, second_chance) in [(Problem::NoRoute, 0), (TOO_BIG, 1)] {
            let mut limiter = Limiter::new(Nanos::ZERO);
            let mut count = |packet: &[u8], now| u64::from(allow(&mut limiter, packet, problem, now));
            let burst: u64 = (0..1000).map(|_| count(&a, Nanos::ZERO)).sum();
            assert_eq!(burst, Limiter::BURST + second_chance);
            assert_eq!(count(&b, Nanos::ZERO), 1, "another source is not affected");
            // One attempt each millisecond, for ten seconds.
            let later: u64 = (1..=10_000).map(|ms| count(&a, Nanos::from_millis(ms))).sum();
            let most = 10 * (Limiter::RATE + second_chance);
            assert!((most - second_chance..=most).contains(&later), "{later}");
        }
    }

    #[test]
    fn unreachables_do_not_use_up_too_big() {
        let (mut limiter, packet) = (Limiter::default(), packet([10, 1, 0, 2], 1));
        while allow(&mut limiter, &packet, Problem::NoRoute, Nanos::ZERO) {}
        assert!(allow(&mut limiter, &packet, TOO_BIG, Nanos::ZERO));
        while allow(&mut limiter, &packet, TOO_BIG, Nanos::ZERO) {}
        assert!(!allow(&mut limiter, &packet, Problem::NoRoute, Nanos::ZERO));
    }

    #[test]
    fn forged_neighbours_silence_nobody() {
        let (mut limiter, victim) = (Limiter::default(), packet([10, 1, 0, 2], 1));
        for host in (0..=255).filter(|host| *host != 2) {
            let forged = packet([10, 1, 0, host], 1);
            while allow(&mut limiter, &forged, TOO_BIG, Nanos::ZERO) {}
        }
        let burst = (0..100).filter(|_| allow(&mut limiter, &victim, TOO_BIG, Nanos::ZERO)).count() as u64;
        assert!(burst >= Limiter::BURST, "{burst}: no other source takes its tokens");
    }

    #[test]
    fn forged_flows_of_a_source_do_not_silence_it() {
        let (mut limiter, victim) = (Limiter::default(), packet([10, 1, 0, 2], 1));
        let place = |packet: &[u8]| limiter.place_of_flow(&IpPacket::parse(packet).expect("well formed"));
        let others = (100..400).map(|port| packet([10, 1, 0, 2], port));
        let others: Vec<Vec<u8>> = others.filter(|other| place(other) != place(&victim)).collect();
        for second in 0..20 {
            let now = Nanos::from_secs(second);
            for forged in others.iter().cycle().take(5000) {
                allow(&mut limiter, forged, TOO_BIG, now);
            }
            assert!(allow(&mut limiter, &victim, TOO_BIG, now), "after {second} s");
        }
    }
}
