//! ICMP errors that a router sends to the sender of a packet that it cannot forward: "destination
//! unreachable" and "fragmentation needed" or "packet too big", for IPv4 (RFC 792, RFC 1191, RFC
//! 1812) and IPv6 (RFC 4443).
//!
//! [`error`] writes one whole IP packet into the caller's buffer; [`Limiter`] says whether it may
//! be sent. The kernels of both hosts handle echo, time exceeded and redirects, since the overlay
//! is one link.
//!
//! Invariant: there is never an error about an ICMP error, about a fragment other than the first,
//! or about a packet with a source that is not one host (RFC 1812 §4.3.2.7, RFC 4443 §2.4(e)). So
//! two routers can never answer each other for ever.
#![forbid(unsafe_code)]

mod limiter;
mod problem;

use std::net::IpAddr;

use super::checksum::{Sum, checksum};
use super::family::{Family, min_mtu};
use super::header::{IPV4_HEADER, IPV6_HEADER};
use super::ip::IpPacket;
use super::protocol;
pub use limiter::Limiter;
pub use problem::Problem;

/// Bytes of the longest error: an IPv6 error quotes as much as fits the minimum IPv6 MTU (RFC 4443
/// §2.4(c)).
pub const MAX_ERROR: usize = 1280;
/// Bytes of the longest IPv4 error (RFC 1812 §4.3.2.3).
const MAX_ERROR_V4: usize = 576;
/// Bytes of an ICMP error header for both families: type, code, checksum, and four bytes that are
/// unused or hold the MTU.
const ICMP_HEADER: usize = 8;
const TTL: u8 = 64;
/// The precedence "internetwork control" (RFC 1812 §4.3.2.5).
const TOS_INTERNETWORK_CONTROL: u8 = 0xc0;
const DONT_FRAGMENT: u16 = 0x4000;

/// Writes the error about `packet` into `out` and returns it. `from` is its source, an address of
/// the packet's family. `None`: the RFCs forbid an answer.
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
        icmp[6..8].copy_from_slice(&mtu.max(min_mtu(Family::V4)).to_be_bytes());
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
            icmp[4..8].copy_from_slice(&u32::from(mtu.max(min_mtu(Family::V6))).to_be_bytes());
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

/// Whether the RFCs allow an error about this packet (RFC 1812 §4.3.2.7, RFC 4443 §2.4(e)).
fn may_answer(packet: &IpPacket<'_>) -> bool {
    let source_is_one_host = is_one_host(packet.src());
    let destination_is_one_host = is_one_host(packet.dst());
    source_is_one_host && destination_is_one_host && !is_error_or_unknown(packet)
}

fn is_one_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast)
}

/// Whether the packet is an ICMP error, a redirect or a later fragment, or is too short to tell.
fn is_error_or_unknown(packet: &IpPacket<'_>) -> bool {
    let Some(transport) = packet.transport() else {
        // "No next header" and ESP are not ICMP errors, but a chain that is cut short may hide
        // one.
        return true;
    };
    if !transport.first_fragment {
        return true;
    }
    let kind = packet.bytes().get(transport.offset).copied();
    match (transport.protocol, kind) {
        // The types are unreachable, source quench, redirect, time exceeded and parameter problem.
        (protocol::ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        // Types below 128 are errors (RFC 4443 §2.1), and 137 is a redirect.
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

#[cfg(test)]
mod tests;
