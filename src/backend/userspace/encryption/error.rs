//! Why encryption cannot be started or renewed.

use crate::pki::{OwnCertificateError, PkiError};
use crate::quic::QuicError;

/// Why encryption cannot be started or renewed.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// Certificate, key or CA cannot be loaded.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// There is no port behind the one for packets.
    #[error("overlay.port is the last there is: set security.port")]
    NoPort,
    /// Packets and QUIC would share a port.
    #[error("the cluster's port for packets is {0}, which QUIC would have: set security.port")]
    SamePort(u16),
    /// Peers would not accept our certificate.
    #[error(transparent)]
    NotAccepted(#[from] OwnCertificateError),
    /// The endpoint cannot be started.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// The endpoint gets no access to the overlay device.
    #[error("cannot open the overlay device for QUIC: {0}")]
    SlowPath(#[source] std::io::Error),
    /// The endpoint's thread has panicked.
    #[error("the QUIC thread panicked: see above")]
    Panicked,
}

impl EncryptionError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Pki(error) => error.code(),
            Self::NoPort => "quic_no_port",
            Self::SamePort(_) => "quic_same_port",
            Self::NotAccepted(error) => error.code(),
            Self::Quic(error) => error.code(),
            Self::SlowPath(_) => "quic_device",
            Self::Panicked => "quic_panicked",
        }
    }

    /// Whether only a change of the configuration, or of a file that it names, can help.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Pki(_) | Self::NoPort | Self::SamePort(_) | Self::NotAccepted(_) => true,
            Self::Quic(_) | Self::SlowPath(_) | Self::Panicked => false,
        }
    }
}
