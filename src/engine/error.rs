//! [`WorkerError`]: why a worker had to stop.
//!
//! A packet that is dropped is no error. Invariant: a worker that returns an error has given up its
//! descriptors.

use std::io;

/// A worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Another program removed the overlay device.
    #[error("the overlay device is gone ({0}): another program removed it; start hopsack again")]
    DeviceGone(io::Error),
    /// A system call failed that a worker cannot do without.
    #[error("{call} failed: {error}")]
    System {
        /// The system call.
        call: &'static str,
        /// The error of the system call.
        error: io::Error,
    },
    /// The program has a bug. The log has the panic message.
    #[error("a worker panicked: the log has the panic message; please report it")]
    Panicked,
}

impl WorkerError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::DeviceGone(_) => "device_gone",
            Self::System { .. } => "worker_system_call",
            Self::Panicked => "worker_panicked",
        }
    }

    /// The error of a read of the overlay device: EBADFD if the device was unregistered
    /// (tun_chr_read_iter in the kernel).
    pub(super) fn of_read(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EBADFD) => Self::DeviceGone(error),
            _ => Self::System { call: "read of the overlay device", error },
        }
    }
}
