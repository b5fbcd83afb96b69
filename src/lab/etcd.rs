//! An etcd of the lab: one member of the cluster's store, in the namespace of the underlay, where every host reaches it.
//!
//! It is started, killed, frozen and started again as a daemon is; its data lies in the lab's folder and goes with it. The
//! lab knows etcd only as a program that answers `/health`.
//!
//! Invariant: signals go to the recorded process or to nobody, whichever process of ours had started it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::state::{self, ProcessId};
use super::{Interrupt, LabError, daemon, programs};
use crate::sys::netns::in_netns;
use crate::sys::process::{Signal, own_session};

/// The ports of etcd, as IANA has them: for clients and for the other members.
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// What a plan says about one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// `etcd1`, `etcd2`, ...
    pub(super) name: String,
    pub(super) netns: String,
    pub(super) address: IpAddr,
    /// Where its data, log and record are.
    pub(super) directory: PathBuf,
}

impl Member {
    /// Where clients find it.
    pub(super) fn url(&self) -> String {
        format!("http://{}", SocketAddr::new(self.address, CLIENT_PORT))
    }

    /// Where the other members find it.
    fn peer_url(&self) -> String {
        format!("http://{}", SocketAddr::new(self.address, PEER_PORT))
    }
}

/// One member of the lab's etcd.
#[derive(Debug)]
pub struct Etcd {
    member: Member,
    /// All members, as `--initial-cluster` wants them.
    cluster: String,
    interrupt: Interrupt,
    /// Held to be reaped, if this process has started it.
    child: Mutex<Option<Child>>,
}

impl Etcd {
    /// All members of a lab's etcd; none if its store is a file.
    pub(super) fn all(members: &[Member], interrupt: &Interrupt) -> Vec<Self> {
        let parts = members.iter().map(|member| format!("{}={}", member.name, member.peer_url()));
        let cluster = parts.collect::<Vec<_>>().join(",");
        let etcd = |member: &Member| Self {
            member: member.clone(),
            cluster: cluster.clone(),
            interrupt: interrupt.clone(),
            child: Mutex::new(None),
        };
        members.iter().map(etcd).collect()
    }

    /// Where clients find it.
    #[must_use]
    pub fn url(&self) -> String {
        self.member.url()
    }

    /// Its address on the underlay.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.member.address
    }

    /// The file that its standard error goes to, appended to at each start.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.member.directory.join("log")
    }

    /// Its process number, while it runs, frozen or not.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        state::daemon(&self.member.directory).filter(|id| id.alive()).map(|id| id.pid)
    }

    /// Starts it unless it runs, with the data that it has. Does not wait until it answers: members wait for each other.
    ///
    /// # Errors
    /// It could not be started or recorded.
    pub fn start(&self) -> Result<(), LabError> {
        if self.pid().is_some() {
            return Ok(());
        }
        let Member { name, netns, directory, .. } = &self.member;
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

    /// Waits until it serves: it has a leader.
    ///
    /// # Errors
    /// It ended, or `timeout` passed; or the lab was interrupted.
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

    /// Kills it with SIGKILL and waits for its end. None to kill is no error.
    ///
    /// # Errors
    /// Not permitted, or it does not end.
    pub fn kill9(&self) -> Result<(), LabError> {
        let process = state::daemon(&self.member.directory).and_then(ProcessId::open);
        daemon::end_all(process.as_slice(), Duration::ZERO)?;
        self.reap();
        Ok(())
    }

    /// Stops it where it stands: connections stay, and nothing answers.
    ///
    /// # Errors
    /// It does not run, or that is not permitted.
    pub fn freeze(&self) -> Result<(), LabError> {
        self.signal(Signal::Freeze)
    }

    /// Lets it go on after [`Etcd::freeze`].
    ///
    /// # Errors
    /// It does not run, or that is not permitted.
    pub fn thaw(&self) -> Result<(), LabError> {
        self.signal(Signal::Thaw)
    }

    fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let failed = || LabError::io(format!("signal {}", self.member.name));
        let process = state::daemon(&self.member.directory).and_then(ProcessId::open);
        let process = process.ok_or_else(|| failed()(io::ErrorKind::NotFound.into()))?;
        process.signal(signal).map_err(failed())
    }

    /// What it says of itself over HTTP, asked from its own namespace.
    fn health(&self) -> io::Result<String> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let at = SocketAddr::new(self.member.address, CLIENT_PORT);
        in_netns(&self.member.netns, || {
            let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?
    }

    /// Collects the child that has ended.
    pub(super) fn reap(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_)))) {
            *child = None;
        }
    }
}
