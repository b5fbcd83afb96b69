//! How a thread waits for the next packet: asleep in epoll_wait(2), or spinning for a while before, since to wake a CPU takes
//! longer than to carry a packet (DATAPLANE.md §4.7).
//!
//! A spin pays only if the next packet comes within the window. So it begins after waits that were short but for the time
//! that waking takes, ends with the first that was in vain, and then waits for twice as many short ones. It rests while any
//! worker moves bulk: then the CPUs have better to do, and a queue that never empties needs no spin. Between two looks the
//! CPU is offered to whoever else wants it, the application above all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::yield_now;
use std::time::Duration;

use crate::sys::epoll::Epoll;
use crate::sys::now;
use crate::time::Nanos;

/// Windows that a wait may have lasted to count as short: a sleep has the waking of this CPU and the peer's in it, up to
/// three of them, which a spin on both sides takes away.
const SHORT: u64 = 4;
/// Waits in a row that must have been short, at first and after many spins in vain.
const STREAK: u32 = 2;
const MAX_STREAK: u32 = 64;
/// Bytes that one turn brings only of bulk.
const BULK: usize = 16 * 1024;
/// How long bulk is remembered: longer than a turn takes.
const REST: u64 = 10_000_000;

/// When bulk was last moved by any worker of the engine, in nanoseconds.
#[derive(Debug, Clone, Default)]
pub(super) struct LastBulk(Arc<AtomicU64>);

/// Of one thread.
#[derive(Debug)]
pub(super) struct Spin {
    /// In nanoseconds; 0: never.
    window: u64,
    /// Waits in a row that were short.
    streak: u32,
    /// How many there must be.
    needed: u32,
    bulk: LastBulk,
}

impl Spin {
    /// With a window of `microseconds`, or of none where there is one CPU: there, who spins keeps the others from running.
    pub(super) fn new(microseconds: u16, bulk: LastBulk) -> Self {
        let several = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        Self {
            window: if several { u64::from(microseconds) * 1000 } else { 0 },
            streak: 0,
            needed: STREAK,
            bulk,
        }
    }

    /// Waits from `start` on with `look`, which waits for so long (`None`: for ever) and says whether there is anything.
    /// Returns whether it has spun.
    pub(super) fn wait(
        &mut self,
        epoll: &mut Epoll,
        start: Nanos,
        mut look: impl FnMut(&mut Epoll, Option<Duration>) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let (mut is_there, until) = (false, self.until(start));
        if let Some(until) = until {
            while !is_there && now() < until {
                yield_now();
                is_there = look(epoll, Some(Duration::ZERO))?;
            }
            self.spun(is_there);
        }
        if !is_there {
            look(epoll, None)?;
        }
        if self.window > 0 {
            self.waited(start, now());
        }
        Ok(until.is_some())
    }

    /// Until when to spin before the next sleep, which begins `now`.
    fn until(&self, now: Nanos) -> Option<Nanos> {
        let is_close = self.window > 0 && self.streak >= self.needed;
        let no_bulk = || now.0.saturating_sub(self.bulk.0.load(Ordering::Relaxed)) > REST;
        (is_close && no_bulk()).then(|| Nanos(now.0 + self.window))
    }

    /// What was awaited from `start` on, by spinning or asleep, came at `end`.
    fn waited(&mut self, start: Nanos, end: Nanos) {
        let is_short = end.0.saturating_sub(start.0) < SHORT * self.window;
        self.streak = if is_short { self.streak.saturating_add(1) } else { 0 };
    }

    /// A spin brought something, or did not.
    fn spun(&mut self, has_paid: bool) {
        if has_paid {
            self.needed = STREAK;
        } else {
            self.streak = 0;
            self.needed = (self.needed * 2).min(MAX_STREAK);
        }
    }

    /// A turn moved so many bytes.
    pub(super) fn moved(&self, bytes: usize, now: Nanos) {
        if self.window > 0 && bytes >= BULK {
            self.bulk.0.store(now.0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_come_soon_begin_a_spin_and_one_that_does_not_ends_it() {
        if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1) {
            assert_eq!(Spin::new(50, LastBulk::default()).window, 0);
            return;
        }
        let mut spin = Spin::new(50, LastBulk::default());
        let at = |us: u64| Nanos(1_000_000_000 + us * 1000);
        assert_eq!(spin.until(at(0)), None, "nothing is known yet");
        spin.waited(at(0), at(120));
        assert_eq!(spin.until(at(120)), None, "once is chance");
        spin.waited(at(120), at(240));
        assert_eq!(spin.until(at(240)), Some(at(290)));
        spin.spun(true);
        spin.waited(at(240), at(260));
        assert_eq!(spin.until(at(260)), Some(at(310)), "it goes on");
        spin.spun(false);
        spin.waited(at(260), at(400));
        spin.waited(at(400), at(540));
        assert_eq!(spin.until(at(540)), None, "in vain: twice as many now");
        spin.waited(at(540), at(680));
        spin.waited(at(680), at(820));
        assert_eq!(spin.until(at(820)), Some(at(870)));
        spin.waited(at(820), at(1820));
        assert_eq!(spin.until(at(1820)), None, "a long wait");
    }

    #[test]
    fn nobody_spins_beside_bulk() {
        let bulk = LastBulk::default();
        let (mut one, other) = (Spin::new(50, bulk.clone()), Spin::new(50, bulk));
        let at = |us: u64| Nanos(1_000_000_000 + us * 1000);
        one.waited(at(0), at(1));
        one.waited(at(1), at(2));
        let several = one.window > 0;
        assert_eq!(one.until(at(2)).is_some(), several);
        other.moved(60_000, at(3));
        assert_eq!(one.until(at(4)), None);
        assert_eq!(one.until(at(3 + 10_001)).is_some(), several, "it has ended");
        let mut never = Spin::new(0, LastBulk::default());
        never.waited(at(0), at(0));
        never.waited(at(0), at(0));
        assert_eq!(never.until(at(1)), None);
    }
}
