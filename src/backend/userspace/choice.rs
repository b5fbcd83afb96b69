//! The choice of an engine: which one, with how many workers, and why.
//!
//! The choice is made once, from the configuration and from what the kernel can do. `status` and
//! `check` show it.

use std::fmt;
use std::io;

use crate::config::{DataplaneConfig, EngineChoice};
use crate::sys::Capabilities;
use crate::sys::tun::Offload;

/// An engine by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EngineKind {
    Simple,
    Batch,
    Uring,
}

/// The engine that was chosen.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) engine: EngineKind,
    /// Number of TUN queues.
    pub(super) workers: usize,
    /// Offloads are wanted.
    pub(super) offload: bool,
    reason: String,
}

impl Choice {
    /// Chooses by configuration and kernel.
    pub(super) fn new(config: &DataplaneConfig, capabilities: &Capabilities) -> Self {
        let configured = || "dataplane.engine says so".to_owned();
        let (engine, reason) = match (config.engine, &capabilities.ring) {
            (EngineChoice::Simple, _) => (EngineKind::Simple, configured()),
            (EngineChoice::Batch, _) => (EngineKind::Batch, configured()),
            (EngineChoice::Uring, Ok(())) => (EngineKind::Uring, configured()),
            (EngineChoice::Uring, Err(error)) => {
                let no_ring = NoRing(error);
                let reason = format!("dataplane.engine asks for uring, but {no_ring}");
                tracing::warn!(code = no_ring.code(), reason, "using the batch engine");
                (EngineKind::Batch, reason)
            }
            (EngineChoice::Auto, Ok(())) => (EngineKind::Uring, "io_uring is there".to_owned()),
            (EngineChoice::Auto, Err(error)) => (EngineKind::Batch, NoRing(error).to_string()),
        };
        // A worker serves one queue; several workers may share a thread. With four queues a ping
        // gets into the queue of a bulk transfer once in four times; with two, every second time.
        // More queues scatter small packets over more and smaller batches (benches/README.md).
        let several = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        let auto = if several { 4 } else { 1 };
        let workers = if engine == EngineKind::Simple { 1 } else { config.workers.map_or(auto, usize::from) };
        Self { engine, workers, offload: config.offload, reason }
    }

    /// Falls back to the batch engine until the next start: the probe could make a ring, but this
    /// start cannot, because descriptors or memory have run short.
    pub(super) fn fall_back(&mut self, error: &io::Error) {
        self.engine = EngineKind::Batch;
        let no_ring = NoRing(error);
        self.reason = format!("{no_ring}, at this start");
        tracing::warn!(code = no_ring.code(), reason = self.reason, "using the batch engine");
    }

    /// The reason for this engine, and the offloads that the device has accepted.
    pub(super) fn reason(&self, offload: Offload) -> String {
        let offload = match offload {
            Offload::TcpAndUdp => "offloads for TCP and UDP",
            Offload::Tcp => "offloads for TCP (the kernel has none for UDP: Linux 6.2)",
            Offload::None if self.engine == EngineKind::Simple => "no offloads",
            Offload::None => "offloads off",
        };
        format!("{}; {offload}", self.reason)
    }

    /// The offloads that the device is asked for.
    pub(super) fn wanted(&self) -> Offload {
        if self.offload { Offload::TcpAndUdp } else { Offload::None }
    }
}

/// Why there is no ring, and what would change that.
#[derive(Debug)]
pub struct NoRing<'a>(pub &'a io::Error);

impl NoRing<'_> {
    /// A stable name for each cause, for the log.
    fn code(&self) -> &'static str {
        match self.0.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => "io_uring_forbidden",
            Some(libc::ENOSYS) => "io_uring_missing",
            Some(_) => "io_uring_failed",
            None => "io_uring_too_old",
        }
    }
}

impl fmt::Display for NoRing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = self.0;
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => write!(
                f,
                "io_uring is forbidden here ({error}): see kernel.io_uring_disabled and the seccomp profile"
            ),
            Some(libc::ENOSYS) => write!(f, "this kernel has no io_uring ({error})"),
            Some(_) => write!(f, "io_uring cannot be set up ({error})"),
            None => f.write_str(
                "this kernel's io_uring cannot suppress the completions of successful requests (Linux 5.18)",
            ),
        }
    }
}
