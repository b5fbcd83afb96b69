//! Waiting at the start: for an address, an interface, a route or the store.
//!
//! A condition that ends without an edit of the configuration does not end the daemon. The reason
//! is in the log, in `status`, in `/readyz` and in the service manager's status meanwhile.
//!
//! Invariant: each reason is logged once, when it becomes the reason.

use std::net::IpAddr;
use std::time::Duration;

use sd_notify::NotifyState;

use super::error::NodeError;
use super::service_manager::{Signals, notify};
use super::underlay::{self, Underlay};
use crate::config::NodeConfig;
use crate::observe::Registry;
use crate::reconcile::Reader;

/// Time between two looks at the interfaces.
const UNDERLAY_INTERVAL: Duration = Duration::from_millis(500);

/// The waiting of one start.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    registry: &'a Registry,
    pub(super) signals: &'a mut Signals,
    reported: String,
}

impl<'a> Wait<'a> {
    pub(super) fn new(registry: &'a Registry, signals: &'a mut Signals) -> Self {
        Self { registry, signals, reported: String::new() }
    }

    /// Waits for a time, and reports the reason. Returns whether the wait is over because a signal
    /// ends the daemon.
    pub(super) async fn is_ended(&mut self, reason: &str, pause: Duration) -> bool {
        if reason != self.reported {
            tracing::warn!("{reason}; trying again");
            self.registry.wait_for(reason);
            notify(&[NotifyState::Status(&format!("waiting: {reason}"))]);
            reason.clone_into(&mut self.reported);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => false,
            signal = self.signals.end() => {
                tracing::info!("{}: stopping", signal.name());
                true
            }
        }
    }

    /// Searches the underlay interface until it has an address. `None`: a signal ended the wait.
    pub(super) async fn for_underlay(
        &mut self,
        kernel: &Reader,
        (node, store): (&NodeConfig, &[IpAddr]),
    ) -> Result<Option<Underlay>, NodeError> {
        loop {
            match underlay::find(kernel, node, store).await {
                Ok(underlay) => return Ok(Some(underlay)),
                Err(error) if !error.is_temporary() => return Err(error.into()),
                Err(error) if self.is_ended(&error.to_string(), UNDERLAY_INTERVAL).await => return Ok(None),
                Err(_) => {}
            }
        }
    }
}
