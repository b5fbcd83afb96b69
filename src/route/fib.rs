//! The forwarding information base: it maps each prefix to a host. It is immutable, and all workers
//! read it.
//!
//! It stores only the number of each host. The caller keeps the host data in a separate list.
//!
//! Invariant: [`Fib::lookup`] equals a linear longest-prefix scan over all leases (property test
//! `fib_equals_a_linear_scan`).
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::prefix_table::{NONE, PrefixTable};

/// Slot value of our own subnets.
pub(super) const LOCAL: u32 = 1;
/// Slot value of host number 0; the other hosts follow.
pub(super) const FIRST_PEER: u32 = 2;

/// Where packets to a destination go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The destination is in our own subnets.
    Local,
    /// The destination is behind the peer with this number, an index into
    /// [`Compiled::peers`](super::Compiled::peers).
    Peer(u32),
}

/// The forwarding information base.
#[derive(Debug, Default)]
pub struct Fib {
    pub(super) v4: PrefixTable,
    pub(super) v6: PrefixTable,
}

impl Fib {
    /// Where packets to `dst` go; `None` if no lease contains it.
    #[must_use]
    #[inline]
    pub fn lookup(&self, dst: IpAddr) -> Option<Target> {
        let (table, bits) = match dst {
            IpAddr::V4(v4) => (&self.v4, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (&self.v6, v6.to_bits()),
        };
        match table.lookup(bits) {
            NONE => None,
            LOCAL => Some(Target::Local),
            slot => Some(Target::Peer(slot - FIRST_PEER)),
        }
    }
}
