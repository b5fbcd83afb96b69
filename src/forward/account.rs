//! The account that forwarding keeps: what was forwarded, and why the rest was not.
//!
//! It does not print or sum: a collector reads the counters of all workers when somebody asks.
//!
//! Invariant: each counter has one writer, so that to count costs a load and a store.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Why a packet went nowhere. The label of `hopsack_dropped_packets_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum DropReason {
    /// Not one whole IP packet, or its length field disagrees with its length.
    Malformed,
    /// Egress: no lease holds the destination. The sender gets "destination net unreachable".
    NoRoute,
    /// Egress: the destination is in this host's own subnet, but no interface here carries it.
    OwnSubnet,
    /// Egress: longer than the path to the peer takes. The sender gets "fragmentation needed" or "packet too big".
    TooBig,
    /// Egress: multicast, which the overlay does not carry.
    Multicast,
    /// Egress: the kernel refused to send; see hopsack_io_errors_total.
    SendFailed,
    /// More than the peer's connection, or the thread that reads it, could carry; the oldest went.
    Congested,
    /// Egress: no encrypted connection to the peer came about in time.
    Unconnected,
    /// Egress: packets to the peer are sealed, and no key may seal any more. Ingress: sealed by no key that is in force.
    NoKey,
    /// Ingress: the datagram was opened before, or is too far behind the newest to tell.
    Replayed,
    /// Ingress: a bit of a sealed datagram was changed, or it was made by somebody else.
    Unauthentic,
    /// Ingress: in clear, from a peer that encrypts.
    Cleartext,
    /// Ingress: the first four bits name no packet type that this host has announced.
    UnknownType,
    /// Ingress: the outer source address is that of no lease.
    UnknownPeer,
    /// Ingress: the inner source address is not in a subnet of the peer that sent it.
    SpoofedSource,
    /// Ingress: the inner source address is in this host's own subnet: another host uses the same one, or forges.
    OwnSource,
    /// Ingress: the inner destination is not in a subnet of this host.
    Misrouted,
    /// Ingress: the outer header says "congestion experienced", and the inner packet's transport knows no ECN.
    Unmarkable,
    /// Ingress: the kernel refused the write to the overlay device; see hopsack_io_errors_total.
    WriteFailed,
    /// A queue of ours was never empty for a while: its sender is to slow down, and its transport knows no ECN.
    StandingQueue,
}

impl DropReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 20] = [
        Self::Malformed,
        Self::NoRoute,
        Self::OwnSubnet,
        Self::TooBig,
        Self::Multicast,
        Self::SendFailed,
        Self::Congested,
        Self::Unconnected,
        Self::NoKey,
        Self::Replayed,
        Self::Unauthentic,
        Self::Cleartext,
        Self::UnknownType,
        Self::UnknownPeer,
        Self::SpoofedSource,
        Self::OwnSource,
        Self::Misrouted,
        Self::Unmarkable,
        Self::WriteFailed,
        Self::StandingQueue,
    ];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NoRoute => "no_route",
            Self::OwnSubnet => "own_subnet",
            Self::TooBig => "too_big",
            Self::Multicast => "multicast",
            Self::SendFailed => "send_failed",
            Self::Congested => "congested",
            Self::Unconnected => "unconnected",
            Self::NoKey => "no_key",
            Self::Replayed => "replayed",
            Self::Unauthentic => "unauthentic",
            Self::Cleartext => "cleartext",
            Self::UnknownType => "unknown_type",
            Self::UnknownPeer => "unknown_peer",
            Self::SpoofedSource => "spoofed_source",
            Self::OwnSource => "own_source",
            Self::Misrouted => "misrouted",
            Self::Unmarkable => "unmarkable",
            Self::WriteFailed => "write_failed",
            Self::StandingQueue => "standing_queue",
        }
    }

    /// What happened and what to look at, for `hopsack drops`.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Malformed => "not one whole IP packet, or its length field disagrees with its length",
            Self::NoRoute => "no lease holds the destination; its sender got \"destination net unreachable\"",
            Self::OwnSubnet => "the destination is in this host's subnet, but no interface here carries it",
            Self::TooBig => "longer than the path to the peer takes; its sender got \"too big\" with the MTU",
            Self::Multicast => "multicast, which the overlay does not carry",
            Self::SendFailed => "the kernel refused to send: see hopsack_io_errors_total and the log",
            Self::Congested => {
                "more than the peer's QUIC connection, or its thread, could carry; the oldest went"
            }
            Self::Unconnected => {
                "no encrypted connection to the peer came about in time: see `hopsack peers`"
            }
            Self::NoKey => {
                "no key is in force for it: the handshake has failed, or one of the hosts was restarted"
            }
            Self::Replayed => {
                "it came a second time, or too late: the network repeats datagrams, or somebody does"
            }
            Self::Unauthentic => "a sealed datagram was changed on its way, or made by somebody else",
            Self::Cleartext => "in clear, from a peer that encrypts: forged, or its map is old",
            Self::UnknownType => "the first four bits name no packet type that this host has announced",
            Self::UnknownPeer => "the outer source address is in no lease: a stranger, or a host behind NAT",
            Self::SpoofedSource => "the inner source address is in no subnet of the peer that sent it",
            Self::OwnSource => "the inner source address is in this host's own subnet: see `hopsack status`",
            Self::Misrouted => "the inner destination is not in this host's subnet: the sender's map is old",
            Self::Unmarkable => {
                "congested on the way, and its transport knows no ECN: dropped, as RFC 6040 asks"
            }
            Self::WriteFailed => "the kernel refused the packet: see hopsack_io_errors_total and the log",
            Self::StandingQueue => {
                "one of many, so that bulk TCP slows down and what comes beside it need not wait"
            }
        }
    }
}

/// A count with one writer and any number of readers: a plain load and store, no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning worker may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Reads, from any thread.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The last address that something came from, with one writer and any number of readers.
///
/// An address does not fit one atomic word, so the writer makes `turn` odd while it writes; a reader that meets an odd or
/// changed one reads again.
#[derive(Debug, Default)]
pub struct LastSeen {
    turn: AtomicU64,
    high: AtomicU64,
    low: AtomicU64,
}

impl LastSeen {
    /// Remembers; only the owning worker may call this.
    pub(super) fn saw(&self, from: IpAddr) {
        let bits = match from {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let turn = self.turn.load(Ordering::Relaxed);
        self.turn.store(turn.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        let half = |shift: u32| u64::try_from(bits >> shift & u128::from(u64::MAX)).unwrap_or(0);
        self.high.store(half(64), Ordering::Relaxed);
        self.low.store(half(0), Ordering::Relaxed);
        self.turn.store(turn.wrapping_add(2), Ordering::Release);
    }

    /// The last one, from any thread; `None`: there was none.
    #[must_use]
    pub fn last(&self) -> Option<IpAddr> {
        loop {
            let before = self.turn.load(Ordering::Acquire);
            let bits = u128::from(self.high.load(Ordering::Relaxed)) << 64
                | u128::from(self.low.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            match before {
                0 => return None,
                _ if before.is_multiple_of(2) && before == self.turn.load(Ordering::Relaxed) => {
                    return Some(Ipv6Addr::from_bits(bits).to_canonical());
                }
                _ => std::hint::spin_loop(),
            }
        }
    }
}

/// What went one way.
#[derive(Debug, Default)]
pub struct Direction {
    /// Packets that the kernel took.
    pub packets: Counter,
    /// Their bytes, inner headers included.
    pub bytes: Counter,
    /// Packets that it was never offered, or refused.
    drops: [Counter; DropReason::ALL.len()],
}

impl Direction {
    /// Counts a packet that the kernel took.
    #[inline]
    pub fn forwarded(&self, bytes: usize) {
        self.packets.add(1);
        self.bytes.add(bytes as u64);
    }

    /// Counts a train that the kernel took.
    #[inline]
    pub fn forwarded_many(&self, packets: u64, bytes: u64) {
        self.packets.add(packets);
        self.bytes.add(bytes);
    }

    /// Counts a dropped packet.
    #[inline]
    pub fn drop(&self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    /// Counts the dropped packets of a train.
    #[inline]
    pub fn drop_many(&self, reason: DropReason, packets: u64) {
        self.drops[reason as usize].add(packets);
    }

    /// Packets dropped for a reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }
}

/// One worker's account. Two cache lines apart from the next worker's.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// From the TUN to peers.
    pub egress: Direction,
    /// From peers to the TUN.
    pub ingress: Direction,
    /// From where the last packet with a source in our own subnet came.
    pub own_source: LastSeen,
    /// From where the last packet with a source in no subnet of its sender's came.
    pub spoofed_source: LastSeen,
    /// Reads of the TUN that brought something: one packet or super packet each.
    pub tun_reads: Counter,
    /// Messages that the kernel took: each is one datagram or one UDP_SEGMENT train. One system call may take several.
    pub egress_sends: Counter,
    /// Messages received: each is one datagram or one GRO train. One system call may bring several.
    pub udp_receives: Counter,
    /// Datagrams in them.
    pub udp_datagrams: Counter,
    /// Of the datagrams that the kernel took, those that were bundles.
    pub egress_bundles: Counter,
    /// Of the datagrams that the kernel took, those that were sealed.
    pub sealed: Counter,
    /// Of the datagrams received, those that were sealed and whole.
    pub opened: Counter,
    /// Of the datagrams received from peers, those that were bundles.
    pub ingress_bundles: Counter,
    /// Writes to the TUN that the kernel accepted: one packet or super packet each.
    pub ingress_writes: Counter,
    /// Times that the worker woke up and worked.
    pub turns: Counter,
    /// System calls of the data path.
    pub system_calls: Counter,
    /// Times that the worker spun for a while before it slept, or rather than sleep.
    pub busy_polls: Counter,
    /// UDP_SEGMENT trains that the kernel refused, and that were sent as single datagrams.
    pub send_fallbacks: Counter,
    /// Bundles that were too long for their path, and whose packets were sent bare.
    pub bundle_fallbacks: Counter,
    /// Super packets that the TUN refused, and that were written as single packets.
    pub write_fallbacks: Counter,
    /// Packets of bulk that were marked "congestion experienced" because a queue of ours stood.
    pub queue_marks: Counter,
    /// "Destination unreachable" sent.
    pub icmp_unreachable: Counter,
    /// "Too big" sent.
    pub icmp_too_big: Counter,
    /// ICMP errors not sent for the rate limit.
    pub icmp_suppressed: Counter,
}

impl Counters {
    /// Counts a packet that came from `from` and is not taken, and remembers who pretends to be another.
    pub(super) fn turned_away(&self, reason: DropReason, from: IpAddr) {
        self.ingress.drop(reason);
        if reason == DropReason::OwnSource {
            self.own_source.saw(from);
        } else if reason == DropReason::SpoofedSource {
            self.spoofed_source.saw(from);
        }
    }
}
