//! A mark that packets were sent to a peer.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether packets were sent to a peer since the mark was taken. A worker writes it only if it is
/// not set, so that workers do not take the cache line from each other.
#[derive(Debug, Default)]
pub struct Traffic(AtomicBool);

impl Traffic {
    /// Sets the mark.
    #[inline]
    pub fn mark(&self) {
        if !self.0.load(Ordering::Relaxed) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Takes the mark away. Returns whether it was set.
    pub(super) fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

impl Clone for Traffic {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// A mark says nothing about which peer it is.
impl PartialEq for Traffic {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Traffic {}
