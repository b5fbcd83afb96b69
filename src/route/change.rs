//! What a store reports to the node.
#![forbid(unsafe_code)]

use ipnet::IpNet;

use super::lease::Lease;

/// A change that a store reports to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The whole list at `revision`: a lease that is not in it does not exist any more.
    Snapshot {
        /// All leases.
        leases: Vec<Lease>,
        /// The store's revision of this list.
        revision: u64,
    },
    /// Single changes, each with its own revision.
    Delta(Vec<Event>),
}

/// A change of one lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The lease was written, at `lease.revision`.
    Put(Lease),
    /// The lease was deleted or has expired.
    Delete {
        /// The subnets that identify the lease.
        subnets: Vec<IpNet>,
        /// The store's revision of the deletion.
        revision: u64,
    },
}
