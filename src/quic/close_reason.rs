//! Why this host closes a connection, as the peer sees it.
#![forbid(unsafe_code)]

use quinn::{Connection, VarInt};

/// Why a connection ends: the application error code and the text of a CONNECTION_CLOSE frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// The daemon stops.
    Stopping,
    /// The certificate is not the one of the lease at the peer's address.
    Untrusted,
    /// A newer connection took over.
    Replaced,
    /// This host has another underlay address. New connections replace the old ones.
    Moved,
    /// The connection carried no packets for the idle timeout.
    Idle,
    /// No lease at the peer's address announces encryption.
    NoLease,
}

impl CloseReason {
    /// The code on the wire. The numbers are part of the protocol.
    pub(super) fn code(self) -> VarInt {
        VarInt::from_u32(match self {
            Self::Stopping => 0,
            Self::Untrusted => 1,
            Self::Replaced | Self::Moved => 2,
            Self::Idle => 3,
            Self::NoLease => 4,
        })
    }

    /// The sentence on the wire, for the peer's log.
    pub(super) fn text(self) -> &'static [u8] {
        match self {
            Self::Stopping => b"the daemon stops",
            Self::Untrusted => b"the certificate is not the one of the lease at this address",
            Self::Replaced => b"a newer connection took over",
            Self::Moved => b"this host has another address",
            Self::Idle => b"the connection was idle",
            Self::NoLease => b"no lease at this address announces encryption",
        }
    }

    /// Closes a connection for this reason.
    pub(super) fn close(self, connection: &Connection) {
        connection.close(self.code(), self.text());
    }
}
