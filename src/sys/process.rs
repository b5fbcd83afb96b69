//! Refers to a process by descriptor, so that a signal never reaches another process that has got
//! the same number.
//!
//! It does not start processes and does not reap them: std does that for children. Invariant: a
//! [`Process`] always refers to the same process, even after that process has ended. Source:
//! pidfd_open(2).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// A process: a child of this one or any other.
#[derive(Debug)]
pub struct Process(OwnedFd);

/// The signals that a [`Process`] can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT, as Ctrl-C sends it.
    Interrupt,
    /// SIGTERM asks the process to end.
    Terminate,
    /// SIGKILL ends the process at once.
    Kill,
    /// SIGSTOP stops the process.
    Freeze,
    /// SIGCONT continues the process.
    Thaw,
}

impl Process {
    /// Opens the process that has this number now.
    ///
    /// # Errors
    /// There is no such process, or the kernel is older than 5.3.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor, and no other code owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal. It is no error if the process has ended.
    ///
    /// # Errors
    /// This process may not send the signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let number = match signal {
            Signal::Interrupt => libc::SIGINT,
            Signal::Terminate => libc::SIGTERM,
            Signal::Kill => libc::SIGKILL,
            Signal::Freeze => libc::SIGSTOP,
            Signal::Thaw => libc::SIGCONT,
        };
        let no_info = std::ptr::null::<libc::siginfo_t>();
        let result =
            // SAFETY: the descriptor is open because we own it; a null siginfo is what the call
            // documents for "as kill(2)".
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), number, no_info, 0) };
        match io::Error::last_os_error() {
            _ if result == 0 => Ok(()),
            gone if gone.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        }
    }

    /// Waits until the process ends, at most for `timeout` (whole milliseconds, rounded up).
    /// Returns whether it has ended; a zombie has ended.
    ///
    /// # Errors
    /// `poll` failed.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = timeout.as_micros().div_ceil(1000);
        let milliseconds = libc::c_int::try_from(milliseconds).unwrap_or(libc::c_int::MAX);
        // SAFETY: `poll` is one initialised pollfd, alive and unaliased for the call; the count
        // says one.
        match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
            0 => Ok(false),
            ready if ready > 0 => Ok(true),
            _ => match io::Error::last_os_error() {
                // A signal to this process: the caller has its own deadline and calls again.
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error => Err(error),
            },
        }
    }
}

/// Makes the process of the command the leader of a new session, so that Ctrl-C and hang-up of the
/// terminal don't reach it.
pub fn own_session(command: &mut Command) -> &mut Command {
    let setsid = || {
        // SAFETY: setsid takes nothing and touches no memory.
        match unsafe { libc::setsid() } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: between fork and exec only async-signal-safe functions may run; setsid is one, and
    // reading errno and wrapping it in an io::Error allocates nothing.
    unsafe { command.pre_exec(setsid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_gets_signal_and_its_end_is_seen() {
        let mut child = own_session(Command::new("sleep").arg("60")).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.wait(Duration::from_millis(1)).unwrap());
        process.signal(Signal::Terminate).unwrap();
        assert!(process.wait(Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
        process.signal(Signal::Kill).unwrap();
    }
}
