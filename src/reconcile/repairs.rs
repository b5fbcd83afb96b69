//! Counters of repairs, as metrics.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::desired::Object;
use crate::observe::{Encoder, Part};

/// Repairs since the start, by the kind of object.
#[derive(Debug, Default)]
pub struct Repairs([AtomicU64; Object::ALL.len()]);

impl Repairs {
    pub(super) fn count(&self, object: Object) {
        self.0[object as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Number of repairs of one kind of object.
    #[must_use]
    pub fn get(&self, object: Object) -> u64 {
        self.0[object as usize].load(Ordering::Relaxed)
    }
}

impl Part for Repairs {
    fn metrics(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
        let help = "Repairs of kernel objects and files that another program had changed";
        let count = |object: Object| ([("object", object.word())], self.get(object));
        encoder.counters("repairs", help, Object::ALL.map(count))
    }
}
