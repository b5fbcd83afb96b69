//! Waits for a few descriptors by poll(2).
//!
//! It reads and writes nothing. Invariant: a descriptor that is reported was ready when the call
//! returned.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// What to wait for on a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Data to read, or an error.
    Read,
    /// Room to write, or an error.
    Write,
}

/// Sleeps until at least one descriptor is ready or `timeout` has passed (`None`: no limit).
/// Returns which descriptors are ready: none after a signal or a timeout.
pub fn poll<const N: usize>(
    fds: [(BorrowedFd<'_>, Interest); N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut raw = fds.map(|(fd, interest)| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: match interest {
            Interest::Read => libc::POLLIN,
            Interest::Write => libc::POLLOUT,
        },
        revents: 0,
    });
    let timeout = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: `raw` is an array of N pollfd, valid for the whole call; the descriptors are borrowed
    // and so stay open.
    let ready = unsafe { libc::poll(raw.as_mut_ptr(), N as libc::nfds_t, timeout) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok([false; N]) } else { Err(error) };
    }
    Ok(raw.map(|fd| fd.revents != 0))
}
