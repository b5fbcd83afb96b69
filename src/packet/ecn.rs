//! Explicit congestion notification across the tunnel: what the outer header says, applied to the inner packet.
//!
//! Routers of the underlay can mark the outer header only; a mark that is thrown away with it leaves TCP blind and the queue
//! full. RFC 6040 says how it is carried over: [`Ecn::decapsulated`] is its table, [`Marker`] writes the result into a copy
//! of the packet, since the receive buffer is lent. Nothing is copied, or even looked at, where the outer header is unmarked.
//!
//! It does not decide what the outer header of a packet that leaves says: a copy of the inner field towards hosts that
//! announce that they read it ("normal mode"), Not-ECT towards all others ("compatibility mode").
//!
//! Invariant: what comes out differs from what went in by the two bits, and by the IPv4 header checksum that covers them.
//! Sources: RFC 3168 (the field), RFC 6040 §4 (tunnels), RFC 1624 (the checksum of a changed header).
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::header::{put, word};
use super::{Family, IPV6_HEADER, IpPacket, field};

/// The field of an IP header, by its bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Ecn {
    /// The transport does not know ECN.
    #[default]
    NotEct = 0,
    /// It does, and asks for the low-latency kind of marking (RFC 9331).
    Ect1 = 1,
    /// It does.
    Ect0 = 2,
    /// A router on the way was congested.
    Ce = 3,
}

impl Ecn {
    /// The lowest two bits of an IPv4 TOS byte or an IPv6 traffic class.
    #[must_use]
    #[inline]
    pub fn of(traffic_class: u8) -> Self {
        [Self::NotEct, Self::Ect1, Self::Ect0, Self::Ce][usize::from(traffic_class & 3)]
    }

    /// The field of the packet that goes on, if this one is the inner packet's: RFC 6040 figure 4. `None`: it is dropped,
    /// for a mark that it cannot carry would be lost.
    #[must_use]
    #[inline]
    pub fn decapsulated(self, outer: Self) -> Option<Self> {
        match (self, outer) {
            (Self::NotEct, Self::Ce) => None,
            (Self::Ect0 | Self::Ect1, Self::Ce) => Some(Self::Ce),
            (Self::Ect0, Self::Ect1) => Some(Self::Ect1),
            (inner, _) => Some(inner),
        }
    }
}

impl IpPacket<'_> {
    /// Its ECN field.
    #[must_use]
    #[inline]
    pub fn ecn(&self) -> Ecn {
        match self.family {
            Family::V4 => Ecn::of(self.bytes[1]),
            Family::V6 => Ecn::of(self.bytes[1] >> 4),
        }
    }
}

/// Marks a whole packet "congestion experienced". Says whether its transport knows what that is: else it is as it was.
pub fn mark(packet: &mut [u8]) -> bool {
    let Ok(IpPacket { family, .. }) = IpPacket::parse(packet) else { return false };
    let knows = IpPacket::parse(packet).is_ok_and(|packet| packet.ecn() != Ecn::NotEct);
    if knows {
        write(packet, family, Ecn::Ce);
    }
    knows
}

/// Writes the field, and what follows from it.
fn write(packet: &mut [u8], family: Family, ecn: Ecn) {
    match family {
        Family::V4 => {
            let before = word(packet, 0);
            packet[1] = packet[1] & !3 | ecn as u8;
            // RFC 1624: HC' = ~(~HC + ~m + m')
            let sum = Sum::default().add_word(!word(packet, field::V4_CHECKSUM)).add_word(!before);
            let sum = sum.add_word(word(packet, 0)).finish();
            put(packet, field::V4_CHECKSUM, sum);
        }
        Family::V6 => packet[1] = packet[1] & !0x30 | (ecn as u8) << 4,
    }
}

/// Room for the packet that is being marked.
#[derive(Debug)]
pub struct Marker {
    scratch: Box<[u8]>,
}

impl Default for Marker {
    fn default() -> Self {
        Self { scratch: vec![0; IPV6_HEADER + 65_535].into() }
    }
}

impl Marker {
    /// The packet as it goes on, if its outer header said `outer`; `None` if it must be dropped.
    #[must_use]
    #[inline]
    pub fn apply<'a>(&'a mut self, packet: IpPacket<'a>, outer: Ecn) -> Option<IpPacket<'a>> {
        // Neither changes anything, whatever the inner field is.
        if matches!(outer, Ecn::NotEct | Ecn::Ect0) {
            return Some(packet);
        }
        let inner = packet.ecn();
        let ecn = inner.decapsulated(outer)?;
        Some(if ecn == inner { packet } else { self.marked(packet, ecn) })
    }

    #[cold]
    fn marked(&mut self, packet: IpPacket<'_>, ecn: Ecn) -> IpPacket<'_> {
        let copy = &mut self.scratch[..packet.bytes.len()];
        copy.copy_from_slice(packet.bytes);
        write(copy, packet.family, ecn);
        IpPacket { bytes: copy, family: packet.family, header_len: packet.header_len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum::checksum;
    use crate::packet::testing::Recipe;

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

    /// RFC 6040 figure 4, a row an inner field, a column an outer one, in the order of `ALL`.
    #[test]
    fn the_table_is_that_of_the_standard() {
        use Ecn::{Ce, Ect0, Ect1, NotEct};
        let table = [
            [Some(NotEct), Some(NotEct), Some(NotEct), None],
            [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)],
            [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)],
            [Some(Ce), Some(Ce), Some(Ce), Some(Ce)],
        ];
        for (inner, row) in ALL.into_iter().zip(table) {
            assert_eq!(ALL.map(|outer| inner.decapsulated(outer)), row, "{inner:?}");
        }
    }

    #[test]
    fn a_packet_changes_by_its_field_and_checksum_alone() {
        let mut marker = Marker::default();
        for family in [Family::V4, Family::V6] {
            for inner in ALL {
                // The DSCP and what is beside it stay.
                for tos in [0, 0xb8, 0xfc] {
                    let bytes = Recipe { tos: tos | inner as u8, ..Recipe::tcp(family, 100) }.build();
                    let packet = IpPacket::parse(&bytes).expect("well formed");
                    assert_eq!(packet.ecn(), inner);
                    for outer in ALL {
                        let Some(marked) = marker.apply(packet, outer) else {
                            assert_eq!((inner, outer), (Ecn::NotEct, Ecn::Ce));
                            continue;
                        };
                        let ecn = inner.decapsulated(outer).expect("it was not dropped");
                        let wanted = Recipe { tos: tos | ecn as u8, ..Recipe::tcp(family, 100) }.build();
                        assert_eq!(marked.bytes(), wanted, "{family:?} {inner:?} {outer:?}");
                        let sum = checksum(&marked.bytes()[..marked.header_len()]);
                        assert!(family == Family::V6 || sum == [0, 0]);
                    }
                }
            }
        }
    }
}
