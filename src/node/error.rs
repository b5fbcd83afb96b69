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
    #[error("{0}")]
    Invalid(String),
    /// This machine or process cannot do it.
    #[error("{0}")]
    Environment(String),
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
    /// Exit code of the process: 2 if only a change of the configuration can help, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let is_configuration = match self {
            Self::Config(_) | Self::Invalid(_) => true,
            Self::Underlay(error) => error.is_configuration(),
            Self::Backend(error) => error.is_configuration(),
            Self::Environment(_)
            | Self::Control(_)
            | Self::Netlink(_)
            | Self::Reconcile(_)
            | Self::Lost(_) => false,
        };
        if is_configuration { 2 } else { 1 }
    }
}

impl From<StoreError> for NodeError {
    fn from(error: StoreError) -> Self {
        if error.is_permanent() { Self::Invalid(error.text) } else { Self::Environment(error.text) }
    }
}
