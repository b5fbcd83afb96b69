//! The bpffs of each host of a lab, in which its daemon pins the kernel fast path.
//!
//! A process of `ip netns exec` has a mount namespace of its own, and what it mounts ends with it.
//! So the lab mounts, in the namespace of its own process, before the daemon starts. It pins
//! nothing.
//!
//! Invariant: what is mounted below the directory of a lab is unmounted before the directory is
//! removed, also if the process that has mounted it was killed.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::fastpath::{self, FastPath};
use crate::sys::bpf;

/// Mounts a bpffs at a directory, if there is none. Where the kernel does not permit it, the daemon
/// has no fast path, and its status says why.
pub(super) fn make(directory: &Path) {
    if let Err(error) = fastpath::prepare(directory) {
        tracing::info!("no kernel fast path in this lab: {error}");
    }
}

/// Unmounts everything below a directory. Returns what could not be unmounted.
pub(super) fn remove_below(directory: &Path) -> Vec<(PathBuf, io::Error)> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut places: Vec<PathBuf> = places(&text).filter(|place| place.starts_with(directory)).collect();
    // A mount in or on another one comes later.
    places.reverse();
    let unmount = |place: PathBuf| {
        // Another process may have a copy of the mount, which keeps the pins in it.
        let _ = FastPath::remove(&place);
        bpf::unmount(&place).err().map(|error| (place, error))
    };
    places.into_iter().filter_map(unmount).collect()
}

/// The mount points in `/proc/self/mountinfo` (proc(5)): the fifth field.
fn places(text: &[u8]) -> impl Iterator<Item = PathBuf> {
    let lines = text.split(|byte| *byte == b'\n');
    let fields = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    // Directories of labs contain no character that is written as an octal number.
    fields.map(|field| PathBuf::from(OsString::from_vec(field.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_parsed() {
        let text = b"22 1 0:20 / / rw - ext4 /dev/sda rw\n\
                     36 22 0:3 / /run/hopsack-lab/a/h1/run/bpf rw,nosuid shared:7 - bpf bpf rw,mode=700\n";
        let found: Vec<PathBuf> = places(text).collect();
        assert_eq!(found, [PathBuf::from("/"), PathBuf::from("/run/hopsack-lab/a/h1/run/bpf")]);
    }
}
