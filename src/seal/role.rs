//! The two roles in a handshake, and the direction in which each of them sends.
//!
//! Invariant: each role receives in the direction in which the other sends.
#![forbid(unsafe_code)]

/// A host's role in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The TLS client, which began the handshake.
    Initiator,
    /// The TLS server.
    Responder,
}

/// The direction in which packets travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    FromInitiator = 0,
    FromResponder = 1,
}

impl Role {
    /// The direction in which the host with this role sends.
    pub(super) fn sends(self) -> Direction {
        match self {
            Self::Initiator => Direction::FromInitiator,
            Self::Responder => Direction::FromResponder,
        }
    }

    /// The direction in which the host with this role receives.
    pub(super) fn receives(self) -> Direction {
        match self {
            Self::Initiator => Direction::FromResponder,
            Self::Responder => Direction::FromInitiator,
        }
    }
}
