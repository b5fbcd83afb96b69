//! How the kernel schedules the threads of the workers.
//!
//! A packet waits until its thread runs. With the kernel's usual time slice of about 3 ms, a thread
//! that wakes beside a busy program may wait for all of that. So workers ask for a short slice,
//! which needs no privilege. Real-time priority is only for threads that never carry a bulk
//! transfer, and only if it is configured: a real-time thread that always has work takes the CPU
//! from all other programs.
//!
//! Invariant: a thread that is refused real-time priority has the short slice.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::api::ThreadRow;
use crate::sys::sched::{self, Policy};

/// Slice of a thread for small packets: the shortest that the kernel gives.
const SMALL_SLICE: Duration = Duration::from_micros(100);
/// Slice of a thread that may carry a bulk transfer: a few turns, so that its copies stay in the
/// cache.
const BULK_SLICE: Duration = Duration::from_micros(500);

/// What a thread carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// Small packets: a worker with a bulk transfer moves to another thread.
    Small,
    /// Anything.
    Any,
}

/// Sets the scheduling of this thread.
pub(super) fn set(load: Load, wants_realtime: bool) {
    if wants_realtime && load == Load::Small {
        match sched::set_realtime() {
            Ok(()) => return,
            Err(error) => tracing::warn!(
                code = "realtime_refused",
                %error,
                "no real-time priority for a worker thread (dataplane.realtime): it needs CAP_SYS_NICE, and \
                 RestrictRealtime=no in a systemd unit"
            ),
        }
    }
    let slice = if load == Load::Small { SMALL_SLICE } else { BULK_SLICE };
    if let Err(error) = sched::set_slice(slice) {
        tracing::debug!(%error, "time slice of a worker thread not set");
    }
}

/// The threads that run, by name and number.
#[derive(Debug, Clone, Default)]
pub(super) struct RunningThreads(Arc<Mutex<Vec<(String, i32)>>>);

impl RunningThreads {
    /// This thread runs under this name.
    pub(super) fn add(&self, name: String) {
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        threads.push((name, sched::thread_id()));
        threads.sort();
    }

    /// All threads have ended.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How the kernel schedules each thread now. A thread that has ended is left out.
    pub(super) fn rows(&self) -> Vec<ThreadRow> {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let row = |(name, id): &(String, i32)| {
            let now = sched::scheduling(*id).ok()?;
            let policy = match now.policy {
                Policy::Other => "other",
                Policy::Fifo => "fifo",
                Policy::Unknown => "unknown",
            };
            let slice_us = now.slice.and_then(|slice| u64::try_from(slice.as_micros()).ok());
            Some(ThreadRow { name: name.clone(), policy: policy.to_owned(), slice_us, nice: now.nice })
        };
        threads.iter().filter_map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_reports_what_is_in_force() {
        let threads = RunningThreads::default();
        let row = |load, wants_realtime| {
            let threads = threads.clone();
            let run = move || {
                set(load, wants_realtime);
                threads.add("hopsack-w0".to_owned());
                let rows = threads.rows();
                threads.clear();
                rows
            };
            let rows = std::thread::spawn(run).join().expect("no panic");
            let [row] = &rows[..] else { panic!("{rows:?}") };
            row.clone()
        };
        for (load, slice) in [(Load::Small, SMALL_SLICE), (Load::Any, BULK_SLICE)] {
            let row = row(load, false);
            assert_eq!(row.policy, "other");
            assert!(row.slice_us.is_none_or(|us| u128::from(us) == slice.as_micros()), "{row:?}");
        }
        assert_eq!(row(Load::Any, true).policy, "other", "a thread that may carry bulk");
        let small = row(Load::Small, true);
        // Without the privilege, the short slice is in force.
        let slice = small.slice_us.is_none_or(|us| us == 100);
        assert!(small.policy == "fifo" || (small.policy == "other" && slice), "{small:?}");
        assert!(threads.rows().is_empty());
    }
}
