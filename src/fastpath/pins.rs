//! The directory in which maps and links are pinned, so that they outlive the daemon.
//!
//! Maps are pinned under their names, links as `<role>-<interface index>`. The kernel permits no
//! dot in such a name, and an interface's name may have one.
//!
//! Invariant: only a directory of a bpffs is used, and only entries that are named here are
//! removed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, MapType};

use super::counters;
use super::error::FastPathError;
use super::layout::{LIVE_BYTES, ROUTE_BYTES, SETTINGS_BYTES};
use crate::sys::bpf;

/// A map as this version defines it.
pub(super) struct Definition {
    pub(super) name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    entries: u32,
}

/// The maps, as `program.c` defines them.
pub(super) const MAPS: [Definition; 6] = [
    Definition { name: "live", kind: MapType::Array, key: 4, value: LIVE_BYTES, entries: 1 },
    Definition { name: "config", kind: MapType::Array, key: 4, value: SETTINGS_BYTES, entries: 2 },
    Definition { name: "routes4", kind: MapType::LpmTrie, key: 8, value: ROUTE_BYTES, entries: 1 << 18 },
    Definition { name: "routes6", kind: MapType::LpmTrie, key: 20, value: ROUTE_BYTES, entries: 1 << 18 },
    Definition { name: "counters", kind: MapType::PerCpuArray, key: 4, value: 8 * counters::ALL, entries: 1 },
    Definition { name: "slow_flows", kind: MapType::LruHash, key: 36, value: 8, entries: 4096 },
];

/// What a program does at its hook. Links are removed in this order: what sends, what receives,
/// what the receiving program sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The egress of the overlay device.
    Overlay,
    /// The ingress of an underlay device.
    Underlay,
    /// The ingress of the far end of the veth pair that merges segments.
    Gro,
}

impl Role {
    pub(super) const ALL: [Self; 3] = [Self::Overlay, Self::Underlay, Self::Gro];

    fn word(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Underlay => "underlay",
            Self::Gro => "gro",
        }
    }
}

/// A directory of a bpffs.
#[derive(Debug, Clone)]
pub(super) struct Pins(PathBuf);

impl Pins {
    /// Uses a directory. If it is not in a bpffs, one is mounted there.
    pub(super) fn open(directory: &Path) -> Result<Self, FastPathError> {
        let make = || {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            if bpf::is_bpffs(directory)? { Ok(()) } else { bpf::mount_bpffs(directory) }
        };
        make().map_err(|error| FastPathError::Directory { path: directory.to_owned(), error })?;
        Ok(Self(directory.to_owned()))
    }

    /// The directory, if there is one: for a program that only cleans up.
    pub(super) fn existing(directory: &Path) -> Option<Self> {
        bpf::is_bpffs(directory).is_ok_and(|is| is).then(|| Self(directory.to_owned()))
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn link(&self, role: Role, interface: u32) -> PathBuf {
        self.0.join(format!("{}-{interface}", role.word()))
    }

    /// Whether all maps are pinned, with the types and sizes of this version.
    pub(super) fn has_maps(&self) -> bool {
        MAPS.iter().all(|wanted| {
            let size = |bytes: usize| u32::try_from(bytes).unwrap_or(0);
            MapInfo::from_pin(self.map(wanted.name)).is_ok_and(|found| {
                found.map_type().is_ok_and(|kind| kind == wanted.kind)
                    && found.key_size() == size(wanted.key)
                    && found.value_size() == size(wanted.value)
                    && found.max_entries() == wanted.entries
            })
        })
    }

    /// Removes the pins of the maps. Programs that are still attached keep their maps.
    pub(super) fn remove_maps(&self) -> Result<(), FastPathError> {
        MAPS.iter().try_for_each(|map| self.remove(&self.map(map.name)))
    }

    /// Removes the links of a role, except those of these interfaces.
    pub(super) fn remove_links(&self, role: Role, keep: &[u32]) -> Result<(), FastPathError> {
        let prefix = format!("{}-", role.word());
        let failed = |error| FastPathError::Directory { path: self.0.clone(), error };
        for entry in fs::read_dir(&self.0).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let index =
                name.to_str().and_then(|name| name.strip_prefix(&prefix)).and_then(|n| n.parse().ok());
            if index.is_some_and(|index: u32| !keep.contains(&index)) {
                self.remove(&self.0.join(name))?;
            }
        }
        Ok(())
    }

    /// Whether there is any pin. The kernel itself has files with a dot in their names in a bpffs.
    pub(super) fn has_any(&self) -> bool {
        let names = fs::read_dir(&self.0).into_iter().flatten().flatten();
        names.into_iter().any(|entry| !entry.file_name().to_string_lossy().contains('.'))
    }

    /// The interfaces for which there are links of a role, and which exist.
    pub(super) fn interfaces(&self, role: Role) -> Vec<u32> {
        let prefix = format!("{}-", role.word());
        let names = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let indices =
            names.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(&prefix)?.parse().ok());
        let stands = |index: &u32| {
            bpf::pinned_link(&self.link(role, *index)).is_ok_and(|link| link.interface == *index)
        };
        indices.filter(stands).collect()
    }

    /// Removes one pin, if it is there.
    pub(super) fn remove(&self, path: &Path) -> Result<(), FastPathError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FastPathError::Directory { path: path.to_owned(), error })
            }
            _ => Ok(()),
        }
    }
}
