//! What the program counts, by direction and reason.
//!
//! It does not read the map: [`FastPath`](super::FastPath) does.
//!
//! Invariant: each run of the program is counted in exactly one row of its direction. A super
//! packet that is accepted counts as its packets, and one that the daemon gets counts once.
#![forbid(unsafe_code)]

/// Counters of one direction in the map.
const COUNTERS: usize = 24;
/// Counters of both directions in the map: `struct counters`.
pub(super) const ALL: usize = 2 * COUNTERS;
/// Index of the first reason.
const FIRST_REASON: usize = 4;
/// Index of the first counter of TCP segments.
const FIRST_SEGMENTS: usize = 19;

/// Makes the enum and its texts from rows of variant, metric label and sentence. The order is that
/// of `program.c`.
macro_rules! reasons {
    ($($variant:ident, $label:literal, $sentence:literal;)*) => {
        /// Why the daemon gets a packet.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(usize)]
        pub enum Reason {
            $(#[doc = $sentence] $variant,)*
        }

        impl Reason {
            /// The number of reasons.
            pub const COUNT: usize = [$($label),*].len();
            /// All reasons, in the order of their numbers.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$variant),*];

            /// The value of the label `reason`.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }

            /// What the reason means.
            #[must_use]
            pub fn sentence(self) -> &'static str {
                match self {
                    $(Self::$variant => $sentence,)*
                }
            }
        }
    };
}

reasons! {
    Off, "off", "the fast path is suspended, or its daemon has not renewed it in time";
    Other, "other", "the frame is not a datagram to this host's data port, or is a fragment";
    Malformed, "malformed", "the bytes are not one whole packet, or a length field is wrong";
    NoRoute, "no_route", "the destination is in no subnet of a peer";
    NoPeer, "no_peer", "the peer is not in clear, or cannot receive by the fast path now";
    Source, "source", "the inner source address is not one of the sender";
    TooBig, "too_big", "the packet is longer than the path to the peer takes";
    UdpTrain, "udp_train", "the packet is a UDP super packet, which the daemon splits";
    SlowFlow, "slow_flow", "the UDP flow had a super packet in the last minute";
    SuperPacket, "super_packet", "the packet is a super packet of another kind than plain TCP";
    Userspace, "userspace", "the datagram has a UDP checksum: the peer's daemon has sent it";
    Type, "type", "the datagram is a control message, a bundle, or sealed";
    Misrouted, "misrouted", "the inner destination is not in a subnet of this host";
    Kernel, "kernel", "the kernel could not change the packet: it is a tunnel's already, or memory is short";
}

/// Single TCP segments that arrived, and what the veth pair made of them. All are 0 for egress.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segments {
    /// Single TCP packets of at least 500 bytes, by the pair or not: probably segments of longer
    /// transfers.
    pub long: u64,
    /// Packets that have entered the pair.
    pub to_pair: u64,
    /// Packets that have left the pair, each segment of a super packet counted.
    pub from_pair: u64,
    /// Packets and super packets as which they have left it.
    pub merged: u64,
    /// Super packets among them.
    pub super_packets: u64,
}

/// What happened in one direction, summed over all CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Direction {
    /// Accepted packets, after segmentation.
    pub packets: u64,
    /// Bytes of these packets, inner headers included.
    pub bytes: u64,
    /// Super packets among what was accepted.
    pub super_packets: u64,
    /// Dropped packets: a router marked the datagram as congested, but the inner transport does not
    /// support ECN (RFC 6040).
    pub unmarkable: u64,
    /// Single TCP segments.
    pub segments: Segments,
    to_daemon: [u64; Reason::COUNT],
}

impl Direction {
    fn from_array(values: &[u64]) -> Self {
        let mut to_daemon = [0; Reason::COUNT];
        for (count, value) in to_daemon.iter_mut().zip(&values[FIRST_REASON..]) {
            *count = *value;
        }
        Self {
            packets: values[0],
            bytes: values[1],
            super_packets: values[2],
            unmarkable: values[3],
            segments: Segments {
                long: values[FIRST_SEGMENTS],
                to_pair: values[FIRST_SEGMENTS + 1],
                from_pair: values[FIRST_SEGMENTS + 2],
                merged: values[FIRST_SEGMENTS + 3],
                super_packets: values[FIRST_SEGMENTS + 4],
            },
            to_daemon,
        }
    }

    /// Packets and super packets that the daemon got for a reason.
    #[must_use]
    pub fn to_daemon(&self, reason: Reason) -> u64 {
        self.to_daemon[reason as usize]
    }

    /// Packets and super packets that the daemon got.
    #[must_use]
    pub fn all_to_daemon(&self) -> u64 {
        self.to_daemon.iter().sum()
    }
}

/// What happened in both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// From the overlay device to peers.
    pub egress: Direction,
    /// From peers to the overlay device.
    pub ingress: Direction,
}

impl Counters {
    /// Sums the values of all CPUs.
    pub(super) fn sum<'a>(cpus: impl Iterator<Item = &'a [u64; ALL]>) -> Self {
        let mut total = [0u64; ALL];
        for cpu in cpus {
            for (sum, value) in total.iter_mut().zip(cpu) {
                *sum = sum.wrapping_add(*value);
            }
        }
        let (egress, ingress) = total.split_at(COUNTERS);
        Self { egress: Direction::from_array(egress), ingress: Direction::from_array(ingress) }
    }
}

const _: () = assert!(FIRST_REASON + Reason::COUNT <= FIRST_SEGMENTS && FIRST_SEGMENTS + 5 <= COUNTERS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_order_of_the_program() {
        let source = include_str!("program.c");
        let (_, list) = source.split_once("    OFF, ").expect("the enum of reasons");
        let (list, _) = list.split_once(", COUNTERS").expect("the end of the enum");
        let in_program = ["off"].into_iter().map(str::to_owned);
        let in_program = in_program.chain(list.split(',').map(|name| name.trim().to_lowercase()));
        let here: Vec<String> = Reason::ALL.into_iter().map(|reason| reason.label().to_owned()).collect();
        assert_eq!(in_program.collect::<Vec<_>>(), here);
    }

    #[test]
    fn counters_of_all_cpus_are_added() {
        let mut cpu = [0; ALL];
        (cpu[0], cpu[FIRST_REASON], cpu[COUNTERS + 3]) = (2, 3, 4);
        let counters = Counters::sum([cpu, cpu].iter());
        assert_eq!((counters.egress.packets, counters.ingress.unmarkable), (4, 8));
        assert_eq!((counters.egress.to_daemon(Reason::Off), counters.egress.all_to_daemon()), (6, 6));
    }
}
