//! The table of runs: finds the run that a packet continues, or begins one.
//!
//! It does not decide whether a packet may be merged: [`Segment`] does.
//!
//! Invariant: it allocates only in [`Coalescer::new`].
#![forbid(unsafe_code)]

use super::super::header::{IPV6_HEADER, tcp};
use super::super::ip::IpPacket;
use super::super::split::SPLIT_BUFFER;
use super::super::vnet::VnetHeader;
use super::flow::{addresses, flow};
use super::run::Run;
use super::segment::Segment;

/// Number of runs that a worker needs: a batch of receives rarely has packets of more flows, and
/// the search is linear.
pub const RUNS: usize = 64;
/// Bytes of the longest super packet: the greatest IPv4 total length.
pub(super) const MAX_MERGED: usize = 65_535;
/// Bytes of the longest packet: the IPv6 length field does not count the header.
const MAX_PACKET: usize = IPV6_HEADER + 65_535;
/// Segments into which every kernel can split a UDP super packet (`UDP_MAX_SEGMENTS`; 128 since
/// 6.9).
pub(super) const UDP_SEGMENTS: u32 = 64;
/// The most segments of a TCP super packet. More would be segments of fewer than 64 bytes. If the
/// kernel refuses the super packet, it is split again into a buffer of [`SPLIT_BUFFER`] bytes.
pub(super) const MAX_TCP_SEGMENTS: u32 = 1024;
const _: () = assert!(MAX_MERGED + MAX_TCP_SEGMENTS as usize * (IPV6_HEADER + 60) <= SPLIT_BUFFER);

/// Bytes from the memory of one run to that of the next: a whole packet with its [`VnetHeader`],
/// then five cache lines that put the starts of runs into different sets of an L1 cache. The
/// sets repeat every 4,096 bytes.
const SLOT_BYTES: usize = (MAX_PACKET + VnetHeader::LEN).next_multiple_of(64) + 5 * 64;
const _: () = assert!(!SLOT_BYTES.is_multiple_of(4096) && SLOT_BYTES.is_multiple_of(64));

/// Every run is in use: the caller flushes and pushes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every run is in use")]
pub struct Full;

/// Merges packets into a bounded number of runs.
#[derive(Debug)]
pub struct Coalescer {
    /// Memory of the runs, [`SLOT_BYTES`] bytes each. The first run has the first slot, so that few
    /// flows stay in the cache.
    memory: Box<[u8]>,
    pub(super) runs: Vec<Run>,
    /// Hash of the flow of each run; apart from `runs`, so that the search is fast.
    pub(super) flows: Vec<u64>,
    /// The most packets in a run of UDP.
    udp_segments: u32,
}

/// A finished run, ready to be written to the TUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuperPacket<'a> {
    /// Offset of `bytes` in [`Coalescer::memory`].
    pub at: usize,
    /// A [`VnetHeader`] and the IP packet.
    pub bytes: &'a [u8],
    /// Number of packets that were merged.
    pub packets: u64,
    /// Bytes of these packets, headers included.
    pub packet_bytes: u64,
}

impl<'a> SuperPacket<'a> {
    /// The IP packet without its [`VnetHeader`].
    #[must_use]
    pub fn packet(&self) -> &'a [u8] {
        &self.bytes[VnetHeader::LEN..]
    }
}

impl Coalescer {
    /// Allocates memory for `runs` runs. The kernel provides a page only when it is first used.
    #[must_use]
    pub fn new(runs: usize) -> Self {
        Self {
            memory: vec![0; runs * SLOT_BYTES].into_boxed_slice(),
            runs: Vec::with_capacity(runs),
            flows: Vec::with_capacity(runs),
            udp_segments: UDP_SEGMENTS,
        }
    }

    /// Sets the number of segments into which the kernel can split a UDP super packet.
    #[must_use]
    pub fn with_udp_segments(self, most: usize) -> Self {
        Self { udp_segments: u32::try_from(most).unwrap_or(UDP_SEGMENTS), ..self }
    }

    /// Adds a packet to the newest run of its flow, or begins a new run.
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

    /// Completes the headers of all runs, and returns the runs in the order of their first packets.
    /// They stay in memory until [`Coalescer::clear`].
    pub fn finish(&mut self) -> impl Iterator<Item = SuperPacket<'_>> {
        self.memory.chunks_exact_mut(SLOT_BYTES).zip(&self.runs).enumerate().map(|(index, (slot, run))| {
            run.write_headers(slot);
            SuperPacket {
                at: index * SLOT_BYTES,
                bytes: &slot[..VnetHeader::LEN + run.length],
                packets: u64::from(run.packets),
                packet_bytes: run.packet_bytes as u64,
            }
        })
    }

    /// Adds a packet that must not be merged, since the receiver accepts no super packets.
    #[inline]
    pub fn push_alone(&mut self, packet: IpPacket<'_>) -> Result<(), Full> {
        self.begin(0, packet.bytes(), None)
    }

    /// The memory that holds the runs.
    #[must_use]
    #[inline]
    pub fn memory(&self) -> &[u8] {
        &self.memory
    }

    /// Removes all runs, after they were written.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.flows.clear();
    }

    /// The number of runs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there is no run.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Appends a segment to a run, if it continues the run and its checksum is correct.
    fn merge(&mut self, index: usize, segment: &Segment<'_>) -> bool {
        let run = &mut self.runs[index];
        let packet = &mut self.memory[index * SLOT_BYTES..][VnetHeader::LEN..SLOT_BYTES];
        let length = run.length + segment.payload.len();
        let Some(next) = run.next else { return false };
        let fits = segment.payload.len() <= run.size
            && length <= MAX_MERGED
            && run.packets < if segment.layout.is_tcp { MAX_TCP_SEGMENTS } else { self.udp_segments };
        if !fits || !segment.continues(packet, next) {
            return false;
        }
        // The bytes that a segment with a wrong checksum leaves after the run are overwritten or
        // never read.
        if !segment.is_valid_copied(&mut packet[run.length..length]) {
            return false;
        }
        if segment.is_pushed() {
            packet[segment.layout.l4() + tcp::FLAGS] |= tcp::PSH;
        }
        run.length = length;
        run.packets += 1;
        run.packet_bytes += segment.header.len() + segment.payload.len();
        let is_last = segment.payload.len() < run.size || segment.is_pushed();
        run.next = if is_last { None } else { Some(segment.expected_next()) };
        true
    }

    /// Begins a run. It stays a run of one packet if `segment` is `None`.
    fn begin(&mut self, flow: u64, packet: &[u8], segment: Option<&Segment<'_>>) -> Result<(), Full> {
        let slot = self.memory.chunks_exact_mut(SLOT_BYTES).nth(self.runs.len()).ok_or(Full)?;
        let (vnet, rest) = slot.split_at_mut(VnetHeader::LEN);
        vnet.fill(0);
        let copy = &mut rest[..packet.len()];
        let mut run =
            Run { length: packet.len(), packets: 1, packet_bytes: packet.len(), next: None, size: 0 };
        match segment {
            None => copy.copy_from_slice(packet),
            Some(segment) => {
                let (header, payload) = copy.split_at_mut(segment.header.len());
                header.copy_from_slice(segment.header);
                run.size = segment.payload.len();
                if segment.is_valid_copied(payload) && !segment.is_pushed() {
                    run.next = Some(segment.expected_next());
                }
            }
        }
        self.runs.push(run);
        self.flows.push(flow);
        Ok(())
    }

    /// Closes all runs between the addresses of `packet`, a packet of an unknown flow (most often a
    /// fragment), so that no later packet between these addresses overtakes it.
    fn close_between(&mut self, packet: &IpPacket<'_>) {
        for (slot, run) in self.memory.chunks_exact(SLOT_BYTES).zip(&mut self.runs) {
            let known = &slot[VnetHeader::LEN..][..run.length];
            if known[0] >> 4 == packet.bytes()[0] >> 4 && addresses(known) == addresses(packet.bytes()) {
                run.next = None;
            }
        }
    }
}
