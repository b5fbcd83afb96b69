//! Removal of a lab: ends its processes, deletes its namespaces, unmounts what is in its directory,
//! deletes its directory.
//!
//! It works from what is found on the machine, so it also removes a lab that is only half made.
//!
//! Invariant: a failure of one step does not stop the others; everything that is left is reported.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use super::error::LabError;
use super::names::check_name;
use super::state::{self, ProcessId};
use super::{daemon, mounts, programs};
use crate::sys::netns;
use crate::sys::process::Process;

/// What [`down`] found and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Number of processes: daemons, etcd, and other programs that ran in the lab's namespaces.
    pub processes: usize,
    /// Number of network namespaces.
    pub namespaces: usize,
    /// Whether the lab had a directory.
    pub directory: bool,
}

/// Removes a lab, or what is left of one. A lab that does not exist is not an error.
///
/// # Errors
/// Something could not be removed. Everything else is removed nevertheless.
pub fn down(name: &str) -> Result<Removed, LabError> {
    check_name(name)?;
    programs::privileged()?;
    let mut left = Vec::new();
    let mut note = |result: Result<(), LabError>| left.extend(result.err().map(|error| error.to_string()));

    let daemons: Vec<Process> = state::daemons(name).into_iter().filter_map(ProcessId::open).collect();
    note(daemon::end_all(&daemons, daemon::TERM_TIMEOUT));
    let namespaces = state::namespaces(name);
    let others = processes_in(&namespaces);
    note(daemon::end_all(&others, Duration::from_secs(1)));
    if !namespaces.is_empty() {
        let lines: String = namespaces.iter().map(|netns| format!("netns del {netns}\n")).collect();
        note(programs::ip_batch(None, &lines, true));
    }
    for (place, error) in mounts::remove_below(&state::directory(name)) {
        note(Err(LabError::io(format!("unmount {}", place.display()))(error)));
    }
    let directory = state::remove(name).unwrap_or_else(|error| {
        note(Err(LabError::io(format!("remove {}", state::directory(name).display()))(error)));
        false
    });
    let removed =
        Removed { processes: daemons.len() + others.len(), namespaces: namespaces.len(), directory };
    if left.is_empty() { Ok(removed) } else { Err(LabError::Left { name: name.to_owned(), left }) }
}

/// All processes in the lab's namespaces, also those that no record names: a shell of `lab exec`,
/// or a daemon that was started and not yet recorded. A process that stays would keep its namespace
/// and all devices in it alive, without a name.
fn processes_in(namespaces: &[String]) -> Vec<Process> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let netns_of = |pid: u32| identity(Path::new(&format!("/proc/{pid}/ns/net")));
    let mut inside: BTreeSet<_> = namespaces.iter().filter_map(|name| identity(&netns::path(name))).collect();
    // This process must not end itself.
    if let Some(here) = netns_of(std::process::id()) {
        inside.remove(&here);
    }
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let process = Process::open(pid).ok()?;
        inside.contains(&netns_of(pid)?).then_some(process)
    })
    .collect()
}
