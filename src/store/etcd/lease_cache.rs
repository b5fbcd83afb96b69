//! The watched leases, and what they mean for the map of routes.
#![forbid(unsafe_code)]

use super::record::{LeaseDecoder, Record};
use crate::route::{Change, Event};
use crate::store::watch::{Cache, Changed};

/// A copy of all leases.
pub(crate) type LeaseCache = Cache<LeaseDecoder>;

/// All leases as one change.
pub(crate) fn snapshot(cache: &LeaseCache) -> Change {
    let lease = |record: &Record| record.lease(|revision| cache.exposed(revision));
    Change::Snapshot {
        leases: cache.objects().map(lease).collect(),
        revision: cache.exposed(cache.revision()),
    }
}

/// A changed lease as an event.
pub(crate) fn event(cache: &LeaseCache, changed: Changed<Record>) -> Event {
    match changed {
        Changed::Put(record) => Event::Put(record.lease(|revision| cache.exposed(revision))),
        Changed::Removed(record, revision) => {
            Event::Delete { subnets: record.subnets, revision: cache.exposed(revision) }
        }
    }
}

#[cfg(test)]
mod tests;
