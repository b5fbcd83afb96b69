//! Programs: runs `ip` and other programs in the lab's namespaces, and checks before whether this
//! machine can have a lab.
//!
//! Each program runs in a session of its own. So Ctrl-C reaches only the lab, and not the `ip` that
//! removes the lab.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use caps::{CapSet, Capability};

use super::error::LabError;
use super::options::Store;
use crate::sys::netns::in_netns;
use crate::sys::process::own_session;

/// Checks that this process can make a lab here. The error says how to fix it.
pub(super) fn preflight(store: Store) -> Result<(), LabError> {
    privileged()?;
    for (program, package) in [("ip", "iproute2"), ("ping", "iputils-ping")] {
        require(program, package)?;
    }
    if matches!(store, Store::Etcd { .. }) && !installed("etcd") {
        return Err(LabError::NoEtcd);
    }
    fs::File::options().read(true).write(true).open("/dev/net/tun").map_err(LabError::Tun)?;
    Ok(())
}

/// Checks that a program is on the PATH. The error names the package to install.
pub(super) fn require(program: &'static str, package: &'static str) -> Result<(), LabError> {
    if installed(program) { Ok(()) } else { Err(LabError::Missing { program, package }) }
}

pub(super) fn installed(program: &str) -> bool {
    on_path(program).is_some()
}

/// Path of a program on the PATH; none if there is none.
pub(super) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Checks that this process may enter and remove namespaces.
pub(super) fn privileged() -> Result<(), LabError> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let able = has(Capability::CAP_SYS_ADMIN) && has(Capability::CAP_NET_ADMIN);
    if able { Ok(()) } else { Err(LabError::Privilege) }
}

/// Runs lines of `ip` commands in one process, in `netns` or in the current namespace. Stops at the
/// first failure unless `force` is set.
pub(super) fn ip_batch(netns: Option<&str>, lines: &str, force: bool) -> Result<(), LabError> {
    let mut ip = Command::new("ip");
    ip.args(netns.iter().flat_map(|netns| ["-n", netns]));
    ip.args(force.then_some("-force")).args(["-batch", "-"]);
    let described = format!("ip{} -batch", netns.map(|netns| format!(" -n {netns}")).unwrap_or_default());
    let spawned =
        own_session(&mut ip).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(LabError::io("run ip"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // An `ip` that failed does not read the rest; its exit status says more than our EPIPE.
        let _ = stdin.write_all(lines.as_bytes());
    }
    let output = child.wait_with_output().map_err(LabError::io("run ip"))?;
    succeed(&described, &output).map_err(|error| match (&error, failed_line(&output, lines)) {
        (LabError::Command { stderr, .. }, Some(line)) => {
            LabError::Command { command: format!("{described}: {line}"), stderr: stderr.clone() }
        }
        _ => error,
    })
}

/// A command that will run in `netns`. It inherits the standard streams.
pub(super) fn command_in<S: AsRef<OsStr>>(netns: &str, argv: &[S]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns]).args(argv);
    command
}

/// Runs a command in a namespace, without standard input, and waits for its end. A command that
/// fails is not an error: see its exit status.
///
/// # Errors
/// `ip` could not be run.
pub fn exec<S: AsRef<OsStr>>(netns: &str, argv: &[S]) -> Result<Output, LabError> {
    let mut command = command_in(netns, argv);
    own_session(&mut command).stdin(Stdio::null()).output().map_err(LabError::io("run ip netns exec"))
}

/// Writes kernel settings below `/proc/sys/net` of a namespace.
pub(super) fn set_sysctls(netns: &str, settings: &[(&str, &str)]) -> Result<(), LabError> {
    let write = || {
        settings.iter().try_for_each(|(key, value)| {
            let path = format!("/proc/sys/net/{key}");
            fs::write(&path, value).map_err(LabError::io(format!("write {value} to {path} in {netns}")))
        })
    };
    in_netns(netns, write).map_err(LabError::io(format!("enter the namespace {netns}")))?
}

/// Turns a failed exit status into an error that contains what the program printed.
pub(super) fn succeed(command: &str, output: &Output) -> Result<(), LabError> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let stderr = if said.trim().is_empty() { output.status.to_string() } else { said.trim().to_owned() };
    Err(LabError::Command { command: command.to_owned(), stderr })
}

/// The line that failed in a batch. `ip -batch` reports only its number.
fn failed_line<'a>(output: &Output, lines: &'a str) -> Option<&'a str> {
    let said = String::from_utf8_lossy(&output.stderr);
    let (_, after) = said.split_once("Command failed -:")?;
    let number: usize = after.lines().next()?.trim().parse().ok()?;
    lines.lines().nth(number.checked_sub(1)?)
}
