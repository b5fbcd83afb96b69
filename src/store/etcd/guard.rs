//! Guarded writes: a condition that etcd checks in the same transaction as the write.
#![forbid(unsafe_code)]

use crate::store::watch::Kv;

/// What must hold for a write to happen.
#[derive(Debug, Clone)]
pub(crate) enum Guard {
    /// No key begins with this: neither the lease itself, nor a lease of the same IPv4 subnet with
    /// some IPv6 subnet.
    NoKey(String),
    /// The key does not exist, and no key with this prefix was written after this revision.
    Unwritten(String, i64),
    /// The key has this revision; 0 means that it does not exist.
    Version(i64),
}

/// Result of a guarded write.
#[derive(Debug)]
pub(crate) enum Written {
    /// The write happened at this revision.
    At(i64),
    /// The guard did not hold. The key is as given here.
    Not(Option<Kv>),
}
