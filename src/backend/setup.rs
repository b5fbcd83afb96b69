//! What a backend is started with.

use crate::route::{Local, Networks};

/// What the node knows when it starts its backend.
#[derive(Debug)]
pub struct Setup {
    /// Name of this host in the store.
    pub name: String,
    /// Address space of the overlay.
    pub networks: Networks,
    /// This host's part in the overlay.
    pub local: Local,
    /// MTU of the underlay interface in bytes.
    pub underlay_mtu: u32,
}
