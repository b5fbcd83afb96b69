//! Pool: the subnets of one network that are handed out, all of one length, from a first to a last.
//!
//! It does not know which subnets are taken; the caller passes the list. Addresses are numbers
//! here, so that both families need one code only.
//!
//! Invariant: [`Pool::free`] equals the first hundred of a linear walk that skips overlaps
//! (property test `free_equals_a_linear_walk`), in time linear in the leases.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::net::IpAddr;

use ipnet::IpNet;

/// Number of free subnets of which one is chosen at random, so that nodes that start together
/// seldom choose the same one (`allocateSubnet` in `pkg/subnet/etcd/local_manager.go`).
pub const FIRST_FREE: usize = 100;

/// Subnets of one length, from a first to a last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    network: IpNet,
    len: u8,
    first: u128,
    last: u128,
}

impl Pool {
    /// All subnets of `network` except the first one, as in Flannel. `len` must be longer than the
    /// length of the network.
    #[must_use]
    pub(super) fn whole(network: IpNet, len: u8) -> Self {
        let pool = Self { network, len, first: bits(network.network()), last: bits(network.broadcast()) };
        let step = pool.step();
        Self { first: pool.first + step, last: pool.last - (step - 1), ..pool }
    }

    /// The subnets that begin at `min`, at `max`, or between them.
    #[must_use]
    pub(super) fn between(self, min: IpAddr, max: IpAddr) -> Self {
        Self { first: bits(min), last: bits(max), ..self }
    }

    /// Network that is divided into subnets.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// Prefix length of one subnet.
    #[must_use]
    pub fn subnet_len(&self) -> u8 {
        self.len
    }

    /// First address of the first subnet.
    #[must_use]
    pub fn min(&self) -> IpAddr {
        self.address(self.first)
    }

    /// First address of the last subnet.
    #[must_use]
    pub fn max(&self) -> IpAddr {
        self.address(self.last)
    }

    /// Number of subnets.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        (self.last - self.first) / self.step() + 1
    }

    /// Whether `subnet` is one of the subnets of the pool.
    #[must_use]
    pub fn fits(&self, subnet: IpNet) -> bool {
        let same_family = subnet.max_prefix_len() == self.network.max_prefix_len();
        let is_exact = subnet.prefix_len() == self.len && subnet.network() == subnet.addr();
        same_family && is_exact && (self.first..=self.last).contains(&bits(subnet.network()))
    }

    /// The first [`FIRST_FREE`] subnets that overlap nothing in `taken`.
    #[must_use]
    pub fn free(&self, taken: &[IpNet]) -> Vec<IpNet> {
        let mut free = Vec::new();
        let mut at = Some(self.first);
        let taken = self.spans(taken);
        let mut ahead = taken.iter().peekable();
        while let Some(first) = at.filter(|first| *first <= self.last && free.len() < FIRST_FREE) {
            let last = first + (self.step() - 1);
            while ahead.next_if(|(_, end)| *end < first).is_some() {}
            match ahead.peek() {
                // Continue behind the subnet in which the taken span ends.
                Some((start, end)) if *start <= last => {
                    let skipped = (end - first) / self.step() + 1;
                    at = skipped.checked_mul(self.step()).and_then(|skip| first.checked_add(skip));
                }
                _ => {
                    free.extend(IpNet::new(self.address(first), self.len));
                    at = first.checked_add(self.step());
                }
            }
        }
        free
    }

    /// Number of subnets that overlap something in `taken`.
    #[must_use]
    pub fn used(&self, taken: &[IpNet]) -> u128 {
        let mut used = 0;
        let mut counted = None; // the last subnet that was counted
        for (start, end) in self.spans(taken) {
            let index = |address: u128| (address.clamp(self.first, self.end()) - self.first) / self.step();
            if end < self.first || start > self.end() {
                continue;
            }
            let first = counted.map_or(index(start), |counted| index(start).max(counted + 1));
            let last = index(end);
            if first <= last {
                used += last - first + 1;
                counted = Some(last);
            }
        }
        used
    }

    /// `taken` as disjoint spans in ascending order.
    fn spans(&self, taken: &[IpNet]) -> Vec<(u128, u128)> {
        let same_family = |net: &&IpNet| net.max_prefix_len() == self.network.max_prefix_len();
        let mut spans: Vec<(u128, u128)> = taken
            .iter()
            .filter(same_family)
            .map(|net| (bits(net.network()), bits(net.broadcast())))
            .collect();
        // Prefixes are nested or disjoint. With the longer one first, a span that begins inside the
        // previous one also ends there.
        spans.sort_unstable_by_key(|(start, end)| (*start, Reverse(*end)));
        spans.dedup_by(|inner, outer| inner.0 <= outer.1);
        spans
    }

    fn step(&self) -> u128 {
        1 << (self.network.max_prefix_len() - self.len)
    }

    /// Last address of the last subnet.
    fn end(&self) -> u128 {
        self.last + (self.step() - 1)
    }

    fn address(&self, bits: u128) -> IpAddr {
        match self.network {
            IpNet::V4(_) => IpAddr::V4(u32::try_from(bits).unwrap_or(u32::MAX).into()),
            IpNet::V6(_) => IpAddr::V6(bits.into()),
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use ipnet::Ipv4Net;
    use proptest::prelude::*;

    use super::*;

    fn overlap(a: &IpNet, b: &IpNet) -> bool {
        a.contains(b) || b.contains(a)
    }

    #[test]
    fn top_of_the_address_space_does_not_overflow() {
        let pool = Pool::whole("ffff::/16".parse().expect("net"), 18);
        let all = pool.free(&[]);
        assert_eq!(
            all.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["ffff:4000::/18", "ffff:8000::/18", "ffff:c000::/18"]
        );
        assert!(pool.free(&["ffff::/16".parse().expect("net")]).is_empty());
        assert_eq!(pool.used(&["ffff::/16".parse().expect("net"), "10.0.0.0/8".parse().expect("net")]), 3);
    }

    proptest! {
        #[test]
        fn free_equals_a_linear_walk(
            network_len in 8u8..=26,
            bits in 2u8..=10,
            taken in prop::collection::vec((any::<u32>(), 6u8..=32, any::<bool>()), 0..200),
            cut in any::<(u16, u16)>(),
        ) {
            let network: Ipv4Net = Ipv4Net::new([10, 0, 0, 0].into(), network_len).expect("a length").trunc();
            let pool = Pool::whole(IpNet::V4(network), (network_len + bits).min(30));
            // Most taken subnets are among the first ones, which are looked at first.
            let taken: Vec<IpNet> = taken
                .into_iter()
                .map(|(address, len, near)| {
                    let mask = if near { (1u32 << (32 - pool.len).min(24)).saturating_mul(256) } else { 1 << 25 };
                    let address = network.network().to_bits() + address % mask;
                    IpNet::V4(Ipv4Net::new(address.into(), len.max(network_len)).expect("a length").trunc())
                })
                .collect();
            let piece = |n: u16| pool.address(pool.first + u128::from(n) % pool.capacity() * pool.step());
            let (a, b) = (piece(cut.0), piece(cut.1));
            let pool = pool.between(a.min(b), a.max(b));

            let walk = |first: u128| (0..pool.capacity()).map(move |n| first + n * pool.step());
            let slow: Vec<IpNet> = walk(pool.first)
                .map(|first| IpNet::new(pool.address(first), pool.len).expect("a length"))
                .filter(|piece| !taken.iter().any(|net| overlap(piece, net)))
                .collect();
            prop_assert!(slow.iter().all(|piece| pool.fits(*piece)));
            prop_assert_eq!(pool.used(&taken), pool.capacity() - slow.len() as u128);
            prop_assert_eq!(pool.free(&taken), slow.into_iter().take(FIRST_FREE).collect::<Vec<_>>());
        }
    }
}
