//! Reports of the store: whether it can be read, how old the map is, when our lease expires.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::etcd::Health;
use crate::api::{Explanation, ProblemCode, Status};
use crate::observe::{Encoder, Part, Pending, Problems};

/// The store as a part of the daemon's reports.
#[derive(Debug)]
pub struct StorePart {
    description: String,
    problems: Arc<Problems>,
    health: Mutex<Option<Health>>,
}

impl StorePart {
    /// `description` is the kind and the location of the store.
    #[must_use]
    pub fn new(description: String, problems: Arc<Problems>) -> Self {
        Self { description, problems, health: Mutex::default() }
    }

    /// The store cannot be read; the last good map stays in use.
    pub fn unavailable(&self, cause: impl Into<String>) {
        self.problems.raise(ProblemCode::StoreUnavailable, &self.description, cause);
    }

    /// The store can be read again.
    pub fn available(&self) {
        self.problems.end(ProblemCode::StoreUnavailable, &self.description);
    }

    /// Records what the store reports about itself.
    pub fn set_health(&self, health: Option<Health>) {
        if let Some(health) = &health {
            let invalid = health.bad_keys.iter().map(|(key, reason)| (key.clone(), reason.clone()));
            self.problems.replace(ProblemCode::LeaseInvalid, invalid.collect());
        }
        *self.health() = health;
    }

    /// Age of the map in use; 0 while the store keeps it up to date.
    fn map_age(&self) -> Duration {
        match &*self.health() {
            Some(health) => health.stale_since.and_then(|since| since.elapsed().ok()).unwrap_or_default(),
            None => {
                let since = self.problems.since(ProblemCode::StoreUnavailable);
                since.map_or(Duration::ZERO, |since| since.elapsed())
            }
        }
    }

    fn health(&self) -> MutexGuard<'_, Option<Health>> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part for StorePart {
    fn status(&self, status: &mut Status) {
        status.store.clone_from(&self.description);
        status.map_age_seconds = self.map_age().as_secs();
        let expires = self.health().as_ref().and_then(|health| health.lease_expires);
        status.lease_expires_seconds = expires.map(seconds_until);
    }

    fn explain<'a>(&'a self, explanation: &'a mut Explanation) -> Pending<'a> {
        explanation.store.clone_from(&self.description);
        explanation.map_age_seconds = self.map_age().as_secs();
        Box::pin(std::future::ready(()))
    }

    fn metrics(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
        let connected = i64::from(!self.problems.has(ProblemCode::StoreUnavailable));
        encoder.gauge("store_connected", "1 if the store can be read", connected)?;
        match &*self.health() {
            Some(health) => etcd_metrics(health, encoder),
            None => Ok(()),
        }
    }
}

fn etcd_metrics(health: &Health, encoder: &mut Encoder<'_>) -> fmt::Result {
    encoder.gauge("store_revision", "Revision of the store that the map is at", health.revision as f64)?;
    let help = "Keys under the leases' prefix that are not valid leases";
    encoder.gauge("store_bad_keys", help, health.bad_keys.len() as f64)?;
    if let Some(expires) = health.lease_expires {
        let since_epoch = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let help = "Time at which this host's lease expires unless it is renewed";
        encoder.gauge("lease_expires_timestamp_seconds", help, since_epoch.as_secs_f64())?;
    }
    let resyncs = &health.resyncs;
    let causes = [
        ("start", resyncs.start),
        ("compacted", resyncs.compacted),
        ("rewound", resyncs.rewound),
        ("periodic", resyncs.periodic),
        ("asked", resyncs.asked),
    ];
    let causes = causes.into_iter().map(|(cause, count)| ([("cause", cause)], count));
    encoder.counters("store_resyncs", "Times that the whole list of leases was read, by cause", causes)?;
    let help = "Leases in a periodic list that differed from what the watch had reported";
    encoder.counter("store_drift", help, health.drift)?;
    let renewals = &health.renewals;
    let results = [
        ("renewed", renewals.renewed),
        ("failed", renewals.failed),
        ("recreated", renewals.recreated),
        ("rewritten", renewals.rewritten),
    ];
    let results = results.into_iter().map(|(result, count)| ([("result", result)], count));
    encoder.counters("lease_renewals", "Renewals of this host's lease, by result", results)
}

/// Seconds until `time`; negative if it is past.
fn seconds_until(time: SystemTime) -> i64 {
    let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::now()) {
        Ok(left) => seconds(left),
        Err(past) => -seconds(past.duration()),
    }
}
