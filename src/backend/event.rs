//! What a running backend tells the node.

use std::net::IpAddr;

use super::error::BackendError;
use crate::api::ProblemCode;
use crate::route::Announced;

/// Something that happened in a backend.
#[derive(Debug)]
pub enum Event {
    /// The backend cannot go on: the node stops.
    Failed(BackendError),
    /// A problem has begun or has another cause, or it is over.
    Problem {
        /// Kind of the problem.
        code: ProblemCode,
        /// Name of the affected thing.
        object: String,
        /// What is wrong and how to fix it; `None` if the problem is over.
        cause: Option<String>,
    },
    /// What the kernel should hold has changed: the reconciler has to be told.
    Desired,
    /// The path MTU of a peer has changed: the map has to be applied again.
    PathMtu {
        /// Address of the peer on the underlay.
        peer: IpAddr,
        /// Longest inner packet that the path takes, in bytes.
        mtu: u16,
    },
}

/// What a backend leaves in the kernel when it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Everything stays for the next start: device, addresses, routes, maps and links.
    Leave,
    /// The start has failed: what this process has made goes, what it has adopted stays.
    RollBack,
    /// Everything goes.
    Remove,
}

/// Whether another host uses this host's subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DuplicateSubnet {
    /// There is no news.
    Unchanged,
    /// Packets with a source in our own subnet have come from another host.
    Seen {
        /// Name of the sender, if it has a lease.
        host: Option<String>,
        /// One sentence for the operator.
        cause: String,
        /// Whether to log the sentence.
        log: bool,
        /// Whether to ask the store which host holds the subnet.
        verify: bool,
    },
    /// No such packet has come for a while.
    Over,
}

/// Result of looking for a new certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It was not time to look, or there is no certificate.
    NotDue,
    /// The certificate can be used and is the one that the lease announces.
    Same,
    /// The lease has to announce another certificate.
    Announce(Announced),
}
