//! How the kernel schedules a thread: its policy, its time slice and its nice value.
//!
//! A thread that wakes runs sooner the shorter its slice is, without more CPU time in all (EEVDF).
//! Since Linux 6.12 an ordinary thread may ask for a slice from 0.1 to 100 ms, by `sched_runtime`;
//! earlier kernels ignore the number, so what is in force must be read back ([`scheduling`]).
//!
//! It does not choose: the caller says which thread gets what. Sources: sched_setattr(2), sched(7),
//! the kernel's kernel/sched/syscalls.c.

use std::io;
use std::mem::size_of;
use std::time::Duration;

/// A policy of the kernel's scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The policy of ordinary threads (SCHED_OTHER).
    Other,
    /// Real-time: the thread runs before all ordinary threads (SCHED_FIFO).
    Fifo,
    /// Any other policy.
    Unknown,
}

/// How the kernel schedules a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduling {
    /// Policy of the thread.
    pub policy: Policy,
    /// Time slice of an ordinary thread; `None` if the kernel does not tell.
    pub slice: Option<Duration>,
    /// Nice value of an ordinary thread.
    pub nice: i32,
}

/// The number of this thread, for [`scheduling`].
#[must_use]
pub fn thread_id() -> i32 {
    // SAFETY: gettid takes no argument and cannot fail.
    unsafe { libc::gettid() }
}

/// How the thread with this number is scheduled. 0 is this thread.
pub fn scheduling(thread: i32) -> io::Result<Scheduling> {
    let attr = get(thread)?;
    let policy = match i32::try_from(attr.sched_policy) {
        Ok(libc::SCHED_OTHER) => Policy::Other,
        Ok(libc::SCHED_FIFO) => Policy::Fifo,
        _ => Policy::Unknown,
    };
    let tells = policy == Policy::Other && attr.sched_runtime > 0;
    let slice = tells.then(|| Duration::from_nanos(attr.sched_runtime));
    Ok(Scheduling { policy, slice, nice: attr.sched_nice })
}

/// Asks for a time slice for this thread. It needs no privilege. A thread of another policy stays
/// as it is.
pub fn set_slice(slice: Duration) -> io::Result<()> {
    let mut attr = get(0)?;
    if i32::try_from(attr.sched_policy) != Ok(libc::SCHED_OTHER) {
        return Ok(());
    }
    attr.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    set(&attr)
}

/// Gives this thread real-time priority, the lowest one. Threads that it starts do not inherit it.
pub fn set_realtime() -> io::Result<()> {
    let reset_on_fork = u64::try_from(libc::SCHED_FLAG_RESET_ON_FORK).unwrap_or(0);
    let policy = u32::try_from(libc::SCHED_FIFO).unwrap_or(0);
    set(&libc::sched_attr { sched_policy: policy, sched_flags: reset_on_fork, sched_priority: 1, ..none() })
}

fn get(thread: i32) -> io::Result<libc::sched_attr> {
    let mut attr = none();
    // SAFETY: `attr` is a sched_attr of the size said, for the kernel to fill, alive and unaliased
    // for the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, thread, &raw mut attr, attr.size, 0) };
    // Limits of utilisation are not ours to repeat.
    attr.sched_flags &= u64::try_from(libc::SCHED_FLAG_RESET_ON_FORK).unwrap_or(0);
    if result == 0 { Ok(attr) } else { Err(io::Error::last_os_error()) }
}

fn set(attr: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: `attr` is a sched_attr that says its size, which the kernel reads; 0 is the calling
    // thread.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attr, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn none() -> libc::sched_attr {
    let size = u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(0);
    libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slice_is_in_force_if_the_kernel_tells() {
        let inside = std::thread::spawn(|| {
            let before = scheduling(0).expect("asked");
            set_slice(Duration::from_micros(300)).expect("no privilege is needed");
            (before, scheduling(thread_id()).expect("asked"))
        });
        let (before, after) = inside.join().expect("no panic");
        assert_eq!((after.policy, after.nice), (before.policy, before.nice));
        if before.policy == Policy::Other && after.slice.is_some() {
            assert_eq!(after.slice, Some(Duration::from_micros(300)));
        }
    }

    #[test]
    fn missing_thread_is_an_error() {
        assert!(scheduling(i32::MAX).is_err());
    }
}
