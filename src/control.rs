//! The control socket: a unix socket through which commands ask the running daemon.
//!
//! [`Server`] reads requests and hands them to a [`Handler`]; [`ask`] is the client. This module
//! knows the types of [`crate::api`] and no part of the daemon. No request changes anything.
//!
//! [`Connections`] bounds what a listening socket of the daemon serves at a time; the metrics port
//! uses it too.
//!
//! Invariant: at most one daemon answers at a path, and a daemon takes over a path that a dead one
//! left. Only the user of the daemon can open the socket.
#![forbid(unsafe_code)]

mod client;
mod connections;
mod error;
mod server;

pub use client::{ask, running_daemon};
pub use connections::{Answering, Connections, MOST_CONNECTIONS};
pub use error::ControlError;
pub use server::{Handler, Server};
