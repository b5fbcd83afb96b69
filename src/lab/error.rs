//! What can go wrong with a lab, each with the sentence that mends it.

use std::io;
use std::path::PathBuf;

/// Why a lab could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Names become part of namespace names and of paths.
    #[error("{0:?} cannot name a lab: use 1 to 32 of a-z, 0-9 and '-', not '-' first")]
    Name(String),
    /// The numbering of the lab's addresses ends there.
    #[error("a lab of {0} hosts cannot be made: choose 1 to 200")]
    Hosts(u8),
    /// A host or pod that the lab doesn't have.
    #[error("lab {lab} has no {site}: it has h1 to h{hosts} and p1 to p{hosts}")]
    Site { lab: String, site: String, hosts: u8 },
    /// Namespaces, links and mounts take privileges.
    #[error(
        "a lab makes network namespaces, and that takes CAP_SYS_ADMIN and CAP_NET_ADMIN: run it as root (sudo), \
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
        /// Path beside hopsack-lab, where it was expected.
        beside: PathBuf,
    },
    /// Likewise, and the lab can do without.
    #[error("the program etcd is missing: apt-get install etcd-server, or choose --store file")]
    NoEtcd,
    /// etcd does not serve.
    #[error("{name} does not serve ({how}); see {log}")]
    Etcd { name: String, how: String, log: String },
    /// Somebody else has the subnet that the lab's numbering gives to this host.
    #[error("{host} leased {leased} instead of {planned}: hopsack lab down, then up again")]
    Subnet { host: String, leased: String, planned: String },
    /// The daemons could not make their devices.
    #[error("/dev/net/tun cannot be opened ({0}): modprobe tun, or give the container --device /dev/net/tun")]
    Tun(io::Error),
    /// There is a lab of this name, or what is left of one.
    #[error("lab {0} exists, in whole or in part: hopsack lab down --name {0}")]
    Exists(String),
    /// There is no lab of this name.
    #[error("there is no lab {0}: hopsack lab up --name {0}, or hopsack lab list")]
    Absent(String),
    /// Its making was interrupted, or something has removed a part.
    #[error("lab {0} is incomplete: hopsack lab down --name {0}, then up again")]
    HalfBuilt(String),
    /// It is another lab than the one asked for.
    #[error("lab {name} exists with {has}: hopsack lab down --name {name}, or choose another --name")]
    Differs { name: String, has: String },
    /// A process that is alive will remove this lab when it ends.
    #[error("lab {name} belongs to process {pid}, which is running: wait for it, or choose another --name")]
    Busy { name: String, pid: u32 },
    /// A program failed.
    #[error("`{command}` failed: {stderr}")]
    Command { command: String, stderr: String },
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    Io { what: String, source: io::Error },
    /// A daemon ended that should run.
    #[error("the daemon of {host} ended ({status}); its log ends with:\n{log}")]
    DaemonDied { host: String, status: String, log: String },
    /// A daemon runs but did not become ready.
    #[error("the daemon of {host} is not ready after {seconds} s ({answer}); its log ends with:\n{log}")]
    NotReady { host: String, seconds: u64, answer: String, log: String },
    /// A daemon's answer could not be had.
    #[error("no answer on {path}: {reason}")]
    Control { path: String, reason: String },
    /// Bytes arrived other than they were sent.
    #[error("the content differs from what was sent, in the 8 bytes from {at} on")]
    Corrupt { at: u64 },
    /// A step of the demo did not show what it should.
    #[error("the demo failed: {0}")]
    Demo(String),
    /// What was to be measured could not be.
    #[error("the bench failed: {0}")]
    Bench(String),
    /// Something wore out.
    #[error("the soak failed: {0}")]
    Soak(String),
    /// SIGINT, SIGTERM or SIGHUP.
    #[error("interrupted")]
    Interrupted,
    /// Everything else was removed.
    #[error("lab {name} is not wholly removed: {}", .left.join("; "))]
    Left { name: String, left: Vec<String> },
}

impl LabError {
    /// Exit code of the program: 2 for wrong arguments, 1 for every other failure.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let wrong_arguments = matches!(self, Self::Name(_) | Self::Hosts(_) | Self::Site { .. });
        1 + u8::from(wrong_arguments)
    }

    /// Turns an I/O error into one that says what was tried: `.map_err(LabError::io("read the log"))`.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
