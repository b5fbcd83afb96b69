//! Errors of the commands, and the exit code of each.

use std::path::PathBuf;

use crate::config::ConfigError;
use crate::config::flanneld::FlagError;
use crate::control::ControlError;
use crate::node::NodeError;
use crate::pki::PkiError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A flag of flanneld is wrong or refused.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// A name, folder or file of an identity cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The running daemon could not be asked.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The daemon could not start, or had to stop.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The program `hopsack-lab` does not exist.
    #[error(
        "hopsack-lab is neither at {} nor on the PATH: install it, or build it with `cargo build --release`",
        .beside.display()
    )]
    NoLab {
        /// Path next to this program, where it was expected.
        beside: PathBuf,
    },
    /// There is no such command.
    #[error("there is no command {word:?}; the commands are {known}")]
    NoCommand {
        /// The word that names no command.
        word: String,
        /// The commands that exist, separated by commas.
        known: String,
    },
    /// Standard output could not be written, or the runtime could not start.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl CliError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Flag(error) => error.code(),
            Self::Pki(error) => error.code(),
            Self::Config(error) => error.code(),
            Self::Control(error) => error.code(),
            Self::Node(error) => error.code(),
            Self::NoLab { .. } => "no_lab_program",
            Self::NoCommand { .. } => "no_such_command",
            Self::Io(_) => "io",
        }
    }

    /// 2 if another argument or another configuration fixes the error, 1 for all others.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Flag(_) | Self::Pki(_) | Self::Config(_) | Self::NoCommand { .. } => 2,
            Self::Node(error) => error.exit_code(),
            Self::Control(_) | Self::NoLab { .. } | Self::Io(_) => 1,
        }
    }
}
