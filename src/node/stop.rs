//! The end of a node.

use std::time::Duration;

use sd_notify::NotifyState;

use super::Node;
use super::service_manager::notify;
use crate::backend::Stop;

/// Longest wait for the store: a store that does not answer must not keep a node from ending.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

impl Node {
    /// Stops everything. A step that fails does not keep the others from running. Files stay, as
    /// Flannel's do.
    pub(super) async fn stop(self, how: Stop) {
        notify(&[NotifyState::Stopping]);
        let Self { backend, store, mut servers, .. } = self;
        servers.shutdown().await;
        backend.stop(how).await;
        match tokio::time::timeout(STORE_TIMEOUT, store.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => tracing::warn!("{problem}"),
            Err(_) => tracing::warn!("the store did not answer while the node stopped"),
        }
    }
}
