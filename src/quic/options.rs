//! What the endpoint needs to start.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Duration;

use crate::engine::{EngineView, SlowPathWriter};
use crate::pki::{Identity, Trust};

/// Addresses, keys, limits, and the connection to the engine.
#[derive(Debug)]
pub struct QuicOptions {
    /// Address on which the endpoint listens: this host's public address and the QUIC port.
    pub address: SocketAddr,
    /// Length in bytes of the longest UDP payload that the underlay interface takes.
    pub max_payload_bytes: u16,
    /// This host's key and certificate.
    pub identity: Identity,
    /// The rule by which certificates of other hosts are accepted.
    pub trust: Trust,
    /// Key of stateless resets. It survives restarts: a new process uses it to tell peers that
    /// their connections to the old process are gone.
    pub reset_key: [u8; 32],
    /// A connection that carries no packets for this time is closed. The next packet opens a new
    /// one.
    pub idle_timeout: Duration,
    /// How long a connection and its keys stay after their certificate is not the one of the peer's
    /// lease any more.
    pub revoke_after: Duration,
    /// Access to the FIB and to the packets that workers hand over.
    pub view: EngineView,
    /// Writes received packets to the overlay device.
    pub writer: SlowPathWriter,
}
