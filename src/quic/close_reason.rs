//! Why this host closes a connection, as the peer sees it.
#![forbid(unsafe_code)]

use quinn::{Connection, VarInt};

/// Application error code of a CONNECTION_CLOSE frame. The numbers are part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// The daemon stops.
    Stopping = 0,
    /// The certificate is not the one of the lease at the peer's address.
    Untrusted = 1,
    /// A newer connection took over.
    Replaced = 2,
    /// The connection carried no packets for the idle timeout.
    Idle = 3,
    /// No lease at the peer's address announces encryption.
    NoLease = 4,
}

impl CloseReason {
    /// The code on the wire.
    pub(super) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// The sentence on the wire, for the peer's log.
    pub(super) fn text(self) -> &'static [u8] {
        match self {
            Self::Stopping => b"the daemon stops",
            Self::Untrusted => b"the certificate is not the one of the lease at this address",
            Self::Replaced => b"a newer connection took over",
            Self::Idle => b"the connection was idle",
            Self::NoLease => b"no lease at this address announces encryption",
        }
    }

    /// Closes a connection for this reason.
    pub(super) fn close(self, connection: &Connection) {
        connection.close(self.code(), self.text());
    }
}
