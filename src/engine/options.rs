//! [`WorkerOptions`]: the configuration of the data path.
//!
//! It reads no configuration file. Invariant: all workers of an engine have the same options.

use crate::forward::VerifySource;
use crate::sys::tun::Offload;

/// Options that apply to every worker.
#[derive(Debug, Clone, Copy)]
pub struct WorkerOptions {
    /// How inner source addresses are verified.
    pub verify: VerifySource,
    /// The offloads that are on at the overlay device. With `None` the sockets use no offloads
    /// either.
    pub offload: Offload,
    /// For how many microseconds a worker of the fast engines spins before it sleeps, while
    /// spinning pays. 0 means never.
    pub busy_poll_us: u16,
    /// Whether threads that never carry a bulk transfer run with real-time priority.
    pub realtime: bool,
}
