//! The daemon: what starts after what, the one select loop, and how it all ends.
//!
//! It brings together parts that can each be tested without it. A failure at the start undoes what
//! was done (descriptors and guards see to that); a failure while running stops the node in order.
//!
//! Start order: privileges, control and metrics sockets, underlay, store, backend (sockets, device,
//! workers), kernel rows, subnet.env, ready. What can be refused is checked before anything is
//! made.
//!
//! Invariant: while the node is ready, its routes are those of the last good map; a store that
//! cannot be reached changes nothing.

pub mod admin;
mod announcement;
mod check;
mod clean;
mod error;
mod join;
mod map;
mod next_hop;
mod observe;
mod pace;
mod privileges;
mod refused_sends;
mod run;
mod servers;
mod service_manager;
mod start;
mod stop;
mod store_settings;
mod store_source;
mod subnet_env;
mod underlay;
#[cfg(test)]
mod virtual_time_tests;
mod wait;

use tokio::task::JoinSet;

pub use check::{Finding, check};
pub use clean::{Cleaned, clean};
pub use error::NodeError;

use crate::backend::Backend;
use crate::config::Config;
use crate::reconcile::Reconciler;
use crate::route::{Local, Networks};
use crate::store::Store;
use announcement::Announcement;
use map::Map;
use observe::Reports;
use refused_sends::RefusedSends;
use service_manager::{ServiceManager, Signals};
use underlay::PublicAddress;

/// A started node.
#[derive(Debug)]
pub struct Node {
    config: Config,
    signals: Signals,
    /// Control socket and metrics.
    servers: JoinSet<()>,
    store: Store,
    map: Map,
    backend: Backend,
    reconciler: Reconciler,
    reports: Reports,
    networks: Networks,
    local: Local,
    announcement: Announcement,
    public_address: PublicAddress,
    refused_sends: RefusedSends,
    service_manager: ServiceManager,
}
