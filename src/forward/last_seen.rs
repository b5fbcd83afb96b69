//! The last source address of some kind of packet.
//!
//! It keeps one address, and no time.
//!
//! Invariant: a reader never sees a mixture of two addresses.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The last source address of some kind of packet, with one writer and any number of readers.
///
/// An address does not fit into one atomic word, so this is a sequence lock: the writer makes
/// `sequence` odd while it writes, and a reader that sees an odd or changed number reads again.
#[derive(Debug, Default)]
pub struct LastSeen {
    sequence: AtomicU64,
    high: AtomicU64,
    low: AtomicU64,
}

impl LastSeen {
    /// Stores an address. Only the owning worker may call this.
    pub(super) fn store(&self, from: IpAddr) {
        let bits = match from {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        let half = |shift: u32| u64::try_from(bits >> shift & u128::from(u64::MAX)).unwrap_or(0);
        self.high.store(half(64), Ordering::Relaxed);
        self.low.store(half(0), Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// How many addresses have been stored. Any thread may call this.
    #[must_use]
    pub fn times(&self) -> u64 {
        self.sequence.load(Ordering::Acquire) / 2
    }

    /// The last address; `None` if there was none. Any thread may call this.
    #[must_use]
    pub fn last(&self) -> Option<IpAddr> {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let bits = u128::from(self.high.load(Ordering::Relaxed)) << 64
                | u128::from(self.low.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            match before {
                0 => return None,
                _ if before.is_multiple_of(2) && before == self.sequence.load(Ordering::Relaxed) => {
                    return Some(Ipv6Addr::from_bits(bits).to_canonical());
                }
                _ => std::hint::spin_loop(),
            }
        }
    }
}
