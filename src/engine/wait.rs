//! [`Spin`]: how a thread waits for the next packet. It sleeps in epoll_wait(2), or spins for a
//! while before that, because waking a CPU takes longer than forwarding a packet.
//!
//! A spin pays only if the next packet comes within the window. So spinning starts after several
//! waits that were short apart from the time that waking takes, and it ends with the first spin in
//! vain; then it needs twice as many short waits. It pauses while any worker moves bulk: then other
//! threads need the CPUs, and a queue that is never empty needs no spin. Between two looks the
//! thread yields the CPU to any other thread, above all to the application.
//!
//! It reads no packet. Invariant: with a window of 0, or with one CPU, it never spins.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::yield_now;
use std::time::Duration;

use super::policy::{BULK_TURN_BYTES, BULK_TURN_MEMORY};
use crate::sys::epoll::Epoll;
use crate::sys::now;
use crate::time::Nanos;

/// A wait that lasted less than this many windows is short. A sleep includes the time to wake this
/// CPU and that of the peer, up to three windows, which a spin on both sides avoids.
const SHORT_WAIT_WINDOWS: u32 = 4;
/// How many waits in a row must have been short before the first spin, and after many spins in
/// vain.
const MIN_STREAK: u32 = 2;
const MAX_STREAK: u32 = 64;

/// When a worker of the engine last moved bulk. All threads of the engine share it.
#[derive(Debug, Clone, Default)]
pub(super) struct LastBulk(Arc<AtomicU64>);

impl LastBulk {
    fn get(&self) -> Nanos {
        Nanos(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, now: Nanos) {
        self.0.store(now.0, Ordering::Relaxed);
    }
}

/// The state of one thread.
#[derive(Debug)]
pub(super) struct Spin {
    /// How long a spin lasts. Zero means never.
    window: Duration,
    /// How many waits in a row were short.
    streak: u32,
    /// How many short waits a spin needs.
    needed: u32,
    last_bulk: LastBulk,
}

impl Spin {
    /// Spins for `microseconds`. With one CPU it never spins, because a spin would keep the other
    /// threads from running.
    pub(super) fn new(microseconds: u16, last_bulk: LastBulk) -> Self {
        let has_several_cpus = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        let window =
            if has_several_cpus { Duration::from_micros(microseconds.into()) } else { Duration::ZERO };
        Self { window, streak: 0, needed: MIN_STREAK, last_bulk }
    }

    /// Waits for work from `start` on. `look` waits for at most the given time (`None`: no limit)
    /// and returns whether there is work. Returns whether the thread has spun.
    pub(super) fn wait(
        &mut self,
        epoll: &mut Epoll,
        start: Nanos,
        mut look: impl FnMut(&mut Epoll, Option<Duration>) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let (mut has_work, until) = (false, self.until(start));
        if let Some(until) = until {
            while !has_work && now() < until {
                yield_now();
                has_work = look(epoll, Some(Duration::ZERO))?;
            }
            self.spun(has_work);
        }
        if !has_work {
            look(epoll, None)?;
        }
        if !self.window.is_zero() {
            self.waited(start, now());
        }
        Ok(until.is_some())
    }

    /// The end of the spin before a sleep that begins `now`; `None` if the thread should not spin.
    fn until(&self, now: Nanos) -> Option<Nanos> {
        let is_likely = !self.window.is_zero() && self.streak >= self.needed;
        let no_bulk = || now.since(self.last_bulk.get()) > BULK_TURN_MEMORY;
        (is_likely && no_bulk()).then(|| now + self.window)
    }

    /// A wait, by spinning or asleep, lasted from `start` to `end`.
    fn waited(&mut self, start: Nanos, end: Nanos) {
        let is_short = end.since(start) < self.window * SHORT_WAIT_WINDOWS;
        self.streak = if is_short { self.streak.saturating_add(1) } else { 0 };
    }

    /// A spin has ended, with work or in vain.
    fn spun(&mut self, has_work: bool) {
        if has_work {
            self.needed = MIN_STREAK;
        } else {
            self.streak = 0;
            self.needed = (self.needed * 2).min(MAX_STREAK);
        }
    }

    /// A turn moved this many bytes.
    pub(super) fn moved(&self, bytes: usize, now: Nanos) {
        if !self.window.is_zero() && bytes >= BULK_TURN_BYTES {
            self.last_bulk.set(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(us: u64) -> Nanos {
        Nanos::from_micros(1_000_000 + us)
    }

    #[test]
    fn short_waits_start_a_spin_and_a_vain_spin_ends_it() {
        if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1) {
            assert_eq!(Spin::new(50, LastBulk::default()).window, Duration::ZERO);
            return;
        }
        let mut spin = Spin::new(50, LastBulk::default());
        assert_eq!(spin.until(at(0)), None, "nothing is known yet");
        spin.waited(at(0), at(120));
        assert_eq!(spin.until(at(120)), None, "one short wait may be chance");
        spin.waited(at(120), at(240));
        assert_eq!(spin.until(at(240)), Some(at(290)));
        spin.spun(true);
        spin.waited(at(240), at(260));
        assert_eq!(spin.until(at(260)), Some(at(310)), "it goes on");
        spin.spun(false);
        spin.waited(at(260), at(400));
        spin.waited(at(400), at(540));
        assert_eq!(spin.until(at(540)), None, "it needs twice as many now");
        spin.waited(at(540), at(680));
        spin.waited(at(680), at(820));
        assert_eq!(spin.until(at(820)), Some(at(870)));
        spin.waited(at(820), at(1820));
        assert_eq!(spin.until(at(1820)), None, "a long wait");
    }

    #[test]
    fn no_thread_spins_beside_bulk() {
        let bulk = LastBulk::default();
        let (mut one, other) = (Spin::new(50, bulk.clone()), Spin::new(50, bulk));
        one.waited(at(0), at(1));
        one.waited(at(1), at(2));
        let has_several_cpus = !one.window.is_zero();
        assert_eq!(one.until(at(2)).is_some(), has_several_cpus);
        other.moved(60_000, at(3));
        assert_eq!(one.until(at(4)), None);
        assert_eq!(one.until(at(3 + 10_001)).is_some(), has_several_cpus, "the transfer has ended");
        let mut never = Spin::new(0, LastBulk::default());
        never.waited(at(0), at(0));
        never.waited(at(0), at(0));
        assert_eq!(never.until(at(1)), None);
    }
}
