//! Packets as the kernel fast path of a peer sends them: the checksum of TCP or UDP may be partial,
//! and a TCP packet may be a super packet.
//!
//! Such a datagram has no virtio header. [`tun_header`] finds out what the header would say, so
//! that a TUN takes the packet. Nothing is said about packets whose checksum is neither complete
//! nor partial: they are passed on as they are, and their receiver drops them.
//!
//! It neither writes nor sums up: the kernel does. Invariant: a packet that is longer than the MTU
//! gets a header that makes it a super packet of TCP, or is refused.
//! Sources: Linux `skb_partial_csum_set`, `tcp_gso_segment`.
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::family::Family;
use super::header::{tcp, udp};
use super::ip::{IpPacket, Transport};
use super::malformed::Malformed;
use super::protocol;
use super::vnet::VnetHeader;

/// The header with which a TUN takes `packet`. `mtu`: bytes of the longest packet that is no super
/// packet.
///
/// # Errors
/// The packet is longer than `mtu`, and cannot be a super packet of TCP.
pub fn tun_header(packet: &IpPacket<'_>, mtu: u16) -> Result<VnetHeader, Malformed> {
    let is_super = packet.bytes().len() > usize::from(mtu);
    let partial = packet.divisible_transport().filter(|transport| is_partial(packet, *transport));
    let Some(transport) = partial else {
        return if is_super { Err(Malformed) } else { Ok(VnetHeader::default()) };
    };
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        csum_start: u16::try_from(transport.offset).map_err(|_| Malformed)?,
        csum_offset: u16::try_from(checksum_offset(transport.protocol).ok_or(Malformed)?)
            .map_err(|_| Malformed)?,
        ..VnetHeader::default()
    };
    if is_super { super_header(packet, transport, header, mtu) } else { Ok(header) }
}

/// Adds to `header` how the super packet is cut: as long as the MTU allows.
fn super_header(
    packet: &IpPacket<'_>,
    transport: Transport,
    header: VnetHeader,
    mtu: u16,
) -> Result<VnetHeader, Malformed> {
    if transport.protocol != protocol::TCP {
        return Err(Malformed);
    }
    let tcp_header = &packet.bytes()[transport.offset..];
    let headers = transport.offset + tcp::header_len(tcp_header).ok_or(Malformed)?;
    let hdr_len = u16::try_from(headers).map_err(|_| Malformed)?;
    let gso_size = mtu.checked_sub(hdr_len).filter(|size| *size > 0).ok_or(Malformed)?;
    let gso_type = match packet.family() {
        Family::V4 => VnetHeader::GSO_TCPV4,
        Family::V6 => VnetHeader::GSO_TCPV6,
    };
    let has_cwr = tcp_header[tcp::FLAGS] & tcp::CWR != 0;
    let gso_type = if has_cwr { gso_type | VnetHeader::GSO_ECN } else { gso_type };
    Ok(VnetHeader { gso_type, hdr_len, gso_size, ..header })
}

/// Whether the checksum field holds only the sum of the pseudo-header, and is not right as it is.
fn is_partial(packet: &IpPacket<'_>, transport: Transport) -> bool {
    let Some(at) = checksum_offset(transport.protocol) else { return false };
    let rest = &packet.bytes()[transport.offset..];
    let Some(field) = rest.get(at..at + 2) else { return false };
    let pseudo = Sum::default().add_pseudo_header(packet.src(), packet.dst(), transport.protocol, rest.len());
    field == pseudo.partial() && pseudo.add_bytes(rest).finish() != [0, 0]
}

/// Bytes from the start of the transport header to its checksum.
fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(tcp::CHECKSUM),
        protocol::UDP => Some(udp::CHECKSUM),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::split::SplitPlan;
    use super::*;

    /// An IPv4 or IPv6 packet of TCP or UDP with a partial checksum.
    fn packet(is_v6: bool, is_tcp: bool, payload: &[u8]) -> Vec<u8> {
        let mut transport = vec![0; if is_tcp { 20 } else { 8 }];
        transport[..4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
        let length = u16::try_from(transport.len() + payload.len()).expect("short");
        if is_tcp {
            (transport[12], transport[13]) = (5 << 4, tcp::ACK);
        } else {
            transport[4..6].copy_from_slice(&length.to_be_bytes());
        }
        let protocol = if is_tcp { protocol::TCP } else { protocol::UDP };
        let mut bytes = if is_v6 {
            let mut header = vec![0; 40];
            (header[0], header[6], header[7]) = (0x60, protocol, 64);
            header[4..6].copy_from_slice(&length.to_be_bytes());
            (header[23], header[39]) = (1, 2);
            header
        } else {
            let mut header = vec![0; 20];
            (header[0], header[8], header[9]) = (0x45, 64, protocol);
            header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
            header[12..20].copy_from_slice(&[10, 244, 1, 2, 10, 244, 2, 2]);
            header
        };
        let start = bytes.len();
        bytes.extend(transport);
        bytes.extend(payload);
        let parsed = IpPacket::parse(&bytes).expect("a packet");
        let sum = Sum::default().add_pseudo_header(parsed.src(), parsed.dst(), protocol, length.into());
        let at = start + checksum_offset(protocol).expect("known");
        bytes[at..at + 2].copy_from_slice(&sum.partial());
        bytes
    }

    /// What the kernel makes of the packet: its packets with complete checksums.
    fn completed(bytes: &[u8], mtu: u16) -> Vec<Vec<u8>> {
        let packet = IpPacket::parse(bytes).expect("a packet");
        let header = tun_header(&packet, mtu).expect("a header");
        let plan = SplitPlan::of(header, packet).expect("a plan");
        let mut room = vec![0; plan.len()];
        plan.write(&mut room).expect("written").datagrams().map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn packet_of_another_protocol_is_left_alone() {
        let mut icmp = packet(false, false, &[1, 2, 3]);
        icmp[9] = 1;
        let header = tun_header(&IpPacket::parse(&icmp).expect("a packet"), 1472);
        assert_eq!(header, Ok(VnetHeader::default()));
        assert_eq!(tun_header(&IpPacket::parse(&icmp).expect("a packet"), 20), Err(Malformed));
    }

    #[test]
    fn long_packet_is_a_super_packet_of_tcp_or_refused() {
        let long = packet(false, true, &[7; 3000]);
        let header = tun_header(&IpPacket::parse(&long).expect("a packet"), 1472).expect("a header");
        assert_eq!((header.gso_type, header.gso_size), (VnetHeader::GSO_TCPV4, 1432));
        let udp = packet(false, false, &[7; 3000]);
        assert_eq!(tun_header(&IpPacket::parse(&udp).expect("a packet"), 1472), Err(Malformed));
        let complete = &completed(&long, 4000)[0];
        assert_eq!(tun_header(&IpPacket::parse(complete).expect("a packet"), 1472), Err(Malformed));
    }

    proptest! {
        #[test]
        fn checksum_is_completed_once(
            is_v6: bool,
            is_tcp: bool,
            payload in proptest::collection::vec(any::<u8>(), 0..4000),
            mtu in 1280u16..5000,
        ) {
            let half = packet(is_v6, is_tcp, &payload);
            prop_assume!(is_tcp || half.len() <= usize::from(mtu));
            for whole in completed(&half, mtu) {
                let packet = IpPacket::parse(&whole).expect("a packet");
                prop_assert!(whole.len() <= usize::from(mtu));
                let rest = &whole[packet.header_len()..];
                let protocol = if is_tcp { protocol::TCP } else { protocol::UDP };
                let sum = Sum::default().add_pseudo_header(packet.src(), packet.dst(), protocol, rest.len());
                prop_assert_eq!(sum.add_bytes(rest).finish(), [0, 0]);
                // A complete checksum is left alone.
                prop_assert_eq!(tun_header(&packet, mtu), Ok(VnetHeader::default()));
            }
        }
    }
}
