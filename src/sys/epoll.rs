//! Waiting for many descriptors, of which each is told by a number: epoll(7), level-triggered.
//!
//! It decides nothing, and owns none of the descriptors: one that is closed is forgotten by the kernel.
//!
//! Invariant: a number that [`Epoll::wait`] hands out was given by [`Epoll::add`].

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Descriptors that one wait tells of; what else is ready is told by the next.
const MOST: usize = 64;

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Epoll {
    descriptor: OwnedFd,
    numbers: Vec<usize>,
}

impl Epoll {
    /// Of none.
    pub fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 takes no pointers; a non-negative result is a fresh descriptor that nobody else owns.
        let descriptor = unsafe {
            let descriptor = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(descriptor)
        };
        Ok(Self { descriptor, numbers: Vec::with_capacity(MOST) })
    }

    /// Waits for `fd` to be readable too, and calls it `number`.
    pub fn add(&self, fd: BorrowedFd<'_>, number: usize) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, number)
    }

    /// Waits for `fd` no more.
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

    /// Sleeps until at least one descriptor is readable or has an error, or `timeout`, in whole milliseconds, has passed
    /// (`None`: for ever). Says which are; none after a signal or at the end of the time.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<&[usize]> {
        let mut events = [MaybeUninit::<libc::epoll_event>::uninit(); MOST];
        let most = libc::c_int::try_from(MOST).unwrap_or(1);
        let timeout = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
        self.numbers.clear();
        // SAFETY: `events` has room for `most` of them and is the kernel's to fill during the call.
        let count = unsafe {
            libc::epoll_wait(self.descriptor.as_raw_fd(), events.as_mut_ptr().cast(), most, timeout)
        };
        match usize::try_from(count) {
            Ok(count) => {
                let number = |event: &MaybeUninit<libc::epoll_event>| {
                    // SAFETY: the kernel has filled the first `count`.
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

    use super::super::Event;
    use super::*;

    #[test]
    fn what_is_ready_is_told_by_its_number_until_it_is_taken_out() {
        let (one, other) = (Event::new().expect("an eventfd"), Event::new().expect("an eventfd"));
        let mut epoll = Epoll::new().expect("an epoll");
        epoll.add(one.as_fd(), 7).expect("added");
        epoll.add(other.as_fd(), 9).expect("added");
        let soon = Some(Duration::ZERO);
        assert!(epoll.wait(soon).expect("waited").is_empty());
        other.give();
        assert_eq!(epoll.wait(None).expect("waited"), [9]);
        one.give();
        let mut both = epoll.wait(None).expect("waited").to_vec();
        both.sort_unstable();
        assert_eq!(both, [7, 9], "it is told again");
        epoll.remove(other.as_fd()).expect("removed");
        assert_eq!(epoll.wait(soon).expect("waited"), [7]);
        assert!(epoll.remove(other.as_fd()).is_err(), "it is not there");
    }
}
