//! Which CPUs a thread may run on, and with which priority.
//!
//! It affects only the calling thread. Sources: sched_setaffinity(2), sched(7).

use std::io;
use std::mem::{self, size_of};

/// The numbers of the CPUs that this thread may run on.
pub fn allowed() -> io::Result<Vec<usize>> {
    let mut set = none();
    // SAFETY: `set` is a cpu_set_t of the size said, for the kernel to fill; 0 is the calling
    // thread.
    match unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } {
        0 => Ok((0..8 * size_of::<libc::cpu_set_t>())
            // SAFETY: CPU_ISSET reads one bit of the set and checks that it is inside.
            .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
            .collect()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Binds this thread to one CPU.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= 8 * size_of::<libc::cpu_set_t>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = none();
    // SAFETY: CPU_SET writes one bit of the set, which is inside.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is a cpu_set_t of the size said, which the kernel reads; 0 is the calling
    // thread.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets this thread run only while no other thread needs its CPU (SCHED_IDLE).
pub fn run_when_idle() -> io::Result<()> {
    // SAFETY: sched_param is made of integers, for which zero is a value, and 0 is the only
    // priority of SCHED_IDLE.
    let priority: libc::sched_param = unsafe { mem::zeroed() };
    // SAFETY: `priority` is a sched_param, which the kernel reads; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn none() -> libc::cpu_set_t {
    // SAFETY: cpu_set_t is an array of integers, for which zero is a value.
    unsafe { mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_thread_may_run_on_one_cpu() {
        let last = *allowed().expect("asked").last().expect("it runs somewhere");
        let inside = std::thread::spawn(move || pin(last).and_then(|()| allowed()));
        assert_eq!(inside.join().expect("no panic").expect("pinned"), [last]);
        assert!(pin(usize::MAX).is_err());
    }
}
