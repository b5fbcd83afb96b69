//! Flannel's way to store the map: keys, lease values and network configuration, as bytes.
//!
//! Invariant: a value that is written reads back as the same, and a key has one spelling only.
#![doc = ""]
#![doc = include_str!("flannel/README.md")]
#![forbid(unsafe_code)]

mod attributes;
mod json;
mod keys;
mod network;
mod pool;
#[cfg(test)]
mod tests;

pub use attributes::{Attributes, AttributesError, Identity};
pub use keys::{Key, KeyError, Keys};
pub use network::{Network, NetworkError};
pub use pool::{FIRST_FREE, Pool};

/// The port of the UDP backend if the network configuration names none
/// (`pkg/backend/udp/udp_amd64.go`).
pub const DEFAULT_PORT: u16 = 8285;
