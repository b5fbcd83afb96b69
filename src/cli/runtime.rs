//! The tokio runtime of the commands that need one.

use tokio::runtime::{Builder, Runtime};

/// A runtime on the calling thread. The store, netlink, sockets and signals share it; packets have
/// threads of their own.
pub(super) fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
