//! The inverse of [`split`](super::split::split): merges packets that a peer sent into super packets, so that
//! the kernel's receive path behind a TUN write runs once for many.
//!
//! A [`Coalescer`] keeps *runs*: consecutive packets of one flow, of which every header follows from the
//! first. Each run lies contiguous in memory that is taken once, behind room for its [`VnetHeader`]: the sum
//! of every packet must be verified anyway before it is merged, so it is copied while it is in the cache, and
//! each run is written from one iovec (DATAPLANE.md §3: 46 entries cost 3.6 us, a copy of 64 KiB in the cache
//! 1.4 to 1.9 us). The receive buffer is free when [`Coalescer::push`] returns.
//!
//! It does not write, has no clock and keeps nothing back: whoever pushed a batch flushes at its end.
//!
//! Invariant: within a flow no packet passes another, and `split` of what comes out gives what went in, byte
//! for byte, but for the identification of IPv4 packets with DF set, which means nothing (RFC 6864 §4.1)
//! (property test `runs_split_into_what_was_pushed`).
//! Sources: Linux `Documentation/networking/segmentation-offloads.rst`, DATAPLANE.md §6.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::checksum::{Sum, checksum};
use super::header::{narrow, put, tcp, udp, word};
use super::{Family, IPV4_HEADER, IPV6_HEADER, IpPacket, Transport, VnetHeader, field, protocol};

/// Runs that a worker needs: what a batch of receives brings is rarely from more flows, and the search is
/// linear.
pub const RUNS: usize = 64;
/// The longest super packet: what an IPv4 length field can say.
const MAX_MERGED: usize = 65_535;
/// The longest packet there is: the length field of IPv6 leaves its header out.
const MAX_PACKET: usize = IPV6_HEADER + 65_535;
/// Every kernel cuts a UDP super packet into so many (`UDP_MAX_SEGMENTS`; 128 since 6.9).
const UDP_SEGMENTS: u32 = 64;
/// More would be segments of fewer than 64 bytes, for which [`SPLIT_BUFFER`](super::split::SPLIT_BUFFER) must
/// still do when the kernel refuses the super packet and it has to be cut again.
const MAX_TCP_SEGMENTS: u32 = 1024;
const _: () =
    assert!(MAX_MERGED + MAX_TCP_SEGMENTS as usize * (IPV6_HEADER + 60) <= super::split::SPLIT_BUFFER);

/// Bytes from one run's memory to the next: a whole packet with its [`VnetHeader`]; then five cache lines
/// that make the starts of runs fall into different sets of an L1 cache (whose sets repeat every 4,096
/// bytes).
const SLOT: usize = (MAX_PACKET + VnetHeader::LEN).next_multiple_of(64) + 5 * 64;
const _: () = assert!(!SLOT.is_multiple_of(4096) && SLOT.is_multiple_of(64));

/// Destination ports of UDP that carries packets itself. Its receiver is a tunnel that takes one datagram at
/// a time, often in a kernel that would have to cut the super packet again; and a datagram of a tunnel holds
/// packets of many flows, none of which may wait for another.
const TUNNEL_PORTS: [u16; 11] = [
    1701,  // L2TP
    2152,  // GTP-U
    3544,  // Teredo
    4500,  // IPsec through NAT
    4754,  // GRE in UDP
    4789,  // VXLAN
    6081,  // Geneve
    6635,  // MPLS in UDP
    8285,  // Flannel, and hopsack
    8472,  // VXLAN as Linux and Flannel number it
    51820, // WireGuard
];

const DONT_FRAGMENT: u16 = 0x4000;

/// Every run is in use: flush, and push again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every run is in use")]
pub struct Full;

/// A bounded list of runs.
#[derive(Debug)]
pub struct Coalescer {
    /// Memory of the runs, [`SLOT`] bytes each; the first run has the first slot, so that few flows stay in
    /// the cache.
    memory: Box<[u8]>,
    runs: Vec<Run>,
    /// The flow of each run, beside `runs` for the search.
    flows: Vec<u64>,
    /// Packets that a run of UDP may have.
    udp_segments: u32,
}

/// One run; its bytes are those of its slot.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Bytes of the run as one IP packet.
    length: usize,
    packets: u32,
    /// Bytes of the packets that went in, headers included.
    packet_bytes: usize,
    /// What another packet must continue; `None` if none may follow.
    tail: Option<Tail>,
    /// Payload bytes of the first packet, and of every other but the last.
    size: usize,
}

/// What the packet after the last one of a run must have.
#[derive(Debug, Clone, Copy)]
struct Tail {
    /// TCP sequence number.
    sequence: u32,
    /// IPv4 identification.
    id: u16,
}

/// What is to be written to the TUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuperPacket<'a> {
    /// Where `bytes` stand in [`Coalescer::memory`].
    pub at: usize,
    /// [`VnetHeader`] and IP packet.
    pub bytes: &'a [u8],
    /// Packets that were merged.
    pub packets: u64,
    /// Their bytes, headers included.
    pub packet_bytes: u64,
}

impl<'a> SuperPacket<'a> {
    /// The IP packet alone.
    #[must_use]
    pub fn packet(&self) -> &'a [u8] {
        &self.bytes[VnetHeader::LEN..]
    }
}

impl Coalescer {
    /// Takes memory for `runs` runs, of which untouched pages stay untouched.
    #[must_use]
    pub fn new(runs: usize) -> Self {
        Self {
            memory: vec![0; runs * SLOT].into_boxed_slice(),
            runs: Vec::with_capacity(runs),
            flows: Vec::with_capacity(runs),
            udp_segments: UDP_SEGMENTS,
        }
    }

    /// For a kernel that cuts UDP super packets into so many.
    #[must_use]
    pub fn with_udp_segments(self, most: usize) -> Self {
        Self { udp_segments: u32::try_from(most).unwrap_or(UDP_SEGMENTS), ..self }
    }

    /// Adds a packet to the newest run of its flow, or begins a run with it.
    #[inline]
    pub fn push(&mut self, packet: IpPacket<'_>) -> Result<(), Full> {
        let Some((transport, flow)) = flow(&packet) else {
            self.close_between(&packet);
            return self.begin(0, packet.bytes(), None);
        };
        let segment = Segment::of(&packet, transport);
        if let Some(segment) = &segment
            && let Some(index) = self.flows.iter().rposition(|known| *known == flow)
            && self.merge(index, segment)
        {
            return Ok(());
        }
        self.begin(flow, packet.bytes(), segment.as_ref())
    }

    /// Completes the headers of all runs, and hands them out in the order of their first packets. They stand
    /// where they are until [`Coalescer::clear`].
    pub fn finish(&mut self) -> impl Iterator<Item = SuperPacket<'_>> {
        self.memory.chunks_exact_mut(SLOT).zip(&self.runs).enumerate().map(|(index, (slot, run))| {
            run.seal(slot);
            SuperPacket {
                at: index * SLOT,
                bytes: &slot[..VnetHeader::LEN + run.length],
                packets: u64::from(run.packets),
                packet_bytes: run.packet_bytes as u64,
            }
        })
    }

    /// A packet that is to stay alone, after those already pushed: the receiver takes no super packets.
    #[inline]
    pub fn push_alone(&mut self, packet: IpPacket<'_>) -> Result<(), Full> {
        self.begin(0, packet.bytes(), None)
    }

    /// The memory in which the runs stand.
    #[must_use]
    pub fn memory(&self) -> &[u8] {
        &self.memory
    }

    /// Forgets all runs: they are written.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.flows.clear();
    }

    /// How many runs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Appends a segment to a run, if it continues it and its checksum is right.
    fn merge(&mut self, index: usize, segment: &Segment<'_>) -> bool {
        let run = &mut self.runs[index];
        let packet = &mut self.memory[index * SLOT..][VnetHeader::LEN..SLOT];
        let length = run.length + segment.payload.len();
        let Some(tail) = run.tail else { return false };
        let fits = segment.payload.len() <= run.size
            && length <= MAX_MERGED
            && run.packets < if segment.shape.is_tcp { MAX_TCP_SEGMENTS } else { self.udp_segments };
        if !fits || !segment.continues(packet, tail) {
            return false;
        }
        // What a wrong sum leaves behind the run is overwritten or never read.
        if !segment.is_valid_copied(&mut packet[run.length..length]) {
            return false;
        }
        if segment.is_pushed() {
            packet[segment.shape.l4() + tcp::FLAGS] |= tcp::PSH;
        }
        run.length = length;
        run.packets += 1;
        run.packet_bytes += segment.header.len() + segment.payload.len();
        let is_last = segment.payload.len() < run.size || segment.is_pushed();
        run.tail = if is_last { None } else { Some(segment.tail()) };
        true
    }

    /// Begins a run, which stays a run of one if `segment` is `None`.
    fn begin(&mut self, flow: u64, packet: &[u8], segment: Option<&Segment<'_>>) -> Result<(), Full> {
        let slot = self.memory.chunks_exact_mut(SLOT).nth(self.runs.len()).ok_or(Full)?;
        let (vnet, rest) = slot.split_at_mut(VnetHeader::LEN);
        vnet.fill(0);
        let copy = &mut rest[..packet.len()];
        let mut run =
            Run { length: packet.len(), packets: 1, packet_bytes: packet.len(), tail: None, size: 0 };
        match segment {
            None => copy.copy_from_slice(packet),
            Some(segment) => {
                let (header, payload) = copy.split_at_mut(segment.header.len());
                header.copy_from_slice(segment.header);
                run.size = segment.payload.len();
                if segment.is_valid_copied(payload) && !segment.is_pushed() {
                    run.tail = Some(segment.tail());
                }
            }
        }
        self.runs.push(run);
        self.flows.push(flow);
        Ok(())
    }

    /// A packet came of which the flow is unknown, a fragment above all: nothing that follows between its two
    /// addresses may pass it.
    fn close_between(&mut self, packet: &IpPacket<'_>) {
        for (slot, run) in self.memory.chunks_exact(SLOT).zip(&mut self.runs) {
            let known = &slot[VnetHeader::LEN..][..run.length];
            if known[0] >> 4 == packet.bytes()[0] >> 4 && addresses(known) == addresses(packet.bytes()) {
                run.tail = None;
            }
        }
    }
}

impl Run {
    /// Completes the headers of a run of several: lengths, the partial checksum, and how the kernel is to cut
    /// it.
    fn seal(&self, slot: &mut [u8]) {
        if self.packets == 1 {
            return;
        }
        let (vnet, packet) = slot.split_at_mut(VnetHeader::LEN);
        let shape = Shape::of(packet);
        let l4 = shape.l4();
        let l4_len = narrow(self.length - l4);
        match shape.family {
            Family::V4 => {
                put(packet, field::V4_LENGTH, narrow(self.length).to_be_bytes());
                put(packet, field::V4_CHECKSUM, [0, 0]);
                let sum = checksum(&packet[..IPV4_HEADER]);
                put(packet, field::V4_CHECKSUM, sum);
            }
            Family::V6 => put(packet, field::V6_LENGTH, l4_len.to_be_bytes()),
        }
        if !shape.is_tcp {
            put(packet, l4 + udp::LENGTH, l4_len.to_be_bytes());
        }
        let partial = shape.pseudo_header(packet, l4_len).partial();
        put(packet, l4 + shape.checksum(), partial);
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: shape.gso_type(),
            hdr_len: narrow(l4 + shape.l4_header_len(packet)),
            gso_size: narrow(self.size),
            csum_start: narrow(l4),
            csum_offset: narrow(shape.checksum()),
        };
        vnet.copy_from_slice(&header.to_bytes());
    }
}

/// Which headers a packet that can be merged has: IPv4 without options or IPv6 without extensions, and TCP or
/// UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    family: Family,
    is_tcp: bool,
}

impl Shape {
    /// The shape of a packet that is known to have one.
    fn of(packet: &[u8]) -> Self {
        let (family, protocol) = if packet[0] >> 4 == 4 {
            (Family::V4, packet[field::V4_PROTOCOL])
        } else {
            (Family::V6, packet[field::V6_NEXT_HEADER])
        };
        Self { family, is_tcp: protocol == protocol::TCP }
    }

    /// Where the transport header begins.
    fn l4(self) -> usize {
        match self.family {
            Family::V4 => IPV4_HEADER,
            Family::V6 => IPV6_HEADER,
        }
    }

    fn l4_header_len(self, packet: &[u8]) -> usize {
        if self.is_tcp { usize::from(packet[self.l4() + tcp::DATA_OFFSET] >> 4) * 4 } else { udp::HEADER }
    }

    /// Where the checksum stands in the transport header.
    fn checksum(self) -> usize {
        if self.is_tcp { tcp::CHECKSUM } else { udp::CHECKSUM }
    }

    fn gso_type(self) -> u8 {
        match (self.is_tcp, self.family) {
            (true, Family::V4) => VnetHeader::GSO_TCPV4,
            (true, Family::V6) => VnetHeader::GSO_TCPV6,
            (false, _) => VnetHeader::GSO_UDP_L4,
        }
    }

    /// The sum of the pseudo-header for a transport header and payload of `l4_len` bytes.
    fn pseudo_header(self, packet: &[u8], l4_len: u16) -> Sum {
        let protocol = if self.is_tcp { protocol::TCP } else { protocol::UDP };
        Sum::default().add_bytes(addresses(packet)).add_word(u16::from(protocol)).add_word(l4_len)
    }
}

/// A packet that can be merged with its like.
#[derive(Debug)]
struct Segment<'a> {
    shape: Shape,
    /// All headers.
    header: &'a [u8],
    /// Never empty.
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// `None` for all that is never merged, whatever it follows.
    fn of(packet: &IpPacket<'a>, transport: Transport) -> Option<Self> {
        let bytes = packet.bytes();
        let shape = match transport.protocol {
            protocol::TCP => Shape { family: packet.family(), is_tcp: true },
            protocol::UDP => Shape { family: packet.family(), is_tcp: false },
            _ => return None,
        };
        let l4 = &bytes[transport.offset..];
        let l4_header = if shape.is_tcp { tcp::header_len(l4)? } else { udp::HEADER };
        if transport.offset != shape.l4() || l4.len() <= l4_header {
            return None;
        }
        let is_plain = if shape.is_tcp {
            l4[tcp::FLAGS] & !tcp::PSH == tcp::ACK
        } else {
            let is_whole = usize::from(word(l4, udp::LENGTH)) == l4.len();
            let has_checksum = word(l4, udp::CHECKSUM) != 0;
            is_whole && has_checksum && !TUNNEL_PORTS.contains(&word(l4, udp::DST_PORT))
        };
        let network_is_valid = shape.family == Family::V6 || checksum(&bytes[..IPV4_HEADER]) == [0, 0];
        let (header, payload) = bytes.split_at(transport.offset + l4_header);
        (is_plain && network_is_valid).then_some(Self { shape, header, payload })
    }

    /// Whether this packet's header follows from that of the run's first, `first`, and its last, `tail`.
    fn continues(&self, first: &[u8], tail: Tail) -> bool {
        let header = self.header;
        let equal = |range: Range<usize>| first[range.clone()] == header[range];
        let network_continues = match self.shape.family {
            // Version, length, TOS; then fragment word, TTL, protocol; then addresses.
            Family::V4 => {
                let id_continues = word(header, field::V4_FRAGMENT) & DONT_FRAGMENT != 0
                    || word(header, field::V4_ID) == tail.id;
                equal(0..field::V4_LENGTH)
                    && equal(field::V4_FRAGMENT..field::V4_CHECKSUM)
                    && equal(field::V4_SRC..IPV4_HEADER)
                    && id_continues
            }
            // Version, traffic class, flow label; then next header, hop limit, addresses.
            Family::V6 => equal(0..field::V6_LENGTH) && equal(field::V6_NEXT_HEADER..IPV6_HEADER),
        };
        let l4 = self.shape.l4();
        let ports_are_equal = equal(l4..l4 + 4);
        // Of the flags only PSH may differ, which `Segment::of` has seen to. An equal data offset makes the
        // options equally long.
        let transport_continues = !self.shape.is_tcp
            || (tcp::sequence(&header[l4..]) == tail.sequence
                && equal(l4 + tcp::ACK_NUMBER..l4 + tcp::FLAGS)
                && equal(l4 + tcp::WINDOW..l4 + tcp::CHECKSUM)
                && equal(l4 + tcp::URGENT..header.len()));
        network_continues && ports_are_equal && transport_continues
    }

    /// Copies the payload to `to`, and says whether the transport checksum is right.
    fn is_valid_copied(&self, to: &mut [u8]) -> bool {
        let l4 = self.shape.l4();
        let l4_len = narrow(self.header.len() - l4 + self.payload.len());
        let sum = self.shape.pseudo_header(self.header, l4_len).add_bytes(&self.header[l4..]);
        sum.add_copied(self.payload, to).finish() == [0, 0]
    }

    /// PSH: the application has sent all it had, and its peer shall see it.
    fn is_pushed(&self) -> bool {
        self.shape.is_tcp && self.header[self.shape.l4() + tcp::FLAGS] & tcp::PSH != 0
    }

    /// What the packet after this one must have.
    fn tail(&self) -> Tail {
        let sequence = if self.shape.is_tcp {
            tcp::sequence(&self.header[self.shape.l4()..]).wrapping_add(u32::from(narrow(self.payload.len())))
        } else {
            0
        };
        Tail { sequence, id: word(self.header, field::V4_ID).wrapping_add(1) }
    }
}

/// The transport header of a packet and a hash of its flow; `None` if the flow cannot be told. Two flows of
/// one hash hide each other's runs, which costs merges but no order.
fn flow(packet: &IpPacket<'_>) -> Option<(Transport, u64)> {
    let transport = packet.divisible_transport()?;
    let ports = match transport.protocol {
        protocol::TCP | protocol::UDP => *packet.bytes().get(transport.offset..)?.first_chunk()?,
        _ => [0; 4],
    };
    let start = u64::from(u32::from_ne_bytes(ports)) << 8 | u64::from(transport.protocol);
    let hash = addresses(packet.bytes()).chunks_exact(8).fold(start, |hash, chunk| {
        let mut octets = [0; 8];
        octets.copy_from_slice(chunk);
        // Multiplicative hashing (Knuth, TAOCP 6.4); the shift brings high bits back down.
        let mixed = (hash ^ u64::from_ne_bytes(octets)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ mixed >> 32
    });
    Some((transport, hash))
}

/// Source and destination address, as they stand in the packet.
fn addresses(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 {
        &packet[field::V4_SRC..IPV4_HEADER]
    } else {
        &packet[field::V6_SRC..IPV6_HEADER]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::packet::split::{SPLIT_BUFFER, split};
    use crate::packet::testing::{Recipe, checked_payload, noise};

    /// A run as it was handed out: the header, the IP packet, and how many packets went in.
    type Merged = (VnetHeader, Vec<u8>, u64);

    fn drain(coalescer: &mut Coalescer) -> Vec<Merged> {
        let merged = coalescer
            .finish()
            .map(|run| {
                let (vnet, packet) = VnetHeader::parse(run.bytes).expect("a header of ours");
                assert_eq!(packet, run.packet());
                (vnet, packet.to_vec(), run.packets)
            })
            .collect();
        coalescer.clear();
        merged
    }

    fn merge(packets: &[Vec<u8>]) -> Vec<Merged> {
        let mut coalescer = Coalescer::new(RUNS);
        for packet in packets {
            coalescer.push(IpPacket::parse(packet).expect("well formed")).expect("room");
        }
        drain(&mut coalescer)
    }

    /// How many packets each run has, in order.
    fn counts(packets: &[Vec<u8>]) -> Vec<u64> {
        merge(packets).iter().map(|(_, _, count)| *count).collect()
    }

    /// `count` packets of a flow that follow each other, each changed by `edit`.
    fn sequence(recipe: &Recipe, count: usize, edit: impl Fn(usize, &mut Recipe)) -> Vec<Vec<u8>> {
        let mut next = recipe.clone();
        (0..count)
            .map(|index| {
                let mut this = next.clone();
                next.sequence = next.sequence.wrapping_add(u32::from(narrow(this.payload.len())));
                next.id = next.id.wrapping_add(1);
                edit(index, &mut this);
                this.build()
            })
            .collect()
    }

    fn recipes() -> [Recipe; 4] {
        [
            Recipe::tcp(Family::V4, 100),
            Recipe::tcp(Family::V6, 100),
            Recipe::udp(Family::V4, 100),
            Recipe::udp(Family::V6, 100),
        ]
    }

    fn split_again(vnet: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
        let mut out = vec![0; SPLIT_BUFFER];
        let packet = IpPacket::parse(packet).expect("well formed");
        let train = split(vnet, packet, &mut out).expect("what was merged can be cut");
        train.datagrams().map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn a_train_of_44_becomes_one() {
        for recipe in
            [Recipe::tcp(Family::V4, 1420), Recipe::tcp(Family::V6, 1400), Recipe::udp(Family::V4, 1444)]
        {
            let packets = sequence(&recipe, 44, |_, _| ());
            let merged = merge(&packets);
            let [(vnet, packet, 44)] = merged.as_slice() else { panic!("not one run of 44") };
            assert_eq!(usize::from(vnet.gso_size), recipe.payload.len());
            assert_eq!(packet.len(), recipe.header_len() + 44 * recipe.payload.len());
            assert_eq!(split_again(vnet, packet), packets);
        }
    }

    #[test]
    fn the_header_is_what_a_tun_read_would_bring() {
        for recipe in recipes() {
            let (expected, bytes) = Recipe { payload: noise(950, 3), ..recipe }.partial(100);
            let packets = split_again(&expected, &bytes);
            assert_eq!(merge(&packets), [(expected, bytes, 10)]);
        }
    }

    #[test]
    fn one_packet_is_left_as_it_came() {
        for recipe in recipes() {
            let packet = recipe.build();
            assert_eq!(merge(std::slice::from_ref(&packet)), [(VnetHeader::default(), packet, 1)]);
        }
        let longest = Recipe::tcp(Family::V6, 65_535 - 32).build();
        assert_eq!(merge(std::slice::from_ref(&longest)), [(VnetHeader::default(), longest, 1)]);
    }

    #[test]
    fn a_shorter_packet_is_the_last_and_a_longer_one_begins_anew() {
        for recipe in recipes() {
            let with_third = |length: usize| {
                let packets = sequence(&recipe, 3, |index, this| {
                    if index == 2 {
                        this.payload = noise(length, 5);
                    }
                });
                let more = sequence(
                    &Recipe {
                        sequence: recipe.sequence.wrapping_add(200 + u32::from(narrow(length))),
                        id: recipe.id.wrapping_add(3),
                        ..recipe.clone()
                    },
                    2,
                    |_, _| (),
                );
                counts(&[packets, more].concat())
            };
            assert_eq!(with_third(100), [5]);
            assert_eq!(with_third(99), [3, 2]);
            assert_eq!(with_third(1), [3, 2]);
            assert_eq!(with_third(101), [2, 2, 1], "100 after 101 ends the second run");
            assert_eq!(with_third(0), [2, 1, 2], "an empty packet is never merged");
        }
    }

    #[test]
    fn what_must_be_equal() {
        type Edit = fn(&mut Recipe);
        let both: [(&str, Edit); 5] = [
            ("TOS", |this| this.tos ^= 0x20),
            ("ECN", |this| this.tos ^= 0x03),
            ("TTL", |this| this.ttl -= 1),
            ("source port", |this| this.ports.0 += 1),
            ("destination port", |this| this.ports.1 += 1),
        ];
        let tcp_only: [(&str, Edit); 6] = [
            ("sequence", |this| this.sequence = this.sequence.wrapping_add(1)),
            ("acknowledgment", |this| this.acknowledgment += 1),
            ("window", |this| this.window += 1),
            ("timestamp", |this| this.tcp_options[7] ^= 1),
            ("no timestamp", |this| this.tcp_options.clear()),
            ("more options", |this| this.tcp_options.extend([1, 1, 1, 1])),
        ];
        for recipe in recipes() {
            let is_tcp = recipe.protocol == protocol::TCP;
            for (what, edit) in both.iter().chain(tcp_only.iter().filter(|_| is_tcp)) {
                let packets = sequence(&recipe, 4, |index, this| {
                    if index == 2 {
                        edit(this)
                    }
                });
                assert_eq!(counts(&packets).iter().sum::<u64>(), 4);
                // For UDP, another port is another flow, and the first goes on; for TCP its sequence has a
                // gap.
                let first = if what.ends_with("port") && !is_tcp { 3 } else { 2 };
                assert_eq!(counts(&packets)[0], first, "{what}");
            }
        }
        let labels = sequence(&Recipe::udp(Family::V6, 100), 4, |index, this| {
            this.flow_label += u32::from(index == 2)
        });
        assert_eq!(counts(&labels), [2, 1, 1], "flow label");
    }

    #[test]
    fn identification_counts_without_dont_fragment() {
        let recipe = Recipe { dont_fragment: false, ..Recipe::udp(Family::V4, 100) };
        assert_eq!(counts(&sequence(&recipe, 4, |_, _| ())), [4], "consecutive, across the wrap");
        assert_eq!(counts(&sequence(&recipe, 4, |_, this| this.id = 5)), [1, 1, 1, 1], "constant");
        let constant = sequence(&recipe, 4, |_, this| (this.id, this.dont_fragment) = (5, true));
        assert_eq!(counts(&constant), [4], "constant, but meaningless");
        let mixed = sequence(&recipe, 4, |index, this| this.dont_fragment = index == 2);
        assert_eq!(counts(&mixed), [2, 1, 1], "DF differs");
    }

    #[test]
    fn flags() {
        let recipe = Recipe::tcp(Family::V4, 100);
        for flags in [tcp::ACK | tcp::FIN, tcp::SYN, tcp::RST, tcp::ACK | tcp::URG, 0x50, 0x90, 0, tcp::PSH] {
            let packets = sequence(&recipe, 4, |index, this| {
                if index == 2 {
                    this.flags = flags;
                }
            });
            assert_eq!(counts(&packets), [2, 1, 1], "{flags:#x}");
            let first = sequence(&recipe, 3, |index, this| {
                if index == 0 {
                    this.flags = flags;
                }
            });
            assert_eq!(counts(&first), [1, 2], "{flags:#x} first");
        }
        for (at, expected) in [(0, &[1, 3][..]), (1, &[2, 2]), (3, &[4])] {
            let packets = sequence(&recipe, 4, |index, this| {
                if index == at {
                    this.flags |= tcp::PSH;
                }
            });
            assert_eq!(counts(&packets), expected, "PSH at {at}");
            for (vnet, packet, _) in merge(&packets) {
                assert!(split_again(&vnet, &packet).iter().all(|segment| packets.contains(segment)));
            }
        }
    }

    #[test]
    fn what_is_never_merged() {
        let bare_acks = sequence(&Recipe::tcp(Family::V4, 0), 3, |_, _| ());
        let empty = sequence(&Recipe::udp(Family::V6, 0), 3, |_, _| ());
        let vxlan = sequence(&Recipe { ports: (50_000, 4789), ..Recipe::udp(Family::V4, 100) }, 3, |_, _| ());
        let options = Recipe { ip_options: vec![148, 4, 0, 0], ..Recipe::tcp(Family::V4, 100) };
        let hop_by_hop = Recipe { hop_by_hop: true, ..Recipe::udp(Family::V6, 100) };
        let fragments = Recipe { more_fragments: true, dont_fragment: false, ..Recipe::udp(Family::V4, 104) };
        let mut trailing = sequence(&Recipe::udp(Family::V4, 100), 3, |_, _| ());
        let mut other_protocol = trailing.clone();
        // With its own checksum as payload a datagram sums up to zero, which here says "none" and would be
        // right too.
        let mut zero = Recipe { payload: vec![0; 4], ..Recipe::udp(Family::V4, 0) };
        let sum = word(&zero.build(), 20 + udp::CHECKSUM);
        put(&mut zero.payload, 0, sum.to_be_bytes());
        let mut without_sum = sequence(&zero, 3, |_, _| ());
        for packet in &mut without_sum {
            put(packet, 20 + udp::CHECKSUM, [0, 0]);
        }
        for packet in &mut trailing {
            put(packet, 20 + udp::LENGTH, 50u16.to_be_bytes());
        }
        for packet in &mut other_protocol {
            packet[field::V4_PROTOCOL] = 47;
        }
        for (packets, what) in [
            (bare_acks, "bare ACKs"),
            (empty, "empty datagrams"),
            (vxlan, "a tunnel"),
            (sequence(&options, 3, |_, _| ()), "IPv4 options"),
            (sequence(&hop_by_hop, 3, |_, _| ()), "extension headers"),
            (sequence(&fragments, 3, |_, _| ()), "fragments"),
            (without_sum, "no UDP checksum"),
            (trailing, "bytes behind the UDP datagram"),
            (other_protocol, "GRE"),
        ] {
            let expected: Vec<Merged> =
                packets.iter().map(|packet| (VnetHeader::default(), packet.clone(), 1)).collect();
            assert_eq!(merge(&packets), expected, "{what}");
        }
    }

    #[test]
    fn a_wrong_checksum_is_handed_on_alone() {
        for recipe in recipes() {
            for wrong in 0..4 {
                let mut packets = sequence(&recipe, 4, |_, _| ());
                *packets[wrong].last_mut().expect("not empty") ^= 1;
                let merged = merge(&packets);
                let alone = merged.iter().find(|(_, packet, _)| *packet == packets[wrong]);
                assert_eq!(alone.map(|(vnet, _, count)| (*vnet, *count)), Some((VnetHeader::default(), 1)));
                let all: Vec<_> =
                    merged.iter().flat_map(|(vnet, packet, _)| split_again(vnet, packet)).collect();
                assert_eq!(all, packets);
            }
        }
        let mut packets = sequence(&Recipe::tcp(Family::V4, 100), 3, |_, _| ());
        packets[1][field::V4_CHECKSUM] ^= 1;
        assert_eq!(counts(&packets), [1, 1, 1], "IPv4 header checksum");
    }

    #[test]
    fn limits() {
        assert_eq!(counts(&sequence(&Recipe::udp(Family::V4, 10), 130, |_, _| ())), [64, 64, 2]);
        assert_eq!(counts(&sequence(&Recipe::tcp(Family::V4, 1), 1030, |_, _| ())), [1024, 6]);
        // 46 * 1420 + 52 = 65,372.
        assert_eq!(counts(&sequence(&Recipe::tcp(Family::V4, 1420), 50, |_, _| ())), [46, 4]);
    }

    #[test]
    fn a_full_table_refuses_new_flows_and_takes_known_ones() {
        let mut coalescer = Coalescer::new(2);
        let capacity = (coalescer.runs.capacity(), coalescer.flows.capacity());
        let packets: Vec<_> = (0..3)
            .map(|port| sequence(&Recipe { ports: (port, 9), ..Recipe::udp(Family::V4, 100) }, 2, |_, _| ()))
            .collect();
        let mut push = |packet: &[u8]| coalescer.push(IpPacket::parse(packet).expect("well formed"));
        assert_eq!((push(&packets[0][0]), push(&packets[1][0])), (Ok(()), Ok(())));
        assert_eq!(push(&packets[2][0]), Err(Full));
        assert_eq!(push(&packets[0][1]), Ok(()));
        assert_eq!(drain(&mut coalescer).len(), 2);
        assert!(coalescer.is_empty());
        assert_eq!(
            (coalescer.runs.capacity(), coalescer.flows.capacity()),
            capacity,
            "nothing was allocated"
        );
        assert_eq!(coalescer.push(IpPacket::parse(&packets[2][0]).expect("well formed")), Ok(()));
    }

    #[test]
    fn nothing_passes_a_fragment() {
        let recipe = Recipe { dont_fragment: false, ..Recipe::udp(Family::V4, 104) };
        let mut packets = sequence(&recipe, 4, |index, this| this.more_fragments = index == 2);
        packets.extend(sequence(&Recipe { ports: (1, 2), ..recipe.clone() }, 1, |_, _| ()));
        assert_eq!(counts(&packets), [2, 1, 1, 1]);
        // A later fragment has no ports: it ends the runs of all flows between its addresses.
        packets[2][field::V4_FRAGMENT + 1] = 13;
        packets.rotate_left(4);
        packets.push(
            sequence(&Recipe { id: recipe.id.wrapping_add(1), ports: (1, 2), ..recipe }, 1, |_, _| ())[0]
                .clone(),
        );
        assert_eq!(counts(&packets), [1, 2, 1, 1, 1]);
    }

    fn any_recipe() -> impl Strategy<Value = Recipe> {
        let headers = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        let fields =
            (any::<u32>(), any::<u32>(), any::<u16>(), any::<u16>(), any::<u8>(), 1u8.., 0u32..1 << 20);
        (headers, fields).prop_map(|((v4, is_tcp, timestamps, push), fields)| {
            let family = if v4 { Family::V4 } else { Family::V6 };
            let base = if is_tcp { Recipe::tcp(family, 0) } else { Recipe::udp(family, 0) };
            let tcp_options = if timestamps { base.tcp_options.clone() } else { Vec::new() };
            let flags = if push { base.flags | tcp::PSH } else { base.flags };
            let (sequence, acknowledgment, window, id, tos, ttl, flow_label) = fields;
            let dont_fragment = id & 1 == 0;
            Recipe {
                flags,
                sequence,
                acknowledgment,
                window,
                id,
                dont_fragment,
                tos,
                ttl,
                flow_label,
                tcp_options,
                ..base
            }
        })
    }

    /// One packet of the interleaving test: which flow, and how it differs from what would follow.
    #[derive(Debug, Clone)]
    struct Step {
        flow: usize,
        length: usize,
        flags: u8,
        oddity: u8,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let length =
            prop_oneof![6 => Just(100usize), 1 => Just(99), 1 => Just(101), 1 => Just(1), 1 => Just(0)];
        let flags = prop_oneof![8 => Just(tcp::ACK), 2 => Just(tcp::ACK | tcp::PSH), 1 => any::<u8>()];
        let oddity = prop_oneof![6 => Just(0u8), 1 => 1u8..8];
        (0usize..6, length, flags, oddity).prop_map(|(flow, length, flags, oddity)| Step {
            flow,
            length,
            flags,
            oddity,
        })
    }

    /// The packets of an interleaving.
    fn play(steps: &[Step]) -> Vec<Vec<u8>> {
        let mut flows: Vec<Recipe> = (0..6u16)
            .map(|index| {
                let base = recipes()[usize::from(index) % 4].clone();
                Recipe { ports: (1000 + index, 9), dont_fragment: index < 2, ..base }
            })
            .collect();
        let packet = |(seed, step): (u64, &Step)| {
            let flow = &mut flows[step.flow];
            flow.payload = noise(step.length, seed);
            if flow.protocol == protocol::TCP {
                flow.flags = step.flags;
            }
            match step.oddity {
                1 => flow.sequence = flow.sequence.wrapping_add(100),
                2 => flow.ttl ^= 1,
                3 => flow.tos ^= 3,
                4 => flow.window ^= 7,
                5 => flow.id = flow.id.wrapping_add(9),
                _ => {}
            }
            let is_fragment = step.oddity == 6 && flow.family == Family::V4;
            let mut bytes = Recipe { more_fragments: is_fragment, ..flow.clone() }.build();
            if step.oddity == 7 {
                *bytes.last_mut().expect("not empty") ^= 0x10;
            }
            flow.sequence = flow.sequence.wrapping_add(u32::from(narrow(step.length)));
            flow.id = flow.id.wrapping_add(1);
            bytes
        };
        (1u64..).zip(steps).map(packet).collect()
    }

    /// Packets by flow (source port), in order; the identification of atomic datagrams left out (RFC 6864).
    fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<(u8, u16), Vec<Vec<u8>>> {
        let mut flows: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for packet in packets {
            let (family, l4) = if packet[0] >> 4 == 4 { (4, IPV4_HEADER) } else { (6, IPV6_HEADER) };
            let mut packet = packet.clone();
            if family == 4 && word(&packet, field::V4_FRAGMENT) & DONT_FRAGMENT != 0 {
                put(&mut packet, field::V4_ID, [0, 0]);
                put(&mut packet, field::V4_CHECKSUM, [0, 0]);
            }
            flows.entry((family, word(&packet, l4))).or_default().push(packet);
        }
        flows
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn coalesce_undoes_split(recipe in any_recipe(), size in 64u16..1500, length in 0.0f64..1.0, seed: u64) {
            let segments = if recipe.protocol == protocol::TCP { MAX_TCP_SEGMENTS } else { UDP_SEGMENTS };
            let most = (MAX_MERGED - recipe.header_len()).min(usize::from(size) * segments as usize);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let length = usize::from(size) + 1 + (length * (most - usize::from(size) - 1) as f64) as usize;
            let (vnet, bytes) = Recipe { payload: noise(length, seed), ..recipe }.partial(size);
            let packets = split_again(&vnet, &bytes);
            let payload: Vec<u8> = packets.iter().flat_map(|packet| checked_payload(packet)).copied().collect();
            prop_assert_eq!(payload, noise(length, seed));
            prop_assert_eq!(merge(&packets), [(vnet, bytes, packets.len() as u64)]);
        }

        #[test]
        fn runs_split_into_what_was_pushed(steps in proptest::collection::vec(any_step(), 0..150), room in 1usize..12) {
            let packets = play(&steps);
            let mut coalescer = Coalescer::new(room);
            let mut runs = Vec::new();
            for packet in &packets {
                let packet = IpPacket::parse(packet).expect("well formed");
                if coalescer.push(packet).is_err() {
                    runs.extend(drain(&mut coalescer));
                    prop_assert_eq!(coalescer.push(packet), Ok(()));
                }
            }
            runs.extend(drain(&mut coalescer));
            let came: Vec<Vec<u8>> = runs.iter().flat_map(|(vnet, packet, _)| split_again(vnet, packet)).collect();
            prop_assert_eq!(came.len(), packets.len());
            prop_assert_eq!(runs.iter().map(|(_, _, count)| *count).sum::<u64>(), packets.len() as u64);
            prop_assert_eq!(by_flow(&came), by_flow(&packets));
        }

        #[test]
        fn no_input_panics(
            steps in proptest::collection::vec(any_step(), 1..40),
            edits in proptest::collection::vec((0usize..40, 0usize..70, any::<u8>()), 0..40),
        ) {
            let mut packets = play(&steps);
            for (index, at, value) in edits {
                if let Some(byte) = packets.get_mut(index).and_then(|packet| packet.get_mut(at)) {
                    *byte = value;
                }
            }
            let mut coalescer = Coalescer::new(RUNS);
            let mut pushed = Vec::new();
            for packet in &packets {
                if let Ok(packet) = IpPacket::parse(packet) {
                    prop_assert_eq!(coalescer.push(packet), Ok(()));
                    pushed.push(packet.bytes().to_vec());
                }
            }
            let bytes: u64 = coalescer.finish().map(|run| run.packet_bytes).sum();
            prop_assert_eq!(bytes, pushed.iter().map(|packet| packet.len() as u64).sum::<u64>());
            drain(&mut coalescer);
        }
    }
}
