//! Waits for many descriptors, each of which has a number: epoll(7), level-triggered.
//!
//! It decides nothing, and it owns none of the descriptors: the kernel forgets one that is closed.
//!
//! Invariant: each number that [`Epoll::wait`] returns was given to [`Epoll::add`].

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Descriptors that one wait reports at most; the next wait reports the others.
const MAX_EVENTS: usize = 64;

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Epoll {
    descriptor: OwnedFd,
    numbers: Vec<usize>,
}

impl Epoll {
    /// Makes an empty set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 takes no pointers; a non-negative result is a fresh descriptor that
        // no other code owns.
        let descriptor = unsafe {
            let descriptor = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(descriptor)
        };
        Ok(Self { descriptor, numbers: Vec::with_capacity(MAX_EVENTS) })
    }

    /// Adds `fd`, to wait until it is readable, under `number`.
    pub fn add(&self, fd: BorrowedFd<'_>, number: usize) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, number)
    }

    /// Removes `fd`.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0)
    }

    fn control(&self, operation: libc::c_int, fd: BorrowedFd<'_>, number: usize) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN.cast_unsigned(), u64: number as u64 };
        // SAFETY: `event` is an epoll_event, which the kernel reads; both descriptors are open.
        let result = unsafe {
            libc::epoll_ctl(self.descriptor.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sleeps until at least one descriptor is readable or has an error, or until `timeout` (whole
    /// milliseconds; `None`: no limit) has passed. Returns the numbers of those descriptors: none
    /// after a signal or a timeout.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<&[usize]> {
        let mut events = [MaybeUninit::<libc::epoll_event>::uninit(); MAX_EVENTS];
        let max = libc::c_int::try_from(MAX_EVENTS).unwrap_or(1);
        let timeout = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
        self.numbers.clear();
        // SAFETY: `events` has room for `max` events, and only the kernel writes to it during the
        // call.
        let count = unsafe {
            libc::epoll_wait(self.descriptor.as_raw_fd(), events.as_mut_ptr().cast(), max, timeout)
        };
        match usize::try_from(count) {
            Ok(count) => {
                let number = |event: &MaybeUninit<libc::epoll_event>| {
                    // SAFETY: the kernel has filled the first `count` events.
                    usize::try_from(unsafe { event.assume_init() }.u64).unwrap_or(usize::MAX)
                };
                self.numbers.extend(events[..count].iter().map(number));
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
        Ok(&self.numbers)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::event::Event;
    use super::*;

    #[test]
    fn ready_descriptor_is_reported_until_removed() {
        let (one, other) = (Event::new().expect("an eventfd"), Event::new().expect("an eventfd"));
        let mut epoll = Epoll::new().expect("an epoll");
        epoll.add(one.as_fd(), 7).expect("added");
        epoll.add(other.as_fd(), 9).expect("added");
        let soon = Some(Duration::ZERO);
        assert!(epoll.wait(soon).expect("waited").is_empty());
        other.set();
        assert_eq!(epoll.wait(None).expect("waited"), [9]);
        one.set();
        let mut both = epoll.wait(None).expect("waited").to_vec();
        both.sort_unstable();
        assert_eq!(both, [7, 9], "both are still readable");
        epoll.remove(other.as_fd()).expect("removed");
        assert_eq!(epoll.wait(soon).expect("waited"), [7]);
        assert!(epoll.remove(other.as_fd()).is_err(), "it is not in the set");
    }
}
