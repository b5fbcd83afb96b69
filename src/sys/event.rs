//! A wake-up that one thread sends to others (eventfd(2)).
//!
//! It carries no data. Invariant: once set, it stays set until [`Event::clear`].

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// A wake-up that any thread can set, and that poll(2) and epoll(7) can wait for.
#[derive(Debug)]
pub struct Event {
    file: File,
    is_set: AtomicBool,
}

impl Event {
    /// Makes an event that is not set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; a non-negative result is a fresh descriptor that no
        // other code owns.
        let fd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { file: File::from(fd), is_set: AtomicBool::new(false) })
    }

    /// Wakes every thread that waits for it, and every thread that will, until [`Event::clear`].
    pub fn set(&self) {
        self.is_set.store(true, Ordering::Release);
        // The write fails only if the counter is at its maximum, which means that the event is set
        // already.
        let _ = (&self.file).write(&1u64.to_ne_bytes());
    }

    /// Takes the wake-up back. Returns whether it had been set.
    pub fn clear(&self) -> bool {
        self.is_set.store(false, Ordering::Release);
        (&self.file).read(&mut [0; 8]).is_ok()
    }

    /// Whether it is set. This makes no system call.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::poll::{Interest, poll};
    use super::*;

    #[test]
    fn event_wakes_poll_until_cleared() {
        let event = Event::new().expect("an eventfd");
        let soon = Some(Duration::from_millis(1));
        assert_eq!(poll([(event.as_fd(), Interest::Read)], soon).expect("poll"), [false]);
        event.set();
        event.set();
        assert_eq!(poll([(event.as_fd(), Interest::Read)], None).expect("poll"), [true]);
        assert!(event.clear());
        assert_eq!(poll([(event.as_fd(), Interest::Read)], soon).expect("poll"), [false]);
    }
}
