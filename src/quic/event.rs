//! What the endpoint reports to the node.
#![forbid(unsafe_code)]

use std::net::IpAddr;

/// One report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuicEvent {
    /// The connection to a peer takes inner packets up to this length.
    PathMtu {
        /// Address of the peer on the underlay.
        peer: IpAddr,
        /// Length of the longest inner packet in bytes.
        mtu: u16,
    },
    /// The endpoint's thread panicked. The panic message is in the log.
    Failed,
}
