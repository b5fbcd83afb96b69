//! etcd of the lab: each member runs in the namespace of the underlay, where every host reaches it.
//!
//! A member can be started, killed, frozen and started again. Its data is in the lab's directory
//! and is removed with it. The lab knows etcd only as a program that answers `/health`.
//!
//! Invariant: a signal is sent only to the recorded process, never to another process that reuses
//! its number.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::LabError;
use super::interrupt::Interrupt;
use super::site::{ETCD_CLIENT_PORT, EtcdMember};
use super::state::{self, ProcessId};
use super::{daemon, programs};
use crate::sys::netns::in_netns;
use crate::sys::process::{Signal, own_session};

/// One member of the lab's etcd.
#[derive(Debug)]
pub struct Etcd {
    member: EtcdMember,
    /// All members, in the format of etcd's option `--initial-cluster`.
    cluster: String,
    interrupt: Interrupt,
    /// Child process to reap, if this process started it.
    child: Mutex<Option<Child>>,
}

impl Etcd {
    /// All members of a lab's etcd; empty if its store is a file.
    pub(super) fn all(members: &[EtcdMember], interrupt: &Interrupt) -> Vec<Self> {
        let parts = members.iter().map(|member| format!("{}={}", member.name, member.peer_url()));
        let cluster = parts.collect::<Vec<_>>().join(",");
        let etcd = |member: &EtcdMember| Self {
            member: member.clone(),
            cluster: cluster.clone(),
            interrupt: interrupt.clone(),
            child: Mutex::new(None),
        };
        members.iter().map(etcd).collect()
    }

    /// URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        self.member.url()
    }

    /// Address of the member on the underlay.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.member.address
    }

    /// Log file: the member's standard error, appended at each start.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.member.directory.join("log")
    }

    /// Process number, while the member runs, frozen or not.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        state::daemon(&self.member.directory).filter(|id| id.alive()).map(|id| id.pid)
    }

    /// Starts the member with its existing data, unless it runs. Does not wait until it answers,
    /// because members wait for each other.
    ///
    /// # Errors
    /// The process could not be started or recorded.
    pub fn start(&self) -> Result<(), LabError> {
        if self.pid().is_some() {
            return Ok(());
        }
        let EtcdMember { name, netns, directory, .. } = &self.member;
        let what = || LabError::io(format!("start {name}"));
        std::fs::create_dir_all(directory).map_err(what())?;
        let log = File::options().append(true).create(true).open(self.log_path()).map_err(what())?;
        let also = log.try_clone().map_err(what())?;
        let (url, peer_url) = (self.url(), self.member.peer_url());
        let data = directory.join("data").display().to_string();
        let argv = [
            ["etcd", "--logger=zap"].as_slice(),
            &["--name", name, "--data-dir", &data],
            &["--listen-client-urls", &url, "--advertise-client-urls", &url],
            &["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url],
            &["--initial-cluster", &self.cluster],
        ];
        let mut command = programs::command_in(netns, &argv.concat());
        command.stdin(Stdio::null()).stdout(also).stderr(log);
        let mut child = own_session(&mut command).spawn().map_err(what())?;
        if let Some(Err(error)) = ProcessId::of(child.id()).map(|id| state::set_daemon(directory, id)) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    /// Waits until the member serves, which means that it has a leader.
    ///
    /// # Errors
    /// The member ended, `timeout` passed, or the lab was interrupted.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + timeout;
        let name = &self.member.name;
        loop {
            let answer = self.health();
            if answer.as_ref().is_ok_and(|answer| answer.contains(r#""health":"true""#)) {
                return Ok(());
            }
            let ended = self.pid().is_none();
            if ended || Instant::now() >= deadline {
                let answer = answer.unwrap_or_else(|error| error.to_string());
                let how = if ended { "it ended" } else { answer.trim() };
                let log = self.log_path().display().to_string();
                return Err(LabError::Etcd { name: name.clone(), how: how.to_owned(), log });
            }
            self.interrupt.sleep(Duration::from_millis(20))?;
        }
    }

    /// Kills the member with SIGKILL and waits for its end. If it does not run, that is not an
    /// error.
    ///
    /// # Errors
    /// The signal is not permitted, or the process does not end.
    pub fn kill9(&self) -> Result<(), LabError> {
        let process = state::daemon(&self.member.directory).and_then(ProcessId::open);
        daemon::end_all(process.as_slice(), Duration::ZERO)?;
        self.reap();
        Ok(())
    }

    /// Freezes the member with SIGSTOP: its connections stay open, and it answers nothing.
    ///
    /// # Errors
    /// The member does not run, or the signal is not permitted.
    pub fn freeze(&self) -> Result<(), LabError> {
        self.signal(Signal::Freeze)
    }

    /// Lets the member continue after [`Etcd::freeze`].
    ///
    /// # Errors
    /// The member does not run, or the signal is not permitted.
    pub fn thaw(&self) -> Result<(), LabError> {
        self.signal(Signal::Thaw)
    }

    fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let failed = || LabError::io(format!("signal {}", self.member.name));
        let process = state::daemon(&self.member.directory).and_then(ProcessId::open);
        let process = process.ok_or_else(|| failed()(io::ErrorKind::NotFound.into()))?;
        process.signal(signal).map_err(failed())
    }

    /// Answer of the member's `/health`, asked from its own namespace.
    fn health(&self) -> io::Result<String> {
        const TIMEOUT: Duration = Duration::from_secs(1);
        let at = SocketAddr::new(self.member.address, ETCD_CLIENT_PORT);
        in_netns(&self.member.netns, || {
            let mut stream = TcpStream::connect_timeout(&at, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?
    }

    /// Reaps the child process if it has ended.
    pub(super) fn reap(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_)))) {
            *child = None;
        }
    }
}
