//! Explicit congestion notification (ECN) across the tunnel: applies the outer ECN field to the
//! inner packet.
//!
//! Routers of the underlay can mark only the outer header. If the mark were discarded with that
//! header, TCP would not slow down and the queue would stay full. RFC 6040 says how the mark is
//! carried over: [`Ecn::decapsulated`] is its table, and [`Marker`] writes the result into a copy
//! of the packet, since the receive buffer is only borrowed. A packet with an unmarked
//! outer header is neither copied nor inspected.
//!
//! It does not choose the outer ECN field of packets that leave. That is a copy of the inner field
//! for hosts that announce that they read it ("normal mode"), and Not-ECT for all others
//! ("compatibility mode").
//!
//! Invariant: a marked packet differs from the original only in the two ECN bits and in the IPv4
//! header checksum.
//! Sources: RFC 3168 (the field), RFC 6040 §4 (tunnels), RFC 1624 (the checksum of a changed
//! header).
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::family::Family;
use super::header::{IPV6_HEADER, field, put, word};
use super::ip::IpPacket;

/// The ECN field of an IP header; the values are its bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Ecn {
    /// Not-ECT: the transport does not support ECN.
    #[default]
    NotEct = 0,
    /// ECT(1): the transport supports ECN, and asks for low-latency marking (RFC 9331).
    Ect1 = 1,
    /// ECT(0): the transport supports ECN.
    Ect0 = 2,
    /// CE, congestion experienced: a router on the path was congested.
    Ce = 3,
}

impl Ecn {
    /// Reads the lowest two bits of an IPv4 TOS byte or an IPv6 traffic class.
    #[must_use]
    #[inline]
    pub fn of(traffic_class: u8) -> Self {
        [Self::NotEct, Self::Ect1, Self::Ect0, Self::Ce][usize::from(traffic_class & 3)]
    }

    /// The ECN field of the forwarded packet, if `self` is its inner and `outer` its outer field
    /// (RFC 6040 figure 4). `None`: the packet must be dropped, because it cannot carry the mark,
    /// which would be lost.
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
    /// The ECN field of the packet.
    #[must_use]
    #[inline]
    pub fn ecn(&self) -> Ecn {
        match self.family {
            Family::V4 => Ecn::of(self.bytes[1]),
            Family::V6 => Ecn::of(self.bytes[1] >> 4),
        }
    }
}

/// Marks a packet "congestion experienced". Returns whether its transport supports ECN; if not, the
/// packet is unchanged.
pub fn mark(packet: &mut [u8]) -> bool {
    let Ok(view) = IpPacket::parse(packet) else { return false };
    let (family, supports_ecn) = (view.family(), view.ecn() != Ecn::NotEct);
    if supports_ecn {
        write_ecn(packet, family, Ecn::Ce);
    }
    supports_ecn
}

/// Writes the ECN field, and updates the IPv4 header checksum.
fn write_ecn(packet: &mut [u8], family: Family, ecn: Ecn) {
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

/// Applies outer ECN fields; it holds a buffer for the copy of a packet that it marks.
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
    /// Applies the outer field `outer` to a packet. Returns the packet to forward; `None` if it
    /// must be dropped.
    #[must_use]
    #[inline]
    pub fn apply<'a>(&'a mut self, packet: IpPacket<'a>, outer: Ecn) -> Option<IpPacket<'a>> {
        // These two change no inner field.
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
        write_ecn(copy, packet.family, ecn);
        IpPacket { bytes: copy, family: packet.family, header_len: packet.header_len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum::checksum;
    use crate::packet::testing::TestPacket;

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

    /// RFC 6040 figure 4: one row for each inner field, one column for each outer field, in the
    /// order of `ALL`.
    #[test]
    fn decapsulation_follows_rfc_6040() {
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
    fn marking_changes_only_ecn_and_checksum() {
        let mut marker = Marker::default();
        for family in [Family::V4, Family::V6] {
            for inner in ALL {
                // The DSCP must stay as it is.
                for tos in [0, 0xb8, 0xfc] {
                    let bytes = TestPacket { tos: tos | inner as u8, ..TestPacket::tcp(family, 100) }.build();
                    let packet = IpPacket::parse(&bytes).expect("well formed");
                    assert_eq!(packet.ecn(), inner);
                    for outer in ALL {
                        let Some(marked) = marker.apply(packet, outer) else {
                            assert_eq!((inner, outer), (Ecn::NotEct, Ecn::Ce));
                            continue;
                        };
                        let ecn = inner.decapsulated(outer).expect("the packet was not dropped");
                        let wanted =
                            TestPacket { tos: tos | ecn as u8, ..TestPacket::tcp(family, 100) }.build();
                        assert_eq!(marked.bytes(), wanted, "{family:?} {inner:?} {outer:?}");
                        let sum = checksum(&marked.bytes()[..marked.header_len()]);
                        assert!(family == Family::V6 || sum == [0, 0]);
                    }
                }
            }
        }
    }
}
