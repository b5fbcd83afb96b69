//! What the maps of the program hold, as plain values and as bytes.
//!
//! It knows no kernel and no route table. `program.c` has the same structs; [`LAYOUT`] is the
//! version of both.
//!
//! Invariant: the bytes of a value are what the program reads, for every version with this
//! [`LAYOUT`]. Addresses and ports are in network byte order, all other numbers in little endian.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

/// Version of the maps. It changes whenever a struct or the meaning of a field changes: maps of
/// another version are never adopted.
pub const LAYOUT: u32 = 2;

/// Number of source ports in [`Settings`].
pub const PORTS: usize = 8;

/// The unit of the time at which a route was used: 2^30 nanoseconds, about a second.
pub(super) const USED_SHIFT: u32 = 30;

/// Bytes of `struct live`.
pub(super) const LIVE_BYTES: usize = 16;
/// Bytes of `struct config`.
pub(super) const SETTINGS_BYTES: usize = 52;
/// Bytes of `struct route`.
pub(super) const ROUTE_BYTES: usize = 16;

/// What the program needs to know of this host: `struct config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address of this host on the underlay: outer source and outer destination.
    pub address: Ipv4Addr,
    /// UDP port at which all hosts receive.
    pub port: u16,
    /// Whether packets leave only with an inner source of this host
    /// ([`VerifySource::Subnet`](crate::forward::VerifySource::Subnet)).
    pub verify_source: bool,
    /// Interface index of the overlay device.
    pub overlay: u32,
    /// Interface index of the near end of the veth pair that merges TCP segments (GRO). `None`:
    /// all packets go to the overlay device directly. It is set only while the program is attached
    /// to the far end, or packets are lost there.
    pub gro: Option<u32>,
    /// Source ports of outer datagrams: those of the daemon's workers. A flow keeps its port.
    pub ports: [u16; PORTS],
    /// A further inner source of this host, in IPv4.
    pub public_v4: Option<Ipv4Addr>,
    /// A further inner source of this host, in IPv6.
    pub public_v6: Option<Ipv6Addr>,
}

impl Settings {
    /// Flag: only inner sources of this host leave.
    const VERIFY_SOURCE: u16 = 1;
    /// Flag: single TCP segments go through the veth pair.
    const GRO_FOR_TCP: u16 = 2;

    /// The source ports of one to [`PORTS`] workers. Fewer ports are repeated.
    #[must_use]
    pub fn spread(ports: &[u16]) -> [u16; PORTS] {
        let mut spread = [0; PORTS];
        for (slot, port) in spread.iter_mut().zip(ports.iter().cycle()) {
            *slot = *port;
        }
        spread
    }

    pub(super) fn to_bytes(&self) -> [u8; SETTINGS_BYTES] {
        let mut flags = if self.verify_source { Self::VERIFY_SOURCE } else { 0 };
        flags |= if self.gro.is_some() { Self::GRO_FOR_TCP } else { 0 };
        let mut bytes = Writer::<SETTINGS_BYTES>::default();
        bytes.put(&self.address.octets());
        bytes.put(&self.port.to_be_bytes());
        bytes.put(&flags.to_le_bytes());
        bytes.put(&self.overlay.to_le_bytes());
        bytes.put(&self.gro.unwrap_or(0).to_le_bytes());
        self.ports.iter().for_each(|port| bytes.put(&port.to_be_bytes()));
        bytes.put(&self.public_v4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bytes.put(&self.public_v6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
        bytes.finish()
    }
}

/// Until when the program works, and which settings are in force: `struct live`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Live {
    /// Time of [`sys::now`](crate::sys::now) in nanoseconds.
    pub(super) expires: u64,
    /// Index of the settings in force: 0 or 1.
    pub(super) active: u32,
    /// [`LAYOUT`] of the process that wrote the maps; 0 in a map that was just made.
    pub(super) layout: u32,
}

impl Live {
    pub(super) fn to_bytes(self) -> [u8; LIVE_BYTES] {
        let mut bytes = Writer::<LIVE_BYTES>::default();
        bytes.put(&self.expires.to_le_bytes());
        bytes.put(&self.active.to_le_bytes());
        bytes.put(&self.layout.to_le_bytes());
        bytes.finish()
    }

    pub(super) fn from_bytes(bytes: [u8; LIVE_BYTES]) -> Self {
        let [e0, e1, e2, e3, e4, e5, e6, e7, a0, a1, a2, a3, l0, l1, l2, l3] = bytes;
        Self {
            expires: u64::from_le_bytes([e0, e1, e2, e3, e4, e5, e6, e7]),
            active: u32::from_le_bytes([a0, a1, a2, a3]),
            layout: u32::from_le_bytes([l0, l1, l2, l3]),
        }
    }
}

/// To what a prefix leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RouteKind {
    /// To the daemon, which decides about each packet: no route, or a route that is just changing.
    #[default]
    Daemon = 0,
    /// To this host's own subnets.
    Local = 1,
    /// To the subnet of a peer.
    Peer = 2,
    /// To an address of a peer itself: it is an inner source of this peer, but no destination.
    Host = 3,
}

/// To what a prefix leads, and what is known of the peer there: `struct route`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// To what the prefix leads.
    pub kind: RouteKind,
    /// Whether the peer can receive by the fast path at this moment.
    pub may_send: bool,
    /// Whether packets to and from the peer are in clear.
    pub is_clear: bool,
    /// Whether the peer reads the outer ECN field (RFC 6040).
    pub ecn: bool,
    /// Longest packet of this family that leaves to the peer and is never fragmented, in bytes.
    pub mtu: u16,
    /// Address of the peer on the underlay.
    pub peer: Ipv4Addr,
    /// Interface index of the underlay device that leads to the peer.
    pub underlay: u32,
}

impl Route {
    const MAY_SEND: u8 = 1;
    const IS_CLEAR: u8 = 2;
    const ECN: u8 = 4;

    /// The daemon decides about packets to and from this prefix.
    pub const DAEMON: Self = Self {
        kind: RouteKind::Daemon,
        may_send: false,
        is_clear: false,
        ecn: false,
        mtu: 0,
        peer: Ipv4Addr::UNSPECIFIED,
        underlay: 0,
    };
    /// The prefix is one of this host's own subnets.
    pub const LOCAL: Self = Self { kind: RouteKind::Local, ..Self::DAEMON };

    pub(super) fn to_bytes(self) -> [u8; ROUTE_BYTES] {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flag(self.may_send, Self::MAY_SEND)
            | flag(self.is_clear, Self::IS_CLEAR)
            | flag(self.ecn, Self::ECN);
        let mut bytes = Writer::<ROUTE_BYTES>::default();
        bytes.put(&[self.kind as u8, flags]);
        bytes.put(&self.mtu.to_le_bytes());
        bytes.put(&self.peer.octets());
        bytes.put(&self.underlay.to_le_bytes());
        // The program writes when the route was used.
        bytes.put(&[0; 4]);
        bytes.finish()
    }

    /// When the program has sent the last packet by a route: the time of
    /// [`sys::now`](crate::sys::now) in nanoseconds, shifted by [`USED_SHIFT`]. 0: never.
    pub(super) fn used(bytes: [u8; ROUTE_BYTES]) -> u32 {
        let [.., u0, u1, u2, u3] = bytes;
        u32::from_le_bytes([u0, u1, u2, u3])
    }

    pub(super) fn from_bytes(bytes: [u8; ROUTE_BYTES]) -> Self {
        let [kind, flags, m0, m1, p0, p1, p2, p3, u0, u1, u2, u3, ..] = bytes;
        let kind = match kind {
            1 => RouteKind::Local,
            2 => RouteKind::Peer,
            3 => RouteKind::Host,
            _ => RouteKind::Daemon,
        };
        Self {
            kind,
            may_send: flags & Self::MAY_SEND != 0,
            is_clear: flags & Self::IS_CLEAR != 0,
            ecn: flags & Self::ECN != 0,
            mtu: u16::from_le_bytes([m0, m1]),
            peer: Ipv4Addr::new(p0, p1, p2, p3),
            underlay: u32::from_le_bytes([u0, u1, u2, u3]),
        }
    }
}

/// Fills an array from its start.
struct Writer<const N: usize> {
    bytes: [u8; N],
    filled: usize,
}

impl<const N: usize> Default for Writer<N> {
    fn default() -> Self {
        Self { bytes: [0; N], filled: 0 }
    }
}

impl<const N: usize> Writer<N> {
    fn put(&mut self, part: &[u8]) {
        self.bytes[self.filled..self.filled + part.len()].copy_from_slice(part);
        self.filled += part.len();
    }

    fn finish(self) -> [u8; N] {
        debug_assert_eq!(self.filled, N, "every byte of the struct is written");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_is_read_as_it_was_written() {
        let route = Route {
            kind: RouteKind::Peer,
            may_send: true,
            is_clear: false,
            ecn: true,
            mtu: 1472,
            peer: [192, 0, 2, 7].into(),
            underlay: 3,
        };
        assert_eq!(route.to_bytes(), [2, 5, 0xc0, 5, 192, 0, 2, 7, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Route::from_bytes(route.to_bytes()), route);
        assert_eq!(Route::from_bytes([0; ROUTE_BYTES]), Route::DAEMON);
        assert_eq!(Route::from_bytes([9; ROUTE_BYTES]).kind, RouteKind::Daemon, "an unknown kind");
    }

    #[test]
    fn settings_are_laid_out_as_the_program_reads_them() {
        let settings = Settings {
            address: [192, 0, 2, 1].into(),
            port: 8285,
            verify_source: true,
            overlay: 4,
            gro: Some(5),
            ports: Settings::spread(&[8285, 8286, 8287]),
            public_v4: None,
            public_v6: Some(Ipv6Addr::LOCALHOST),
        };
        let bytes = settings.to_bytes();
        assert_eq!(bytes[..8], [192, 0, 2, 1, 0x20, 0x5d, 3, 0]);
        assert_eq!(bytes[8..16], [4, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(bytes[16..20], [0x20, 0x5d, 0x20, 0x5e]);
        assert_eq!(settings.ports[6..], [8285, 8286]);
        assert_eq!(bytes[32..36], [0; 4]);
        assert_eq!(bytes[51], 1);
    }

    #[test]
    fn live_is_read_as_it_was_written() {
        let live = Live { expires: 1 << 40, active: 1, layout: LAYOUT };
        assert_eq!(Live::from_bytes(live.to_bytes()), live);
        assert_eq!(live.to_bytes()[8..12], [1, 0, 0, 0]);
    }
}
