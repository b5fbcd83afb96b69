//! ICMP errors that a router owes the sender of a packet it cannot forward: destination unreachable and
//! fragmentation needed / packet too big, for IPv4 (RFC 792, RFC 1191, RFC 1812) and IPv6 (RFC 4443).
//!
//! [`error`] writes one whole IP packet into the caller's buffer; [`Limiter`] says whether it may be sent.
//! Echo, time exceeded and redirects are the kernels' work on both sides: the overlay is one link.
//!
//! Invariant: no error is ever made about an ICMP error, a fragment other than the first, or a packet whose
//! source is not one host (RFC 1812 §4.3.2.7, RFC 4443 §2.4(e)): two routers can never feed each other.
#![forbid(unsafe_code)]

use crate::time::Nanos;
use std::net::IpAddr;

use super::checksum::{Sum, checksum};
use super::{Family, IPV4_HEADER, IPV6_HEADER, IpPacket, protocol};

/// Why a packet cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// No lease holds the destination.
    NoRoute,
    /// The packet is longer than the path takes.
    TooBig {
        /// The longest inner packet, in bytes, that would have passed.
        mtu: u16,
    },
}

/// The longest error: RFC 4443 §2.4(c) quotes as much as fits the minimum IPv6 MTU.
pub const MAX_ERROR: usize = 1280;
/// RFC 1812 §4.3.2.3: an IPv4 error quotes as much as fits 576 bytes.
const MAX_ERROR_V4: usize = 576;
/// Bytes of an ICMP error header (type, code, checksum, four bytes of unused or MTU), v4 and v6 alike.
const ICMP_HEADER: usize = 8;
const TTL: u8 = 64;
/// RFC 1812 §4.3.2.5: precedence "internetwork control".
const TOS_INTERNETWORK_CONTROL: u8 = 0xc0;
const DONT_FRAGMENT: u16 = 0x4000;

/// Writes into `out` the error about `packet`, sent from `from` (an address of the packet's family), and returns
/// it; or `None` where the RFCs forbid an answer.
pub fn error<'o>(
    out: &'o mut [u8; MAX_ERROR],
    from: IpAddr,
    packet: &IpPacket<'_>,
    problem: Problem,
) -> Option<&'o [u8]> {
    if !may_answer(packet) || Family::of(from) != packet.family() {
        return None;
    }
    let length = match packet.family() {
        Family::V4 => error_v4(out, from, packet, problem),
        Family::V6 => error_v6(out, from, packet, problem),
    };
    Some(&out[..length])
}

fn error_v4(out: &mut [u8; MAX_ERROR], from: IpAddr, packet: &IpPacket<'_>, problem: Problem) -> usize {
    const QUOTE: usize = IPV4_HEADER + ICMP_HEADER;
    let quoted = &packet.bytes()[..packet.bytes().len().min(MAX_ERROR_V4 - QUOTE)];
    let total = QUOTE + quoted.len();

    let (ip, rest) = out.split_at_mut(IPV4_HEADER);
    ip.fill(0);
    ip[0] = 0x45;
    ip[1] = TOS_INTERNETWORK_CONTROL;
    ip[2..4].copy_from_slice(&length_field(total));
    ip[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
    ip[8] = TTL;
    ip[9] = protocol::ICMP;
    copy_address(&mut ip[12..16], from);
    copy_address(&mut ip[16..20], packet.src());
    let sum = checksum(ip);
    ip[10..12].copy_from_slice(&sum);

    let icmp = &mut rest[..ICMP_HEADER + quoted.len()];
    icmp[..ICMP_HEADER].fill(0);
    icmp[0] = 3;
    if let Problem::TooBig { mtu } = problem {
        icmp[1] = 4;
        icmp[6..8].copy_from_slice(&mtu.to_be_bytes());
    }
    icmp[ICMP_HEADER..].copy_from_slice(quoted);
    let sum = checksum(icmp);
    icmp[2..4].copy_from_slice(&sum);
    total
}

fn error_v6(out: &mut [u8; MAX_ERROR], from: IpAddr, packet: &IpPacket<'_>, problem: Problem) -> usize {
    const QUOTE: usize = IPV6_HEADER + ICMP_HEADER;
    let quoted = &packet.bytes()[..packet.bytes().len().min(MAX_ERROR - QUOTE)];
    let icmp_len = ICMP_HEADER + quoted.len();

    let (ip, rest) = out.split_at_mut(IPV6_HEADER);
    ip.fill(0);
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&length_field(icmp_len));
    ip[6] = protocol::ICMPV6;
    ip[7] = TTL;
    copy_address(&mut ip[8..24], from);
    copy_address(&mut ip[24..40], packet.src());

    let icmp = &mut rest[..icmp_len];
    icmp[..ICMP_HEADER].fill(0);
    match problem {
        Problem::NoRoute => icmp[0] = 1,
        Problem::TooBig { mtu } => {
            icmp[0] = 2;
            icmp[4..8].copy_from_slice(&u32::from(mtu).to_be_bytes());
        }
    }
    icmp[ICMP_HEADER..].copy_from_slice(quoted);
    let sum = Sum::default()
        .add_pseudo_header(from, packet.src(), protocol::ICMPV6, icmp_len)
        .add_bytes(icmp)
        .finish();
    icmp[2..4].copy_from_slice(&sum);
    IPV6_HEADER + icmp_len
}

/// RFC 1812 §4.3.2.7 and RFC 4443 §2.4(e).
fn may_answer(packet: &IpPacket<'_>) -> bool {
    let source_is_one_host = is_one_host(packet.src());
    let destination_is_one_host = is_one_host(packet.dst());
    source_is_one_host && destination_is_one_host && !is_error_or_unknown(packet)
}

fn is_one_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast)
}

/// True for an ICMP error, a redirect, a fragment other than the first, and whatever is cut so short that it
/// cannot be told.
fn is_error_or_unknown(packet: &IpPacket<'_>) -> bool {
    let Some(transport) = packet.transport() else {
        // "No next header" and ESP are no ICMP errors; but a chain cut short may hide one.
        return true;
    };
    if !transport.first_fragment {
        return true;
    }
    let kind = packet.bytes().get(transport.offset).copied();
    match (transport.protocol, kind) {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        (protocol::ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        // Errors are the types below 128 (RFC 4443 §2.1); 137 is a redirect.
        (protocol::ICMPV6, Some(kind)) => kind < 128 || kind == 137,
        (protocol::ICMP | protocol::ICMPV6, None) => true,
        _ => false,
    }
}

fn copy_address(field: &mut [u8], address: IpAddr) {
    match address {
        IpAddr::V4(v4) => field.copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => field.copy_from_slice(&v6.octets()),
    }
}

fn length_field(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("an ICMP error is at most 1280 bytes").to_be_bytes()
}

/// How many errors may be sent: a token bucket for each of [`Limiter::BUCKETS`] groups of receivers, so that one
/// pod that floods an address nobody owns doesn't take the answers of the others.
#[derive(Debug)]
pub struct Limiter {
    buckets: [Bucket; Self::BUCKETS],
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Token-nanoseconds: one error costs [`Limiter::COST`].
    credit: u64,
    filled: Nanos,
}

impl Limiter {
    /// Groups of receivers that are limited apart.
    pub const BUCKETS: usize = 64;
    /// Errors a second for each group, in the long run.
    pub const RATE: u64 = 10;
    /// Errors that a group may get at once.
    pub const BURST: u64 = 10;
    const COST: u64 = 1_000_000_000 / Self::RATE;

    /// Full buckets.
    #[must_use]
    pub fn new(now: Nanos) -> Self {
        Self { buckets: [Bucket { credit: Self::BURST * Self::COST, filled: now }; Self::BUCKETS] }
    }

    /// Takes one token for an error to `receiver`; `false`: stay silent.
    pub fn allow(&mut self, receiver: IpAddr, now: Nanos) -> bool {
        let bucket = &mut self.buckets[Self::group(receiver)];
        let elapsed = now.0.saturating_sub(bucket.filled.0);
        bucket.credit = bucket.credit.saturating_add(elapsed).min(Self::BURST * Self::COST);
        bucket.filled = now;
        let allowed = bucket.credit >= Self::COST;
        if allowed {
            bucket.credit -= Self::COST;
        }
        allowed
    }

    /// Multiplicative hashing (Knuth, TAOCP 6.4) of the low 32 bits: neighbours in a subnet fall apart.
    fn group(receiver: IpAddr) -> usize {
        let low = match receiver {
            IpAddr::V4(v4) => v4.to_bits(),
            IpAddr::V6(v6) => {
                let octets = v6.octets();
                u32::from_be_bytes([octets[12], octets[13], octets[14], octets[15]])
            }
        };
        (low.wrapping_mul(2_654_435_769) >> (32 - Self::BUCKETS.trailing_zeros())) as usize
    }
}

const _: () = assert!(Limiter::BUCKETS.is_power_of_two());

impl Default for Limiter {
    fn default() -> Self {
        Self::new(Nanos(0))
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket, TransportSlice, icmpv4, icmpv6};

    use super::*;

    fn udp_v4(src: [u8; 4], dst: [u8; 4], len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ipv4(src, dst, 64).udp(1, 2).write(&mut out, &vec![7; len]).expect("fits");
        out
    }

    fn udp_v6(len: usize) -> Vec<u8> {
        let mut src = [0; 16];
        src[..2].copy_from_slice(&[0xfd, 0]);
        src[15] = 2;
        let mut dst = src;
        dst[14] = 9;
        let mut out = Vec::new();
        PacketBuilder::ipv6(src, dst, 64).udp(1, 2).write(&mut out, &vec![7; len]).expect("fits");
        out
    }

    fn from_v4() -> IpAddr {
        IpAddr::from([10, 1, 0, 0])
    }

    #[test]
    fn unreachable_v4_quotes_up_to_576_bytes_and_checks_out() {
        for (payload, total) in [(4, 60), (1400, 576)] {
            let bytes = udp_v4([10, 1, 0, 2], [10, 1, 9, 9], payload);
            let packet = IpPacket::parse(&bytes).expect("well formed");
            let mut out = [0xaa; MAX_ERROR];
            let reply = error(&mut out, from_v4(), &packet, Problem::NoRoute).expect("may be answered");
            assert_eq!(reply.len(), total);
            assert_eq!(checksum(&reply[..20]), [0, 0], "header checksum");
            let sliced = SlicedPacket::from_ip(reply).expect("etherparse agrees");
            let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("not ICMP") };
            assert!(matches!(
                icmp.icmp_type(),
                Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Network)
            ));
            assert_eq!(checksum(icmp.slice()), [0, 0], "ICMP checksum");
            assert_eq!(icmp.payload(), &bytes[..total - 28]);
        }
    }

    #[test]
    fn too_big_carries_the_mtu() {
        let bytes = udp_v4([10, 1, 0, 2], [10, 1, 9, 9], 1400);
        let packet = IpPacket::parse(&bytes).expect("well formed");
        let mut out = [0; MAX_ERROR];
        let reply = error(&mut out, from_v4(), &packet, Problem::TooBig { mtu: 1300 }).expect("answered");
        assert_eq!((reply[20], reply[21], &reply[26..28]), (3, 4, &1300u16.to_be_bytes()[..]));

        let bytes = udp_v6(1400);
        let packet = IpPacket::parse(&bytes).expect("well formed");
        let from: IpAddr = "fd00::".parse().expect("an address");
        let reply = error(&mut out, from, &packet, Problem::TooBig { mtu: 1300 }).expect("answered");
        assert_eq!(reply.len(), 1280);
        let sliced = SlicedPacket::from_ip(reply).expect("etherparse agrees");
        let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("not ICMPv6") };
        assert!(matches!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1300 }));
        let (src, dst) = (packet.src(), packet.dst());
        let (IpAddr::V6(from), IpAddr::V6(src), IpAddr::V6(_)) = (from, src, dst) else { panic!("v6") };
        assert!(icmp.is_checksum_valid(from.octets(), src.octets()));
    }

    #[test]
    fn no_route_v6_is_type_1_code_0() {
        let bytes = udp_v6(8);
        let packet = IpPacket::parse(&bytes).expect("well formed");
        let mut out = [0; MAX_ERROR];
        let reply = error(&mut out, "fd00::".parse().expect("an address"), &packet, Problem::NoRoute);
        let sliced = SlicedPacket::from_ip(reply.expect("answered")).expect("etherparse agrees");
        let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("not ICMPv6") };
        assert!(matches!(
            icmp.icmp_type(),
            Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::NoRoute)
        ));
    }

    #[test]
    fn never_about_errors_later_fragments_or_crowds() {
        let mut out = [0; MAX_ERROR];
        let mut silent = |bytes: &[u8]| {
            let packet = IpPacket::parse(bytes).expect("well formed");
            error(&mut out, from_v4(), &packet, Problem::NoRoute).is_none()
        };
        // An error about our own error.
        let bytes = udp_v4([10, 1, 0, 2], [10, 1, 9, 9], 8);
        let mut nested = [0; MAX_ERROR];
        let packet = IpPacket::parse(&bytes).expect("well formed");
        let first = error(&mut nested, from_v4(), &packet, Problem::NoRoute).expect("answered").to_vec();
        assert!(silent(&first), "ICMP error");
        let mut echo = first;
        echo[20] = 8;
        assert!(!silent(&echo), "an echo request is no error");
        let mut fragment = bytes.clone();
        fragment[7] = 1;
        assert!(silent(&fragment), "later fragment");
        assert!(silent(&udp_v4([10, 1, 0, 2], [224, 0, 0, 1], 8)), "multicast destination");
        assert!(silent(&udp_v4([10, 1, 0, 2], [255; 4], 8)), "broadcast");
        assert!(silent(&udp_v4([0; 4], [10, 1, 9, 9], 8)), "no source");
        assert!(silent(&udp_v4([127, 0, 0, 1], [10, 1, 9, 9], 8)), "loopback source");
        assert!(silent(&udp_v4([224, 0, 0, 1], [10, 1, 9, 9], 8)), "multicast source");
    }

    #[test]
    fn the_limiter_allows_a_burst_then_a_rate() {
        let (a, b) = (IpAddr::from([10, 1, 0, 2]), IpAddr::from([10, 1, 0, 3]));
        let mut limiter = Limiter::new(Nanos(0));
        let burst = (0..1000).filter(|_| limiter.allow(a, Nanos(5))).count() as u64;
        assert_eq!(burst, Limiter::BURST);
        assert!(limiter.allow(b, Nanos(5)), "another receiver is not affected");
        // Ten seconds, a try every millisecond.
        let later = (1..=10_000).filter(|ms| limiter.allow(a, Nanos(5 + ms * 1_000_000))).count() as u64;
        assert_eq!(later, 10 * Limiter::RATE);
    }
}
