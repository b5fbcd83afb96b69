//! The outbox: packets on their way to peers, laid out so that runs of them leave as one message.
//!
//! [`crate::forward::egress`] writes segments straight to where they are sent from. Neighbours of one length for one peer
//! become one train, up to what a UDP_SEGMENT send takes; a shorter one ends its train.
//!
//! It does not send: it fills a [`Block`], and whoever owns it hands that on once [`Outbox::is_tight`], or at the end of
//! a batch.
//!
//! Invariant: parts stand in the order of their packets, without gaps; none is longer than one send may be.

use crate::forward::ToNet;
use crate::packet::split::SPLIT_BUFFER;
use crate::route::Peer;
use crate::sys::block::{Block, MAX_PARTS, Part};
use crate::sys::udp::{MAX_PAYLOAD, MAX_SEGMENTS};

/// Bytes of a block: what has gathered, and behind it room for whatever one more read brings.
pub(super) const BLOCK: usize = 2 * SPLIT_BUFFER;
/// Parts that one read can make: a message holds at least 64 segments, or 65,507 bytes of longer ones.
const PARTS_A_READ: usize = 8192 / MAX_SEGMENTS + 1;
const _: () = assert!(PARTS_A_READ < MAX_PARTS);

#[derive(Debug)]
pub(super) struct Outbox {
    block: Block,
    used: usize,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self { block: Block::new(vec![0; BLOCK].into()), used: 0 }
    }

    /// Whether it must be emptied before it can take what the next read brings, or should be, for latency's sake.
    pub(super) fn is_tight(&self) -> bool {
        self.used > BLOCK - SPLIT_BUFFER || self.block.parts().len() > MAX_PARTS - PARTS_A_READ
    }

    pub(super) fn is_empty(&self) -> bool {
        self.block.parts().is_empty()
    }

    pub(super) fn block(&self) -> &Block {
        &self.block
    }

    /// What is in it was sent.
    pub(super) fn clear(&mut self) {
        self.block.clear();
        self.used = 0;
    }

    /// Gives away what is in it, and goes on in an empty block.
    pub(super) fn exchange(&mut self, mut fresh: Block) -> Block {
        fresh.clear();
        self.used = 0;
        std::mem::replace(&mut self.block, fresh)
    }
}

/// Bytes of whole datagrams that one send takes.
fn longest(stride: usize) -> usize {
    MAX_SEGMENTS.min(MAX_PAYLOAD / stride) * stride
}

impl ToNet for Outbox {
    #[inline]
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        let free = &mut self.block.memory_mut()[self.used..];
        // Shorter than asked for where a super packet has more headers than a TCP of ours can make: it is refused.
        let length = free.len().min(bytes);
        &mut free[..length]
    }

    #[inline]
    fn push(&mut self, peer: &Peer, bytes: usize, stride: usize) {
        if let Some(last) = self.block.last_mut() {
            let is_open = last.to == Some(peer.endpoint) && last.len.is_multiple_of(last.stride);
            // A shorter packet may end a train, but only one that stands alone: of a train it is the last already.
            let fits = stride == last.stride || (stride < last.stride && bytes == stride);
            if is_open && fits && last.len + bytes <= longest(last.stride) {
                *last = Part::train(last.at, last.len + bytes, last.stride, peer.endpoint);
                self.used += bytes;
                return;
            }
        }
        let (most, mut left) = (longest(stride), bytes);
        while left > 0 {
            let length = left.min(most);
            self.block.push(Part::train(self.used, length, stride, peer.endpoint));
            self.used += length;
            left -= length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Abilities;

    fn peer(n: u8) -> Peer {
        let endpoint = ([192, 0, 2, n], 8285).into();
        Peer { name: format!("h{n}"), endpoint, subnets: Vec::new(), mtu: 1472, abilities: Abilities::OURS }
    }

    fn parts(pushes: &[(u8, usize, usize)]) -> Vec<(usize, usize, usize, u64)> {
        let mut outbox = Outbox::new();
        for (host, bytes, stride) in pushes {
            assert_eq!(outbox.room(*bytes).len(), *bytes);
            outbox.push(&peer(*host), *bytes, *stride);
        }
        outbox.block().parts().iter().map(|p| (p.at, p.len, p.stride, p.packets)).collect()
    }

    #[test]
    fn equal_neighbours_become_one_train() {
        assert_eq!(parts(&[(2, 92, 92), (2, 92, 92), (2, 92, 92)]), [(0, 276, 92, 3)]);
        assert_eq!(parts(&[(2, 92, 92), (3, 92, 92)]), [(0, 92, 92, 1), (92, 92, 92, 1)], "another peer");
        assert_eq!(parts(&[(2, 92, 92), (2, 100, 100)]), [(0, 92, 92, 1), (92, 100, 100, 1)], "longer");
        assert_eq!(
            parts(&[(2, 92, 92), (2, 60, 60), (2, 92, 92)]),
            [(0, 152, 92, 2), (152, 92, 92, 1)],
            "a shorter one is the last"
        );
        assert_eq!(parts(&[(2, 2000, 1472), (2, 1472, 1472)]).len(), 2, "after a short last one");
        assert_eq!(parts(&[(2, 2944, 1472), (2, 2000, 1472)]), [(0, 4944, 1472, 4)]);
        assert_eq!(parts(&[(2, 14_720, 1472), (2, 60, 60)]), [(0, 14_780, 1472, 11)]);
    }

    #[test]
    fn no_message_is_longer_than_a_send_takes() {
        assert_eq!(parts(&[(2, 66_000, 1472)]), [(0, 64_768, 1472, 44), (64_768, 1232, 1472, 1)]);
        assert_eq!(parts(&[(2, 7000, 100)]), [(0, 6400, 100, 64), (6400, 600, 100, 6)]);
        assert_eq!(parts(&[(2, 60_000, 1472), (2, 14_720, 1472)]).len(), 2);
        let many: Vec<_> = (0..130).map(|_| (2, 40, 40)).collect();
        assert_eq!(parts(&many).iter().map(|part| part.3).collect::<Vec<_>>(), [64, 64, 2]);
    }
}
