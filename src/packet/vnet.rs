//! The ten bytes before each packet on a TUN queue that is opened with `IFF_VNET_HDR`. They say
//! which checksum is still partial, and into which segments a super packet must be split.
//!
//! It does not look at the packet: [`split`](super::split::split) checks whether the offsets lie
//! inside it.
//!
//! Invariant: [`VnetHeader::parse`] accepts only combinations that the requested offloads
//! (checksum, TSO, USO) can produce.
//! Sources: VIRTIO 1.2 §5.1.6, `include/uapi/linux/virtio_net.h`. A TUN with default endianness
//! uses the byte order of the machine.
#![forbid(unsafe_code)]

use super::malformed::Malformed;

/// `struct virtio_net_hdr`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// Either [`NEEDS_CSUM`](Self::NEEDS_CSUM), [`DATA_VALID`](Self::DATA_VALID), or 0.
    pub flags: u8,
    /// One of the `GSO_` constants. [`GSO_ECN`](Self::GSO_ECN) is added to a TCP type if CWR is
    /// set.
    pub gso_type: u8,
    /// Bytes of all headers. The kernel gives only a hint here, on the forward path often the
    /// length of the whole first fragment. So this program writes the field for the kernel, but
    /// never reads it.
    pub hdr_len: u16,
    /// Payload bytes of each segment; the last may have fewer.
    pub gso_size: u16,
    /// Offset of the first byte that the checksum covers, from the start of the IP header.
    pub csum_start: u16,
    /// Offset of the checksum field, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 10;

    /// Flag: the checksum field holds only the sum of the pseudo-header; the receiver must add the
    /// rest.
    pub const NEEDS_CSUM: u8 = 1;
    /// Flag: the checksum was verified. The kernel sets this flag on a read, and ignores it on a
    /// TUN write.
    pub const DATA_VALID: u8 = 2;

    /// Type: a single packet.
    pub const GSO_NONE: u8 = 0;
    /// Type: a super packet of TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// Type: a super packet of TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// Type: a super packet of UDP over either family, which is split into datagrams (type 3 would
    /// be fragments).
    pub const GSO_UDP_L4: u8 = 5;
    /// Bit in addition to a TCP type: CWR is set in the super packet, and belongs to its first
    /// segment only.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header at the start of `bytes`, and returns it with the bytes that follow.
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
        if header.is_plausible() { Ok((header, rest)) } else { Err(Malformed) }
    }

    /// The header as it stands before a packet.
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

    /// Whether the kernel can have sent this combination of fields.
    fn is_plausible(&self) -> bool {
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
    fn parse_undoes_to_bytes() {
        let mut bytes = tso().to_bytes().to_vec();
        assert_eq!(bytes[4..6], 1420u16.to_ne_bytes());
        bytes.push(0x45);
        assert_eq!(VnetHeader::parse(&bytes), Ok((tso(), &[0x45][..])));
        assert_eq!(VnetHeader::parse(&[0; 10]), Ok((VnetHeader::default(), &[][..])));
        assert_eq!(VnetHeader::parse(&[0; 9]), Err(Malformed));
    }

    #[test]
    fn combinations_that_no_kernel_sends_are_refused() {
        let verdict = |header: VnetHeader| VnetHeader::parse(&header.to_bytes()).map(|_| ());
        let none = VnetHeader::default();
        assert_eq!(verdict(VnetHeader { gso_type: 0x81, ..tso() }), Ok(()), "TCPV4 with ECN");
        assert_eq!(
            verdict(VnetHeader { flags: 2, ..tso() }),
            Ok(()),
            "a network card has merged and verified"
        );
        for (header, what) in [
            (VnetHeader { gso_size: 0, ..tso() }, "segments of no bytes"),
            (VnetHeader { gso_size: 1, ..none }, "a size without a type"),
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
