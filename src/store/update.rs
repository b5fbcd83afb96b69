//! What a store tells the node: the cluster at the start, and every change after that.
//!
//! These are plain values. Sentences are for the operator; code that must decide something uses the
//! codes.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Instant;

use crate::route::{Change, Lease, Networks};

/// Facts about the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Address space of the overlay.
    pub networks: Networks,
    /// UDP port of every host; `None` if the store does not say.
    pub port: Option<u16>,
}

/// What a node learns when it joins.
#[derive(Debug)]
pub struct Opened {
    /// Facts about the cluster.
    pub cluster: Cluster,
    /// Lease of this host.
    pub lease: Lease,
    /// All leases, as a [`Change::Snapshot`].
    pub snapshot: Change,
}

/// What happened after the node joined.
#[derive(Debug)]
pub enum Update {
    /// The map changed. The time is when this process received the change.
    Change(Change, Instant),
    /// The store works again after an [`Update::Trouble`].
    Recovered,
    /// The map cannot be read and the last good one stays in use. The text is one sentence for the
    /// operator.
    Trouble(String),
    /// The map is up to date, but the operator should know this.
    Notice(Notice),
    /// Another host has our lease. The node stops forwarding and exits with code 1; no update
    /// follows.
    Lost(Lost),
}

/// Something that the operator should know, and that changes no route by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Which notice this is.
    pub code: NoticeCode,
    /// One sentence for the operator.
    pub text: String,
}

impl Notice {
    /// A notice with its sentence.
    pub fn new(code: NoticeCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// The sentence, with the code behind it.
impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.code.label())
    }
}

/// Stable codes of notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeCode {
    /// The map on disk was refused, and etcd was used.
    SnapshotRefused,
    /// Keys among the leases are invalid and are ignored.
    InvalidKeys,
    /// The network configuration in etcd was changed while nodes run.
    NetworkChanged,
    /// The network configuration in etcd is missing or wrong.
    NetworkInvalid,
    /// A list found leases that the watch had not reported.
    Drift,
    /// Another lease has our address.
    AddressShared,
    /// Another host has a copy of our state directory.
    StateCopied,
    /// A flanneld with our address wrote our key; the key was rewritten.
    WrittenByFlanneld,
    /// Another hopsack with our id and address wrote our key; the key was rewritten.
    WrittenByTwin,
    /// Our key held an invalid value; the key was rewritten.
    WrittenInvalid,
    /// Our lease had expired or was deleted, and was created again.
    LeaseRecreated,
}

impl NoticeCode {
    /// The code as it appears in the log.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::SnapshotRefused => "snapshot_refused",
            Self::InvalidKeys => "invalid_keys",
            Self::NetworkChanged => "network_changed",
            Self::NetworkInvalid => "network_invalid",
            Self::Drift => "drift",
            Self::AddressShared => "address_shared",
            Self::StateCopied => "state_copied",
            Self::WrittenByFlanneld => "written_by_flanneld",
            Self::WrittenByTwin => "written_by_twin",
            Self::WrittenInvalid => "written_invalid",
            Self::LeaseRecreated => "lease_recreated",
        }
    }
}

/// Our lease is lost. Two hosts with one subnet are worse than one host without, so the node must
/// stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Lost {
    /// How it was lost.
    pub cause: LostCause,
    /// Name, id and address of this host in the store.
    pub ours: String,
    /// Name, id and address of the host that has the lease.
    pub theirs: String,
    /// One sentence that names both hosts and says how to fix it.
    pub reason: String,
}

impl Lost {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self.cause {
            LostCause::Taken => "lease_taken",
            LostCause::StateCopied => "state_copied",
            LostCause::AddressTaken => "address_taken",
        }
    }
}

/// How a lease is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostCause {
    /// Another node wrote our key, or took our subnet while our key was gone.
    Taken,
    /// Another node with our id wrote our key: the state directory was copied.
    StateCopied,
    /// Another node joined with our address just before us.
    AddressTaken,
}
