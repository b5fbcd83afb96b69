//! Records of a lab on disk, so that a later process can find the lab, use it and remove it.
//!
//! `/run/hopsack-lab/NAME/lab.json` contains the options and the owner of the lab. `hN/daemon.json`
//! identifies the process of a daemon. Both are below `/run`, which a reboot empties, as a reboot
//! also removes the namespaces.
//!
//! Invariant: a process is identified by its number together with its start time. So a number that
//! the system has reused is never mistaken for a process of the lab.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::LabError;
use super::names::lab_of;
use super::options::Options;
use crate::sys::netns;
use crate::sys::process::Process;

/// Directory of all labs of this machine.
const ROOT: &str = "/run/hopsack-lab";

/// Content of `lab.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) options: Options,
    /// Process that removes the lab when it ends; none for a lab that stays.
    pub(super) owner: Option<ProcessId>,
    /// Whether all namespaces and files were made.
    pub(super) built: bool,
}

impl Record {
    /// The owner, if that process still runs.
    pub(super) fn live_owner(&self) -> Option<ProcessId> {
        self.owner.filter(|owner| owner.alive())
    }
}

/// Identity of a process, unique since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    pub(super) pid: u32,
    /// Start time in clock ticks since boot: field 22 of `proc_pid_stat(5)`.
    started: u64,
}

impl ProcessId {
    /// The process that has this number now; none if it has ended, even if it is not reaped yet.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Field 2, the name, may contain any character; it ends at the last parenthesis.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let ended = matches!(fields.next()?, "Z" | "X");
        let started = fields.nth(18)?.parse().ok()?;
        (!ended).then_some(Self { pid, started })
    }

    /// Opens the process, if it still runs. The descriptor is opened before the start time is
    /// checked, so the check is about the process that the descriptor refers to.
    pub(super) fn open(self) -> Option<Process> {
        let process = Process::open(self.pid).ok()?;
        self.alive().then_some(process)
    }

    pub(super) fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// Directory of a lab's files.
pub(super) fn directory(lab: &str) -> PathBuf {
    Path::new(ROOT).join(lab)
}

/// Makes the lab's directory. If two processes try at the same time, one gets [`LabError::Exists`].
pub(super) fn create(lab: &str) -> Result<PathBuf, LabError> {
    let directory = directory(lab);
    loop {
        fs::create_dir_all(ROOT).map_err(LabError::io(format!("make {ROOT}")))?;
        match fs::create_dir(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(LabError::Exists(lab.to_owned()));
            }
            // The root was removed at this moment, together with the last lab.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(LabError::io(format!("make {}", directory.display()))(error)),
        }
    }
}

/// Removes the lab's directory, and the root if this was the last lab. Returns whether the lab had
/// a directory.
pub(super) fn remove(lab: &str) -> io::Result<bool> {
    let removed = match fs::remove_dir_all(directory(lab)) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    // This fails while another lab is in it, as it should.
    let _ = fs::remove_dir(ROOT);
    Ok(removed)
}

/// Names of all labs, complete or not: those that have a directory or a namespace.
pub(super) fn names() -> BTreeSet<String> {
    let with_directory = entries(Path::new(ROOT));
    let with_namespace = entries(Path::new(netns::DIRECTORY));
    let with_namespace = with_namespace.iter().filter_map(|name| lab_of(name)).map(str::to_owned);
    with_namespace.chain(with_directory).collect()
}

/// Existing namespaces of a lab.
pub(super) fn namespaces(lab: &str) -> Vec<String> {
    let mut names = entries(Path::new(netns::DIRECTORY));
    names.retain(|name| lab_of(name) == Some(lab));
    names
}

/// Record of a lab; none if it does not exist or cannot be read.
pub(super) fn record(lab: &str) -> Option<Record> {
    read(&directory(lab).join("lab.json"))
}

/// Writes the record of a lab.
pub(super) fn set_record(lab: &str, record: &Record) -> Result<(), LabError> {
    write(&directory(lab).join("lab.json"), record)
}

/// Recorded daemons of a lab that still run.
pub(super) fn daemons(lab: &str) -> Vec<ProcessId> {
    let directory = directory(lab);
    // A member of etcd is recorded in the same way as the hosts, but it is not a daemon.
    let hosts = entries(&directory).into_iter().filter(|name| name.starts_with('h'));
    let recorded = hosts.filter_map(|host| daemon(&directory.join(host)));
    recorded.filter(|id| id.alive()).collect()
}

/// Recorded process of the host or etcd member with this directory. It may have ended.
pub(super) fn daemon(host: &Path) -> Option<ProcessId> {
    read(&host.join("daemon.json"))
}

/// Records the process of the host or etcd member with this directory.
pub(super) fn set_daemon(host: &Path, id: ProcessId) -> Result<(), LabError> {
    write(&host.join("daemon.json"), &id)
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes a second file and renames it, so that a reader finds the old content or the new content,
/// never a part.
fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), LabError> {
    let fresh = path.with_extension("json.new");
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::other);
    let written = text.and_then(|text| fs::write(&fresh, text)).and_then(|()| fs::rename(&fresh, path));
    written.map_err(LabError::io(format!("write {}", path.display())))
}

/// Names in a directory, sorted; empty if the directory does not exist.
fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reused_process_number_is_not_alive() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.alive());
        let earlier = ProcessId { started: me.started - 1, ..me };
        assert!(!earlier.alive());
        assert!(earlier.open().is_none());
    }
}
