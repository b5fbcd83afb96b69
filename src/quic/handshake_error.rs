//! Why a handshake with a peer failed.
#![forbid(unsafe_code)]

use std::time::Duration;

use quinn::{ConnectionError, TransportErrorCode};

use crate::pki::Untrusted;

/// How long a handshake may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// TLS alerts (RFC 8446 section 6) that have a code of their own.
const ALERT_CERTIFICATE_EXPIRED: u8 = 45;
const ALERT_UNKNOWN_CA: u8 = 48;

/// The step that failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The TLS or QUIC handshake failed.
    #[error("the handshake failed: {0}")]
    Handshake(#[from] ConnectionError),
    /// The handshake cannot start.
    #[error("the peer cannot be dialled: {0}")]
    Dial(#[from] quinn::ConnectError),
    /// The peer did not answer.
    #[error("the peer did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The endpoint stops.
    #[error("the endpoint stops")]
    Stopped,
    /// The certificate belongs to another host.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// The peer's lease is gone, or no longer announces encryption.
    #[error("no lease at the peer's address announces encryption")]
    NoLease,
}

impl HandshakeError {
    /// A stable name for each cause, for `status`, metrics and tests.
    #[must_use]
    pub fn code(&self) -> &'static str {
        let is_alert = |alert| self.transport_code() == Some(TransportErrorCode::crypto(alert));
        match self {
            Self::Handshake(_) if self.is_refusal() => "refused",
            Self::Handshake(_) if is_alert(ALERT_CERTIFICATE_EXPIRED) => "certificate_expired",
            Self::Handshake(_) if is_alert(ALERT_UNKNOWN_CA) => "unknown_ca",
            Self::Handshake(_) => "handshake_failed",
            Self::Dial(_) => "not_dialled",
            Self::Timeout => "timeout",
            Self::Stopped => "stopped",
            Self::Untrusted(Untrusted::Subnets { .. }) => "subnets_not_certified",
            Self::Untrusted(_) => "certificate_of_another_host",
            Self::NoLease => "no_lease",
        }
    }

    /// The peer closed the connection because it dialled this host at the same moment, or does not
    /// know this host yet. This is normal unless it persists. The same error found by this host is
    /// no refusal.
    pub(super) fn is_refusal(&self) -> bool {
        let Self::Handshake(ConnectionError::ConnectionClosed(close)) = self else { return false };
        close.error_code == TransportErrorCode::CONNECTION_REFUSED
    }

    /// QUIC's error code, whichever end found the error.
    fn transport_code(&self) -> Option<TransportErrorCode> {
        match self {
            Self::Handshake(ConnectionError::ConnectionClosed(close)) => Some(close.error_code),
            Self::Handshake(ConnectionError::TransportError(error)) => Some(error.code),
            Self::Handshake(_)
            | Self::Dial(_)
            | Self::Timeout
            | Self::Stopped
            | Self::Untrusted(_)
            | Self::NoLease => None,
        }
    }
}
