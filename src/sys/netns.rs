//! Enters a network namespace on a thread of its own.
//!
//! A namespace belongs to a thread, not to a process, and a thread that has changed it cannot always go back; so the
//! closure gets a fresh thread that ends with it. What it opens (sockets, netlink, /proc/sys/net files) stays in that
//! namespace for as long as it lives, and may be used from any thread.
//!
//! Invariant: the caller's thread never changes its namespace. See `setns(2)`, `network_namespaces(7)`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

/// Where `ip netns` keeps the names.
pub const DIRECTORY: &str = "/run/netns";

/// Runs `closure` in a network namespace and waits for it. `namespace` is a name that `ip netns` knows, or a path such
/// as `/proc/123/ns/net`.
///
/// # Errors
/// The namespace does not exist, entering it is not permitted (`CAP_SYS_ADMIN`), or no thread could be started.
///
/// # Panics
/// If the closure does.
pub fn in_netns<T, F>(namespace: &str, closure: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    let file = File::open(path(namespace))?;
    thread::scope(|scope| {
        let inside = thread::Builder::new().name("hopsack-netns".into()).spawn_scoped(scope, || {
            enter(&file)?;
            Ok(closure())
        })?;
        inside.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
    })
}

/// The file that stands for a namespace.
#[must_use]
pub fn path(namespace: &str) -> PathBuf {
    if namespace.contains('/') { namespace.into() } else { Path::new(DIRECTORY).join(namespace) }
}

fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: setns reads no memory of ours; the descriptor is open for the whole call because `namespace` is borrowed.
    // That the thread is thrown away afterwards is upheld by `in_netns`, the only caller.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        assert_eq!(path("hs-lab-h1"), Path::new("/run/netns/hs-lab-h1"));
        assert_eq!(path("/proc/1/ns/net"), Path::new("/proc/1/ns/net"));
    }

    #[test]
    fn a_namespace_that_is_not_there_is_an_error() {
        let error = in_netns("hs-there-is-no-such-namespace", || ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
