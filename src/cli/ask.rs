//! Options of the commands that ask the running daemon.

use std::path::PathBuf;

use clap::Args;
use serde::de::DeserializeOwned;

use super::error::CliError;
use super::output::Format;
use crate::api::Request;
use crate::config::Sources;
use crate::control;

/// Where the daemon is, and how to print its answer.
#[derive(Debug, Args)]
pub(super) struct Ask {
    /// Configuration file of the daemon, which names its control socket [default:
    /// /etc/hopsack/hopsack.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    pub(super) format: Format,
}

impl Ask {
    /// Asks the daemon.
    pub(super) fn ask<T: DeserializeOwned>(&self, request: Request) -> Result<T, CliError> {
        let socket = match &self.socket {
            Some(socket) => socket.clone(),
            None => {
                let sources = Sources { file: self.config.clone(), ..Sources::from_environment() };
                sources.load()?.node.control_socket()
            }
        };
        Ok(control::ask(&socket, request)?)
    }
}
