//! The prefix table of one family: longest-prefix matching by array index, with a binary search as
//! fallback.
//!
//! All Flannel subnets of a network have the same length, so a lookup is arithmetic: subtract the
//! network, shift, and index into a dense array. Two kinds of addresses need a binary search over
//! disjoint ranges: those in a subnet that prefixes of other lengths divide, and those outside the
//! network. The ranges are computed from the prefixes at compile time.
//!
//! It does not know what a slot value means.
//!
//! Invariant: a lookup gives the slot value of the longest prefix that contains the address.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;

/// Slot value of an address that no prefix contains.
pub(super) const NONE: u32 = 0;
/// Slot value of a subnet that several ranges divide: the ranges must be searched.
const MIXED: u32 = u32::MAX;
/// A network of more subnets than this gets no dense array (it would take 4 MiB), and is only
/// searched.
const MAX_SLOTS: u32 = 1 << 20;

/// A prefix as the range of its addresses. The order puts a prefix before the prefixes inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix {
    first: u128,
    /// In reverse order, so that of two prefixes with the same first address the larger comes
    /// first.
    last: std::cmp::Reverse<u128>,
}

impl Prefix {
    pub(super) fn of(net: IpNet) -> Self {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        Self { first: bits(net.network()), last: std::cmp::Reverse(bits(net.broadcast())) }
    }

    /// Whether `inner`, a prefix of the same family, lies in this one or equals it.
    pub(super) fn contains(&self, inner: &Self) -> bool {
        self.first <= inner.first && inner.last.0 <= self.last.0
    }
}

/// A range of addresses that have the same slot value. Ranges are disjoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u128,
    last: u128,
    slot: u32,
}

/// A network that is divided into subnets of equal size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Regular {
    net: Prefix,
    /// Number of address bits inside one subnet.
    shift: u32,
}

impl Regular {
    pub(super) fn new(net: IpNet, subnet_len: u8) -> Self {
        Self { net: Prefix::of(net), shift: u32::from(net.max_prefix_len() - subnet_len) }
    }
}

/// The prefixes of one family.
#[derive(Debug, Default)]
pub(super) struct PrefixTable {
    base: u128,
    shift: u32,
    /// One slot value for each subnet of the network; empty if there would be too many.
    slots: Box<[u32]>,
    /// The ranges that `slots` cannot represent, sorted.
    ranges: Box<[Range]>,
}

impl PrefixTable {
    /// Builds the table. `claims` is sorted, each prefix is in it once, and prefixes nest or are
    /// disjoint.
    pub(super) fn compile(regular: Option<Regular>, claims: Vec<(Prefix, u32)>) -> Self {
        let mut ranges = flatten(&claims);
        let Some(regular) = regular else {
            return Self { ranges: ranges.into(), ..Self::default() };
        };
        let (base, shift) = (regular.net.first, regular.shift);
        let subnets = ((regular.net.last.0 - base) >> shift) + 1;
        let Some(subnets) = u32::try_from(subnets).ok().filter(|n| *n <= MAX_SLOTS) else {
            return Self { ranges: ranges.into(), ..Self::default() };
        };
        let mut slots = vec![NONE; subnets as usize];
        ranges.retain(|range| {
            let (first, last) = (range.first.max(base), range.last.min(regular.net.last.0));
            let outside = range.first < base || range.last > regular.net.last.0;
            if first > last {
                return true;
            }
            let mut leftover = outside;
            for index in (first - base) >> shift..=(last - base) >> shift {
                let first = base + (index << shift);
                let whole = range.first <= first && range.last >= first + ((1 << shift) - 1);
                leftover |= !whole;
                let Ok(index) = usize::try_from(index) else { continue };
                slots[index] = if whole { range.slot } else { MIXED };
            }
            leftover
        });
        Self { base, shift, slots: slots.into(), ranges: ranges.into() }
    }

    /// The slot value of an address.
    #[inline]
    pub(super) fn lookup(&self, address: u128) -> u32 {
        let index = address.wrapping_sub(self.base) >> self.shift;
        match usize::try_from(index).ok().and_then(|index| self.slots.get(index)) {
            Some(&slot) if slot != MIXED => slot,
            _ => self.search(address),
        }
    }

    /// Whether some addresses need a search.
    #[cfg(test)]
    pub(super) fn needs_search(&self) -> bool {
        !self.ranges.is_empty()
    }

    fn search(&self, address: u128) -> u32 {
        let after = self.ranges.partition_point(|range| range.first <= address);
        match after.checked_sub(1).map(|at| self.ranges[at]) {
            Some(range) if address <= range.last => range.slot,
            _ => NONE,
        }
    }
}

/// Turns prefixes into sorted disjoint ranges, each with the slot value of the longest prefix that
/// covers it. `claims` is in [`Prefix`] order; prefixes nest or are disjoint.
fn flatten(claims: &[(Prefix, u32)]) -> Vec<Range> {
    let mut out: Vec<Range> = Vec::new();
    // The prefixes that contain the current address, the longest prefix last.
    let mut open: Vec<Range> = Vec::new();
    let mut emit = |range: Range| {
        if range.first <= range.last {
            out.push(range);
        }
    };
    for &(Prefix { first, last }, slot) in claims {
        while let Some(outer) = open.pop_if(|outer| outer.last < first) {
            emit(outer);
            resume(&mut open, outer.last);
        }
        if let Some(outer) = open.last().copied()
            && outer.first < first
        {
            emit(Range { last: first - 1, ..outer });
        }
        open.push(Range { first, last: last.0, slot });
    }
    while let Some(range) = open.pop() {
        emit(range);
        resume(&mut open, range.last);
    }
    out
}

/// Continues the enclosing prefix after an inner prefix that has ended at `last`.
fn resume(open: &mut [Range], last: u128) {
    if let Some(outer) = open.last_mut() {
        outer.first = last.saturating_add(1);
        // Nothing is left at the top of the address space, so the range becomes empty.
        if last == u128::MAX {
            (outer.first, outer.last) = (1, 0);
        }
    }
}
