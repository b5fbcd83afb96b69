//! The ten bytes before each packet on a TUN queue opened with `IFF_VNET_HDR`: which checksum is still
//! partial, and into what segments a super packet is to be cut.
//!
//! It does not look at the packet: whether the offsets lie inside it is checked by
//! [`split`](super::split::split).
//!
//! Invariant: [`VnetHeader::parse`] accepts only what the offloads that we ask for (checksum, TSO, USO) can
//! bring.
//! Sources: VIRTIO 1.2 §5.1.6, `include/uapi/linux/virtio_net.h`. A TUN with default endianness uses the
//! machine's.
#![forbid(unsafe_code)]

use super::Malformed;

/// `struct virtio_net_hdr`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`](Self::NEEDS_CSUM) or [`DATA_VALID`](Self::DATA_VALID) or nothing.
    pub flags: u8,
    /// One of the `GSO_` constants, [`GSO_ECN`](Self::GSO_ECN) added to those of TCP where CWR is set.
    pub gso_type: u8,
    /// Bytes of all headers. The kernel gives a hint here, on the forward path often the length of the whole
    /// first fragment: it is written for the kernel, but never read.
    pub hdr_len: u16,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Where the checksum begins, from the start of the IP header.
    pub csum_start: u16,
    /// Where the result is stored, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 10;

    /// Flag: the checksum field holds the sum of the pseudo-header; the rest is to be added.
    pub const NEEDS_CSUM: u8 = 1;
    /// Flag: the checksum was verified. The kernel sets it, and ignores it on a TUN write (DATAPLANE.md §6).
    pub const DATA_VALID: u8 = 2;

    /// One packet.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP of either family, cut into datagrams (not into fragments, which is type 3).
    pub const GSO_UDP_L4: u8 = 5;
    /// Bit beside a TCP type: CWR is set in the super packet and belongs to its first segment only.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header in front of `bytes`, and returns it with what follows.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let (&[flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1], rest) =
            bytes.split_first_chunk::<{ Self::LEN }>().ok_or(Malformed)?;
        let header = Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        };
        if header.is_sound() { Ok((header, rest)) } else { Err(Malformed) }
    }

    /// The ten bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// Whether the checksum is partial.
    #[must_use]
    pub fn needs_csum(&self) -> bool {
        self.flags & Self::NEEDS_CSUM != 0
    }

    fn is_sound(&self) -> bool {
        let flags_are_known = matches!(self.flags, 0 | Self::NEEDS_CSUM | Self::DATA_VALID);
        let is_cut = self.gso_size != 0;
        let type_is_known = match self.gso_type {
            Self::GSO_NONE => !is_cut,
            Self::GSO_UDP_L4 => is_cut,
            other => matches!(other & !Self::GSO_ECN, Self::GSO_TCPV4 | Self::GSO_TCPV6) && is_cut,
        };
        flags_are_known && type_is_known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tso() -> VnetHeader {
        VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: VnetHeader::GSO_TCPV4,
            hdr_len: 52,
            gso_size: 1420,
            csum_start: 20,
            csum_offset: 16,
        }
    }

    #[test]
    fn emit_and_parse() {
        let mut bytes = tso().to_bytes().to_vec();
        assert_eq!(bytes[4..6], 1420u16.to_ne_bytes());
        bytes.push(0x45);
        assert_eq!(VnetHeader::parse(&bytes), Ok((tso(), &[0x45][..])));
        assert_eq!(VnetHeader::parse(&[0; 10]), Ok((VnetHeader::default(), &[][..])));
        assert_eq!(VnetHeader::parse(&[0; 9]), Err(Malformed));
    }

    #[test]
    fn combinations_that_no_kernel_sends() {
        let verdict = |header: VnetHeader| VnetHeader::parse(&header.to_bytes()).map(|_| ());
        let none = VnetHeader::default();
        assert_eq!(verdict(VnetHeader { gso_type: 0x81, ..tso() }), Ok(()), "TCPV4 with ECN");
        assert_eq!(verdict(VnetHeader { flags: 2, ..tso() }), Ok(()), "verified by a card that merges");
        for (header, what) in [
            (VnetHeader { gso_size: 0, ..tso() }, "cut into nothing"),
            (VnetHeader { gso_size: 1, ..none }, "a size, but no type"),
            (VnetHeader { gso_type: 0x80, ..none }, "ECN alone"),
            (VnetHeader { gso_type: 0x85, ..tso() }, "ECN with UDP"),
            (VnetHeader { gso_type: 3, ..tso() }, "UDP fragmentation offload"),
            (VnetHeader { gso_type: 0x25, ..tso() }, "inside a UDP tunnel"),
            (VnetHeader { flags: 3, ..tso() }, "partial and verified"),
            (VnetHeader { flags: 4, ..none }, "an unknown flag"),
        ] {
            assert_eq!(verdict(header), Err(Malformed), "{what}");
        }
    }
}
