//! System calls that no library says safely: the only module with `unsafe`, and the probe of what this process may do.
//!
//! Everything here is thin: one call, its error, no policy. What to do about an error is decided by the callers.
//!
//! Invariant: no function here is `unsafe` to call; each `unsafe` block names what makes it sound and who upholds it.

pub mod block;
pub mod cpu;
pub mod epoll;
mod message;
pub mod netns;
pub mod process;
pub mod ring;
pub mod tun;
pub mod udp;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::time::Nanos;

/// What this kernel and this process can do, looked up once at start.
#[derive(Debug)]
pub struct Capabilities {
    /// `uname -r`.
    pub kernel: String,
    /// CAP_NET_ADMIN is in force in the current user namespace.
    pub net_admin: bool,
    /// /dev/net/tun can be opened.
    pub tun: io::Result<()>,
    /// io_uring can do what the ring engine needs.
    pub ring: io::Result<()>,
}

impl Capabilities {
    /// Asks the kernel.
    #[must_use]
    pub fn probe() -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let net_admin = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN);
        let tun = File::options().read(true).write(true).open(Path::new(tun::DEVICE)).map(drop);
        Self {
            kernel: kernel.trim().to_owned(),
            net_admin: net_admin.unwrap_or(false),
            tun,
            ring: ring::probe(),
        }
    }
}

/// Monotonic time.
#[must_use]
pub fn now() -> Nanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the kernel to fill; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Nanos(u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// What to wait for on a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, or an error.
    Read,
    /// Room to write, or an error.
    Write,
}

/// Sleeps until at least one descriptor is ready, or `timeout` has passed (`None`: for ever). Says which are ready; none
/// after a signal or at the end of the time.
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
    // SAFETY: `raw` is an array of N pollfd, valid for the whole call; the descriptors are borrowed and so stay open.
    let ready = unsafe { libc::poll(raw.as_mut_ptr(), N as libc::nfds_t, timeout) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok([false; N]) } else { Err(error) };
    }
    Ok(raw.map(|fd| fd.revents != 0))
}

/// A wake-up that any thread can give and `poll` can wait for (eventfd(2)).
#[derive(Debug)]
pub struct Event {
    file: File,
    given: AtomicBool,
}

impl Event {
    /// Not given yet.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; a non-negative result is a fresh descriptor that nobody else owns.
        let fd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { file: File::from(fd), given: AtomicBool::new(false) })
    }

    /// Wakes whoever waits, now and until [`Event::clear`].
    pub fn give(&self) {
        self.given.store(true, Ordering::Release);
        // The only failure is a counter at its top, which means that it is given already.
        let _ = (&self.file).write(&1u64.to_ne_bytes());
    }

    /// Takes the wake-up back. Returns whether it had been given.
    pub fn clear(&self) -> bool {
        self.given.store(false, Ordering::Release);
        (&self.file).read(&mut [0; 8]).is_ok()
    }

    /// Whether it is given, without a system call.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_wakes_poll_until_cleared() {
        let event = Event::new().expect("an eventfd");
        let soon = Some(Duration::from_millis(1));
        assert_eq!(poll([(event.as_fd(), Interest::Read)], soon).expect("poll"), [false]);
        event.give();
        event.give();
        assert_eq!(poll([(event.as_fd(), Interest::Read)], None).expect("poll"), [true]);
        assert!(event.clear());
        assert_eq!(poll([(event.as_fd(), Interest::Read)], soon).expect("poll"), [false]);
    }
}
