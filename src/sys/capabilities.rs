//! What this kernel and this process can do.
//!
//! It is looked up once at start, and it decides nothing.
//!
//! Invariant: the probe leaves nothing open and changes nothing.

use std::fs::File;
use std::io;
use std::path::Path;

use super::{ring, tun};

/// What this kernel and this process can do, looked up once at start.
#[derive(Debug)]
pub struct Capabilities {
    /// The kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Whether /dev/net/tun can be opened, or the error of opening it.
    pub tun: io::Result<()>,
    /// Whether io_uring has all that the ring engine needs, or why it cannot be used.
    pub ring: io::Result<()>,
}

impl Capabilities {
    /// Asks the kernel.
    #[must_use]
    pub fn probe() -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let tun = File::options().read(true).write(true).open(Path::new(tun::DEVICE)).map(drop);
        Self { kernel: kernel.trim().to_owned(), tun, ring: ring::probe() }
    }
}
