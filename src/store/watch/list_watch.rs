//! Keeps a [`Cache`] up to date by a watch, and by lists where a watch cannot continue.
//!
//! Rules of a watch that every client must keep:
//! * After a break, the watch continues at the next revision. Nothing is listed again.
//! * After a compaction, the events since our revision are gone. The list replaces them.
//! * If the store is at a lower revision than we are, it was restored from a backup. A watch would
//!   deliver nothing until the old revision is reached again, so the list replaces everything and
//!   the watch begins again.
//! * With events, the revision in a message may be ahead of them: more events of that revision can
//!   follow (`syncWatchers` in etcd's `mvcc/watchable_store.go`). Only a message without events is
//!   a promise.
//!
//! Invariant: [`ListWatch::message`] changes nothing, so that its future may be dropped at any
//! await.
#![forbid(unsafe_code)]

use super::cache::{Cache, Changed, PutResult};
use super::decode::{Decode, InvalidKey};
use super::source::{KeyEvent, Kv, Listing, Message, Messages, Source};

/// A watched copy of all objects under one prefix.
#[derive(Debug)]
pub(crate) struct ListWatch<D: Decode, S: Source> {
    prefix: String,
    cache: Cache<D>,
    watch: Option<S::Watch>,
}

/// What a message meant.
#[derive(Debug)]
pub(crate) enum Step<T> {
    /// The watch is open: the cache will be kept up to date from now on.
    Opened,
    /// The store had compacted our revision. The list was read again, and no watch is open.
    Compacted(Relisted),
    /// The store was at a lower revision than we were. The list was read again, and the open watch
    /// is useless.
    Rewound(Relisted),
    /// Objects changed.
    Changed(Delta<T>),
    /// The store ended the watch for this reason. The connection is of no use any more.
    Ended(String),
}

/// A list that replaced the whole cache.
#[derive(Debug)]
pub(crate) struct Relisted {
    /// All keys, including those that are no objects.
    pub(crate) listing: Listing,
    /// Keys that are invalid and were not known as such.
    pub(crate) invalid: Vec<InvalidKey>,
}

/// Changes that one message brought.
#[derive(Debug)]
pub(crate) struct Delta<T> {
    /// Changes of objects, in order.
    pub(crate) changed: Vec<Changed<T>>,
    /// Every key that was written or deleted, with the revision.
    pub(crate) touched: Vec<(String, i64)>,
    /// Written keys that are no objects.
    pub(crate) others: Vec<Kv>,
    /// Keys that are invalid and were not known as such.
    pub(crate) invalid: Vec<InvalidKey>,
    /// Whether some key is not invalid any more.
    pub(crate) repaired: bool,
}

/// Result of comparing the cache with a list of the same revision.
#[derive(Debug)]
pub(crate) enum Comparison {
    /// The cache is right.
    Same,
    /// The watch had missed changes of these keys; the cache was corrected.
    Drifted(Vec<String>, Vec<InvalidKey>),
    /// The store has compacted our revision, and the list was read again. The watch goes on.
    Relisted(Relisted),
    /// The store is at a lower revision than we were, because it was restored from a backup. The
    /// list was read again, and the open watch is useless.
    Rewound(Relisted),
}

impl<D: Decode + Clone, S: Source> ListWatch<D, S> {
    /// A cache that is not watched yet.
    pub(crate) fn new(prefix: String, cache: Cache<D>) -> Self {
        Self { prefix, cache, watch: None }
    }

    pub(crate) fn cache(&self) -> &Cache<D> {
        &self.cache
    }

    /// Opens a watch that continues where the cache is.
    pub(crate) async fn open(&mut self, source: &mut S) -> Result<(), S::Error> {
        self.watch = Some(source.watch(&self.prefix, self.cache.revision() + 1).await?);
        Ok(())
    }

    /// Waits for the next message of the open watch. Cancel safe.
    pub(crate) async fn message(&mut self) -> Result<Message, S::Error> {
        match &mut self.watch {
            Some(watch) => watch.message().await,
            None => std::future::pending().await,
        }
    }

    /// Applies a message to the cache. After a list was read again, the caller takes the list
    /// first, and then calls [`ListWatch::open`]: if opening fails, the list must not be lost.
    pub(crate) async fn apply(
        &mut self,
        source: &mut S,
        message: Message,
    ) -> Result<Step<D::Object>, S::Error> {
        match message {
            Message::Opened(revision) if revision < self.cache.revision() => {
                Ok(Step::Rewound(self.relist(source).await?))
            }
            Message::Opened(_) => Ok(Step::Opened),
            Message::Compacted => Ok(Step::Compacted(self.relist(source).await?)),
            Message::Cancelled(reason) => Ok(Step::Ended(reason)),
            Message::Events(events, revision) => Ok(Step::Changed(self.take(events, revision))),
        }
    }

    fn take(&mut self, events: Vec<KeyEvent>, revision: i64) -> Delta<D::Object> {
        let invalid_before = self.cache.invalid().len();
        let mut delta = Delta {
            changed: Vec::new(),
            touched: events.iter().map(|event| (event.key().0.to_owned(), event.key().1)).collect(),
            others: Vec::new(),
            invalid: Vec::new(),
            repaired: false,
        };
        // With events, the revision of the message may be ahead of them.
        let reached = events.last().map_or(revision, |event| event.key().1);
        for event in events {
            match event {
                KeyEvent::Delete(key, revision) => delta.changed.extend(self.cache.delete(&key, revision)),
                KeyEvent::Put(kv) => match self.cache.put(&kv) {
                    PutResult::Known => {}
                    PutResult::Object(object) => delta.changed.push(Changed::Put(object)),
                    PutResult::Invalid { removed, news } => {
                        delta.changed.extend(removed);
                        delta.invalid.extend(news.map(|reason| (kv.key, reason)));
                    }
                    PutResult::Other => delta.others.push(kv),
                },
            }
        }
        self.cache.reached(reached);
        delta.repaired = self.cache.invalid().len() < invalid_before;
        delta
    }

    /// Replaces the cache by a list.
    pub(crate) async fn relist(&mut self, source: &mut S) -> Result<Relisted, S::Error> {
        let listing = source.list(&self.prefix, None).await?;
        let invalid = self.cache.replace(&listing);
        Ok(Relisted { listing, invalid })
    }

    /// Lists the store as it was at the revision of the cache, and corrects the cache if the watch
    /// has missed anything. After [`Comparison::Rewound`] the caller takes the list, and then
    /// calls [`ListWatch::open`].
    pub(crate) async fn compare(&mut self, source: &mut S) -> Result<Comparison, S::Error> {
        let listing = match source.list(&self.prefix, Some(self.cache.revision())).await {
            Ok(listing) => listing,
            // There is nothing to compare with: either nothing was written for so long that the
            // store compacted our revision, or the store has not reached our revision since it was
            // restored.
            Err(error) if S::is_revision_gone(&error) => {
                let before = self.cache.revision();
                let relisted = self.relist(source).await?;
                let is_lower = self.cache.revision() < before;
                return Ok(if is_lower {
                    Comparison::Rewound(relisted)
                } else {
                    Comparison::Relisted(relisted)
                });
            }
            Err(error) => return Err(error),
        };
        let before = self.cache.clone();
        let invalid = self.cache.replace(&listing);
        let drifted: Vec<String> = before.differences(&self.cache).into_iter().map(str::to_owned).collect();
        Ok(if drifted.is_empty() { Comparison::Same } else { Comparison::Drifted(drifted, invalid) })
    }
}
