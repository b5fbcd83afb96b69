//! Engines: threads that move packets between the overlay device and the underlay socket.
//!
//! They know nothing of leases, stores or configuration files.
//!
//! Invariant: each counter has one writer; publishing a route table takes no lock.
//!
#![doc = include_str!("engine/README.md")]

mod account;
mod batch;
mod budget;
mod codel;
mod control_inbox;
mod endpoints;
mod error;
mod io;
mod missed;
mod observe;
mod offload_switch;
mod options;
mod pmtu_cache;
mod policy;
mod priority;
mod running;
mod scheduler;
#[cfg(test)]
mod sealed_tests;
mod simple;
mod slow_path;
mod tun_writer;
mod tx_batch;
mod tx_block;
mod uring;
mod view;
mod wait;
mod worker;

pub use account::{Account, Op};
pub use control_inbox::{ControlArrival, ControlInbox};
pub use error::WorkerError;
pub use io::{Io, QueueIo, SimpleIo};
pub use missed::MissedReceiver;
pub use observe::EnginePart;
pub(crate) use observe::SOCKET_QUEUE_FULL;
pub use options::WorkerOptions;
pub use running::Engine;
pub use slow_path::{SlowPathPackets, SlowPathQueue, SlowPathWriter};
pub use view::EngineView;
