//! [`OffloadSwitch`]: turns an offload off for a while after the kernel has refused it.
//!
//! It does not log and does not retry: the caller does. Invariant: an offload that is not wanted is
//! never on.

use std::time::Duration;

use crate::time::Nanos;

/// How long an offload stays off after a refusal, and how long bundles stay short after one was too
/// long. After that the route may lead through another network card.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(60);

/// One offload that the kernel may refuse.
#[derive(Debug, Clone, Copy)]
pub(super) struct OffloadSwitch {
    wanted: bool,
    off_until: Option<Nanos>,
}

impl OffloadSwitch {
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, off_until: None }
    }

    #[inline]
    pub(super) fn is_on(&self, now: Nanos) -> bool {
        self.wanted && self.off_until.is_none_or(|until| now >= until)
    }

    /// Turns the offload off for [`RETRY_AFTER`]. Returns whether it was on.
    pub(super) fn refuse(&mut self, now: Nanos) -> bool {
        let was_on = self.is_on(now);
        self.off_until = Some(now + RETRY_AFTER);
        was_on
    }
}
