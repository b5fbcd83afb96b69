//! The daemon of one host: started, asked, killed, and started again, as systemd would.
//!
//! Invariant: signals go to the recorded process or to nobody, whichever process of ours had started it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::state::{self, ProcessId};
use super::{Host, Interrupt, LabError, programs};
use crate::sys::process::{Process, Signal, own_session};

/// How long a daemon may take to end after SIGTERM, before SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// How long the kernel may take to end a process after SIGKILL.
const CERTAIN: Duration = Duration::from_secs(2);

/// The daemon of one host of a lab.
#[derive(Debug)]
pub struct Daemon {
    host: Host,
    binary: PathBuf,
    interrupt: Interrupt,
    /// Held to be reaped, if this process has started it.
    child: Mutex<Option<Child>>,
}

impl Daemon {
    pub(super) fn new(host: Host, binary: PathBuf, interrupt: Interrupt) -> Self {
        Self { host, binary, interrupt, child: Mutex::new(None) }
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.host.directory.join("hopsack.toml")
    }

    /// Its control socket, which need not be there.
    #[must_use]
    pub fn control_path(&self) -> PathBuf {
        self.host.directory.join("run/control.sock")
    }

    /// The file that its standard error goes to, appended to at each start.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.host.directory.join("log")
    }

    /// All that it has logged since the lab was made.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Its process number, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        state::daemon(&self.host.directory).filter(|id| id.alive()).map(|id| id.pid)
    }

    /// Starts it unless it runs. Does not wait until it is ready.
    ///
    /// # Errors
    /// It could not be started or recorded. What it finds wrong itself is told by [`Daemon::wait_ready`].
    pub fn start(&self) -> Result<(), LabError> {
        if self.pid().is_some() {
            return Ok(());
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
        // A child that has ended already has no identity worth recording; wait_ready shows its log.
        let recorded = ProcessId::of(child.id()).map(|id| state::set_daemon(&self.host.directory, id));
        if let Some(Err(error)) = recorded {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        *self.child() = Some(child);
        Ok(())
    }

    /// Kills it with SIGKILL and waits for its end. None to kill is no error.
    ///
    /// # Errors
    /// Not permitted, or it does not end.
    pub fn kill9(&self) -> Result<(), LabError> {
        self.end(Duration::ZERO).map(|_| ())
    }

    /// Ends it with SIGTERM, and with SIGKILL if it takes more than 5 s. None to end is no error. Returns its exit
    /// status if this process had started it.
    ///
    /// # Errors
    /// Not permitted, or it does not end.
    pub fn terminate(&self) -> Result<Option<ExitStatus>, LabError> {
        self.end(GRACE)
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// It ended, or `timeout` passed: the error shows the end of its log; or the lab was interrupted.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + timeout;
        loop {
            // In this order: a daemon that answers and then dies must not be taken for one that never answered.
            let answer = self.status();
            if answer.as_ref().is_ok_and(|status| status["ready"] == true) {
                return Ok(());
            }
            let (host, log) = (self.host.name.clone(), || self.log_tail());
            if self.pid().is_none() {
                let status = self.reap().map_or("not running".into(), |status| status.to_string());
                return Err(LabError::DaemonDied { host, status, log: log() });
            }
            if Instant::now() >= deadline {
                let answer = answer.map_or_else(|error| error.to_string(), |status| status.to_string());
                return Err(LabError::NotReady { host, seconds: timeout.as_secs(), answer, log: log() });
            }
            self.interrupt.sleep(Duration::from_millis(10))?;
        }
    }

    /// Waits until it knows so many hosts: with etcd, a host that is ready hears of those that join after it.
    ///
    /// # Errors
    /// It does not answer, or `timeout` passed; or the lab was interrupted.
    pub fn wait_peers(&self, peers: usize, timeout: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.status()?;
            if status["peers"].as_u64().is_some_and(|known| known >= peers as u64) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let (host, seconds) = (self.host.name.clone(), timeout.as_secs());
                return Err(LabError::NotReady {
                    host,
                    seconds,
                    answer: status.to_string(),
                    log: self.log_tail(),
                });
            }
            self.interrupt.sleep(Duration::from_millis(5))?;
        }
    }

    /// Asks it for its status: the content of `ok` in its answer.
    ///
    /// # Errors
    /// It does not answer, or with an error.
    pub fn status(&self) -> Result<Value, LabError> {
        self.ask(r#"{"command":"status"}"#)
    }

    /// Writes one line to its control socket and reads one: the content of `ok` in the answer.
    ///
    /// # Errors
    /// It does not answer within 2 s, or with an error.
    pub fn ask(&self, request: &str) -> Result<Value, LabError> {
        let path = self.control_path();
        let no_answer = |reason: String| LabError::Control { path: path.display().to_string(), reason };
        let converse = || {
            let mut socket = UnixStream::connect(&path)?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.set_write_timeout(Some(Duration::from_secs(2)))?;
            socket.write_all(format!("{request}\n").as_bytes())?;
            let mut line = String::new();
            BufReader::new(socket).read_line(&mut line)?;
            Ok(line)
        };
        let line = converse().map_err(|error: std::io::Error| no_answer(error.to_string()))?;
        let mut answer: Value = serde_json::from_str(&line).map_err(|error| no_answer(error.to_string()))?;
        match answer.get_mut("ok") {
            Some(content) => Ok(content.take()),
            None => Err(no_answer(line.trim().to_owned())),
        }
    }

    fn end(&self, grace: Duration) -> Result<Option<ExitStatus>, LabError> {
        let process = state::daemon(&self.host.directory).and_then(ProcessId::open);
        end_all(process.as_slice(), grace)?;
        Ok(self.reap())
    }

    /// Collects the child that has ended; none if it was not ours.
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

/// Ends processes: all get SIGTERM, and after `grace` those that still run SIGKILL. A grace of zero is SIGKILL at once.
pub(super) fn end_all(processes: &[Process], grace: Duration) -> Result<(), LabError> {
    let failed = || LabError::io("end a process of the lab");
    let wait_for_all = |patience: Duration| {
        let deadline = Instant::now() + patience;
        let mut running = Vec::new();
        for process in processes {
            let left = deadline.saturating_duration_since(Instant::now());
            if !process.wait(left).map_err(failed())? {
                running.push(process);
            }
        }
        Ok::<_, LabError>(running)
    };
    if !grace.is_zero() {
        processes.iter().try_for_each(|process| process.signal(Signal::Terminate)).map_err(failed())?;
    }
    for process in wait_for_all(grace)? {
        process.signal(Signal::Kill).map_err(failed())?;
    }
    match wait_for_all(CERTAIN)?.len() {
        0 => Ok(()),
        _ => Err(failed()(std::io::ErrorKind::TimedOut.into())),
    }
}
