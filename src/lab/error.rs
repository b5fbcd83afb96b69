//! Errors of a lab. Each message says what failed and, where possible, how to fix it.

use std::io;
use std::path::PathBuf;

/// Why a lab could not do what it was asked to do.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The name cannot be used: names become part of namespace names and of paths.
    #[error("{0:?} is not a name for a lab: use 1 to 32 of a-z, 0-9 and '-', and do not begin with '-'")]
    Name(String),
    /// The lab's addresses can be numbered only for 1 to 200 hosts.
    #[error("a lab cannot have {0} hosts: choose 1 to 200")]
    Hosts(u8),
    /// The lab has no such host or pod.
    #[error("lab {lab} has no {site}: it has h1 to h{hosts} and p1 to p{hosts}")]
    Site { lab: String, site: String, hosts: u8 },
    /// Namespaces, links and mounts need privileges.
    #[error(
        "a lab makes network namespaces, which needs CAP_SYS_ADMIN and CAP_NET_ADMIN: run it as root (sudo), \
         or in a user namespace, as scripts/demo does: unshare --user --map-root-user --net --mount \
         sh -c 'mount -t tmpfs tmpfs /run && exec hopsack lab demo'"
    )]
    Privilege,
    /// A program is not installed.
    #[error("the program {program} is missing: apt-get install {package}")]
    Missing { program: &'static str, package: &'static str },
    /// The daemon's program was not found.
    #[error(
        "hopsack is neither at {} nor on the PATH: install it, or build it with `cargo build --release`",
        .beside.display()
    )]
    NoDaemon {
        /// Path next to hopsack-lab, where it was expected.
        beside: PathBuf,
    },
    /// etcd is not installed. A lab with a file as its store does not need it.
    #[error("the program etcd is missing: apt-get install etcd-server, or use --store file")]
    NoEtcd,
    /// A member of etcd does not serve.
    #[error("{name} does not answer ({how}): its log is {log}")]
    Etcd { name: String, how: String, log: String },
    /// Another host has the subnet that the lab's numbering gives to this host.
    #[error("{host} leased {leased} instead of {planned}: run hopsack lab down, then up again")]
    Subnet { host: String, leased: String, planned: String },
    /// The daemons could not make their devices.
    #[error(
        "/dev/net/tun cannot be opened ({0}): run modprobe tun, or start the container with --device /dev/net/tun"
    )]
    Tun(io::Error),
    /// A lab with this name exists, or a part of one is left.
    #[error("lab {0} exists already, or a part of it is left: run hopsack lab down --name {0}")]
    Exists(String),
    /// No lab has this name.
    #[error("lab {0} does not exist: run hopsack lab up --name {0}, or see hopsack lab list")]
    Absent(String),
    /// The lab was not made completely, or a part of it was removed.
    #[error("lab {0} is incomplete: run hopsack lab down --name {0}, then up again")]
    HalfBuilt(String),
    /// A lab with this name exists, but with other options.
    #[error("lab {name} exists with {has}: run hopsack lab down --name {name}, or choose another --name")]
    Differs { name: String, has: String },
    /// Another process runs that will remove this lab when it ends.
    #[error("process {pid} uses lab {name}: wait until it ends, or choose another --name")]
    Busy { name: String, pid: u32 },
    /// A program ended with an error.
    #[error("`{command}` failed: {stderr}")]
    Command { command: String, stderr: String },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Io { what: String, source: io::Error },
    /// A daemon that should run has ended.
    #[error("the daemon of {host} ended ({status}); its log ends with:\n{log}")]
    DaemonDied { host: String, status: String, log: String },
    /// A daemon runs but did not become ready.
    #[error("the daemon of {host} is not ready after {seconds} s ({answer}); its log ends with:\n{log}")]
    NotReady { host: String, seconds: u64, answer: String, log: String },
    /// A daemon did not answer, or answered with an error.
    #[error("the daemon at {path} gave no answer: {reason}")]
    Control { path: String, reason: String },
    /// The bytes that arrived differ from those that were sent.
    #[error("the received bytes differ from the sent ones, in the 8 bytes at offset {at}")]
    Corrupt { at: u64 },
    /// A step of the demo failed.
    #[error("the demo failed: {0}")]
    Demo(String),
    /// A measurement of the bench failed.
    #[error("the bench failed: {0}")]
    Bench(String),
    /// The soak found an error.
    #[error("the soak failed: {0}")]
    Soak(String),
    /// SIGINT, SIGTERM or SIGHUP arrived.
    #[error("interrupted")]
    Interrupted,
    /// A part of the lab could not be removed; everything else was.
    #[error("lab {name} is not completely removed: {}", .left.join("; "))]
    Left { name: String, left: Vec<String> },
}

impl LabError {
    /// Exit code of the program: 2 for wrong arguments, 1 for every other failure.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let wrong_arguments = matches!(self, Self::Name(_) | Self::Hosts(_) | Self::Site { .. });
        1 + u8::from(wrong_arguments)
    }

    /// Turns an I/O error into one that says what failed: `.map_err(LabError::io("read the log"))`.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
