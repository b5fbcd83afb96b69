//! What the agent does about lists and changes: each function takes one answer of etcd and sends on
//! what it means.
//!
//! None of them waits for etcd, except to ask it about what it just reported.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::agent::{Agent, End};
use super::choice::address_conflict;
use super::connection::Session;
use super::failure::Failure;
use super::guard::Guard;
use super::health::Resyncs;
use super::holdings::network_of;
use super::record::Record;
use super::renew::{Verdict, judge, lost};
use super::{lease_cache, liveness};
use crate::route::Change;
use crate::store::flannel::Network;
use crate::store::update::{Lost, LostCause, Notice, NoticeCode, Update};
use crate::store::watch::{Comparison, Delta, InvalidKey, Message, Relisted, Step};

/// Number of keys that one notice names.
const NAMED: usize = 3;

impl Agent {
    /// Takes one message of the watch. Returns whether routes changed.
    pub(crate) async fn take_message(
        &mut self,
        session: &mut Session,
        message: Message,
    ) -> Result<bool, End> {
        let received = Instant::now();
        match self.leases.apply(session, message).await? {
            Step::Opened => {
                self.report_watching().await;
                Ok(false)
            }
            Step::Compacted(relisted) => {
                self.take_list(session, relisted, |resyncs| resyncs.compacted += 1).await?;
                self.leases.open(session).await?;
                Ok(false)
            }
            Step::Rewound(relisted) => self.rewind(session, relisted).await.map(|()| false),
            Step::Changed(delta) => self.take_delta(session, delta, received).await,
            Step::Ended(reason) => {
                let what = format!("the watch was cancelled: {reason}");
                Err(Failure::unreachable(session.endpoint(), what).into())
            }
        }
    }

    /// Reads the whole list. `count` counts it by its cause.
    pub(crate) async fn resync(&mut self, session: &mut Session, count: fn(&mut Resyncs)) -> Result<(), End> {
        let relisted = self.leases.relist(session).await?;
        self.take_list(session, relisted, count).await
    }

    /// Compares the map with a list, and corrects what the watch has missed: nothing, if etcd and
    /// this code are right.
    pub(crate) async fn compare(
        &mut self,
        session: &mut Session,
        count: fn(&mut Resyncs),
    ) -> Result<(), End> {
        match self.leases.compare(session).await? {
            Comparison::Relisted(relisted) => self.take_list(session, relisted, count).await,
            Comparison::Rewound(relisted) => self.rewind(session, relisted).await,
            Comparison::Same => {
                self.health.send_modify(|health| count(&mut health.resyncs));
                Ok(())
            }
            Comparison::Drifted(keys, invalid) => {
                let received = Instant::now();
                let number = u64::try_from(keys.len()).unwrap_or(u64::MAX);
                self.health.send_modify(|health| {
                    count(&mut health.resyncs);
                    health.drift += number;
                });
                self.report_invalid(&invalid).await;
                let text = format!("the watch had missed {}: the map was corrected", first_few(&keys));
                self.notify(Notice::new(NoticeCode::Drift, text)).await;
                self.send(Update::Change(lease_cache::snapshot(self.leases.cache()), received)).await;
                self.update_health();
                Ok(())
            }
        }
    }

    /// Takes the list of a store that was restored from a backup, and watches from there.
    async fn rewind(&mut self, session: &mut Session, relisted: Relisted) -> Result<(), End> {
        self.take_list(session, relisted, |resyncs| resyncs.rewound += 1).await?;
        Ok(self.leases.open(session).await?)
    }

    async fn take_list(
        &mut self,
        session: &mut Session,
        relisted: Relisted,
        count: fn(&mut Resyncs),
    ) -> Result<(), End> {
        let received = Instant::now();
        self.health.send_modify(|health| count(&mut health.resyncs));
        self.report_invalid(&relisted.invalid).await;
        match network_of(&self.node.keys, &relisted.listing) {
            Ok((_, config)) => self.take_config(config).await,
            Err(error) => self.notify(Notice::new(NoticeCode::NetworkInvalid, error.text)).await,
        }
        self.send(Update::Change(lease_cache::snapshot(self.leases.cache()), received)).await;
        let keys: Vec<String> = self.leases.cache().objects().map(|record| record.kv.key.clone()).collect();
        for key in keys {
            self.resolve_conflict(session, &key).await?;
        }
        self.update_all_health();
        Ok(())
    }

    async fn take_delta(
        &mut self,
        session: &mut Session,
        delta: Delta<Record>,
        received: Instant,
    ) -> Result<bool, End> {
        let cache = self.leases.cache();
        let events: Vec<_> =
            delta.changed.into_iter().map(|changed| lease_cache::event(cache, changed)).collect();
        let has_changed = !events.is_empty();
        if has_changed {
            self.send(Update::Change(Change::Delta(events), received)).await;
        }
        // The cache has the changes already, so they are sent before anything that may fail.
        let question = self.node.keys.question(&self.node.identity.id);
        for kv in &delta.others {
            if kv.key == self.node.keys.config() {
                self.take_config(String::from_utf8_lossy(&kv.value).into_owned()).await;
            } else if kv.key == question {
                let notice = liveness::answer(session, &self.node, kv).await?;
                self.notify(notice).await;
            }
        }
        self.report_invalid(&delta.invalid).await;
        for (key, _) in &delta.touched {
            self.resolve_conflict(session, key).await?;
        }
        let is_own =
            |(key, revision): &(String, i64)| *key == self.own.key && *revision > self.own.mod_revision;
        if delta.touched.iter().any(is_own) {
            self.own_key_changed(session).await?;
        }
        // An invalid key that was deleted changes no route, but must not be reported any longer.
        if delta.repaired {
            self.update_invalid();
        }
        self.update_health();
        Ok(has_changed)
    }

    /// Another writer changed or deleted our key.
    async fn own_key_changed(&mut self, session: &mut Session) -> Result<(), End> {
        let found = self.leases.cache().get(&self.own.key).map(|record| record.kv.clone());
        // The event is enough to know of a theft. Everything else is settled with etcd.
        if let Verdict::Stolen(lost) = judge(&self.node, &self.own, found.as_ref()) {
            return Err(End::Lost(lost));
        }
        self.renew(session).await
    }

    /// Looks whether another lease has our address. One of the two nodes must give way: the one
    /// that joined later.
    async fn resolve_conflict(&mut self, session: &mut Session, key: &str) -> Result<(), End> {
        if key == self.own.key {
            return Ok(());
        }
        let record = self.leases.cache().get(key).filter(|record| record.claims(&self.node.public));
        let Some(record) = record else {
            self.conflicts.remove(key);
            return Ok(());
        };
        let is_another_hopsack = record.node_id().is_some_and(|id| id != self.node.identity.id);
        let joined_before_us = record.kv.mod_revision < self.own.mod_revision;
        let sentence = address_conflict(&self.node, record);
        if is_another_hopsack && joined_before_us && !self.conflicts.contains(key) {
            // Both joined at the same moment. With our key in place, peers would send our packets
            // to the other node.
            let theirs = record.attributes.writer();
            let deleted = session.delete(&self.own.key, &Guard::Version(self.own.mod_revision)).await;
            if let Err(failure) = deleted {
                tracing::warn!(lease = self.own.name(), %failure, "lease not given back: it expires by itself");
            }
            let lost = lost(&self.node, LostCause::AddressTaken, &self.own.name(), &theirs, "");
            return Err(End::Lost(Lost { reason: sentence, ..lost }));
        }
        if self.conflicts.insert(key.to_owned()) {
            self.notify(Notice::new(NoticeCode::AddressShared, sentence)).await;
        }
        Ok(())
    }

    /// Reports leases with our new address. The last node at that address may be gone while its
    /// lease is not, so no node gives way.
    pub(crate) async fn report_conflicts(&mut self) {
        let has_our_address =
            |record: &&Record| record.kv.key != self.own.key && record.claims(&self.node.public);
        let records = self.leases.cache().objects().filter(has_our_address);
        let found: Vec<(String, String)> =
            records.map(|record| (record.kv.key.clone(), address_conflict(&self.node, record))).collect();
        for (key, sentence) in found {
            if self.conflicts.insert(key) {
                self.notify(Notice::new(NoticeCode::AddressShared, sentence)).await;
            }
        }
    }

    /// Takes the network configuration. A running node reports a change and does not follow it.
    async fn take_config(&mut self, config: String) {
        if config == self.config {
            return;
        }
        let notice = match Network::parse(&config) {
            Ok(network) if network == self.network => None,
            Ok(_) => Some(Notice::new(
                NoticeCode::NetworkChanged,
                "the network configuration in etcd was changed: restart hopsack on every host",
            )),
            Err(error) => Some(Notice::new(
                NoticeCode::NetworkInvalid,
                format!("the network configuration in etcd was changed and is wrong: {error}"),
            )),
        };
        self.config = config;
        if let Some(notice) = notice {
            self.notify(notice).await;
        }
    }

    async fn report_invalid(&mut self, invalid: &[InvalidKey]) {
        if let Some(notice) = invalid_notice(invalid) {
            self.update_invalid();
            self.notify(notice).await;
        }
    }
}

/// The notice about invalid keys; `None` if there are none.
pub(crate) fn invalid_notice(invalid: &[InvalidKey]) -> Option<Notice> {
    let named: Vec<String> = invalid.iter().map(|(key, reason)| format!("{key} ({reason})")).collect();
    let text = || format!("invalid keys among the leases are ignored: {}", first_few(&named));
    (!invalid.is_empty()).then(|| Notice::new(NoticeCode::InvalidKeys, text()))
}

/// The first few, and how many more there are.
fn first_few(names: &[String]) -> String {
    let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
