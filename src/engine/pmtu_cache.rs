//! [`PmtuCache`]: peers to which bundles of the usual length are longer than our interface takes.
//!
//! A bundle is usually as long as a bare packet to the same peer may be. If the packets to a peer
//! leave by an interface with a smaller MTU, the kernel would refuse each bundle, and its packets
//! would leave bare. So half of the length is remembered for a while and bundles are made that
//! short. Then the usual length is tried again. By then the forwarding table knows the interface's
//! MTU.
//!
//! It asks no one: [`Endpoints`](super::endpoints::Endpoints) says which bundles the kernel has
//! refused.
//!
//! Invariant: at most [`MAX_PATHS`] paths are remembered, the ones refused last, each for
//! [`RETRY_AFTER`] since its last refusal.

use std::net::SocketAddr;

use super::offload_switch::RETRY_AFTER;
use crate::time::Nanos;

/// Paths that are remembered at most. The search is linear; if a path is forgotten, one more bundle
/// is refused.
const MAX_PATHS: usize = 16;
/// The shortest bundle that is worth making: three bare TCP headers on IPv4. In shorter bundles
/// padding could need more memory than a transmit batch has.
const MIN_BUNDLE: usize = 3 * 40;

/// The paths, in the order of their last refusal.
#[derive(Debug)]
pub(super) struct PmtuCache(Vec<Path>);

#[derive(Debug)]
struct Path {
    to: SocketAddr,
    /// The longest bundle that fits the path; 0 if no bundle does.
    longest: usize,
    until: Nanos,
}

impl PmtuCache {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(MAX_PATHS))
    }

    /// How long a bundle to a peer may be, if it may `usually` be that long.
    #[inline]
    pub(super) fn bundle_len(&self, to: SocketAddr, usually: usize) -> usize {
        self.0.iter().find(|path| path.to == to).map_or(usually, |path| path.longest.min(usually))
    }

    /// Learns that the path to a peer carries inner packets of at most `inner` bytes, fewer than a
    /// bundle had.
    pub(super) fn learn(&mut self, to: SocketAddr, inner: usize, now: Nanos) {
        let longest = if inner < MIN_BUNDLE { 0 } else { inner };
        match self.0.iter().position(|path| path.to == to) {
            Some(known) => {
                self.0.remove(known);
            }
            None => {
                tracing::warn!(
                    peer = %to,
                    longest,
                    "path MTU to peer is too small for bundles of the usual length: bundles are shorter for a minute"
                );
                if self.0.len() == MAX_PATHS {
                    self.0.remove(0);
                }
            }
        }
        self.0.push(Path { to, longest, until: now + RETRY_AFTER });
    }

    /// Forgets paths that were refused too long ago.
    pub(super) fn expire(&mut self, now: Nanos) {
        self.0.retain(|path| now < path.until);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn host(n: u8) -> SocketAddr {
        ([192, 0, 2, n], 8285).into()
    }

    #[test]
    fn path_is_remembered_for_a_minute() {
        let (mut cache, [start, later]) = (PmtuCache::new(), [Nanos(7), Nanos(1_000_000_007)]);
        assert_eq!(cache.bundle_len(host(1), 1472), 1472);
        cache.learn(host(1), 1372, start);
        cache.learn(host(2), 1000, start);
        cache.learn(host(1), 1272, later);
        assert_eq!([1, 2, 3].map(|n| cache.bundle_len(host(n), 1472)), [1272, 1000, 1472]);
        assert_eq!(cache.bundle_len(host(1), 1172), 1172, "the route table may have a smaller MTU");
        cache.expire(Nanos(7) + RETRY_AFTER - Duration::from_nanos(1));
        assert_eq!(cache.bundle_len(host(2), 1472), 1000);
        cache.expire(start + RETRY_AFTER);
        assert_eq!([1, 2].map(|n| cache.bundle_len(host(n), 1472)), [1272, 1472]);
        cache.expire(later + RETRY_AFTER);
        assert_eq!(cache.bundle_len(host(1), 1472), 1472, "tried again");
    }

    #[test]
    fn oldest_path_is_replaced() {
        let mut cache = PmtuCache::new();
        for n in (0..17).chain([2]) {
            cache.learn(host(n), 1000, Nanos(n.into()));
        }
        let known = (0..20).filter(|n| cache.bundle_len(host(*n), 1472) == 1000);
        assert!(known.eq(1..17));
        cache.learn(host(17), 1000, Nanos(17));
        cache.learn(host(18), 1000, Nanos(18));
        let known = (0..20).filter(|n| cache.bundle_len(host(*n), 1472) == 1000);
        assert!(known.eq([2].into_iter().chain(4..19)), "the second path was refused again later");
        assert_eq!(cache.0.capacity(), MAX_PATHS);
    }

    #[test]
    fn too_short_bundles_are_not_made() {
        let mut cache = PmtuCache::new();
        for (inner, longest) in [(120, 120), (119, 0), (0, 0)] {
            cache.learn(host(1), inner, Nanos(0));
            assert_eq!(cache.bundle_len(host(1), 1472), longest);
        }
    }
}
