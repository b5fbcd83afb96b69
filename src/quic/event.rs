//! What the endpoint reports to the node.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::api::ProblemCode;

/// One report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuicEvent {
    /// The connection to a peer takes inner packets up to this length.
    PathMtu {
        /// Address of the peer on the underlay.
        peer: IpAddr,
        /// Length of the longest inner packet in bytes.
        mtu: u16,
    },
    /// A problem has begun or has another cause, or it is over.
    Problem {
        /// Kind of the problem.
        code: ProblemCode,
        /// Name of the affected thing.
        object: String,
        /// What is wrong and how to fix it; `None` if the problem is over.
        cause: Option<String>,
    },
    /// The endpoint's thread panicked. The panic message is in the log.
    Failed,
}
