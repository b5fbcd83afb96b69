//! Why a backend cannot be started or cannot go on.

use super::userspace::device::DeviceError;
use super::userspace::encryption::EncryptionError;
use super::userspace::sockets::SocketError;
use crate::engine::WorkerError;

/// Why a backend cannot be started or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The UDP sockets cannot be opened.
    #[error(transparent)]
    Sockets(#[from] SocketError),
    /// The overlay device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Encryption cannot be started or renewed.
    #[error(transparent)]
    Encryption(#[from] EncryptionError),
    /// No worker can be started.
    #[error("cannot start a worker: {0}")]
    NoWorker(#[source] std::io::Error),
    /// A worker cannot go on.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

impl BackendError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Sockets(error) => error.code(),
            Self::Device(error) => error.code(),
            Self::Encryption(error) => error.code(),
            Self::NoWorker(_) => "worker_start",
            Self::Worker(error) => error.code(),
        }
    }

    /// Whether only a change of the configuration can help.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Encryption(error) => error.is_configuration(),
            Self::Sockets(_) | Self::Device(_) | Self::NoWorker(_) | Self::Worker(_) => false,
        }
    }
}
