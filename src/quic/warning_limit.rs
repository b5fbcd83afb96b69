//! Limits how often the same warning is logged.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Shortest time between two warnings of one kind.
const INTERVAL: Duration = Duration::from_secs(60);

/// When a warning was logged last.
#[derive(Debug, Default)]
pub(super) struct WarningLimit(Cell<Option<Instant>>);

impl WarningLimit {
    /// Whether the warning may be logged now. If so, the caller must log it: the interval starts.
    pub(super) fn allows(&self) -> bool {
        let is_allowed = self.0.get().is_none_or(|at| at.elapsed() >= INTERVAL);
        if is_allowed {
            self.0.set(Some(Instant::now()));
        }
        is_allowed
    }

    /// The cause is gone: the next warning is logged at once.
    pub(super) fn reset(&self) {
        self.0.set(None);
    }
}
