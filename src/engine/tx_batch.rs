//! The outbox: packets on their way to peers, laid out so that many of them leave as one message.
//!
//! [`crate::forward::egress`] writes segments straight to where they are sent from. Packets of one length for one peer
//! become one train, up to what a UDP_SEGMENT send takes; a shorter one ends its train. Small packets for a peer that takes
//! [`bundle`]s become a train of bundles; one that stays alone leaves bare. Only what one batch brings is put together:
//! nothing waits for company.
//!
//! A [`Lane`] remembers the part that may still grow, one a peer, so that flows to several peers may alternate. Behind an
//! open part some bytes stay free when another begins; who needs more begins a new part.
//!
//! What is for peers whose packets are sealed is sealed at the end ([`TxBatch::seal`]), datagram by datagram, from where it was
//! put together to behind all packets of the block: that pass is the copy, and what stays behind can be sealed again if the
//! kernel refuses it.
//!
//! It does not send: it fills a [`Block`], and whoever owns it hands that on once [`TxBatch::is_tight`], or at the end of
//! a batch.
//!
//! Invariant: the packets for a peer stand in the parts, and in the bundles within them, in the order in which they came;
//! the datagrams of a part stand without gaps; none is longer than one send may be, or than the peer's path takes.

use std::net::SocketAddr;

use super::pmtu_cache::PmtuCache;
use super::{Account, SlowPathPackets, SlowPathQueue};
use crate::forward::{Counters, DropReason, Exit, Peer, Reservation, Table, ToNet, Train, TrainMeta};
use crate::packet::ecn::Ecn;
use crate::packet::split::SPLIT_BUFFER;
use crate::packet::{IPV4_HEADER, bundle};
use crate::seal::OVERHEAD;
use crate::sys::block::{Block, Lot, MAX_PARTS, Part};
use crate::sys::udp::{MAX_PAYLOAD, SEGMENTS};
use crate::time::Nanos;

/// Bytes for packets: what has gathered, and behind it room for whatever one more read brings. A train of small packets
/// grows by less than half when it is bundled: each packet by two bytes, each bundle by its header and by padding for which
/// a fourth packet was too long.
const PLAIN: usize = GATHERED + SLACK + SPLIT_BUFFER + SPLIT_BUFFER / 2;
/// Bytes of a block: behind the packets, room to seal them all, were none longer than an IPv4 header. Pages that nothing is
/// sealed into stay untouched.
pub(super) const BLOCK: usize = PLAIN + PLAIN / IPV4_HEADER * (IPV4_HEADER + OVERHEAD);
/// Bytes that gather before a block is sent, for latency's sake.
const GATHERED: usize = SPLIT_BUFFER;
/// Parts that one read can make: a message holds at least 64 segments, or 65,507 bytes of longer ones.
const PARTS_A_READ: usize = 8192 / SEGMENTS + 1;
const _: () = assert!(PARTS_A_READ < MAX_PARTS);
/// Parts that may still grow. The search is linear; a batch that is spread over more peers than this brings each of them
/// few packets.
const LANES: usize = 16;
/// Bytes that stay free behind an open part, at most, and bytes of a bundle at most: six packets of 1,472 bytes, or one of
/// a jumbo frame.
const SLACK: usize = 9 * 1024;

#[derive(Debug)]
pub(super) struct TxBatch {
    block: Block,
    used: usize,
    /// The oldest first.
    lanes: Vec<Lane>,
    /// Packets that will be bundled, or not sent.
    scratch: Box<[u8]>,
    /// Datagrams that one send takes.
    segments: usize,
    /// What others carry.
    diverted: Vec<SlowPathPackets>,
    narrow: PmtuCache,
}

/// A part that may grow.
#[derive(Debug)]
struct Lane {
    to: SocketAddr,
    /// What sealing will add to its datagrams.
    overhead: usize,
    /// Its number.
    part: usize,
    /// Where its last packet ends.
    end: usize,
    /// Where another part begins, if one does.
    limit: usize,
    /// Where its last bundle begins, or would begin if it is one small packet; `None` for a train of bare packets.
    bundle: Option<usize>,
    /// The length of its bundles.
    longest: usize,
}

/// Where the packets that are being written will stand.
#[derive(Debug, Clone, Copy)]
enum Place {
    Scratch,
    /// Behind the part of a lane.
    Behind(usize),
    /// In a new part that begins there.
    New(usize),
}

impl TxBatch {
    /// For a kernel that takes so many `segments` in one send.
    pub(super) fn new(segments: usize) -> Self {
        Self {
            block: Block::new(vec![0; BLOCK].into()),
            used: 0,
            lanes: Vec::with_capacity(LANES),
            scratch: vec![0; SPLIT_BUFFER].into(),
            segments,
            diverted: Vec::new(),
            narrow: PmtuCache::new(),
        }
    }

    /// Hands over what others carry; what they have no room for is counted.
    pub(super) fn hand_over(&mut self, slow_path: &SlowPathQueue, account: &Account) {
        if !self.diverted.is_empty() {
            let (reason, packets) = slow_path.put(&mut self.diverted);
            account.counters.egress.drop_many(reason, packets);
        }
    }

    /// Seals what is for peers whose packets are sealed, by the keys of a worker; without a key for it, it is dropped. To be called with the table that has
    /// sent the packets this way, before another is in force and before the block is handed on.
    pub(super) fn seal(&mut self, worker: usize, fib: &Table, now: Nanos, counters: &Counters) {
        if !fib.seals() {
            return;
        }
        self.lanes.clear();
        let sealed = self.block.parts().iter().filter(|part| part.sealed).map(|part| part.at + part.len);
        let mut used = sealed.max().unwrap_or(PLAIN);
        self.block.retain(|memory, part| {
            if part.sealed {
                return true;
            }
            let peer = part.to.and_then(|to| fib.peer_by_address(to.ip()));
            let Some(session) = peer.and_then(|peer| peer.session.as_ref()) else { return true };
            let (plain, room) = memory.split_at_mut(used);
            let train = Train { bytes: &plain[part.at..part.at + part.len], stride: part.stride };
            match session.keys().seal(worker, train, room, now) {
                Ok(Train { bytes, stride }) => {
                    (part.sealed, part.plain_at) = (true, part.at);
                    (part.at, part.len, part.stride) = (used, bytes.len(), stride);
                    used += part.len;
                    true
                }
                Err(_) => {
                    counters.egress.drop_many(DropReason::NoKey, part.packets);
                    false
                }
            }
        });
    }

    /// Whether it must be emptied before it can take what the next read brings, or should be, for latency's sake.
    pub(super) fn is_tight(&self) -> bool {
        self.used > GATHERED || self.block.parts().len() > MAX_PARTS - PARTS_A_READ
    }

    pub(super) fn is_empty(&self) -> bool {
        self.block.parts().is_empty()
    }

    pub(super) fn block(&self) -> &Block {
        &self.block
    }

    /// What is in it was sent. Takes over what [`Link`](super::link::Link) found of paths that are too narrow for its bundles.
    pub(super) fn clear(&mut self, narrow: &mut Vec<(SocketAddr, usize)>, now: Nanos) {
        self.block.clear();
        self.used = 0;
        self.lanes.clear();
        self.narrow.expire(now);
        narrow.drain(..).for_each(|(to, most)| self.narrow.learn(to, most, now));
    }

    /// What is in it, to be handed to the kernel.
    pub(super) fn lot(&mut self) -> Lot<'_> {
        self.block.lot()
    }

    /// The longest bundle for a peer.
    fn bundle_len(&self, peer: &Peer) -> usize {
        self.narrow.bundle_len(peer.endpoint, usize::from(peer.mtu).min(SLACK))
    }

    /// Where the packets of a train for `peer` are to be written.
    fn choose(&self, peer: &Peer, load: TrainMeta) -> Place {
        let TrainMeta { bytes, stride, .. } = load;
        if let Some(index) = self.lane(peer) {
            let lane = &self.lanes[index];
            match lane.bundle {
                // Whatever fits there, though it alone would not be called small.
                Some(at) if bytes == stride && lane.end + bundle::ENTRY + bytes <= at + lane.longest => {
                    return Place::Scratch;
                }
                None if self.continues(lane, load, peer) => return Place::Behind(index),
                _ => {}
            }
        }
        let is_small = peer.abilities.bundles && stride <= bundle::smallness(self.bundle_len(peer));
        if is_small { Place::Scratch } else { Place::New(self.start(peer)) }
    }

    /// Whether a train can go on with these packets.
    fn continues(&self, lane: &Lane, load: TrainMeta, peer: &Peer) -> bool {
        let TrainMeta { bytes, stride, .. } = load;
        let part = &self.block.parts()[lane.part];
        // A shorter packet may end a train, but only one that stands alone: of a train it is the last already.
        let fits = stride == part.stride || (stride < part.stride && bytes == stride);
        let has_room = lane.end + bytes <= self.limit(lane);
        let may_be_sent =
            part.ecn == load.outer_ecn(peer) && part.len + bytes <= self.longest(part.stride, lane.overhead);
        fits && has_room && may_be_sent
    }

    fn lane(&self, peer: &Peer) -> Option<usize> {
        self.lanes.iter().rposition(|lane| lane.to == peer.endpoint)
    }

    /// Where a part must end: nothing stands behind the last one.
    fn limit(&self, lane: &Lane) -> usize {
        if lane.end == self.used { PLAIN } else { lane.limit }
    }

    /// Where a new part for `peer` would begin: behind the last part, and behind what that one may need to grow.
    fn start(&self, peer: &Peer) -> usize {
        match self.lanes.iter().find(|lane| lane.end == self.used && lane.to != peer.endpoint) {
            None => self.used,
            Some(Lane { bundle: Some(at), .. }) => (at + SLACK).max(self.used),
            Some(lane) => {
                let part = &self.block.parts()[lane.part];
                self.used + SLACK.min(self.longest(part.stride, lane.overhead) - part.len)
            }
        }
    }

    /// Begins a part at a place that [`TxBatch::start`] gave.
    fn begin(&mut self, part: Part, peer: &Peer, at: usize, bundle: Option<usize>) {
        let (to, overhead, longest) = (peer.endpoint, peer.overhead(), self.bundle_len(peer));
        if let Some(last) = self.lanes.iter_mut().find(|lane| lane.end == self.used) {
            last.limit = at;
        }
        self.lanes.retain(|lane| lane.to != to);
        if self.lanes.len() == LANES {
            self.lanes.remove(0);
        }
        self.used = part.at + part.len;
        let (part_number, end) = (self.block.parts().len(), self.used);
        self.lanes.push(Lane { to, overhead, part: part_number, end, limit: 0, bundle, longest });
        self.block.push(part);
    }

    /// Begins as many parts as a train needs.
    fn begin_train(&mut self, peer: &Peer, mut at: usize, load: TrainMeta, ecn: Ecn) {
        let (most, end) = (self.longest(load.stride, peer.overhead()), at + load.bytes);
        while at < end {
            let part = Part { ecn, ..Part::train(at, most.min(end - at), load.stride, peer.endpoint) };
            self.begin(part, peer, at, None);
            at += part.len;
        }
        self.close_if_ended(self.lanes.len() - 1);
    }

    /// Lengthens the train of a lane.
    fn lengthen(&mut self, index: usize, bytes: usize) {
        let lane = &mut self.lanes[index];
        lane.end += bytes;
        self.used = self.used.max(lane.end);
        let part = self.block.part_mut(lane.part);
        *part = Part { ecn: part.ecn, ..Part::train(part.at, part.len + bytes, part.stride, lane.to) };
        self.close_if_ended(index);
    }

    /// A train ends with a packet that is shorter than the others.
    fn close_if_ended(&mut self, index: usize) {
        let part = &self.block.parts()[self.lanes[index].part];
        if !part.len.is_multiple_of(part.stride) {
            self.lanes.remove(index);
        }
    }

    /// Bytes of whole datagrams that one send takes when each is `overhead` bytes longer.
    fn longest(&self, stride: usize, overhead: usize) -> usize {
        self.segments.min(MAX_PAYLOAD / (stride + overhead)) * stride
    }

    /// Adds the train that was written at `place`.
    #[inline]
    fn commit(&mut self, place: Place, peer: &Peer, train: TrainMeta) {
        let ecn = train.outer_ecn(peer);
        match place {
            Place::Behind(index) => self.lengthen(index, train.bytes),
            Place::New(at) => self.begin_train(peer, at, train, ecn),
            Place::Scratch => {
                let scratch = std::mem::take(&mut self.scratch);
                for packet in scratch[..train.bytes].chunks(train.stride) {
                    self.bundle(peer, packet, ecn);
                }
                self.scratch = scratch;
            }
        }
    }

    /// Puts a packet into the last bundle for `peer`, into one behind it, or begins a part with it.
    fn bundle(&mut self, peer: &Peer, packet: &[u8], ecn: Ecn) {
        if let Some(index) = self.lane(peer)
            && let Some(at) = self.lanes[index].bundle
        {
            let most = self.lanes[index].longest;
            let (limit, end) = (self.limit(&self.lanes[index]), self.lanes[index].end);
            let filled = end - at;
            let memory = &mut self.block.memory_mut()[at..limit];
            if let Some(filled) = bundle::append(&mut memory[..most], filled, packet) {
                return self.bundled(index, at, filled, most, (packet.len(), ecn));
            }
            let part = &self.block.parts()[self.lanes[index].part];
            let may_follow = part.bundled
                && limit - at >= 2 * most
                && part.len - filled + 2 * most <= self.longest(most, peer.overhead());
            if may_follow {
                let (last, next) = self.block.memory_mut()[at..limit].split_at_mut(most);
                bundle::pad(last, filled);
                if let Some(filled) = bundle::append(&mut next[..most], 0, packet) {
                    return self.bundled(index, at + most, filled, most, (packet.len(), ecn));
                }
            }
        }
        let (at, most) = (self.start(peer), self.bundle_len(peer));
        let room = &mut self.block.memory_mut()[at..at + most];
        // It was small enough that three would fit.
        let _ = bundle::append(room, 0, packet);
        let alone = Part::train(at + bundle::FIRST_PACKET, packet.len(), packet.len(), peer.endpoint);
        let alone = Part { ecn, ..alone };
        self.begin(alone, peer, at, Some(at));
    }

    /// Accounts for a packet that was put into the bundle at `at`, which is filled up to `filled` since.
    fn bundled(&mut self, index: usize, at: usize, filled: usize, most: usize, (packet, ecn): (usize, Ecn)) {
        let lane = &mut self.lanes[index];
        (lane.bundle, lane.end) = (Some(at), at + filled);
        self.used = self.used.max(lane.end);
        let part = self.block.part_mut(lane.part);
        if !part.bundled {
            // The first packet is no longer alone: the part begins with the header in front of it.
            (part.at, part.stride, part.bundled) = (part.at - bundle::FIRST_PACKET, most, true);
        }
        part.len = lane.end - part.at;
        part.packets += 1;
        part.packet_bytes += packet as u64;
        // A mark on the datagram would be one on each packet: it may bear one only if all can. Without, none is lost.
        part.ecn = if part.ecn == ecn { ecn } else { Ecn::NotEct };
    }
}

/// Room in a [`TxBatch`] for one train.
pub(super) struct Reserved<'a> {
    batch: &'a mut TxBatch,
    exit: Exit<'a>,
    train: TrainMeta,
    place: Place,
}

impl ToNet for TxBatch {
    type Reservation<'a> = Reserved<'a>;

    #[inline]
    fn reserve<'a>(&'a mut self, exit: Exit<'a>, train: TrainMeta) -> Reserved<'a> {
        let place = match exit {
            Exit::Socket(peer) => self.choose(peer, train),
            Exit::SlowPath(_) | Exit::Refused => Place::Scratch,
        };
        Reserved { batch: self, exit, train, place }
    }
}

impl Reservation for Reserved<'_> {
    #[inline]
    fn buffer(&mut self) -> &mut [u8] {
        let Self { batch, train, .. } = self;
        let free = match self.place {
            Place::Scratch => &mut batch.scratch[..],
            Place::Behind(index) => &mut batch.block.memory_mut()[batch.lanes[index].end..PLAIN],
            Place::New(at) => &mut batch.block.memory_mut()[at..PLAIN],
        };
        // Shorter than the train if a super packet has more headers than a TCP of ours can make: it is refused.
        let length = free.len().min(train.bytes).min(SPLIT_BUFFER);
        &mut free[..length]
    }

    #[inline]
    fn commit(self, bytes: usize) {
        let Self { batch, train: TrainMeta { stride, .. }, .. } = self;
        let train = TrainMeta { bytes, ..self.train };
        match self.exit {
            Exit::Socket(peer) => batch.commit(self.place, peer, train),
            Exit::SlowPath(peer) => {
                batch.diverted.push(SlowPathPackets::new(peer, &batch.scratch[..bytes], stride));
            }
            // A train that does not leave stays in the scratch memory, where the next one overwrites it.
            Exit::Refused => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::link::RETRY;
    use crate::route::{Abilities, Protection};

    /// Host 2 and up; even ones take bundles.
    fn peer(n: u8) -> Peer {
        let endpoint = ([192, 0, 2, n], 8285).into();
        let abilities = if n.is_multiple_of(2) { Abilities::OURS } else { Abilities::default() };
        Peer {
            name: format!("h{n}"),
            endpoint,
            subnets: Vec::new(),
            mtu: 1472,
            abilities,
            protection: Protection::Clear,
            session: None,
        }
    }

    fn load(bytes: usize, stride: usize) -> TrainMeta {
        TrainMeta { bytes, stride, ecn: Ecn::NotEct }
    }

    fn push(outbox: &mut TxBatch, peer: &Peer, train: TrainMeta) {
        let mut reserved = outbox.reserve(Exit::Socket(peer), train);
        reserved.buffer().fill(0x45);
        reserved.commit(train.bytes);
    }

    /// Pushes trains of so many bytes and such a stride for such hosts.
    fn fill(outbox: &mut TxBatch, pushes: &[(u8, usize, usize)]) {
        for (number, (host, bytes, stride)) in pushes.iter().enumerate() {
            assert!(!outbox.is_tight());
            let peer = peer(*host);
            let mut reserved = outbox.reserve(Exit::Socket(&peer), load(*bytes, *stride));
            let room = reserved.buffer();
            assert_eq!(room.len(), *bytes);
            for (index, packet) in room.chunks_mut(*stride).enumerate() {
                packet.copy_from_slice(&bytes_of(number, index, packet.len()));
            }
            reserved.commit(*bytes);
        }
    }

    /// One whose bundles for host 2 were too long for a path that takes so much.
    fn narrowed(most: usize) -> TxBatch {
        let mut outbox = TxBatch::new(SEGMENTS);
        outbox.clear(&mut vec![(peer(2).endpoint, most)], Nanos(0));
        outbox
    }

    /// Bytes that look like those of an IP packet to whoever asks for the first nibble, and like no others.
    fn bytes_of(push: usize, index: usize, length: usize) -> Vec<u8> {
        let seed = push * 8191 + index;
        (0..length)
            .map(|n| if n == 0 { 0x45 } else { (seed * 31 + n * 7 + seed / 256).to_le_bytes()[0] })
            .collect()
    }

    /// Host, bytes, stride and packets of each part.
    fn parts(pushes: &[(u8, usize, usize)]) -> Vec<(u8, usize, usize, u64)> {
        parts_of(&mut TxBatch::new(SEGMENTS), pushes)
    }

    fn parts_of(outbox: &mut TxBatch, pushes: &[(u8, usize, usize)]) -> Vec<(u8, usize, usize, u64)> {
        fill(outbox, pushes);
        check(outbox, pushes);
        outbox.block().parts().iter().map(|part| (host(part), part.len, part.stride, part.packets)).collect()
    }

    fn host(part: &Part) -> u8 {
        match part.to {
            Some(SocketAddr::V4(to)) => to.ip().octets()[3],
            other => panic!("{other:?}"),
        }
    }

    /// What arrives is what was pushed, for each peer in its order; and every promise about parts is kept.
    fn check(outbox: &TxBatch, pushes: &[(u8, usize, usize)]) {
        let mut arrived: Vec<(u8, Vec<u8>)> = Vec::new();
        let mut taken: Vec<std::ops::Range<usize>> = Vec::new();
        for part in outbox.block().parts() {
            assert!(part.len <= MAX_PAYLOAD && part.datagrams() <= SEGMENTS as u64 && part.stride <= 1472);
            let (before, bytes) = (arrived.len(), outbox.block().bytes(part));
            assert_eq!(outbox.block().plain(part).0, bytes, "what is sent again is the same");
            for datagram in (Train { bytes, stride: part.stride }).datagrams() {
                assert_eq!(bundle::is_bundle(datagram), part.bundled);
                match bundle::entries(datagram) {
                    Ok(entries) => {
                        arrived.extend(entries.map(|entry| (host(part), entry.expect("whole").to_vec())))
                    }
                    Err(_) => arrived.push((host(part), datagram.to_vec())),
                }
            }
            let packets = &arrived[before..];
            assert_eq!(part.packets, packets.len() as u64);
            assert_eq!(part.packet_bytes, packets.iter().map(|(_, packet)| packet.len() as u64).sum::<u64>());
            assert!(!part.bundled || (peer(host(part)).abilities.bundles && packets.len() > 1));
            assert!(taken.iter().all(|range| part.at >= range.end || part.at + part.len <= range.start));
            taken.push(part.at..part.at + part.len);
        }
        for wanted in 0..=20 {
            let of = |(host, packet): &(u8, Vec<u8>)| (*host == wanted).then(|| packet.clone());
            let mut pushed = Vec::new();
            for (number, (host, bytes, stride)) in
                pushes.iter().enumerate().filter(|(_, push)| push.0 == wanted)
            {
                let lengths = (0..*bytes).step_by(*stride).map(|at| (*stride).min(bytes - at));
                pushed.extend(
                    lengths.enumerate().map(|(index, length)| (*host, bytes_of(number, index, length))),
                );
            }
            assert!(
                arrived.iter().filter_map(of).eq(pushed.iter().filter_map(of)),
                "what arrives at host {wanted} is not what was pushed"
            );
        }
    }

    #[test]
    fn equal_neighbours_become_one_train() {
        assert_eq!(parts(&[(3, 92, 92), (3, 92, 92), (3, 92, 92)]), [(3, 276, 92, 3)]);
        assert_eq!(parts(&[(3, 92, 92), (3, 100, 100)]), [(3, 92, 92, 1), (3, 100, 100, 1)], "longer");
        assert_eq!(
            parts(&[(3, 92, 92), (3, 60, 60), (3, 92, 92)]),
            [(3, 152, 92, 2), (3, 92, 92, 1)],
            "a shorter one is the last"
        );
        assert_eq!(parts(&[(3, 2000, 1472), (3, 1472, 1472)]).len(), 2, "after a short last one");
        assert_eq!(parts(&[(3, 2944, 1472), (3, 2000, 1472)]), [(3, 4944, 1472, 4)]);
        assert_eq!(parts(&[(2, 14_720, 1472), (2, 60, 60)]), [(2, 14_780, 1472, 11)]);
    }

    #[test]
    fn no_message_is_longer_than_a_send_takes() {
        assert_eq!(parts(&[(3, 66_000, 1472)]), [(3, 64_768, 1472, 44), (3, 1232, 1472, 1)]);
        assert_eq!(parts(&[(3, 7000, 100)]), [(3, 6400, 100, 64), (3, 600, 100, 6)]);
        assert_eq!(parts(&[(3, 60_000, 1472), (3, 14_720, 1472)]).len(), 2);
        let many: Vec<_> = (0..130).map(|_| (3, 40, 40)).collect();
        assert_eq!(parts(&many).iter().map(|part| part.3).collect::<Vec<_>>(), [64, 64, 2]);
    }

    #[test]
    fn small_packets_are_bundled_for_who_takes_bundles() {
        assert_eq!(parts(&[(2, 92, 92)]), [(2, 92, 92, 1)], "alone, and so bare");
        assert_eq!(parts(&[(2, 92, 92), (2, 60, 60)]), [(2, 4 + 94 + 62, 1472, 2)]);
        let many: Vec<_> = (0..40).map(|_| (2, 92, 92)).collect();
        assert_eq!(parts(&many), [(2, 2 * 1472 + 4 + 10 * 94, 1472, 40)], "15 a bundle, one send");
        assert_eq!(parts(&[(2, 4600, 92)]), [(2, 3 * 1472 + 4 + 5 * 94, 1472, 50)], "a super packet as well");
        assert_eq!(parts(&[(2, 488, 488), (2, 488, 488)]), [(2, 976, 488, 2)], "not three of these fit");
        assert_eq!(parts(&[(2, 487, 487), (2, 487, 487)]), [(2, 982, 1472, 2)]);
    }

    #[test]
    fn what_fits_joins_an_open_bundle_and_what_does_not_ends_it() {
        assert_eq!(parts(&[(2, 92, 92), (2, 1372, 1372)]), [(2, 1472, 1472, 2)], "to the last byte");
        assert_eq!(
            parts(&[(2, 92, 92), (2, 1373, 1373), (2, 92, 92)]),
            [(2, 92, 92, 1), (2, 1465, 1373, 2)],
            "nothing passes the long one"
        );
        assert_eq!(parts(&[(2, 1400, 1400), (2, 40, 40), (2, 40, 40), (2, 40, 40)]).len(), 2);
    }

    #[test]
    fn bundles_are_made_to_fit_a_narrow_path_and_longer_again_after_a_while() {
        let many: Vec<_> = (0..40).map(|_| (2, 92, 92)).collect();
        let mut outbox = narrowed(1000);
        assert_eq!(parts_of(&mut outbox, &many), [(2, 3 * 1000 + 4 + 10 * 94, 1000, 40)], "10 a bundle");
        outbox.clear(&mut Vec::new(), Nanos(RETRY.0 - 1));
        assert_eq!(parts_of(&mut outbox, &[(2, 4600, 92)]), [(2, 4 * 1000 + 4 + 10 * 94, 1000, 50)]);
        outbox.clear(&mut Vec::new(), Nanos(RETRY.0 - 1));
        let (bare, longer) = ((2, 662, 331), (2, 1400, 1400));
        assert_eq!(parts_of(&mut outbox, &[bare, longer]), [(2, 662, 331, 2), (2, 1400, 1400, 1)]);
        outbox.clear(&mut Vec::new(), Nanos(RETRY.0 - 1));
        assert_eq!(
            parts_of(&mut outbox, &[(2, 92, 92), (4, 92, 92), (2, 902, 902), (4, 902, 902)]),
            [(2, 92, 92, 1), (4, 1002, 1472, 2), (2, 902, 902, 1)],
            "the path to another host takes more"
        );
        outbox.clear(&mut Vec::new(), RETRY);
        assert_eq!(parts_of(&mut outbox, &many), [(2, 2 * 1472 + 4 + 10 * 94, 1472, 40)], "tried again");
        assert_eq!(parts_of(&mut narrowed(119), &many), [(2, 40 * 92, 92, 40)], "bare, as a train");
    }

    #[test]
    fn peers_may_alternate() {
        let alternating = |bytes, stride, hosts: u8| -> Vec<_> {
            (0..6 * hosts).map(|n| (2 + n % hosts, bytes, stride)).collect()
        };
        for hosts in 2..=8 {
            assert_eq!(parts(&alternating(92, 92, hosts)).len(), usize::from(hosts), "small");
            assert_eq!(parts(&alternating(1472, 1472, hosts)).len(), usize::from(hosts), "full size");
        }
        assert_eq!(
            parts(&alternating(58_880, 1472, 2)[..4]).len(),
            4,
            "super packets are trains by themselves"
        );
        assert_eq!(parts(&alternating(92, 92, 17)[..28]).len(), 28, "too many to remember them all");
    }

    /// Datagrams of one message bear one mark: packets of other fields leave by another, or in a bundle that bears none.
    #[test]
    fn marks_are_not_spread_and_not_lost() {
        let parts = |host: u8, pushes: &[(usize, Ecn)]| -> Vec<(u64, Ecn)> {
            let (mut outbox, peer) = (TxBatch::new(SEGMENTS), peer(host));
            for (bytes, ecn) in pushes {
                let load = TrainMeta { ecn: *ecn, ..load(*bytes, *bytes) };
                push(&mut outbox, &peer, load);
            }
            outbox.block().parts().iter().map(|part| (part.packets, part.ecn)).collect()
        };
        use Ecn::{Ce, Ect0, NotEct};
        assert_eq!(parts(2, &[(1000, Ect0), (1000, Ect0), (1000, Ce)]), [(2, Ect0), (1, Ce)]);
        assert_eq!(parts(2, &[(92, Ect0), (92, Ect0)]), [(2, Ect0)]);
        assert_eq!(parts(2, &[(92, Ect0), (92, Ce), (92, Ect0)]), [(3, NotEct)]);
        assert_eq!(parts(3, &[(92, Ect0), (92, Ce)]), [(2, NotEct)], "to a host that does not look");
    }

    #[test]
    fn newer_kernels_take_longer_trains() {
        let mut outbox = TxBatch::new(2 * SEGMENTS);
        for _ in 0..130 {
            push(&mut outbox, &peer(3), load(40, 40));
        }
        let packets: Vec<u64> = outbox.block().parts().iter().map(|part| part.packets).collect();
        assert_eq!(packets, [128, 2]);
    }

    #[test]
    fn full_and_open_parts_are_told() {
        let mut outbox = TxBatch::new(SEGMENTS);
        let (peer, mut reads) = (peer(3), 0);
        while !outbox.is_tight() {
            // The most parts that one read can make.
            let bytes = 8192 * 28;
            push(&mut outbox, &peer, load(bytes, 28));
            reads += 1;
        }
        assert!(reads >= 1 && outbox.block().parts().len() < MAX_PARTS);
        assert!(!outbox.is_empty());
        outbox.clear(&mut Vec::new(), Nanos(0));
        assert!(outbox.is_empty() && !outbox.is_tight());
    }

    /// The bound on what a read can become that [`PLAIN`] stands on.
    #[test]
    fn the_longest_trains_of_small_packets_fit_when_bundled() {
        let peer = peer(2);
        let lengths = [1472, 1000, 500, 150, 121, 120].into_iter();
        let strides = |most| (20..=bundle::smallness(most)).map(move |stride| (most, stride));
        for (most, stride) in lengths.flat_map(strides) {
            let mut outbox = narrowed(most);
            while !outbox.is_tight() {
                let bytes = SPLIT_BUFFER / stride * stride;
                push(&mut outbox, &peer, load(bytes, stride));
            }
            assert!(outbox.used <= PLAIN);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_peer_gets_its_packets_in_order(
            pushes in proptest::collection::vec(
                (2u8..14, prop_oneof![4 => 1usize..=1, 1 => 1usize..60], prop_oneof![3 => 28usize..200, 1 => 200usize..1473], 0usize..28),
                1..60,
            ),
            hosts in 1u8..12,
            most in prop_oneof![Just(1472usize), 0usize..1472],
        ) {
            let mut pushes: Vec<_> = pushes
                .into_iter()
                .map(|(host, count, stride, short)| (2 + host % hosts, count * stride - if count > 1 { short } else { 0 }, stride))
                .collect();
            let mut sum = 0;
            pushes.retain(|(_, bytes, _)| {
                sum += bytes + SLACK;
                sum < GATHERED
            });
            let mut outbox = narrowed(most);
            fill(&mut outbox, &pushes);
            check(&outbox, &pushes);
            prop_assert!(outbox.block().parts().iter().all(|part| host(part) != 2 || !part.bundled || part.stride <= most));
        }
    }
}
