//! The veth pair that merges TCP segments: its names, its rows for the reconciler, and whether it
//! is there.
//!
//! It makes and removes nothing: the reconciler does. Invariant: both ends have names that follow
//! from the overlay device's name, so that a later process finds them.

use std::time::Duration;

use tokio::time::Instant;

use crate::desired::{ALIAS, Desired, Feature, Link, LinkKind, Offload, Sysctl};
use crate::sys::bpf::interface_index;
use crate::sys::ethtool::is_running;

/// Longest part of the overlay device's name: Linux takes names of 15 bytes.
const STEM: usize = 10;
/// The longest MTU that a veth device takes. Packets in the pair are single segments, which the
/// underlay's MTU has limited.
const MTU: u32 = 65535;

/// Time in which each packet that has entered the pair has left it or is lost.
const PASSAGE: Duration = Duration::from_millis(900);

/// Names of the two ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VethPair {
    /// The end into which the program sends segments.
    pub(super) near: String,
    /// The end where they arrive and are merged.
    pub(super) far: String,
}

/// Interface indexes of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) near: u32,
    pub(super) far: u32,
}

impl VethPair {
    /// The pair of the overlay device `overlay`.
    pub(super) fn of(overlay: &str) -> Self {
        let mut end = overlay.len().min(STEM);
        while !overlay.is_char_boundary(end) {
            end -= 1;
        }
        let stem = &overlay[..end];
        Self { near: format!("{stem}-gro0"), far: format!("{stem}-gro1") }
    }

    /// The ends, if both are up.
    pub(super) fn ends(&self) -> Option<Ends> {
        let index = |name: &str| is_running(name).is_ok_and(|is| is).then(|| interface_index(name).ok());
        Some(Ends { near: index(&self.near)??, far: index(&self.far)?? })
    }

    /// The rows of the pair, or that it must not exist.
    pub(super) fn desired(&self, is_wanted: bool) -> Desired {
        let mut desired = Desired::default();
        if !is_wanted {
            desired.unwanted = [self.near.clone(), self.far.clone()].into();
            return desired;
        }
        for (name, peer) in [(&self.near, &self.far), (&self.far, &self.near)] {
            desired.add_link(Link {
                name: name.clone(),
                kind: LinkKind::Veth,
                alias: ALIAS.to_owned(),
                up: true,
                mtu: MTU,
                peer: peer.clone(),
            });
            // No link-local address: nothing but our frames passes the pair.
            let key = format!("net/ipv6/conf/{name}/addr_gen_mode");
            desired.sysctls.insert(Sysctl { key, value: "1".to_owned(), required: false });
        }
        let row = |link: &str, feature, on| Offload { link: link.to_owned(), feature, on };
        // A veth device merges only what comes from an end without segmentation offload
        // (veth_skb_is_eligible_for_gro).
        desired.offloads = [row(&self.near, Feature::Tso, false), row(&self.far, Feature::Gro, true)].into();
        desired
    }

    /// Whether this is the name of an end.
    pub(super) fn has(&self, name: &str) -> bool {
        self.near == name || self.far == name
    }
}

/// Packets that were lost in the pair.
///
/// The near end counts those for which its queue was full. Packets that were in the pair when it
/// was removed, or were sent to an end that was gone, are counted by nobody: they have entered the
/// pair and have not left it a second later. Both numbers are lower bounds, so the larger one
/// holds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Losses {
    /// Packets that had entered the pair at the last look.
    entered: u64,
    /// Packets that have entered and never left it.
    missing: u64,
    /// Index of the near end, and what it had counted when it was last asked.
    last: (u32, u64),
    /// When the counters of the program were looked at.
    at: Option<Instant>,
    /// Sum over all near ends.
    full: u64,
}

impl Losses {
    /// The counters of the program. A look soon after another one is ignored.
    pub(super) fn counted(&mut self, entered: u64, left: u64, now: Instant) {
        if self.at.is_some_and(|at| now.duration_since(at) < PASSAGE) {
            return;
        }
        self.at = Some(now);
        self.missing = self.missing.max(self.entered.saturating_sub(left));
        self.entered = entered;
    }

    /// The counter of the near end.
    pub(super) fn dropped(&mut self, index: u32, dropped: u64) {
        let before = if self.last.0 == index { self.last.1 } else { 0 };
        self.full += dropped.saturating_sub(before);
        self.last = (index, dropped);
    }

    pub(super) fn packets(&self) -> u64 {
        self.missing.max(self.full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_at_most_15_bytes() {
        let pair = VethPair::of("hopsack0");
        assert_eq!((pair.near.as_str(), pair.far.as_str()), ("hopsack0-gro0", "hopsack0-gro1"));
        assert_eq!(VethPair::of("fifteen-bytes-x").near, "fifteen-by-gro0");
        assert!(VethPair::of("nine-bytäüöß").near.len() <= 15);
        assert!(pair.has("hopsack0-gro1") && !pair.has("hopsack0"));
    }

    #[test]
    fn losses_are_counted_once() {
        let mut losses = Losses::default();
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        losses.counted(1000, 900, second(0));
        assert_eq!(losses.packets(), 0, "a hundred are on their way");
        losses.dropped(5, 30);
        losses.counted(2000, 1960, second(1));
        assert_eq!(losses.packets(), 30);
        // The pair is removed with ten packets, and its successor counts from zero.
        losses.dropped(7, 0);
        losses.dropped(7, 2);
        losses.counted(2000, 1957, second(1));
        losses.counted(2000, 1958, second(2));
        assert_eq!(losses.packets(), 42);
        assert_eq!(losses.full, 32);
    }
}
