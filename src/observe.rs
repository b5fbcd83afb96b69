//! Observation of the running daemon: status, drops, explain, metrics, readiness and problems.
//!
//! Each subsystem implements [`Part`] next to its own code and is added to the [`Registry`]. The
//! registry collects every answer from the parts and knows no subsystem: adding a subsystem changes
//! nothing here. Problems that last are kept in one list ([`Problems`]), which `status`, `/readyz`,
//! the metrics, the log and systemd's status line all show.
//!
//! This module changes nothing in the daemon and makes no decision about packets.
//!
//! Invariant: collecting an answer has no effect on what is collected.
#![forbid(unsafe_code)]

mod encoder;
mod http;
mod metrics;
mod part;
mod problems;
mod registry;

pub use encoder::Encoder;
pub use http::serve;
pub use part::{Drops, Part, Pending};
pub use problems::Problems;
pub use registry::Registry;
