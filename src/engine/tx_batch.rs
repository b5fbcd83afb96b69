//! [`TxBatch`]: packets on their way to peers, laid out so that many of them leave in one message.
//!
//! [`crate::forward::egress`] writes segments directly to the memory that they are sent from.
//! Packets of one length for one peer become one train, up to the limits of a UDP_SEGMENT send; a
//! shorter packet ends its train. Small packets for a peer that takes [`bundle`]s become a train of
//! bundles; a packet that stays alone leaves bare. Only packets of one batch are put together: no
//! packet waits for others.
//!
//! An [`OpenMessage`] is a message that may still grow. There is one for each peer, so that packets
//! for several peers may alternate. When the next message begins, some bytes after an open message
//! stay free; a packet that needs more begins a new message.
//!
//! Packets for peers that encrypt are sealed at the end ([`TxBatch::seal`]), datagram by datagram,
//! into the memory after all packets of the block. That pass is the only copy, and the plain
//! packets stay where they are, so that they can be sealed once more if the kernel refuses a
//! message.
//!
//! It does not send. Its owner sends the [`TxBlock`] when [`TxBatch::is_tight`], and at the end of
//! a batch.
//!
//! Invariant: the packets for a peer are in the messages, and in the bundles within them, in the
//! order of their arrival; the datagrams of a message have no gaps between them; no message is
//! longer than one send or the path of the peer allows.

use std::net::SocketAddr;

use open_message::{OpenMessage, Slot};

use super::account::Account;
use super::pmtu_cache::PmtuCache;
use super::slow_path::{SlowPathPackets, SlowPathQueue};
use super::tx_block::{TxBlock, TxMessage};
use crate::forward::{Counters, DropReason, Exit, Peer, Reservation, Table, ToNet, Train, TrainMeta};
use crate::packet::ecn::Ecn;
use crate::packet::split::SPLIT_BUFFER;
use crate::packet::{IPV4_HEADER, bundle};
use crate::seal::OVERHEAD;
use crate::sys::batch::{Batch, MAX_BATCH};
use crate::sys::udp::{MAX_PAYLOAD, SEGMENTS};
use crate::time::Nanos;

mod open_message;
#[cfg(test)]
mod tests;

/// Bytes for packets: those of the batch, and after them room for what one more read brings. A
/// train of small packets grows by less than half when it is bundled: each packet by two bytes, and
/// each bundle by its header and by padding where a fourth packet was too long.
const PLAIN_BYTES: usize = BATCH_BYTES + GAP_BYTES + SPLIT_BUFFER + SPLIT_BUFFER / 2;
/// Bytes of a block: after the packets there is room to seal all of them, even if none were longer
/// than an IPv4 header. Pages that nothing is sealed into stay untouched.
const BLOCK_BYTES: usize = PLAIN_BYTES + PLAIN_BYTES / IPV4_HEADER * (IPV4_HEADER + OVERHEAD);
/// A batch of this many bytes is sent, so that its first packet does not wait longer.
const BATCH_BYTES: usize = SPLIT_BUFFER;
/// Messages that one read can make: a message contains at least 64 segments, or 65,507 bytes of
/// longer ones.
const MESSAGES_PER_READ: usize = 8192 / SEGMENTS + 1;
const _: () = assert!(MESSAGES_PER_READ < MAX_BATCH);
/// Messages that may grow at the same time. The search is linear; a batch for more peers than this
/// has few packets for each.
const MAX_OPEN: usize = 16;
/// Bytes that stay free after an open message at most, and bytes of a bundle at most: six packets
/// of 1,472 bytes, or one jumbo frame.
const GAP_BYTES: usize = 9 * 1024;

#[derive(Debug)]
pub(super) struct TxBatch {
    block: TxBlock,
    /// Bytes of the block that are in use.
    used: usize,
    /// The messages that may grow, the oldest first.
    open: Vec<OpenMessage>,
    /// Packets that will be bundled, or that the worker's socket does not send.
    scratch: Box<[u8]>,
    /// Datagrams that one send takes.
    segments: usize,
    /// Packets for the slow path.
    diverted: Vec<SlowPathPackets>,
    pmtu_cache: PmtuCache,
}

impl TxBatch {
    /// Makes a batch for a kernel that takes `segments` datagrams in one send.
    pub(super) fn new(segments: usize) -> Self {
        Self {
            block: TxBlock::new(vec![0; BLOCK_BYTES].into()),
            used: 0,
            open: Vec::with_capacity(MAX_OPEN),
            scratch: vec![0; SPLIT_BUFFER].into(),
            segments,
            diverted: Vec::new(),
            pmtu_cache: PmtuCache::new(),
        }
    }

    /// Gives the slow path its packets, and counts those that it has no room for.
    pub(super) fn divert(&mut self, slow_path: &SlowPathQueue, account: &Account) {
        if !self.diverted.is_empty() {
            let (reason, packets) = slow_path.put(&mut self.diverted);
            account.counters.egress.drop_many(reason, packets);
        }
    }

    /// Seals the packets for peers that encrypt with the keys of `worker`, and drops those for
    /// which there is no key. The caller uses the route table that routed the packets, before
    /// another one is in use and before the block is sent.
    pub(super) fn seal(&mut self, worker: usize, table: &Table, now: Nanos, counters: &Counters) {
        if self.is_empty() || !table.seals() {
            return;
        }
        self.open.clear();
        let sealed = self.block.iter().filter(|sealed| sealed.record.sealed);
        let mut used = sealed.map(|sealed| sealed.message.contents().end).max().unwrap_or(PLAIN_BYTES);
        self.block.retain(|memory, TxMessage { message, record }| {
            if record.sealed {
                return true;
            }
            let peer = message.destination.and_then(|destination| table.peer_by_address(destination.ip()));
            let Some(session) = peer.and_then(|peer| peer.session.as_ref()) else { return true };
            let (plain, room) = memory.split_at_mut(used);
            let train = Train { bytes: &plain[message.contents()], stride: message.segment_size };
            match session.keys().seal(worker, train, room, now) {
                Ok(Train { bytes, stride }) => {
                    (record.sealed, record.plain_start) = (true, message.start);
                    (message.start, message.len, message.segment_size) = (used, bytes.len(), stride);
                    used += message.len;
                    true
                }
                Err(_) => {
                    counters.egress.drop_many(DropReason::NoKey, record.packets);
                    false
                }
            }
        });
    }

    /// Whether the batch must be sent before the next read, because there is no room for more or
    /// the first packet has waited long enough.
    pub(super) fn is_tight(&self) -> bool {
        self.used > BATCH_BYTES || self.block.messages().len() > MAX_BATCH - MESSAGES_PER_READ
    }

    /// Whether nothing was put into the batch since it was cleared. A batch is not empty if all of
    /// its packets were dropped for want of a key: it must still be cleared.
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    pub(super) fn block(&self) -> &TxBlock {
        &self.block
    }

    /// Empties the batch after it was sent. `narrow_paths` are the paths that
    /// [`Endpoints`](super::endpoints::Endpoints) found to be too narrow for bundles.
    pub(super) fn clear(&mut self, narrow_paths: &mut Vec<(SocketAddr, usize)>, now: Nanos) {
        self.block.clear();
        self.used = 0;
        self.open.clear();
        self.pmtu_cache.expire(now);
        narrow_paths.drain(..).for_each(|(to, longest)| self.pmtu_cache.learn(to, longest, now));
    }

    /// All messages, for the kernel.
    pub(super) fn batch(&mut self) -> Batch<'_> {
        self.block.batch()
    }

    /// The length of bundles for a peer.
    fn bundle_len(&self, peer: &Peer) -> usize {
        self.pmtu_cache.bundle_len(peer.endpoint, peer.longest_bundle().min(GAP_BYTES))
    }

    /// Chooses where the packets of a train for `peer` are written.
    fn choose(&self, peer: &Peer, train: TrainMeta) -> Slot {
        let TrainMeta { bytes, stride, .. } = train;
        if let Some(number) = self.open_for(peer) {
            let open = &self.open[number];
            match open.bundle {
                // A packet that fits the bundle joins it, even if it is too long to begin one.
                Some(at) if bytes == stride && open.end + bundle::ENTRY + bytes <= at + open.bundle_len => {
                    return Slot::Scratch;
                }
                None if self.continues(open, train, peer) => return Slot::Append(number),
                _ => {}
            }
        }
        let is_small =
            peer.abilities.bundles && stride <= bundle::longest_small_packet(self.bundle_len(peer));
        if is_small { Slot::Scratch } else { Slot::New(self.start(peer)) }
    }

    /// Whether an open train can grow by these packets.
    fn continues(&self, open: &OpenMessage, train: TrainMeta, peer: &Peer) -> bool {
        let TrainMeta { bytes, stride, .. } = train;
        let message = &self.block.messages()[open.index];
        let size = message.segment_size;
        // A shorter packet may end a train, but only a single one: the last of several is shorter
        // already.
        let fits = stride == size || (stride < size && bytes == stride);
        let has_room = open.end + bytes <= self.limit(open);
        let may_be_sent = message.ecn == train.outer_ecn(peer)
            && message.len + bytes <= self.max_message_len(size, open.overhead);
        fits && has_room && may_be_sent
    }

    fn open_for(&self, peer: &Peer) -> Option<usize> {
        self.open.iter().rposition(|open| open.to == peer.endpoint)
    }

    /// Where an open message must end. No message follows the last one.
    fn limit(&self, open: &OpenMessage) -> usize {
        if open.end == self.used { PLAIN_BYTES } else { open.limit }
    }

    /// Where a new message for `peer` begins: after the last message and after the bytes that it
    /// may need to grow.
    fn start(&self, peer: &Peer) -> usize {
        match self.open.iter().find(|open| open.end == self.used && open.to != peer.endpoint) {
            None => self.used,
            Some(OpenMessage { bundle: Some(at), .. }) => (at + GAP_BYTES).max(self.used),
            Some(open) => {
                let message = &self.block.messages()[open.index];
                let max = self.max_message_len(message.segment_size, open.overhead);
                self.used + GAP_BYTES.min(max - message.len)
            }
        }
    }

    /// Begins a message at a position that [`TxBatch::start`] returned.
    fn begin(&mut self, message: TxMessage, peer: &Peer, at: usize, bundle: Option<usize>) {
        let (to, overhead, bundle_len) = (peer.endpoint, peer.overhead(), self.bundle_len(peer));
        if let Some(last) = self.open.iter_mut().find(|open| open.end == self.used) {
            last.limit = at;
        }
        self.open.retain(|open| open.to != to);
        if self.open.len() == MAX_OPEN {
            self.open.remove(0);
        }
        self.used = message.message.contents().end;
        let (index, end) = (self.block.messages().len(), self.used);
        self.open.push(OpenMessage { to, overhead, index, end, limit: 0, bundle, bundle_len });
        self.block.push(message);
    }

    /// Begins as many messages as a train needs.
    fn begin_train(&mut self, peer: &Peer, mut at: usize, train: TrainMeta, ecn: Ecn) {
        let (max, end) = (self.max_message_len(train.stride, peer.overhead()), at + train.bytes);
        while at < end {
            let mut message = TxMessage::train(at, max.min(end - at), train.stride, peer.endpoint);
            message.message.ecn = ecn;
            self.begin(message, peer, at, None);
            at += message.message.len;
        }
        self.close_if_ended(self.open.len() - 1);
    }

    /// Lengthens an open train by `bytes` bytes.
    fn lengthen(&mut self, number: usize, bytes: usize) {
        let open = &mut self.open[number];
        open.end += bytes;
        self.used = self.used.max(open.end);
        let (message, record) = self.block.get_mut(open.index);
        message.len += bytes;
        (record.packets, record.packet_bytes) = (message.datagrams(), message.len as u64);
        self.close_if_ended(number);
    }

    /// Closes a train after a packet that is shorter than the others.
    fn close_if_ended(&mut self, number: usize) {
        let message = &self.block.messages()[self.open[number].index];
        if !message.len.is_multiple_of(message.segment_size) {
            self.open.remove(number);
        }
    }

    /// Bytes of whole datagrams that one send takes if sealing makes each `overhead` bytes longer.
    fn max_message_len(&self, stride: usize, overhead: usize) -> usize {
        self.segments.min(MAX_PAYLOAD / (stride + overhead)) * stride
    }

    /// Adds the train that was written to `slot`.
    #[inline]
    fn commit(&mut self, slot: Slot, peer: &Peer, train: TrainMeta) {
        let ecn = train.outer_ecn(peer);
        match slot {
            Slot::Append(number) => self.lengthen(number, train.bytes),
            Slot::New(at) => self.begin_train(peer, at, train, ecn),
            Slot::Scratch => {
                let scratch = std::mem::take(&mut self.scratch);
                for packet in scratch[..train.bytes].chunks(train.stride) {
                    self.bundle(peer, packet, ecn);
                }
                self.scratch = scratch;
            }
        }
    }

    /// Puts a packet into the last bundle for `peer` or into a new bundle after it, or begins a
    /// message with it.
    fn bundle(&mut self, peer: &Peer, packet: &[u8], ecn: Ecn) {
        if let Some(number) = self.open_for(peer)
            && let Some(at) = self.open[number].bundle
        {
            let open = &self.open[number];
            let (index, max, limit, filled) = (open.index, open.bundle_len, self.limit(open), open.end - at);
            let memory = &mut self.block.memory_mut()[at..limit];
            if let Some(filled) = bundle::append(&mut memory[..max], filled, packet) {
                return self.bundled(number, at, filled, max, (packet.len(), ecn));
            }
            let last = self.block.get(index);
            let may_follow = last.record.bundled
                && limit - at >= 2 * max
                && last.message.len - filled + 2 * max <= self.max_message_len(max, peer.overhead());
            if may_follow {
                let (last, next) = self.block.memory_mut()[at..limit].split_at_mut(max);
                bundle::pad(last, filled);
                if let Some(filled) = bundle::append(&mut next[..max], 0, packet) {
                    return self.bundled(number, at + max, filled, max, (packet.len(), ecn));
                }
            }
        }
        let (at, max) = (self.start(peer), self.bundle_len(peer));
        let room = &mut self.block.memory_mut()[at..at + max];
        // The packet fits: it is so small that three of its length would.
        let _ = bundle::append(room, 0, packet);
        let start = at + bundle::FIRST_PACKET;
        let mut alone = TxMessage::train(start, packet.len(), packet.len(), peer.endpoint);
        alone.message.ecn = ecn;
        self.begin(alone, peer, at, Some(at));
    }

    /// Accounts for a packet that was put into the bundle at `at`, which is now filled up to
    /// `filled`.
    fn bundled(&mut self, number: usize, at: usize, filled: usize, max: usize, (packet, ecn): (usize, Ecn)) {
        let open = &mut self.open[number];
        (open.bundle, open.end) = (Some(at), at + filled);
        self.used = self.used.max(open.end);
        let (message, record) = self.block.get_mut(open.index);
        if !record.bundled {
            // The first packet is no longer alone, so the message begins with the bundle header
            // before it.
            message.start -= bundle::FIRST_PACKET;
            (message.segment_size, record.bundled) = (max, true);
        }
        message.len = open.end - message.start;
        record.packets += 1;
        record.packet_bytes += packet as u64;
        // A mark on the datagram is a mark on each packet: so it may be set only if all packets may
        // have it. A datagram without a mark changes no packet.
        message.ecn = if message.ecn == ecn { ecn } else { Ecn::NotEct };
    }
}

/// Room in a [`TxBatch`] for one train.
pub(super) struct Reserved<'a> {
    batch: &'a mut TxBatch,
    exit: Exit<'a>,
    train: TrainMeta,
    slot: Slot,
}

impl ToNet for TxBatch {
    type Reservation<'a> = Reserved<'a>;

    #[inline]
    fn reserve<'a>(&'a mut self, exit: Exit<'a>, train: TrainMeta) -> Reserved<'a> {
        let slot = match exit {
            Exit::Socket(peer) => self.choose(peer, train),
            Exit::SlowPath(_) | Exit::Refused => Slot::Scratch,
        };
        Reserved { batch: self, exit, train, slot }
    }
}

impl Reservation for Reserved<'_> {
    #[inline]
    fn buffer(&mut self) -> &mut [u8] {
        let Self { batch, train, .. } = self;
        let free = match self.slot {
            Slot::Scratch => &mut batch.scratch[..],
            Slot::Append(number) => &mut batch.block.memory_mut()[batch.open[number].end..PLAIN_BYTES],
            Slot::New(at) => &mut batch.block.memory_mut()[at..PLAIN_BYTES],
        };
        // Shorter than the train if a super packet has more headers than our kernel's TCP makes:
        // egress refuses such a packet.
        let length = free.len().min(train.bytes).min(SPLIT_BUFFER);
        &mut free[..length]
    }

    #[inline]
    fn commit(self, bytes: usize) {
        let Self { batch, exit, train, slot } = self;
        match exit {
            Exit::Socket(peer) => batch.commit(slot, peer, TrainMeta { bytes, ..train }),
            Exit::SlowPath(peer) => {
                batch.diverted.push(SlowPathPackets::new(peer, &batch.scratch[..bytes], train.stride));
            }
            // The scratch memory keeps the packets until the next train overwrites them.
            Exit::Refused => debug_assert!(false, "a refused train is not committed"),
        }
    }
}
