//! The counters of one worker: forwarded packets, and dropped packets by reason.
//!
//! It does not print or sum: a collector reads the counters of all workers on request.
//!
//! Invariant: each counter has one writer.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::counter::Counter;
use super::drops::DropReason;
use super::last_seen::LastSeen;

/// The counters of one direction.
#[derive(Debug, Default)]
pub struct Direction {
    /// Packets that the kernel accepted.
    pub packets: Counter,
    /// Bytes of these packets, inner headers included.
    pub bytes: Counter,
    /// Dropped packets, by reason.
    drops: [Counter; DropReason::COUNT],
}

impl Direction {
    /// Counts a packet that the kernel accepted.
    #[inline]
    pub fn forwarded(&self, bytes: usize) {
        self.packets.add(1);
        self.bytes.add(bytes as u64);
    }

    /// Counts a train that the kernel accepted.
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

    /// The number of packets that were dropped for a reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }
}

/// The counters of one worker. They are aligned to two cache lines, so that workers do not share
/// one.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Packets from the TUN to peers.
    pub egress: Direction,
    /// Packets from peers to the TUN.
    pub ingress: Direction,
    /// Outer source of the last packet of a peer with an inner source in our own subnet.
    pub own_source: LastSeen,
    /// Outer source of the last packet of a peer with an inner source that is not its own.
    pub spoofed_source: LastSeen,
    /// Reads of the TUN that delivered one packet or super packet.
    pub tun_reads: Counter,
    /// Messages that the kernel accepted. Each is one datagram or one UDP_SEGMENT train; one system
    /// call may send several.
    pub egress_sends: Counter,
    /// Messages received. Each is one datagram or one GRO train; one system call may receive
    /// several.
    pub udp_receives: Counter,
    /// Datagrams in the received messages.
    pub udp_datagrams: Counter,
    /// Bundles among the datagrams that the kernel accepted.
    pub egress_bundles: Counter,
    /// Sealed datagrams among those that the kernel accepted.
    pub sealed: Counter,
    /// Sealed datagrams that were received and opened.
    pub opened: Counter,
    /// Bundles among the datagrams that were received from peers.
    pub ingress_bundles: Counter,
    /// Control messages that were received from peers.
    pub control_messages: Counter,
    /// Datagrams of the kernel fast path of a peer that the daemon received.
    pub fast_missed: Counter,
    /// Writes of one packet or super packet to the TUN that the kernel accepted.
    pub ingress_writes: Counter,
    /// Number of times that the worker woke up and worked.
    pub turns: Counter,
    /// Number of system calls of the data path.
    pub system_calls: Counter,
    /// Number of times that the worker polled for a while before or instead of sleeping.
    pub busy_polls: Counter,
    /// UDP_SEGMENT trains that the kernel refused, and that were sent as single datagrams instead.
    pub send_fallbacks: Counter,
    /// Bundles that were too long for their path. Their packets were sent bare instead.
    pub bundle_fallbacks: Counter,
    /// Super packets that the TUN refused, and that were written as single packets instead.
    pub write_fallbacks: Counter,
    /// Bulk packets that were marked "congestion experienced" because one of our queues was never
    /// empty.
    pub queue_marks: Counter,
    /// ICMP errors "destination unreachable" that were sent.
    pub icmp_unreachable: Counter,
    /// ICMP errors "too big" that were sent.
    pub icmp_too_big: Counter,
    /// ICMP errors that the rate limit suppressed.
    pub icmp_suppressed: Counter,
}

impl Counters {
    /// Counts a packet of the peer at `from` that was refused, and stores `from` if the inner
    /// source was not its own. Packets of strangers must not come here: anybody can send them,
    /// and a stored address is logged and raises an alarm.
    pub(super) fn refused(&self, reason: DropReason, from: IpAddr) {
        self.ingress.drop(reason);
        if reason == DropReason::OwnSource {
            self.own_source.store(from);
        } else if reason == DropReason::SpoofedSource {
            self.spoofed_source.store(from);
        }
    }
}
