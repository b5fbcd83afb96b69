//! Enters a network namespace on a separate thread.
//!
//! A namespace belongs to a thread, not to a process, and a thread that has changed it cannot
//! always go back; so the closure runs on a new thread that ends with it. What it opens (sockets,
//! netlink, /proc/sys/net files) stays in that namespace until it is closed, and any thread may use
//! it.
//!
//! Invariant: the caller's thread never changes its namespace. See `setns(2)`,
//! `network_namespaces(7)`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

/// The directory in which `ip netns` keeps the names.
pub const DIRECTORY: &str = "/run/netns";

/// Runs `closure` in a network namespace and waits for its end. `namespace` is a name of `ip
/// netns`, or a path such as `/proc/123/ns/net`.
///
/// # Errors
/// The namespace does not exist, entering it is not permitted (`CAP_SYS_ADMIN`), or no thread could
/// be started.
///
/// # Panics
/// If the closure panics.
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

/// The path of a namespace's file.
#[must_use]
pub fn path(namespace: &str) -> PathBuf {
    if namespace.contains('/') { namespace.into() } else { Path::new(DIRECTORY).join(namespace) }
}

fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: setns reads no memory of ours; the descriptor is open for the whole call because
    // `namespace` is borrowed. `in_netns`, the only caller, ends the thread afterwards.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_becomes_a_path() {
        assert_eq!(path("hs-lab-h1"), Path::new("/run/netns/hs-lab-h1"));
        assert_eq!(path("/proc/1/ns/net"), Path::new("/proc/1/ns/net"));
    }

    #[test]
    fn missing_namespace_is_an_error() {
        let error = in_netns("hs-there-is-no-such-namespace", || ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
