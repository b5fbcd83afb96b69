//! What an ICMP error tells a sender.
#![forbid(unsafe_code)]

/// Why a packet cannot be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// No lease contains the destination.
    NoRoute,
    /// The packet is longer than the path allows.
    TooBig {
        /// The longest inner packet that the path allows, in bytes. An error never tells less than
        /// [`min_mtu`](crate::packet::min_mtu).
        mtu: u16,
    },
}
