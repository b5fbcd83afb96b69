//! The choice whether single TCP segments go through the veth pair, where the kernel merges them
//! (GRO), or directly to the overlay device.
//!
//! It reads counters and changes nothing. Some underlays deliver TCP in super packets, and others
//! in single segments: the device decides, and no setting of this host shows it. So the counters
//! decide. The pair is chosen if many long segments arrive and hardly any super packet. It stays
//! until it has shown for several seconds with much traffic that it does not help: super packets
//! arrive after all, or segments leave it as they came (for example because each one is an answer
//! of its own). Then the next try comes after a pause that becomes longer each time.
//!
//! Invariant: the choice changes at most twice in [`PAUSE`]. While little TCP arrives, it stays as
//! it is.

use std::time::Duration;

use tokio::time::Instant;

use crate::fastpath::Direction;

/// Shortest time between two looks at the counters.
const WINDOW: Duration = Duration::from_millis(900);
/// Packets in a window from which on it counts: about 24 Mbit/s of full segments.
const MANY: u64 = 2000;
/// Windows in a row after which the pair is chosen.
const TO_CHOOSE: u32 = 2;
/// Windows in a row after which the pair is left.
const TO_LEAVE: u32 = 10;
/// Long segments for each super packet at least, for the pair to be chosen. Also where super
/// packets arrive whole, some segments are single: the last ones of a message.
const SEGMENTS_PER_SUPER: u64 = 8;
/// The first pause after the pair was left, and the longest one.
const PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The choice, and what it follows from.
#[derive(Debug)]
pub(super) struct GroChoice {
    is_pair: bool,
    reason: String,
    /// The counters at the last look.
    before: Option<(Instant, Direction)>,
    /// Windows in a row that speak for the other choice.
    streak: u32,
    /// When the pair may be chosen again.
    may_choose_at: Option<Instant>,
    pause: Duration,
}

/// What arrived in a window.
#[derive(Debug, Clone, Copy)]
struct Arrived {
    long: u64,
    super_packets: u64,
    to_pair: u64,
    merged: u64,
}

impl Default for GroChoice {
    fn default() -> Self {
        Self {
            is_pair: false,
            reason: "no longer TCP transfer has arrived in single segments yet".to_owned(),
            before: None,
            streak: 0,
            may_choose_at: None,
            pause: PAUSE,
        }
    }
}

impl GroChoice {
    /// The pair of an earlier daemon stays in use.
    pub(super) fn adopted() -> Self {
        let reason = "an earlier hopsack has seen TCP arrive in single segments".to_owned();
        Self { is_pair: true, reason, ..Self::default() }
    }

    /// Whether single segments are to go through the pair.
    pub(super) fn is_pair(&self) -> bool {
        self.is_pair
    }

    /// Why.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// Looks at the counters of ingress. Returns whether the choice is another one.
    pub(super) fn look(&mut self, counters: &Direction, now: Instant) -> bool {
        let Some((then, before)) = &self.before else {
            self.before = Some((now, *counters));
            return false;
        };
        if now.duration_since(*then) < WINDOW {
            return false;
        }
        let arrived = Arrived::between(before, counters);
        self.before = Some((now, *counters));
        let (speaks, limit) =
            if self.is_pair { (arrived.against_pair(), TO_LEAVE) } else { (arrived.for_pair(), TO_CHOOSE) };
        match speaks {
            Some(reason) => {
                self.streak += 1;
                let is_paused = !self.is_pair && self.may_choose_at.is_some_and(|at| now < at);
                if self.streak < limit || is_paused {
                    return false;
                }
                self.reason = reason;
                self.change(now);
                true
            }
            None => {
                // A quiet second says nothing about a pair in use.
                self.streak = if self.is_pair && !arrived.is_busy() { self.streak } else { 0 };
                false
            }
        }
    }

    fn change(&mut self, now: Instant) {
        self.is_pair = !self.is_pair;
        self.streak = 0;
        if !self.is_pair {
            self.may_choose_at = Some(now + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }
}

impl Arrived {
    fn between(before: &Direction, now: &Direction) -> Self {
        let (old, new) = (&before.segments, &now.segments);
        Self {
            long: new.long.saturating_sub(old.long),
            super_packets: now.super_packets.saturating_sub(before.super_packets),
            to_pair: new.to_pair.saturating_sub(old.to_pair),
            merged: new.merged.saturating_sub(old.merged),
        }
    }

    fn is_busy(&self) -> bool {
        self.to_pair >= MANY || self.super_packets >= MANY / SEGMENTS_PER_SUPER
    }

    fn for_pair(&self) -> Option<String> {
        let Self { long, super_packets, .. } = *self;
        let is_single = long >= MANY && super_packets * SEGMENTS_PER_SUPER <= long;
        is_single.then(|| {
            format!(
                "TCP arrives in single segments: {long} long ones, and {super_packets} super packets, in a second"
            )
        })
    }

    fn against_pair(&self) -> Option<String> {
        let Self { long, super_packets, to_pair, merged } = *self;
        let is_super = super_packets > long && self.is_busy();
        // Four packets of five left the pair as they came.
        let is_useless = to_pair >= MANY && merged * 5 >= to_pair * 4;
        if is_super {
            return Some(format!(
                "TCP arrives in super packets: {super_packets} of them, and {long} long segments, in a second"
            ));
        }
        is_useless.then(|| {
            format!("segments did not merge: {to_pair} of them left the pair as {merged} packets in a second")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fastpath::Segments;

    struct World {
        choice: GroChoice,
        now: Instant,
        sums: Direction,
    }

    impl World {
        fn new(choice: GroChoice) -> Self {
            let mut world = Self { choice, now: Instant::now(), sums: Direction::default() };
            assert!(!world.choice.look(&world.sums, world.now));
            world
        }

        /// Seconds until the choice changes, at most `limit`.
        fn until_change(
            &mut self,
            limit: u32,
            (long, super_packets, merged): (u64, u64, u64),
        ) -> Option<u32> {
            (1..=limit).find(|_| {
                self.now += Duration::from_secs(1);
                self.sums.super_packets += super_packets;
                let to_pair = if self.choice.is_pair() { long } else { 0 };
                let Segments { long: old, to_pair: in_pair, merged: out, .. } = self.sums.segments;
                self.sums.segments = Segments {
                    long: old + long,
                    to_pair: in_pair + to_pair,
                    merged: out + if to_pair > 0 { merged } else { 0 },
                    ..Segments::default()
                };
                self.choice.look(&self.sums, self.now)
            })
        }
    }

    #[test]
    fn pair_is_chosen_for_single_segments_only() {
        let mut world = World::new(GroChoice::default());
        assert_eq!(world.until_change(100, (1000, 0, 0)), None, "too few");
        assert_eq!(world.until_change(100, (5000, 5000, 0)), None, "super packets pass");
        assert_eq!(world.until_change(100, (50_000, 3, 0)), Some(2));
        assert!(world.choice.is_pair() && world.choice.reason().contains("50000 long ones"));
        assert_eq!(world.until_change(100, (50_000, 3, 9000)), None, "it merges");
        assert_eq!(world.until_change(100, (0, 0, 0)), None, "a quiet host keeps it");
    }

    #[test]
    fn pair_is_left_when_it_does_not_help() {
        let mut world = World::new(GroChoice::adopted());
        assert_eq!(world.until_change(100, (5000, 0, 4900)), Some(10));
        assert!(world.choice.reason().contains("did not merge"), "{}", world.choice.reason());
        assert_eq!(world.until_change(1000, (5000, 0, 4900)), Some(60), "after a pause");
        assert_eq!(world.until_change(100, (100, 20_000, 50)), Some(10));
        assert!(world.choice.reason().contains("in super packets"), "{}", world.choice.reason());
        assert_eq!(world.until_change(1000, (5000, 0, 4900)), Some(120), "which is longer");
    }

    #[test]
    fn one_odd_second_changes_nothing() {
        let mut world = World::new(GroChoice::default());
        for _ in 0..20 {
            assert_eq!(world.until_change(1, (50_000, 0, 0)), None);
            assert_eq!(world.until_change(1, (10, 0, 0)), None);
        }
    }
}
