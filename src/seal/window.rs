//! The replay window of one sending key: records which of its newest counters have been seen.
//!
//! Any worker may receive a datagram that any worker of the peer has sealed (an attacker chooses
//! source ports, and with them our worker), so all workers share a window through atomics. A window
//! is a ring of words. Each word holds 32 bits for 32 counters, and the number of their lap around
//! the ring. One atomic exchange sets the first bit of a newer lap and replaces the older lap. So
//! nothing is ever cleared, and a counter is new for one thread only.
//!
//! It does not authenticate: only counters of authentic datagrams may be accepted.
//!
//! Invariant: [`Window::accept`] returns true at most once for a counter, however many threads call
//! it. Called by one thread, it returns true exactly for a counter that is unseen and less than
//! [`WINDOW`] behind the newest (property test `window_equals_its_slow_model`).
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::limits::MOST_PACKETS;

/// Number of counters in the window: a counter must be less than this behind the newest.
pub const WINDOW: u64 = 8192;
const BITS: u64 = 32;
/// One word more than the window fills, since it rarely begins at the first bit of a word; rounded
/// up to whole cache lines.
const WORDS: usize = (8192 / 32 + 1_usize).next_multiple_of(8);
const _: () = assert!(WORDS as u64 > WINDOW / BITS);

/// The counters of one key that have been seen. Counters begin at 1.
#[derive(Debug)]
pub struct Window {
    newest: AtomicU64,
    /// Each word holds a lap in its upper half, and the bits of seen counters in its lower half.
    words: [AtomicU64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { newest: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Window {
    /// Whether [`Window::accept`] would refuse the counter. Asking first is cheaper than opening
    /// the datagram.
    #[must_use]
    #[inline]
    pub fn is_spent(&self, counter: u64) -> bool {
        let Some((word, lap, bit)) = self.place(counter) else { return true };
        let seen = word.load(Relaxed);
        self.is_behind(counter) || lap < seen >> BITS || (lap == seen >> BITS && seen & bit != 0)
    }

    /// Marks a counter as seen. Returns whether it was new; only then may its packet pass.
    #[must_use]
    #[inline]
    pub fn accept(&self, counter: u64) -> bool {
        let Some((word, lap, bit)) = self.place(counter) else { return false };
        if self.is_behind(counter) {
            return false;
        }
        let mut seen = word.load(Relaxed);
        loop {
            let known = seen >> BITS;
            let is_spent = lap < known || (lap == known && seen & bit != 0);
            if is_spent {
                return false;
            }
            let marked = if lap == known { seen | bit } else { lap << BITS | bit };
            match word.compare_exchange_weak(seen, marked, Relaxed, Relaxed) {
                Ok(_) => break,
                Err(other) => seen = other,
            }
        }
        if counter > self.newest.load(Relaxed) {
            self.newest.fetch_max(counter, Relaxed);
        }
        true
    }

    /// The highest counter that was accepted; 0 if none was.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest.load(Relaxed)
    }

    fn is_behind(&self, counter: u64) -> bool {
        counter.saturating_add(WINDOW) <= self.newest.load(Relaxed)
    }

    /// Word, lap and bit of a counter; `None` for a counter that no sender uses.
    #[inline]
    fn place(&self, counter: u64) -> Option<(&AtomicU64, u64, u64)> {
        if counter == 0 || counter > MOST_PACKETS {
            return None;
        }
        let (at, lap) = (counter / BITS % WORDS as u64, counter / BITS / WORDS as u64);
        Some((&self.words[usize::try_from(at).ok()?], lap, 1 << (counter % BITS)))
    }
}

// A lap fits the upper half of a word.
const _: () = assert!(MOST_PACKETS / BITS / (WORDS as u64) < 1 << BITS);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A slow model: the set of all counters ever seen.
    #[derive(Default)]
    struct Model {
        seen: BTreeSet<u64>,
    }

    impl Model {
        fn accept(&mut self, counter: u64) -> bool {
            let newest = self.seen.last().copied().unwrap_or(0);
            let is_ours = (1..=MOST_PACKETS).contains(&counter);
            is_ours && counter + WINDOW > newest && self.seen.insert(counter)
        }
    }

    #[test]
    fn counters_at_the_window_edges() {
        let window = Window::default();
        assert!(!window.accept(0), "no sender uses counter 0");
        assert!(window.accept(1) && !window.accept(1));
        assert!(window.accept(WINDOW) && window.accept(2));
        assert!(window.accept(WINDOW + 2));
        assert!(!window.accept(2), "seen");
        assert!(window.accept(3), "it is the oldest in the window");
        assert!(window.accept(1 << 20));
        assert!(!window.accept((1 << 20) - WINDOW) && window.accept((1 << 20) - WINDOW + 1));
        assert!(window.is_spent((1 << 20) - WINDOW) && window.is_spent(1 << 20));
        assert!(!window.is_spent((1 << 20) - 1));
        assert!(window.accept(MOST_PACKETS) && !window.accept(MOST_PACKETS + 1) && !window.accept(u64::MAX));
    }

    #[test]
    fn only_one_thread_accepts_a_counter() {
        const COUNTERS: u64 = 200_000;
        const THREADS: u64 = 4;
        let window = Window::default();
        let accepted: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        (1..=COUNTERS).map(|counter| u64::from(window.accept(counter))).sum::<u64>()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert!(accepted <= COUNTERS, "{accepted}: a counter was accepted twice");
        assert_eq!(window.newest(), COUNTERS);
    }

    /// No counter falls out of the window here, so each must be accepted, and by one thread only.
    #[test]
    fn each_counter_in_the_window_is_accepted_by_one_thread() {
        const THREADS: usize = 4;
        for base in [1, 1 << 20, MOST_PACKETS - WINDOW + 1] {
            let (window, start) = (Window::default(), std::sync::Barrier::new(THREADS));
            let accepted: u64 = std::thread::scope(|scope| {
                let accept = || {
                    start.wait();
                    (base..base + WINDOW).map(|counter| u64::from(window.accept(counter))).sum::<u64>()
                };
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(accept)).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
            });
            assert_eq!(accepted, WINDOW, "from {base}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Small and huge steps forward, each followed by a counter some distance behind.
        #[test]
        fn window_equals_its_slow_model(
            steps in proptest::collection::vec(
                (
                    prop_oneof![8 => 0u64..3, 4 => 0u64..100, 2 => 0u64..20_000, 1 => 0u64..1 << 31],
                    prop_oneof![4 => 0u64..4, 4 => 0u64..200, 2 => 8100u64..8300, 1 => 0u64..30_000],
                ),
                1..400,
            ),
        ) {
            let (window, mut model, mut newest) = (Window::default(), Model::default(), 0u64);
            for (forward, back) in steps {
                newest += forward;
                for counter in [newest, newest.saturating_sub(back)] {
                    let (spent, accepted) = (window.is_spent(counter), model.accept(counter));
                    prop_assert_eq!(spent, !accepted, "{} before", counter);
                    prop_assert_eq!(window.accept(counter), accepted, "{}", counter);
                    prop_assert!(window.is_spent(counter), "{} after", counter);
                }
            }
        }
    }
}
