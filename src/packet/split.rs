//! Cuts what one TUN read brought into wire-sized packets: the segments that the kernel would have sent.
//!
//! A [`Plan`] says how many there are and how much room they need, and writes them back to back into one
//! buffer, so that they leave in one UDP_SEGMENT send of one iovec: to copy and sum is cheaper than a gather
//! of two entries a segment (DATAPLANE.md §3, §4.2).
//!
//! It does not look up routes (all segments have one destination), does not know an MTU, and trusts nothing
//! in the [`VnetHeader`] that it can find in the packet: not `hdr_len`, and `csum_start` only where it
//! agrees.
//!
//! Invariant: for every accepted input, each segment is one whole IP packet with right checksums, and merging
//! them gives the input again (property test `coalesce_undoes_split`). No input panics.
//! Sources: Linux `Documentation/networking/segmentation-offloads.rst`, RFC 3168 §6.1.2 (CWR), RFC 768
//! (zero).
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::header::{narrow, put, tcp, udp, word};
use super::{Family, IPV6_HEADER, IpPacket, Malformed, Train, Transport, VnetHeader, field, protocol};

/// A buffer of this length holds the segments of every super packet that a TCP of ours makes. Linux never
/// takes an MSS below 48 (`net.ipv4.tcp_min_snd_mss`), options included, of which there are at most 40:
/// 65,535 bytes of at least 8 each would be 8,192 segments; with the 12 bytes of timestamps that are seen in
/// practice they are 1,821, of up to 72 bytes of header each.
pub const SPLIT_BUFFER: usize = 256 * 1024;
const _: () = assert!(65_535 + 65_535_usize.div_ceil(48 - 12) * (IPV6_HEADER + 32) <= SPLIT_BUFFER);

/// What `vnet` makes of a packet, known before a byte is written: how many segments, and how much room they need.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    vnet: VnetHeader,
    packet: IpPacket<'a>,
    work: Work,
    count: usize,
    stride: usize,
    length: usize,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    /// It can go as it is.
    Nothing,
    /// Its checksum is partial.
    Complete,
    /// It is a super packet, with headers of this length.
    Cut { transport: Transport, header_len: usize },
}

impl<'a> Plan<'a> {
    /// [`Malformed`] if the header disagrees with the packet, or if the packet is none that may be cut.
    pub fn of(vnet: VnetHeader, packet: IpPacket<'a>) -> Result<Self, Malformed> {
        let expected = match vnet.gso_type {
            VnetHeader::GSO_NONE => return Self::whole(vnet, packet),
            VnetHeader::GSO_UDP_L4 => (packet.family(), protocol::UDP),
            other => match other & !VnetHeader::GSO_ECN {
                VnetHeader::GSO_TCPV4 => (Family::V4, protocol::TCP),
                VnetHeader::GSO_TCPV6 => (Family::V6, protocol::TCP),
                _ => return Err(Malformed),
            },
        };
        let transport = packet.divisible_transport().ok_or(Malformed)?;
        if (packet.family(), transport.protocol) != expected {
            return Err(Malformed);
        }
        Self::segments(vnet, packet, transport)
    }

    /// A packet that stays one.
    fn whole(vnet: VnetHeader, packet: IpPacket<'a>) -> Result<Self, Malformed> {
        let length = packet.bytes().len();
        let field = usize::from(vnet.csum_start) + usize::from(vnet.csum_offset);
        let field_is_outside = usize::from(vnet.csum_start) < packet.header_len() || field + 2 > length;
        if vnet.needs_csum() && field_is_outside {
            return Err(Malformed);
        }
        let work = if vnet.needs_csum() { Work::Complete } else { Work::Nothing };
        Ok(Self { vnet, packet, work, count: 1, stride: length, length })
    }

    /// A super packet whose transport header begins at `transport.offset`.
    fn segments(vnet: VnetHeader, packet: IpPacket<'a>, transport: Transport) -> Result<Self, Malformed> {
        let bytes = packet.bytes();
        let is_tcp = transport.protocol == protocol::TCP;
        let header_len = transport.offset
            + if is_tcp {
                tcp::header_len(&bytes[transport.offset..]).ok_or(Malformed)?
            } else {
                udp::HEADER
            };
        let (header, payload) = bytes.split_at_checked(header_len).ok_or(Malformed)?;

        let checksum_is_elsewhere = usize::from(vnet.csum_start) != transport.offset
            || usize::from(vnet.csum_offset) != checksum_field(transport);
        if vnet.gso_size == 0 || (vnet.needs_csum() && checksum_is_elsewhere) {
            return Err(Malformed);
        }
        let size = usize::from(vnet.gso_size);
        let count = payload.len().div_ceil(size).max(1);
        // Each belongs to one segment that only its sender could name.
        let indivisible = tcp::SYN | tcp::RST | tcp::URG;
        if is_tcp && count > 1 && header[transport.offset + tcp::FLAGS] & indivisible != 0 {
            return Err(Malformed);
        }
        let (stride, length) = (header_len + payload.len().min(size), count * header_len + payload.len());
        Ok(Self { vnet, packet, work: Work::Cut { transport, header_len }, count, stride, length })
    }

    /// How many packets come out.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count as u64
    }

    /// Bytes of the first and longest of them.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Bytes of all of them: at most [`SPLIT_BUFFER`] for what a TCP of ours makes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a packet is never empty")]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Writes the packets to the start of `out`. [`Malformed`] if that is shorter than [`Plan::len`].
    pub fn write<'o>(&self, out: &'o mut [u8]) -> Result<Train<'o>, Malformed> {
        let out = out.get_mut(..self.length).ok_or(Malformed)?;
        match self.work {
            Work::Nothing => out.copy_from_slice(self.packet.bytes()),
            Work::Complete => self.complete(out),
            Work::Cut { transport, header_len } => self.cut(transport, header_len, out),
        }
        Ok(Train { bytes: out, stride: self.stride })
    }

    /// Finishes the partial checksum of a packet that stays whole.
    fn complete(&self, out: &mut [u8]) {
        let bytes = self.packet.bytes();
        let start = usize::from(self.vnet.csum_start);
        let field = start + usize::from(self.vnet.csum_offset);
        out[..start].copy_from_slice(&bytes[..start]);
        let sum = Sum::default().add_copied(&bytes[start..], &mut out[start..]).finish();
        // Only UDP has its checksum there.
        let is_udp = usize::from(self.vnet.csum_offset) == udp::CHECKSUM;
        out[field..field + 2].copy_from_slice(&if is_udp { never_zero(sum) } else { sum });
    }

    fn cut(&self, transport: Transport, header_len: usize, out: &mut [u8]) {
        let (header, payload) = self.packet.bytes().split_at(header_len);
        let is_tcp = transport.protocol == protocol::TCP;
        let (checksum, size) = (checksum_field(transport), usize::from(self.vnet.gso_size));
        let common = Common::of(&self.vnet, &self.packet, transport, &header[transport.offset..], checksum);
        for (index, segment) in out.chunks_mut(self.stride).enumerate() {
            let offset = index * size;
            let part = &payload[offset..payload.len().min(offset + size)];
            let (head, body) = segment.split_at_mut(header_len);
            head.copy_from_slice(header);
            let (network, l4) = head.split_at_mut(transport.offset);
            let last = index + 1 == self.count;
            let position = Position { index: narrow(index), offset: narrow(offset), last };
            common.write_network(network, l4.len() + part.len(), position);
            let varying = if is_tcp { vary_tcp(l4, position) } else { vary_udp(l4, part.len()) };
            let sum = common.l4.add_word(narrow(l4.len() + part.len())).add_sum(varying);
            let sum = sum.add_copied(part, body).finish();
            l4[checksum..checksum + 2].copy_from_slice(&if is_tcp { sum } else { never_zero(sum) });
        }
    }
}

/// Where the checksum stands in a transport header that may be cut.
fn checksum_field(transport: Transport) -> usize {
    if transport.protocol == protocol::TCP { tcp::CHECKSUM } else { udp::CHECKSUM }
}

/// Cuts `packet` as `vnet` says into `out`: plan and writing in one step, for those with room for anything.
pub fn split<'a>(vnet: &VnetHeader, packet: IpPacket<'_>, out: &'a mut [u8]) -> Result<Train<'a>, Malformed> {
    Plan::of(*vnet, packet)?.write(out)
}

/// Which segment of the super packet is being written.
#[derive(Clone, Copy)]
struct Position {
    index: u16,
    /// Payload bytes before it.
    offset: u16,
    last: bool,
}

/// What is summed once for all segments.
struct Common {
    family: Family,
    /// The IPv4 header but for length, identification and checksum.
    network: Sum,
    /// The pseudo-header but for the length, and what is equal in all transport headers.
    l4: Sum,
    identification: u16,
}

impl Common {
    fn of(
        vnet: &VnetHeader,
        packet: &IpPacket<'_>,
        transport: Transport,
        l4: &[u8],
        checksum: usize,
    ) -> Self {
        let bytes = packet.bytes();
        // The partial sum is the sender's word for the pseudo-header, and with a routing header the only one:
        // the final destination is not in the IPv6 header then. A merged packet that a card has verified has
        // none.
        let pseudo = if vnet.needs_csum() {
            let total = narrow(bytes.len() - transport.offset);
            Sum::default().add_bytes(&l4[checksum..checksum + 2]).sub_word(total)
        } else {
            Sum::default().add_pseudo_header(packet.src(), packet.dst(), transport.protocol, 0)
        };
        let ports = pseudo.add_bytes(&l4[..4]);
        let l4 = if transport.protocol == protocol::TCP {
            ports
                .add_bytes(&l4[tcp::ACK_NUMBER..tcp::DATA_OFFSET])
                .add_bytes(&l4[tcp::WINDOW..tcp::CHECKSUM])
                .add_bytes(&l4[tcp::URGENT..])
        } else {
            ports
        };
        let (network, identification) = match packet.family() {
            Family::V4 => {
                let sum = Sum::default()
                    .add_bytes(&bytes[..field::V4_LENGTH])
                    .add_bytes(&bytes[field::V4_FRAGMENT..field::V4_CHECKSUM])
                    .add_bytes(&bytes[field::V4_SRC..packet.header_len()]);
                (sum, word(bytes, field::V4_ID))
            }
            Family::V6 => (Sum::default(), 0),
        };
        Self { family: packet.family(), network, l4, identification }
    }

    /// Writes what differs in the network header: lengths, and for IPv4 identification and checksum.
    fn write_network(&self, network: &mut [u8], l4_len: usize, position: Position) {
        match self.family {
            Family::V4 => {
                let length = narrow(network.len() + l4_len);
                let id = self.identification.wrapping_add(position.index);
                let sum = self.network.add_word(length).add_word(id).finish();
                put(network, field::V4_LENGTH, length.to_be_bytes());
                put(network, field::V4_ID, id.to_be_bytes());
                put(network, field::V4_CHECKSUM, sum);
            }
            Family::V6 => {
                let length = narrow(network.len() - IPV6_HEADER + l4_len);
                put(network, field::V6_LENGTH, length.to_be_bytes());
            }
        }
    }
}

/// Sequence number; FIN and PSH on the last segment only, CWR on the first only. Returns the sum of what it
/// wrote.
fn vary_tcp(l4: &mut [u8], position: Position) -> Sum {
    let sequence = tcp::sequence(l4).wrapping_add(u32::from(position.offset));
    put(l4, tcp::SEQUENCE, sequence.to_be_bytes());
    if !position.last {
        l4[tcp::FLAGS] &= !(tcp::FIN | tcp::PSH);
    }
    if position.index > 0 {
        l4[tcp::FLAGS] &= !tcp::CWR;
    }
    Sum::default()
        .add_bytes(&l4[tcp::SEQUENCE..tcp::ACK_NUMBER])
        .add_bytes(&l4[tcp::DATA_OFFSET..tcp::WINDOW])
}

/// The datagram's length. Returns the sum of what it wrote.
fn vary_udp(l4: &mut [u8], payload: usize) -> Sum {
    let length = narrow(udp::HEADER + payload);
    put(l4, udp::LENGTH, length.to_be_bytes());
    Sum::default().add_word(length)
}

/// RFC 768: a computed zero is sent as all ones, since zero means "no checksum".
fn never_zero(sum: [u8; 2]) -> [u8; 2] {
    if sum == [0, 0] { [0xff, 0xff] } else { sum }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::testing::{Recipe, checked_payload, noise};

    fn cut_into(vnet: &VnetHeader, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
        let mut out = vec![0xaa; SPLIT_BUFFER];
        let train = split(vnet, IpPacket::parse(bytes)?, &mut out)?;
        Ok(train.datagrams().map(<[u8]>::to_vec).collect())
    }

    /// Cuts a recipe and checks all that holds for every segment.
    fn segments(recipe: &Recipe, gso_size: u16) -> Vec<Vec<u8>> {
        let (vnet, bytes) = recipe.partial(gso_size);
        let segments = cut_into(&vnet, &bytes).expect("may be cut");
        let payload: Vec<u8> =
            segments.iter().flat_map(|segment| checked_payload(segment)).copied().collect();
        assert_eq!(payload, recipe.payload);
        segments
    }

    fn tcp_flags(recipe: &Recipe, segments: &[Vec<u8>]) -> Vec<u8> {
        let l4 = recipe.header_len() - 20 - recipe.tcp_options.len();
        segments.iter().map(|segment| segment[l4 + tcp::FLAGS]).collect()
    }

    #[test]
    fn lengths_identification_and_sequence() {
        let recipe = Recipe::tcp(Family::V4, 3001);
        let segments = segments(&recipe, 1000);
        assert_eq!(
            segments.iter().map(Vec::len).collect::<Vec<_>>(),
            [1052, 1052, 1052, 53],
            "one byte last"
        );
        for (index, segment) in segments.iter().enumerate() {
            let index = u16::try_from(index).expect("few");
            assert_eq!(word(segment, field::V4_ID), 0xfffe_u16.wrapping_add(index), "identification wraps");
            assert_eq!(
                tcp::sequence(&segment[20..]),
                0xffff_f000_u32.wrapping_add(u32::from(index) * 1000),
                "sequence"
            );
            assert_eq!(segment[40..52], crate::packet::testing::TIMESTAMPS, "options");
        }
    }

    #[test]
    fn how_many_segments() {
        for (payload, gso_size, count) in
            [(1000, 1000, 1), (999, 1000, 1), (1, 1000, 1), (0, 1000, 1), (2000, 1000, 2), (1001, 1000, 2)]
        {
            for family in [Family::V4, Family::V6] {
                assert_eq!(segments(&Recipe::tcp(family, payload), gso_size).len(), count, "TCP {payload}");
                assert_eq!(segments(&Recipe::udp(family, payload), gso_size).len(), count, "UDP {payload}");
            }
        }
    }

    #[test]
    fn the_longest_packets() {
        for family in [Family::V4, Family::V6] {
            for (recipe, gso_size) in [(Recipe::tcp(family, 0), 1420), (Recipe::udp(family, 0), 1444)] {
                let longest = 65_535 - recipe.header_len();
                segments(&Recipe { payload: noise(longest, 1), ..recipe.clone() }, gso_size);
                segments(&Recipe { payload: noise(longest, 1), ..recipe }, 36);
            }
        }
        // The length field of IPv6 leaves its header out.
        segments(&Recipe { payload: noise(65_535 - 32, 1), ..Recipe::tcp(Family::V6, 0) }, 1420);
    }

    #[test]
    fn fin_and_psh_stay_for_the_last_and_cwr_for_the_first() {
        for (flags, expected) in [
            (tcp::ACK, [0x10, 0x10, 0x10]),
            (tcp::ACK | tcp::PSH, [0x10, 0x10, 0x18]),
            (tcp::ACK | tcp::FIN, [0x10, 0x10, 0x11]),
            (tcp::ACK | tcp::CWR, [0x90, 0x10, 0x10]),
            (tcp::ACK | tcp::CWR | 0x40 | tcp::PSH, [0xd0, 0x50, 0x58]),
        ] {
            let recipe = Recipe { flags, ..Recipe::tcp(Family::V6, 2500) };
            assert_eq!(tcp_flags(&recipe, &segments(&recipe, 1000)), expected, "{flags:#x}");
            let single = Recipe { payload: noise(700, 1), ..recipe };
            assert_eq!(tcp_flags(&single, &segments(&single, 1000)), [flags], "alone: {flags:#x}");
        }
    }

    #[test]
    fn syn_rst_and_urg_are_never_cut() {
        for flag in [tcp::SYN, tcp::RST, tcp::URG] {
            let recipe = Recipe { flags: tcp::ACK | flag, ..Recipe::tcp(Family::V4, 2500) };
            let (vnet, bytes) = recipe.partial(1000);
            assert_eq!(cut_into(&vnet, &bytes), Err(Malformed), "{flag:#x}");
            segments(&recipe, 2500);
        }
    }

    #[test]
    fn ecn_bits_are_copied() {
        for segment in segments(&Recipe { tos: 0b1011_1010, ..Recipe::tcp(Family::V4, 2500) }, 1000) {
            assert_eq!(segment[1], 0b1011_1010);
        }
    }

    #[test]
    fn options_and_extension_headers_are_in_every_segment() {
        let options = Recipe { ip_options: vec![148, 4, 0, 0], ..Recipe::tcp(Family::V4, 2500) };
        for segment in segments(&options, 1000) {
            assert_eq!(segment[20..24], [148, 4, 0, 0], "router alert");
        }
        for recipe in [Recipe::tcp(Family::V6, 2500), Recipe::udp(Family::V6, 2500)] {
            for segment in segments(&Recipe { hop_by_hop: true, ..recipe.clone() }, 1000) {
                assert_eq!((segment[6], segment[40]), (0, recipe.protocol));
            }
        }
    }

    #[test]
    fn a_whole_packet_is_copied_or_completed() {
        let mut out = vec![0; SPLIT_BUFFER];
        for recipe in [
            Recipe::tcp(Family::V4, 700),
            Recipe::tcp(Family::V6, 701),
            Recipe::udp(Family::V4, 0),
            Recipe::udp(Family::V6, 333),
        ] {
            let whole = recipe.build();
            let packet = IpPacket::parse(&whole).expect("well formed");
            let train = split(&VnetHeader::default(), packet, &mut out).expect("nothing to do");
            assert_eq!((train.bytes, train.count()), (&whole[..], 1), "as it is");
            let (vnet, partial) = recipe.partial(0);
            assert_eq!(cut_into(&vnet, &partial), Ok(vec![whole]));
        }
    }

    #[test]
    fn a_udp_sum_of_zero_is_sent_as_ones() {
        for gso_size in [0, 4] {
            let mut recipe = Recipe::udp(Family::V4, 4);
            // With its own checksum as payload, a packet sums up to zero.
            recipe.payload = vec![0; 4];
            let sum = word(&recipe.build(), 20 + udp::CHECKSUM);
            recipe.payload[..2].copy_from_slice(&sum.to_be_bytes());
            let (vnet, bytes) = recipe.partial(gso_size);
            let cut = cut_into(&vnet, &bytes).expect("may be cut");
            assert_eq!(word(&cut[0], 20 + udp::CHECKSUM), 0xffff);
            assert_eq!(cut[0], recipe.build());
        }
    }

    #[test]
    fn a_verified_super_packet_has_no_partial_sum() {
        let recipe = Recipe::tcp(Family::V6, 2500);
        let (vnet, _) = recipe.partial(1000);
        let verified = VnetHeader { flags: VnetHeader::DATA_VALID, csum_start: 0, csum_offset: 0, ..vnet };
        assert_eq!(cut_into(&verified, &recipe.build()), Ok(segments(&recipe, 1000)));
    }

    #[test]
    fn hdr_len_is_not_believed() {
        let recipe = Recipe::tcp(Family::V4, 2500);
        let (vnet, bytes) = recipe.partial(1000);
        for hdr_len in [0, 20, 1052, u16::MAX] {
            assert_eq!(cut_into(&VnetHeader { hdr_len, ..vnet }, &bytes), cut_into(&vnet, &bytes));
        }
    }

    #[test]
    fn headers_that_contradict_the_packet() {
        let recipe = Recipe::tcp(Family::V4, 2500);
        let (vnet, bytes) = recipe.partial(1000);
        let whole = VnetHeader { gso_type: VnetHeader::GSO_NONE, gso_size: 0, ..vnet };
        for (vnet, what) in [
            (VnetHeader { gso_size: 0, ..vnet }, "gso_size 0"),
            (VnetHeader { gso_type: VnetHeader::GSO_TCPV6, ..vnet }, "family"),
            (VnetHeader { gso_type: VnetHeader::GSO_UDP_L4, ..vnet }, "protocol"),
            (VnetHeader { gso_type: 9, ..vnet }, "type"),
            (VnetHeader { csum_start: 24, ..vnet }, "csum_start"),
            (VnetHeader { csum_offset: 6, ..vnet }, "csum_offset"),
            (VnetHeader { csum_start: 10, ..whole }, "checksum in the IP header"),
            (VnetHeader { csum_start: 2551, csum_offset: 0, ..whole }, "checksum behind the packet"),
            (VnetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..whole }, "far behind the packet"),
        ] {
            assert_eq!(cut_into(&vnet, &bytes), Err(Malformed), "{what}");
        }
        let mut short_offset = bytes.clone();
        short_offset[20 + tcp::DATA_OFFSET] = 0x40;
        assert_eq!(cut_into(&vnet, &short_offset), Err(Malformed), "TCP header of 16 bytes");
        let fragment = Recipe { more_fragments: true, ..recipe.clone() }.partial(1000);
        assert_eq!(cut_into(&fragment.0, &fragment.1), Err(Malformed), "a fragment");
        let mut small = [0; 2600];
        let packet = IpPacket::parse(&bytes).expect("well formed");
        assert!(split(&vnet, packet, &mut small).is_err(), "no room");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_input_panics(
            recipe in (any::<bool>(), any::<bool>(), 0usize..3000).prop_map(|(v4, is_tcp, payload)| {
                let family = if v4 { Family::V4 } else { Family::V6 };
                if is_tcp { Recipe::tcp(family, payload) } else { Recipe::udp(family, payload) }
            }),
            gso_size in 0u16..1500,
            edits in proptest::collection::vec((0usize..100, any::<u8>()), 0..6),
            header in proptest::option::of(any::<[u8; 10]>()),
            room in 0usize..8000,
        ) {
            let (mut vnet, mut bytes) = recipe.partial(gso_size);
            if let Some([flags, gso_type, a, b, c, d, e, f, g, h]) = header {
                let word = |high: u8, low: u8| u16::from_be_bytes([high & 0x0f, low]);
                vnet = VnetHeader {
                    flags, gso_type: gso_type % 8, hdr_len: word(a, b), gso_size: word(c, d),
                    csum_start: word(e, f), csum_offset: word(g, h),
                };
            }
            for (at, value) in edits {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            let mut out = vec![0; room];
            if let Ok(packet) = IpPacket::parse(&bytes)
                && let Ok(train) = split(&vnet, packet, &mut out)
            {
                for segment in train.datagrams() {
                    prop_assert!(IpPacket::parse(segment).is_ok());
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            version in 0usize..2,
        ) {
            let Ok((vnet, rest)) = VnetHeader::parse(&bytes) else { return Ok(()) };
            let mut packet = rest.to_vec();
            if packet.len() >= 40 {
                packet[0] = [0x45, 0x60][version];
                let (at, length) = [(2, packet.len()), (4, packet.len() - 40)][version];
                put(&mut packet, at, narrow(length).to_be_bytes());
            }
            let _ = cut_into(&vnet, &packet);
        }
    }
}
