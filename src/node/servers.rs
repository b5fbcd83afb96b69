//! The sockets that the daemon answers on: control socket and metrics.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::error::NodeError;
use crate::config::Config;
use crate::control::Server;
use crate::observe::{self, Registry};

/// Opens control socket and metrics: they answer from the first moment of the start on.
pub(super) async fn start(config: &Config, registry: &Arc<Registry>) -> Result<JoinSet<()>, NodeError> {
    let mut servers = JoinSet::new();
    servers.spawn(Server::bind(&config.node.control_socket())?.serve(registry.clone()));
    if let Some(listener) = bind_metrics(config).await? {
        servers.spawn(observe::serve(registry.clone(), listener));
    }
    Ok(servers)
}

/// Opens the metrics socket, if metrics are served.
pub(super) async fn bind_metrics(config: &Config) -> Result<Option<TcpListener>, NodeError> {
    let Some(address) = config.metrics else { return Ok(None) };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => Err(NodeError::Environment {
            code: "metrics_listen",
            text: format!(
                "cannot serve metrics on {address}: {error}; set metrics.listen to a free address, or to \"\" for off"
            ),
        }),
    }
}
