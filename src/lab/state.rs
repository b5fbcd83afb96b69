//! What a lab writes down about itself, so that any later process can find it, use it and remove it.
//!
//! `/run/hopsack-lab/NAME/lab.json` tells the options and who owns the lab; `hN/daemon.json` tells a daemon's process.
//! Both live in `/run`, which a reboot empties as it does the namespaces.
//!
//! Invariant: a process is only ever named by its number together with its start time, so a number that the system has
//! given away again is never taken for ours.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::topology::lab_of;
use super::{LabError, Options};
use crate::sys::netns;
use crate::sys::process::Process;

/// All labs of this machine.
const ROOT: &str = "/run/hopsack-lab";

/// The content of `lab.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) options: Options,
    /// The process that removes the lab when it ends; none for a lab that stays.
    pub(super) owner: Option<ProcessId>,
    /// Whether all namespaces and files were made.
    pub(super) built: bool,
}

impl Record {
    /// The owner, while it runs.
    pub(super) fn live_owner(&self) -> Option<ProcessId> {
        self.owner.filter(|owner| owner.alive())
    }
}

/// A process, told apart from all others since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    pub(super) pid: u32,
    /// In clock ticks since boot, `proc_pid_stat(5)` field 22.
    started: u64,
}

impl ProcessId {
    /// The process that has this number now; none if it has ended, reaped or not.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in field 2 may contain anything but ends at the last parenthesis.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let ended = matches!(fields.next()?, "Z" | "X");
        let started = fields.nth(18)?.parse().ok()?;
        (!ended).then_some(Self { pid, started })
    }

    /// Takes hold of it, if it still lives. The descriptor comes first, so the start time speaks about what it holds.
    pub(super) fn open(self) -> Option<Process> {
        let process = Process::open(self.pid).ok()?;
        self.alive().then_some(process)
    }

    pub(super) fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// Where a lab's files are.
pub(super) fn directory(lab: &str) -> PathBuf {
    Path::new(ROOT).join(lab)
}

/// Makes the lab's directory; of two that try at once, one gets [`LabError::Exists`].
pub(super) fn create(lab: &str) -> Result<PathBuf, LabError> {
    let directory = directory(lab);
    loop {
        fs::create_dir_all(ROOT).map_err(LabError::io(format!("make {ROOT}")))?;
        match fs::create_dir(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(LabError::Exists(lab.to_owned()));
            }
            // The last lab to go took the root with it just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(LabError::io(format!("make {}", directory.display()))(error)),
        }
    }
}

/// Removes the lab's directory, and the root with the last of them.
pub(super) fn remove(lab: &str) -> io::Result<bool> {
    let removed = match fs::remove_dir_all(directory(lab)) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    // Fails, as it should, while another lab is in it.
    let _ = fs::remove_dir(ROOT);
    Ok(removed)
}

/// The names of all labs, whole or not: those with a directory and those with a namespace.
pub(super) fn names() -> BTreeSet<String> {
    let with_directory = entries(Path::new(ROOT));
    let with_namespace = entries(Path::new(netns::DIRECTORY));
    let with_namespace = with_namespace.iter().filter_map(|name| lab_of(name)).map(str::to_owned);
    with_namespace.chain(with_directory).collect()
}

/// The namespaces that exist of a lab.
pub(super) fn namespaces(lab: &str) -> Vec<String> {
    let mut names = entries(Path::new(netns::DIRECTORY));
    names.retain(|name| lab_of(name) == Some(lab));
    names
}

/// The record of a lab; none if there is none that can be read.
pub(super) fn record(lab: &str) -> Option<Record> {
    read(&directory(lab).join("lab.json"))
}

/// Writes the record of a lab.
pub(super) fn set_record(lab: &str, record: &Record) -> Result<(), LabError> {
    write(&directory(lab).join("lab.json"), record)
}

/// The daemons that a lab has recorded and that live.
pub(super) fn daemons(lab: &str) -> Vec<ProcessId> {
    let directory = directory(lab);
    // An etcd is recorded in the same way beside them, and is none.
    let hosts = entries(&directory).into_iter().filter(|name| name.starts_with('h'));
    let recorded = hosts.filter_map(|host| daemon(&directory.join(host)));
    recorded.filter(|id| id.alive()).collect()
}

/// The recorded process of the host or etcd with this directory, which may have ended.
pub(super) fn daemon(host: &Path) -> Option<ProcessId> {
    read(&host.join("daemon.json"))
}

/// Records the process of the host or etcd with this directory.
pub(super) fn set_daemon(host: &Path, id: ProcessId) -> Result<(), LabError> {
    write(&host.join("daemon.json"), &id)
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// By way of a second name, so that a reader finds the old content or the new, never a half.
fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), LabError> {
    let fresh = path.with_extension("json.new");
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::other);
    let written = text.and_then(|text| fs::write(&fresh, text)).and_then(|()| fs::rename(&fresh, path));
    written.map_err(LabError::io(format!("write {}", path.display())))
}

/// The names in a directory, sorted; empty if there is no such directory.
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
    fn a_process_is_told_from_its_number() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.alive());
        let earlier = ProcessId { started: me.started - 1, ..me };
        assert!(!earlier.alive());
        assert!(earlier.open().is_none());
    }
}
