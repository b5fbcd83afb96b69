//! What a store must be able to do to be watched, and the values that it returns.
#![forbid(unsafe_code)]

use std::future::Future;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kv {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    /// Revision of the write that created the key.
    pub(crate) create_revision: i64,
    /// Revision of the last write.
    pub(crate) mod_revision: i64,
    /// Id of the etcd lease that the key is attached to; 0 means none.
    pub(crate) lease: i64,
}

/// All keys under a prefix at one revision.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listing {
    pub(crate) revision: i64,
    pub(crate) kvs: Vec<Kv>,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyEvent {
    /// The key was written.
    Put(Kv),
    /// The key was deleted at this revision.
    Delete(String, i64),
}

impl KeyEvent {
    /// Key and revision of the change.
    pub(crate) fn key(&self) -> (&str, i64) {
        match self {
            Self::Put(kv) => (&kv.key, kv.mod_revision),
            Self::Delete(key, revision) => (key, *revision),
        }
    }
}

/// One message of a watch.
#[derive(Debug)]
pub(crate) enum Message {
    /// The watch is open, and the store is at this revision.
    Opened(i64),
    /// Changes, in order. Without changes, everything up to the revision has been delivered.
    Events(Vec<KeyEvent>, i64),
    /// The store ended the watch because it has compacted the start revision.
    Compacted,
    /// The store ended the watch for another reason.
    Cancelled(String),
}

/// The messages of one open watch.
pub(crate) trait Messages {
    /// Why a message did not arrive. The watch is over then.
    type Error;

    /// Waits for the next message. Cancel safe.
    fn message(&mut self) -> impl Future<Output = Result<Message, Self::Error>> + Send;
}

/// A store that can be listed and watched.
pub(crate) trait Source {
    /// Why a call failed.
    type Error;
    /// An open watch.
    type Watch: Messages<Error = Self::Error>;

    /// Lists all keys that begin with `prefix`, now or as they were at a revision.
    fn list(
        &mut self,
        prefix: &str,
        at: Option<i64>,
    ) -> impl Future<Output = Result<Listing, Self::Error>> + Send;

    /// Watches all keys that begin with `prefix`, from a revision on.
    fn watch(
        &mut self,
        prefix: &str,
        from: i64,
    ) -> impl Future<Output = Result<Self::Watch, Self::Error>> + Send;

    /// Whether the call failed because the store does not have the revision.
    fn is_revision_gone(error: &Self::Error) -> bool;
}
