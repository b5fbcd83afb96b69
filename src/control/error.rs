//! Errors of the control socket.

use std::io;
use std::path::PathBuf;

/// Why the control socket could not be opened or asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another daemon answers at the path.
    #[error("another hopsack{process} runs with {path}: stop it, or give this one its own node.run_dir")]
    Running {
        /// Its process as " (pid N)", or nothing if it did not report one.
        process: String,
        /// Path of the socket.
        path: PathBuf,
    },
    /// The socket file cannot be created.
    #[error("cannot make the control socket {path}: {error}; is node.run_dir writable?")]
    Unwritable {
        /// Path of the socket.
        path: PathBuf,
        /// The kernel's error.
        error: io::Error,
    },
    /// No daemon answers at the path.
    #[error(
        "no hopsack answers at {path} ({error}): start it with `hopsack run`, or name its socket with --socket"
    )]
    Silent {
        /// Path of the socket.
        path: PathBuf,
        /// The kernel's error.
        error: io::Error,
    },
    /// The daemon answered with an error, or with something that this program does not understand.
    #[error("the daemon at {path} answered: {problem}")]
    Answer {
        /// Path of the socket.
        path: PathBuf,
        /// What the daemon answered, or what is wrong with the answer.
        problem: String,
    },
}

impl ControlError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Running { .. } => "daemon_runs",
            Self::Unwritable { .. } => "control_socket_write",
            Self::Silent { .. } => "daemon_silent",
            Self::Answer { .. } => "daemon_answer",
        }
    }
}
