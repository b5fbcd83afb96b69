//! Requests and answers of the control socket, as plain data.
//!
//! A client sends one [`Request`] a line and receives one [`Answer`] a line, both as JSON. The
//! answers ([`Status`], [`PeerRow`], [`RouteRow`], [`DropRow`], [`Explanation`]) are the structs
//! that the commands print, as a table or as JSON. The daemon, the commands, the lab and the tests
//! share these types.
//!
//! This module does no input or output and knows no part of the daemon.
//!
//! Invariant: a JSON field keeps its name and its meaning. Programs test the codes
//! ([`ProblemCode`], [`StepCode`], drop reasons), never the sentences.
#![forbid(unsafe_code)]

mod explain;
mod problem;
mod rows;
mod shown;
mod status;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use explain::{CounterRow, Explanation, KeyState, Outcome, Step, StepCode};
pub use problem::{Problem, ProblemCode};
pub use rows::{DropRow, PeerRow, RouteRow};
pub use shown::{LONGEST_NAME, is_name, is_unfit, shown, shown_lines};
pub use status::{FastPathStatus, GroStatus, Status, ThreadRow};

/// A request to the daemon. No request changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Request {
    /// Asks for the [`Status`].
    Status,
    /// Asks for a list of [`PeerRow`].
    Peers,
    /// Asks for a list of [`RouteRow`].
    Routes,
    /// Asks for a list of [`DropRow`].
    Drops,
    /// Asks for an [`Explanation`].
    Explain {
        /// Destination address of the packet in question.
        address: IpAddr,
    },
}

/// The daemon's answer to a [`Request`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The value that was asked for.
    Ok(serde_json::Value),
    /// The reason why there is no value, as one sentence.
    Error(String),
}
