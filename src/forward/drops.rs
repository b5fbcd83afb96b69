//! The drop reasons: one table, from which the enum, the list, the metric labels and the sentences
//! come.
//!
//! To add a reason, add one row. It does not count drops: [`Direction`](super::Direction) does,
//! with one counter per row.
//!
//! Invariant: the number of a reason is its position in [`DropReason::ALL`], so a reason is a valid
//! index into an array of [`DropReason::COUNT`] counters.
#![forbid(unsafe_code)]

use crate::seal::OpenError;

/// Makes the enum and its texts from rows of variant, metric label and sentence.
macro_rules! drop_reasons {
    ($($variant:ident, $label:literal, $sentence:literal;)*) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(usize)]
        pub enum DropReason {
            $(#[doc = $sentence] $variant,)*
        }

        impl DropReason {
            /// The number of reasons.
            pub const COUNT: usize = [$($label),*].len();
            /// All reasons, in the order of their numbers.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$variant),*];

            /// The value of the label `reason` of `hopsack_dropped_packets_total`.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }

            /// What happened, and where to look, for `hopsack drops`.
            #[must_use]
            pub fn sentence(self) -> &'static str {
                match self {
                    $(Self::$variant => $sentence,)*
                }
            }
        }
    };
}

drop_reasons! {
    Malformed, "malformed",
        "the bytes are not one whole IP packet, or its length field is wrong";
    NoRoute, "no_route",
        "no lease contains the destination; the sender got \"destination net unreachable\"";
    OwnSubnet, "own_subnet",
        "the destination is in this host's subnet, but no interface on this host has it";
    TooBig, "too_big",
        "the packet is longer than the path to the peer allows; the sender got \"too big\" with the MTU";
    NarrowPath, "narrow_path",
        "the path to the peer is too narrow for IPv6, and QUIC cannot fragment: see `hopsack peers`";
    Multicast, "multicast",
        "the destination is multicast, which the overlay does not carry";
    ForeignSource, "foreign_source",
        "the inner source address is not one of this host: a pod forges it, or its packets are not masqueraded";
    SendFailed, "send_failed",
        "the kernel refused to send the packet: see hopsack_io_errors_total and the log";
    Congested, "congested",
        "the peer's QUIC connection, or its thread, is overloaded: the oldest packets are dropped";
    Unconnected, "unconnected",
        "no encrypted connection to the peer was established in time: see `hopsack peers`";
    NoKey, "no_key",
        "there is no valid key: the handshake has failed, or one of the hosts was restarted";
    Replayed, "replayed",
        "the datagram arrived a second time, or too late: the network or an attacker repeats datagrams";
    Unauthentic, "unauthentic",
        "the sealed datagram was changed on its way, or another sender made it";
    Cleartext, "cleartext",
        "the datagram is in clear, but its peer encrypts: it is forged, or the peer's map is old";
    UnknownType, "unknown_type",
        "the first four bits are not a packet type that this host has announced";
    UnknownPeer, "unknown_peer",
        "no lease has the outer source address: the sender is unknown, or is behind NAT";
    SpoofedSource, "spoofed_source",
        "the inner source address does not belong to the peer that sent the packet";
    OwnSource, "own_source",
        "the inner source address is in this host's own subnet: see `hopsack status`";
    Misrouted, "misrouted",
        "the inner destination is not in a subnet of this host: the sender's map is old";
    Unmarkable, "unmarkable",
        "a router marked the packet as congested, but its transport does not support ECN (RFC 6040)";
    WriteFailed, "write_failed",
        "the kernel refused to write the packet to the overlay device: see hopsack_io_errors_total and the log";
    StandingQueue, "standing_queue",
        "a queue was not empty for a while: one packet is dropped, so that bulk TCP slows down";
}

impl From<OpenError> for DropReason {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Malformed => Self::Malformed,
            OpenError::NoKey => Self::NoKey,
            OpenError::Replayed => Self::Replayed,
            OpenError::Unauthentic => Self::Unauthentic,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_reason_is_its_own_index_and_label() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let labels: BTreeSet<&str> = DropReason::ALL.into_iter().map(DropReason::label).collect();
        assert_eq!(labels.len(), DropReason::COUNT);
    }
}
