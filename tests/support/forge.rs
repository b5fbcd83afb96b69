//! A sender of forged packets: raw sockets in any namespace, which send any bytes as an IP packet.
#![allow(dead_code, unreachable_pub)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::PacketBuilder;
use hopsack::sys::netns::in_netns;
use socket2::{Domain, Protocol, Socket, Type};

/// With this protocol the caller of a raw socket writes the IP header.
const RAW: i32 = 255;

/// Raw sockets in a namespace. A pod that has CAP_NET_RAW can do the same.
pub struct Forger {
    v4: Socket,
    v6: Socket,
}

impl Forger {
    pub fn of(netns: &str) -> Self {
        let open = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)));
        let both = in_netns(netns, move || Ok((open(Domain::IPV4)?, open(Domain::IPV6)?)));
        let (v4, v6) = both.and_then(|both: std::io::Result<_>| both).expect("raw sockets");
        Self { v4, v6 }
    }

    /// Sends an IP packet. The kernel fills in the identification and the header checksum of an
    /// IPv4 packet.
    pub fn send(&self, packet: &[u8]) {
        let part = |at: usize, length: usize| packet.get(at..at + length);
        let sent = match packet.first().map(|byte| byte >> 4) {
            Some(4) => {
                let to = <[u8; 4]>::try_from(part(16, 4).expect("a header")).expect("four bytes");
                self.v4.send_to(packet, &SocketAddr::from((Ipv4Addr::from(to), 0)).into())
            }
            _ => {
                let to = <[u8; 16]>::try_from(part(24, 16).expect("a header")).expect("16 bytes");
                self.v6.send_to(packet, &SocketAddr::from((Ipv6Addr::from(to), 0)).into())
            }
        };
        sent.expect("the kernel sends it");
    }

    /// Sends a UDP datagram to the data port of a host, with any outer source address.
    pub fn send_datagram(&self, from: IpAddr, to: IpAddr, datagram: &[u8]) {
        self.send(&udp((from, 8285), (to, 8285), datagram));
    }
}

/// An IP packet with a UDP datagram.
pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let builder = match (from.0, to.0) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => PacketBuilder::ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => PacketBuilder::ipv6(src.octets(), dst.octets(), 64),
        pair => panic!("two families: {pair:?}"),
    };
    let mut packet = Vec::new();
    builder.udp(from.1, to.1).write(&mut packet, payload).expect("it fits");
    packet
}
