//! What the agent makes of what etcd says: lists, events, and what is wrong with them.
//!
//! Each function takes one answer, folds it into the map, and sends on what it means. None of them waits for etcd but to
//! ask it something about what it said.
//!
//! Invariant: the map's revision is that of the last event taken, never the header's: a header may be ahead of its events
//! when more of them follow (`syncWatchers` in etcd's `mvcc/watchable_store.go`).
#![forbid(unsafe_code)]

use std::time::Instant;

use etcd_client::{EventType, WatchResponse, WatchStream};

use super::acquire::{clash, network_of};
use super::agent::{Agent, End, unreachable_end};
use super::client::{FailureKind, Guard, Kv, Listing, Session};
use super::health::Health;
use super::liveness;
use super::map::Record;
use super::renew::{Verdict, judge, lost};
use crate::route::Change;
use crate::store::flannel::Network;
use crate::store::update::{Lost, LostCause, Notice, NoticeCode, Update};

/// Keys that are named in one notice.
const NAMED: usize = 3;

impl Agent {
    /// Reads the whole list for `cause`, and sends it.
    pub(crate) async fn resync(&mut self, session: &mut Session, cause: fn(&mut Health)) -> Result<(), End> {
        let listing = session.list(&self.node.keys.root(), None).await?;
        let heard = Instant::now();
        self.health.send_modify(cause);
        self.take(session, &listing, heard).await
    }

    async fn take(&mut self, session: &mut Session, listing: &Listing, heard: Instant) -> Result<(), End> {
        let bad = self.map.list(listing);
        self.report_bad(bad).await;
        match network_of(&self.node.keys, listing) {
            Ok((_, config)) => self.configured(config).await,
            Err(error) => self.say(Update::Notice(Notice::new(NoticeCode::NetworkInvalid, error.text))).await,
        }
        self.say(Update::Change(self.map.snapshot(), heard)).await;
        let others: Vec<String> = self.map.records().map(|record| record.kv.key.clone()).collect();
        for key in others {
            self.look_for_clash(session, &key).await?;
        }
        self.note_all();
        Ok(())
    }

    /// Takes what a watch brought. Returns whether the map is different.
    pub(crate) async fn heard(
        &mut self,
        session: &mut Session,
        response: &WatchResponse,
        stream: &mut WatchStream,
    ) -> Result<bool, End> {
        let heard = Instant::now();
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        if response.created() {
            if revision < self.map.revision() {
                // A backup was restored: nothing would come until the old revision is reached again.
                self.resync(session, |health| health.resyncs.rewound += 1).await?;
                *stream = session.watch(&self.node.keys.root(), self.map.revision() + 1).await?;
            }
            self.connected().await;
            return Ok(false);
        }
        let (mut events, mut bad, mut last) = (Vec::new(), Vec::new(), 0);
        let (mut written, mut own, bad_before) = (Vec::new(), false, self.map.bad().len());
        for event in response.events() {
            let Some(kv) = event.kv().map(Kv::of) else { continue };
            own |= kv.key == self.own.key && kv.mod_revision > self.own.mod_revision;
            last = kv.mod_revision;
            match event.event_type() {
                EventType::Delete => events.extend(self.map.delete(&kv.key, kv.mod_revision)),
                EventType::Put if kv.key == self.node.keys.config() => {
                    self.configured(String::from_utf8_lossy(&kv.value).into_owned()).await;
                }
                EventType::Put if kv.key == self.node.keys.question(&self.node.identity.id) => {
                    let notice = liveness::answer(session, &self.node, &kv).await?;
                    self.say(Update::Notice(notice)).await;
                }
                EventType::Put => {
                    let (event, reason) = self.map.put(&kv);
                    bad.extend(reason.map(|reason| (kv.key.clone(), reason)));
                    events.extend(event);
                    written.push(kv.key);
                }
            }
        }
        // With events the header may be ahead of them: more of its revision can follow. Without, it is a promise.
        self.map.reached(if response.events().is_empty() { revision } else { last });
        let changed = !events.is_empty();
        if changed {
            self.say(Update::Change(Change::Delta(events), heard)).await;
        }
        self.report_bad(bad).await;
        for key in written {
            self.look_for_clash(session, &key).await?;
        }
        if own {
            self.own_changed(session).await?;
        }
        // Bad keys that were deleted change no route, and are to be reported no longer.
        if self.map.bad().len() < bad_before {
            self.note_all();
        }
        self.note();
        Ok(changed)
    }

    /// Somebody wrote or deleted our key after we did.
    async fn own_changed(&mut self, session: &mut Session) -> Result<(), End> {
        let found = self.map.record(&self.own.key).map(|record| record.kv.clone());
        // What has been read is enough to know of a theft; the rest is settled with etcd.
        if let Verdict::Stolen(lost) = judge(&self.node, &self.own, found.as_ref()) {
            return Err(End::Lost(lost));
        }
        self.keep(session).await
    }

    /// etcd ended the watch.
    pub(crate) async fn cancelled(
        &mut self,
        session: &mut Session,
        response: &WatchResponse,
    ) -> Result<(), End> {
        if response.compact_revision() > 0 {
            return self.resync(session, |health| health.resyncs.compacted += 1).await;
        }
        Err(unreachable_end(session, &format!("the watch was cancelled: {}", response.cancel_reason())))
    }

    /// Reads the list as it was at our revision, and sets right what the watch has missed: nothing, if etcd and this code
    /// are right.
    pub(crate) async fn compare(&mut self, session: &mut Session, cause: fn(&mut Health)) -> Result<(), End> {
        let revision = self.map.revision();
        let listing = match session.list(&self.node.keys.root(), Some(revision)).await {
            Ok(listing) => listing,
            // Nothing was written for so long that etcd forgot: nothing to compare with, then.
            Err(failure) if failure.kind == FailureKind::RevisionGone => {
                return self.resync(session, cause).await;
            }
            Err(failure) => return Err(failure.into()),
        };
        let heard = Instant::now();
        self.health.send_modify(cause);
        let before = self.map.clone();
        let bad = self.map.list(&listing);
        let drifted: Vec<String> = before.differences(&self.map).into_iter().map(str::to_owned).collect();
        if drifted.is_empty() {
            return Ok(());
        }
        self.health.send_modify(|health| health.drift += u64::try_from(drifted.len()).unwrap_or(u64::MAX));
        self.report_bad(bad).await;
        let what = format!("the watch had missed {}: the map was set right", some_of(&drifted));
        self.say(Update::Notice(Notice::new(NoticeCode::Drift, what))).await;
        self.say(Update::Change(self.map.snapshot(), heard)).await;
        self.note();
        Ok(())
    }

    /// A lease at our address: one of the two nodes has to give way, the later one.
    async fn look_for_clash(&mut self, session: &mut Session, key: &str) -> Result<(), End> {
        let Some(record) = self.map.record(key).filter(|record| record.kv.key != self.own.key) else {
            return Ok(());
        };
        if !record.claims(&self.node.public) {
            self.clashes.remove(key);
            return Ok(());
        }
        let ours = record.node_id() == Some(self.node.identity.id.as_str());
        let other = record.node_id().is_some() && !ours;
        let before_us = record.kv.mod_revision < self.own.mod_revision;
        let sentence = clash(&self.node, record);
        if other && before_us && !self.clashes.contains(key) {
            let theirs = record.attributes.writer();
            // Both joined at the same instant. With our key there, peers would send our packets to the other.
            let given_way = session.delete(&self.own.key, &Guard::Version(self.own.mod_revision)).await;
            if let Err(failure) = given_way {
                tracing::warn!("the lease of {} could not be given back: {failure}", self.own.name());
            }
            return Err(End::Lost(Lost {
                reason: sentence,
                ..lost(&self.node, LostCause::AddressTaken, &self.own.name(), &theirs, "")
            }));
        }
        if self.clashes.insert(key.to_owned()) {
            self.say(Update::Notice(Notice::new(NoticeCode::AddressShared, sentence))).await;
        }
        Ok(())
    }

    /// After a change of our address: its last owner may be gone while its lease is not, so nobody has to give way.
    pub(crate) async fn report_clashes(&mut self) {
        let at_our_address =
            |record: &&Record| record.kv.key != self.own.key && record.claims(&self.node.public);
        let found: Vec<(String, String)> = self
            .map
            .records()
            .filter(at_our_address)
            .map(|record| (record.kv.key.clone(), clash(&self.node, record)))
            .collect();
        for (key, sentence) in found {
            if self.clashes.insert(key) {
                self.say(Update::Notice(Notice::new(NoticeCode::AddressShared, sentence))).await;
            }
        }
    }

    /// The network configuration is `config` now.
    async fn configured(&mut self, config: String) {
        if config == self.config {
            return;
        }
        let (code, sentence) = match Network::parse(&config) {
            Err(problem) => (
                NoticeCode::NetworkInvalid,
                format!("the network configuration in etcd was changed and is wrong: {problem}"),
            ),
            Ok(network) if network == self.network => {
                self.config = config;
                return;
            }
            Ok(_) => (
                NoticeCode::NetworkChanged,
                "the network configuration in etcd was changed: restart hopsack on every host".to_owned(),
            ),
        };
        self.config = config;
        self.say(Update::Notice(Notice::new(code, sentence))).await;
    }

    async fn report_bad(&mut self, bad: Vec<(String, String)>) {
        if let Some(sentence) = about_bad(&bad) {
            self.note_all();
            self.say(Update::Notice(Notice::new(NoticeCode::InvalidKeys, sentence))).await;
        }
    }
}

/// Keys that are no leases; `None`: there are none.
pub(crate) fn about_bad(bad: &[(String, String)]) -> Option<String> {
    let named: Vec<String> = bad.iter().map(|(key, reason)| format!("{key} ({reason})")).collect();
    (!bad.is_empty()).then(|| format!("not a lease, and left out: {}", some_of(&named)))
}

/// The first few, and how many more.
fn some_of(names: &[String]) -> String {
    let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
