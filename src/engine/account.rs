//! [`Account`]: what one worker counts.
//!
//! It sums and prints nothing. Invariant: each counter has one writer; errors, which are rare, are
//! counted under a lock.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::forward::Counters;

/// A system call of the data path, and a label of `hopsack_io_errors_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// A write to the overlay device.
    TunWrite,
    /// A receive from the underlay.
    UdpReceive,
    /// A send to the underlay.
    UdpSend,
}

impl Op {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TunWrite => "tun_write",
            Self::UdpReceive => "udp_receive",
            Self::UdpSend => "udp_send",
        }
    }
}

/// The counters of one worker, for any thread to read.
#[derive(Debug, Default)]
pub struct Account {
    /// Packets moved and dropped.
    pub counters: Counters,
    errors: Mutex<BTreeMap<(Op, i32), ErrorCount>>,
}

#[derive(Debug, Default)]
struct ErrorCount {
    count: u64,
    warned: Option<Instant>,
}

/// The time between two warnings of the same error.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

impl Account {
    /// Counts a failed system call, and warns at most once a minute for each call and error number.
    pub(super) fn error(&self, op: Op, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = errors.entry((op, errno)).or_default();
        entry.count += 1;
        let is_due = entry.warned.is_none_or(|warned| warned.elapsed() >= WARN_INTERVAL);
        if is_due {
            entry.warned = Some(Instant::now());
            tracing::warn!(op = op.label(), %error, count = entry.count, "system call of the data path failed");
        }
    }

    /// Failed system calls by call and error number.
    #[must_use]
    pub fn errors(&self) -> Vec<(Op, i32, u64)> {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors.iter().map(|((op, errno), entry)| (*op, *errno, entry.count)).collect()
    }
}
