//! Paths that take no bundle of the usual length.
//!
//! A bundle is as long as a bare packet to the same peer may be. Where the path is narrower than the route table says, the
//! kernel would refuse each, and the packets of each would leave bare: so the length that the path takes is remembered for a
//! while, and bundles are made to fit it. Then the usual one is tried again.
//!
//! It asks nobody: what a path takes is found where the kernel refuses ([`super::link`]).
//!
//! Invariant: at most [`PATHS`] are remembered, the latest, each for [`RETRY`] since it was last refused.

use std::net::SocketAddr;

use super::link::RETRY;
use crate::time::Nanos;

/// Paths remembered at most. The search is linear; whose path is forgotten is refused one bundle more.
const PATHS: usize = 16;
/// The shortest bundle that is worth it, three times a bare TCP header on IPv4. In shorter ones padding could take more than
/// the outbox has room for.
const SHORTEST: usize = 3 * 40;

/// The paths, those that were refused last at the end.
#[derive(Debug)]
pub(super) struct PmtuCache(Vec<Path>);

#[derive(Debug)]
struct Path {
    to: SocketAddr,
    /// The longest bundle that it takes; 0 for none.
    longest: usize,
    until: Nanos,
}

impl PmtuCache {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(PATHS))
    }

    /// How long a bundle to a peer may be that may `usually` be so long.
    #[inline]
    pub(super) fn bundle_len(&self, to: SocketAddr, usually: usize) -> usize {
        self.0.iter().find(|path| path.to == to).map_or(usually, |path| path.longest.min(usually))
    }

    /// The path to a peer takes so many bytes of inner packet, fewer than a bundle had.
    pub(super) fn learn(&mut self, to: SocketAddr, inner: usize, now: Nanos) {
        let longest = if inner < SHORTEST { 0 } else { inner };
        match self.0.iter().position(|path| path.to == to) {
            Some(known) => {
                self.0.remove(known);
            }
            None => {
                tracing::warn!(
                    peer = %to,
                    longest,
                    "a path is too narrow for bundles of the usual length; making none longer than this for a minute"
                );
                if self.0.len() == PATHS {
                    self.0.remove(0);
                }
            }
        }
        self.0.push(Path { to, longest, until: Nanos(now.0 + RETRY.0) });
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: Nanos) {
        self.0.retain(|path| now < path.until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u8) -> SocketAddr {
        ([192, 0, 2, n], 8285).into()
    }

    #[test]
    fn a_path_is_remembered_for_a_minute_since_its_last_refusal() {
        let (mut narrow, [start, later]) = (PmtuCache::new(), [Nanos(7), Nanos(1_000_000_007)]);
        assert_eq!(narrow.bundle_len(host(1), 1472), 1472);
        narrow.learn(host(1), 1372, start);
        narrow.learn(host(2), 1000, start);
        narrow.learn(host(1), 1272, later);
        assert_eq!([1, 2, 3].map(|n| narrow.bundle_len(host(n), 1472)), [1272, 1000, 1472]);
        assert_eq!(narrow.bundle_len(host(1), 1172), 1172, "the table may know better");
        narrow.expire(Nanos(start.0 + RETRY.0 - 1));
        assert_eq!(narrow.bundle_len(host(2), 1472), 1000);
        narrow.expire(Nanos(start.0 + RETRY.0));
        assert_eq!([1, 2].map(|n| narrow.bundle_len(host(n), 1472)), [1272, 1472]);
        narrow.expire(Nanos(later.0 + RETRY.0));
        assert_eq!(narrow.bundle_len(host(1), 1472), 1472, "tried again");
    }

    #[test]
    fn the_oldest_gives_way() {
        let mut narrow = PmtuCache::new();
        for n in (0..17).chain([2]) {
            narrow.learn(host(n), 1000, Nanos(n.into()));
        }
        let known = (0..20).filter(|n| narrow.bundle_len(host(*n), 1472) == 1000);
        assert!(known.eq(1..17));
        narrow.learn(host(17), 1000, Nanos(17));
        narrow.learn(host(18), 1000, Nanos(18));
        let known = (0..20).filter(|n| narrow.bundle_len(host(*n), 1472) == 1000);
        assert!(known.eq([2].into_iter().chain(4..19)), "the second was refused again since");
        assert_eq!(narrow.0.capacity(), PATHS);
    }

    #[test]
    fn very_short_bundles_are_none() {
        let mut narrow = PmtuCache::new();
        for (inner, longest) in [(120, 120), (119, 0), (0, 0)] {
            narrow.learn(host(1), inner, Nanos(0));
            assert_eq!(narrow.bundle_len(host(1), 1472), longest);
        }
    }
}
