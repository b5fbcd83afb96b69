//! Why a node cannot start or has to stop.

use super::underlay::UnderlayError;
use crate::backend::BackendError;
use crate::config::ConfigError;
use crate::control::ControlError;
use crate::netlink::NetlinkError;
use crate::reconcile::ReconcileError;
use crate::store::{Lost, StoreError};

/// Why a node cannot start or has to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration does not fit what the kernel or the store says.
    #[error("{text}")]
    Invalid {
        /// Stable code of the error.
        code: &'static str,
        /// One sentence for the operator.
        text: String,
    },
    /// This machine or process cannot do it.
    #[error("{text}")]
    Environment {
        /// Stable code of the error.
        code: &'static str,
        /// One sentence for the operator.
        text: String,
    },
    /// The store cannot be opened, or refuses a request.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control socket is in use or cannot be made.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The kernel refused a question.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// There is no usable interface or address.
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
    /// The kernel or a file cannot be brought to what is needed.
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    /// The backend cannot be started or cannot go on.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Our lease belongs to another host.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl NodeError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Config(error) => error.code(),
            Self::Invalid { code, .. } | Self::Environment { code, .. } => code,
            Self::Store(error) => error.code(),
            Self::Control(error) => error.code(),
            Self::Netlink(error) => error.code(),
            Self::Underlay(error) => error.code(),
            Self::Reconcile(error) => error.code(),
            Self::Backend(error) => error.code(),
            Self::Lost(error) => error.code(),
        }
    }

    /// Exit code of the process: 2 if only a change of the configuration can help, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let is_configuration = match self {
            Self::Config(_) | Self::Invalid { .. } => true,
            Self::Store(error) => error.is_permanent(),
            Self::Backend(error) => error.is_configuration(),
            Self::Environment { .. }
            | Self::Underlay(_)
            | Self::Control(_)
            | Self::Netlink(_)
            | Self::Reconcile(_)
            | Self::Lost(_) => false,
        };
        if is_configuration { 2 } else { 1 }
    }
}
