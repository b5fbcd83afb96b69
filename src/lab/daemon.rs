//! Daemon of one host: started, asked, killed and started again, as systemd would do it.
//!
//! It knows the daemon only as a program with a configuration file and a control socket.
//!
//! Invariant: a signal is sent only to the recorded process, never to another process that reuses
//! its number.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::LabError;
use super::interrupt::Interrupt;
use super::mounts;
use super::options::Options;
use super::programs;
use super::site::Host;
use super::state::{self, ProcessId};
use crate::api::{Request, Status};
use crate::control::{self, ControlError};
use crate::sys::process::{Process, Signal, own_session};

/// Time that daemons may take to become ready. They do not wait for each other, so this long time
/// is for a machine that is busy.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(15);

/// Time that a daemon may take to end after SIGTERM, before it gets SIGKILL.
pub(super) const TERM_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that the kernel may take to end a process after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// The daemon of one host of a lab.
#[derive(Debug)]
pub struct Daemon {
    host: Host,
    binary: PathBuf,
    interrupt: Interrupt,
    /// Whether the daemon may use the kernel fast path.
    fast_path: bool,
    /// Child process to reap, if this process started it.
    child: Mutex<Option<Child>>,
}

impl Daemon {
    pub(super) fn new(host: Host, options: &Options) -> Self {
        let Options { binary, interrupt, fast_path, .. } = options;
        let (binary, interrupt) = (binary.clone(), interrupt.clone());
        Self { host, binary, interrupt, fast_path: *fast_path, child: Mutex::new(None) }
    }

    /// Path of the daemon's configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.host.directory.join("hopsack.toml")
    }

    /// Path of the daemon's control socket. It need not exist.
    #[must_use]
    pub fn control_path(&self) -> PathBuf {
        self.host.directory.join("run/control.sock")
    }

    /// Log file: the daemon's standard error, appended at each start.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.host.directory.join("log")
    }

    /// Everything that the daemon has logged since the lab was made.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Process number, while the daemon runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        state::daemon(&self.host.directory).filter(|id| id.alive()).map(|id| id.pid)
    }

    /// Starts the daemon unless it runs. Does not wait until it is ready.
    ///
    /// # Errors
    /// The process could not be started or recorded. [`Daemon::wait_ready`] returns the errors that
    /// the daemon itself reports.
    pub fn start(&self) -> Result<(), LabError> {
        if self.pid().is_some() {
            return Ok(());
        }
        if self.fast_path {
            mounts::make(&self.host.bpf_directory());
        }
        let host = &self.host.name;
        let what = || format!("start the daemon of {host}");
        let log =
            File::options().append(true).create(true).open(self.log_path()).map_err(LabError::io(what()))?;
        let also = log.try_clone().map_err(LabError::io(what()))?;
        let config = self.config_path();
        let argv = [self.binary.as_os_str(), "run".as_ref(), "--config".as_ref(), config.as_os_str()];
        let mut command = programs::command_in(&self.host.netns, &argv);
        command.stdin(Stdio::null()).stdout(also).stderr(log);
        let mut child = own_session(&mut command).spawn().map_err(LabError::io(what()))?;
        // A child that has already ended has no identity to record; wait_ready shows its log.
        let recorded = ProcessId::of(child.id()).map(|id| state::set_daemon(&self.host.directory, id));
        if let Some(Err(error)) = recorded {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        *self.child() = Some(child);
        Ok(())
    }

    /// Kills the daemon with SIGKILL and waits for its end. If it does not run, that is not an
    /// error.
    ///
    /// # Errors
    /// The signal is not permitted, or the process does not end.
    pub fn kill9(&self) -> Result<(), LabError> {
        self.end(Duration::ZERO).map(|_| ())
    }

    /// Ends the daemon with SIGTERM, and with SIGKILL if that takes more than 5 s. If it does not
    /// run, that is not an error. Returns the exit status if this process started the daemon.
    ///
    /// # Errors
    /// The signal is not permitted, or the process does not end.
    pub fn terminate(&self) -> Result<Option<ExitStatus>, LabError> {
        self.end(TERM_TIMEOUT)
    }

    /// Ends the daemon with SIGTERM, and removes what it leaves for its next start.
    ///
    /// # Errors
    /// The daemon does not end, or something cannot be removed.
    pub fn remove(&self) -> Result<(), LabError> {
        self.terminate()?;
        let config = self.config_path();
        let argv = [self.binary.as_os_str(), "clean".as_ref(), "--config".as_ref(), config.as_os_str()];
        programs::succeed("hopsack clean", &programs::exec(&self.host.netns, &argv)?)
    }

    /// Waits until the daemon reports that it is ready.
    ///
    /// # Errors
    /// The daemon ended or `timeout` passed (the error contains the end of its log), or the lab was
    /// interrupted.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + timeout;
        loop {
            // Ask first, then look for the process: a daemon that answered and then ended must not
            // be reported as one that never answered.
            let answer = self.query::<Status>(Request::Status);
            if answer.as_ref().is_ok_and(|status| status.ready) {
                return Ok(());
            }
            let (host, log) = (self.host.name.clone(), || self.log_tail());
            if self.pid().is_none() {
                let status = self.reap().map_or("not running".into(), |status| status.to_string());
                return Err(LabError::DaemonDied { host, status, log: log() });
            }
            if Instant::now() >= deadline {
                let answer = answer.map_or_else(|error| error.to_string(), |_| "ready: false".into());
                return Err(LabError::NotReady { host, seconds: timeout.as_secs(), answer, log: log() });
            }
            self.interrupt.sleep(Duration::from_millis(10))?;
        }
    }

    /// Waits until the daemon knows this number of peers. With etcd, a host that is ready still
    /// learns of the hosts that join after it.
    ///
    /// # Errors
    /// The daemon does not answer, `timeout` passed, or the lab was interrupted.
    pub fn wait_peers(&self, peers: usize, timeout: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + timeout;
        loop {
            let status: Status = self.query(Request::Status)?;
            if status.peers >= peers {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let (host, seconds) = (self.host.name.clone(), timeout.as_secs());
                return Err(LabError::NotReady {
                    host,
                    seconds,
                    answer: format!("{} of {peers} peers", status.peers),
                    log: self.log_tail(),
                });
            }
            self.interrupt.sleep(Duration::from_millis(5))?;
        }
    }

    /// Asks the daemon over its control socket.
    ///
    /// # Errors
    /// The daemon does not answer within 5 s, or it answers with an error.
    pub fn query<T: DeserializeOwned>(&self, request: Request) -> Result<T, LabError> {
        let path = self.control_path();
        let failed = |error: ControlError| LabError::Control {
            path: path.display().to_string(),
            reason: error.to_string(),
        };
        control::ask(&path, request).map_err(failed)
    }

    /// Asks the daemon for its status, as JSON.
    ///
    /// # Errors
    /// See [`Daemon::query`].
    pub fn status(&self) -> Result<Value, LabError> {
        self.query(Request::Status)
    }

    /// Writes one line to the control socket and reads one line, for tests that send requests which
    /// no client sends. Returns the value of `ok` in the answer.
    ///
    /// # Errors
    /// The daemon does not answer within 2 s, or it answers with an error.
    pub fn ask(&self, request: &str) -> Result<Value, LabError> {
        let path = self.control_path();
        let no_answer = |reason: String| LabError::Control { path: path.display().to_string(), reason };
        let exchange = || {
            let mut socket = UnixStream::connect(&path)?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.set_write_timeout(Some(Duration::from_secs(2)))?;
            socket.write_all(format!("{request}\n").as_bytes())?;
            let mut line = String::new();
            BufReader::new(socket).read_line(&mut line)?;
            Ok(line)
        };
        let line = exchange().map_err(|error: std::io::Error| no_answer(error.to_string()))?;
        let mut answer: Value = serde_json::from_str(&line).map_err(|error| no_answer(error.to_string()))?;
        match answer.get_mut("ok") {
            Some(content) => Ok(content.take()),
            None => Err(no_answer(line.trim().to_owned())),
        }
    }

    fn end(&self, timeout: Duration) -> Result<Option<ExitStatus>, LabError> {
        let process = state::daemon(&self.host.directory).and_then(ProcessId::open);
        end_all(process.as_slice(), timeout)?;
        Ok(self.reap())
    }

    /// Reaps the child process if it has ended; none if this process did not start it.
    pub(super) fn reap(&self) -> Option<ExitStatus> {
        let mut child = self.child();
        let status = child.as_mut()?.try_wait().ok()??;
        *child = None;
        Some(status)
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(8)..];
        if tail.is_empty() { "  (empty)".into() } else { format!("  {}", tail.join("\n  ")) }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends processes. All get SIGTERM, and those that still run after `timeout` get SIGKILL. With a
/// timeout of zero they get SIGKILL at once.
pub(super) fn end_all(processes: &[Process], timeout: Duration) -> Result<(), LabError> {
    let failed = || LabError::io("end a process of the lab");
    let wait_for_all = |time: Duration| {
        let deadline = Instant::now() + time;
        let mut running = Vec::new();
        for process in processes {
            let left = deadline.saturating_duration_since(Instant::now());
            if !process.wait(left).map_err(failed())? {
                running.push(process);
            }
        }
        Ok::<_, LabError>(running)
    };
    if !timeout.is_zero() {
        processes.iter().try_for_each(|process| process.signal(Signal::Terminate)).map_err(failed())?;
    }
    for process in wait_for_all(timeout)? {
        process.signal(Signal::Kill).map_err(failed())?;
    }
    match wait_for_all(KILL_TIMEOUT)?.len() {
        0 => Ok(()),
        _ => Err(failed()(std::io::ErrorKind::TimedOut.into())),
    }
}
