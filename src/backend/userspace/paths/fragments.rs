//! Whether fragments reach a peer. It matters where the path is narrower than the smallest MTU of a
//! family, so that its packets must leave in datagrams that are fragmented on the way.
//!
//! It sends nothing: its owner sends probes of that length by a socket that allows fragments.
//!
//! Invariant: fragments count as lost only after [`LOSSES`] lost probes in a row, and as arriving
//! after one answer.

use std::time::Duration;

use crate::time::Nanos;

/// Lost probes in a row after which fragments do not arrive. Congestion loses some as well.
const LOSSES: u32 = 40;
/// Time between two probes while it is not known.
const INTERVAL: Duration = Duration::from_millis(150);
/// Time between two probes while fragments arrive.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two probes while they do not.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// The same to a peer without traffic.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    /// Whether fragments do not arrive.
    are_lost: bool,
    /// Probes without an answer since the last answer.
    unanswered: u32,
    /// Whether a probe was answered.
    is_known: bool,
    next_at: Option<Nanos>,
    /// What was reported last.
    reported_lost: bool,
}

impl Fragments {
    /// No packet has to be fragmented: nothing is to be known.
    pub(super) fn forget(&mut self) {
        *self = Self { reported_lost: self.reported_lost, ..Self::default() };
    }

    /// Whether a probe is due. If so, it counts as sent.
    pub(super) fn is_due(&mut self, is_idle: bool, now: Nanos) -> bool {
        if self.next_at.is_some_and(|next| now < next) {
            return false;
        }
        self.are_lost |= self.unanswered >= LOSSES;
        let is_sure = self.is_known && self.unanswered == 0;
        let wait = match self.are_lost {
            _ if is_idle => IDLE_INTERVAL,
            true => RETRY_INTERVAL,
            false if is_sure => CONFIRM_INTERVAL,
            false => INTERVAL,
        };
        self.next_at = Some(now + wait);
        self.unanswered = self.unanswered.saturating_add(1);
        true
    }

    /// A packet was sent to the peer after a time without any.
    pub(super) fn used_again(&mut self) {
        self.next_at = None;
    }

    /// A probe was answered.
    pub(super) fn answered(&mut self) {
        (self.are_lost, self.unanswered, self.is_known) = (false, 0, true);
    }

    /// Whether fragments arrive, if that has changed since the last call.
    pub(super) fn take_change(&mut self) -> Option<bool> {
        let has_changed = self.reported_lost != self.are_lost;
        self.reported_lost = self.are_lost;
        has_changed.then_some(!self.are_lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets 10 s pass. `arrives`: whether every so many probes arrive. Returns the changes.
    fn pass(fragments: &mut Fragments, from: u64, arrives: Option<u32>) -> Vec<bool> {
        let (mut changes, mut sent) = (Vec::new(), 0);
        for millis in (from..from + 10_000).step_by(100) {
            if fragments.is_due(false, Nanos(millis * 1_000_000)) {
                sent += 1;
                if arrives.is_some_and(|every| sent % every == 0) {
                    fragments.answered();
                }
            }
            changes.extend(fragments.take_change());
        }
        changes
    }

    #[test]
    fn many_losses_in_a_row_show_that_fragments_are_lost() {
        let mut fragments = Fragments::default();
        assert_eq!(pass(&mut fragments, 0, Some(1)), [] as [bool; 0]);
        assert_eq!(pass(&mut fragments, 10_000, Some(9)), [] as [bool; 0], "some losses say nothing");
        let mut lost = pass(&mut fragments, 20_000, None);
        lost.extend(pass(&mut fragments, 30_000, None));
        assert_eq!(lost, [false]);
        assert_eq!(pass(&mut fragments, 40_000, Some(1)), [true]);
        assert_eq!(pass(&mut fragments, 50_000, None), [] as [bool; 0]);
        pass(&mut fragments, 60_000, None);
        fragments.forget();
        assert_eq!(fragments.take_change(), Some(true), "nothing has to be fragmented any more");
    }
}
