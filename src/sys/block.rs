//! A [`Block`]: memory that is handed to the kernel, and the [`Part`]s of it that are messages or writes.
//!
//! It is filled, handed to the kernel as a [`Lot`], which writes a result to each part, and filled again.
//!
//! Invariant: the memory never moves or changes its length while the block exists; the list of parts never outgrows
//! [`MAX_PARTS`].
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use crate::packet::ecn::Ecn;
use crate::seal::OVERHEAD;

/// Parts of a block at most: what one super packet is cut into (8,192 segments at the very worst, 64 a message) and as
/// many small messages again.
pub const MAX_PARTS: usize = 256;

/// Memory and what of it goes to the kernel.
#[derive(Debug)]
pub struct Block {
    memory: Box<[u8]>,
    parts: Vec<Part>,
}

/// What goes to the kernel at once: parts of one memory, in their order.
#[derive(Debug, Default)]
pub struct Lot<'a> {
    /// In which they lie.
    pub memory: &'a [u8],
    /// At most [`MAX_PARTS`]. What the kernel says of each is written there.
    pub parts: &'a mut [Part],
}

/// One message to send or one write.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Where it begins in the block.
    pub at: usize,
    /// Its bytes.
    pub len: usize,
    /// A message longer than this is a train of datagrams of this length (UDP_SEGMENT).
    pub stride: usize,
    /// Whom it is sent to; `None` for a write.
    pub to: Option<SocketAddr>,
    /// Inner packets in it, as they are counted.
    pub packets: u64,
    /// Their bytes.
    pub packet_bytes: u64,
    /// Whether its datagrams are bundles ([`crate::packet::bundle`]), so that one holds several packets.
    pub bundled: bool,
    /// The ECN field of the outer header.
    pub ecn: Ecn,
    /// Whether its datagrams are sealed.
    pub sealed: bool,
    /// Where its packets stand unsealed, if it is sealed.
    pub plain_at: usize,
    /// What the kernel said: 0, or an error number. Not yet asked: 0.
    pub errno: i32,
}

impl Part {
    /// A train of datagrams to send, of one packet each, whose outer headers bear no ECN.
    #[must_use]
    pub fn train(at: usize, len: usize, stride: usize, to: SocketAddr) -> Self {
        let packets = len.div_ceil(stride.max(1)).max(1) as u64;
        Self { stride, to: Some(to), ..Self::frame(at, len, packets, len as u64) }
    }

    /// A frame to write, which holds so many packets of so many bytes.
    #[must_use]
    pub fn frame(at: usize, len: usize, packets: u64, packet_bytes: u64) -> Self {
        Self {
            at,
            len,
            stride: len,
            to: None,
            packets,
            packet_bytes,
            bundled: false,
            ecn: Ecn::NotEct,
            sealed: false,
            plain_at: at,
            errno: 0,
        }
    }

    /// Whether it takes UDP_SEGMENT.
    #[must_use]
    pub fn is_train(&self) -> bool {
        self.len > self.stride
    }

    /// How many datagrams it is.
    #[must_use]
    pub fn datagrams(&self) -> u64 {
        self.len.div_ceil(self.stride.max(1)).max(1) as u64
    }
}

impl Block {
    /// Over `memory`, without parts.
    #[must_use]
    pub fn new(memory: Box<[u8]>) -> Self {
        Self { memory, parts: Vec::with_capacity(MAX_PARTS) }
    }

    /// All of it.
    #[must_use]
    pub fn memory(&self) -> &[u8] {
        &self.memory
    }

    /// All of it, for writing.
    pub fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// The parts, in the order in which they are to go.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// A part, to lengthen it.
    pub fn part_mut(&mut self, index: usize) -> &mut Part {
        &mut self.parts[index]
    }

    /// Goes over all parts, with the memory, and keeps those for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut [u8], &mut Part) -> bool) {
        let Self { memory, parts } = self;
        parts.retain_mut(|part| keep(memory, part));
    }

    /// Adds a part. The caller keeps to [`MAX_PARTS`].
    pub fn push(&mut self, part: Part) {
        debug_assert!(self.parts.len() < MAX_PARTS);
        self.parts.push(part);
    }

    /// All of it, to be handed to the kernel.
    pub fn lot(&mut self) -> Lot<'_> {
        Lot { memory: &self.memory, parts: &mut self.parts }
    }

    /// Without parts again.
    pub fn clear(&mut self) {
        self.parts.clear();
    }

    /// The bytes of a part.
    #[must_use]
    pub fn bytes(&self, part: &Part) -> &[u8] {
        &self.memory[part.at..part.at + part.len]
    }

    /// The packets of a part as they are before they are sealed, and the part that they are then.
    #[must_use]
    pub fn plain(&self, part: &Part) -> (&[u8], Part) {
        let (at, overhead) = if part.sealed { (part.plain_at, OVERHEAD) } else { (part.at, 0) };
        let count = part.len.div_ceil(part.stride.max(1)).max(1);
        let len = part.len - count * overhead;
        let plain = Part { at, len, stride: part.stride - overhead, ..*part };
        (self.bytes(&plain), plain)
    }
}
