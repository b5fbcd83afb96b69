//! The kernel fast path: an eBPF program that forwards plain packets as
//! [`forward`](crate::forward) does, without the daemon.
//!
//! This module loads the program, writes its maps, attaches it, and reads its counters. It decides
//! nothing: the backend says which routes and interfaces there are. What the program does not
//! accept reaches the daemon as if the program were not there.
//!
//! Invariant: a process that replaces another one with the same [`LAYOUT`] uses its maps and links,
//! so that no packet is lost. Maps of another layout are made anew; the old program forwards by the
//! old ones until the new one takes its place.
//!
#![doc = include_str!("fastpath/README.md")]

mod compile;
mod counters;
mod error;
mod layout;
mod links;
mod maps;
mod object;
mod pins;
mod routes;
mod trial;

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use aya::Ebpf;
use ipnet::IpNet;

pub use compile::{Reach, routes_of};
pub use counters::{Counters, Direction, Reason, Segments};
pub use error::FastPathError;
pub use layout::{LAYOUT, PORTS, Route, RouteKind, Settings};
use links::Place;
pub use links::{HookState, Interfaces};
use maps::Maps;
use pins::Pins;
pub use pins::Role;
pub use routes::{Routes, Step, steps};
pub use trial::{Trial, Verdict, Way};

use crate::sys::bpf;

/// The loaded program with its maps. It stays attached when this value is dropped.
#[derive(Debug)]
pub struct FastPath {
    pins: Pins,
    ebpf: Ebpf,
    maps: Maps,
    places: Vec<Place>,
    adopted: bool,
}

impl FastPath {
    /// Loads the program. `directory` is where maps and links are pinned; if it is not in a bpffs,
    /// one is mounted there. Maps that an earlier process with the same [`LAYOUT`] left there are
    /// used on. New maps are empty and suspended.
    ///
    /// # Errors
    /// The kernel, or a missing capability, does not permit it.
    pub fn open(directory: &Path) -> Result<Self, FastPathError> {
        let pins = Pins::open(directory)?;
        if pins.has_maps() {
            let found = Self::load(pins.clone())?;
            if found.maps.layout() == LAYOUT {
                return Ok(Self { adopted: true, ..found });
            }
        }
        pins.remove_maps()?;
        Self::load(pins)
    }

    fn load(pins: Pins) -> Result<Self, FastPathError> {
        // A TUN device has no link-layer header.
        let mut ebpf = object::load(Some(&pins), 0)?;
        let maps = Maps::take(&mut ebpf)?;
        Ok(Self { pins, ebpf, maps, places: Vec::new(), adopted: false })
    }

    /// Whether the maps are those of an earlier process.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Puts settings into force, all at once.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set(&mut self, settings: &Settings) -> Result<(), FastPathError> {
        self.maps.set(settings)
    }

    /// Changes the routes. Returns the number of changes. See [`steps`] for what packets meet
    /// meanwhile.
    ///
    /// # Errors
    /// The kernel refuses a route. The program is suspended then, if that is possible.
    pub fn apply(&mut self, routes: &Routes) -> Result<usize, FastPathError> {
        self.maps.apply(routes)
    }

    /// The routes in the maps.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        self.maps.routes()
    }

    /// Lets the program work for this long from now on. Without another call, the daemon gets all
    /// packets afterwards.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn renew(&mut self, valid_for: Duration) -> Result<(), FastPathError> {
        self.maps.renew(valid_for)
    }

    /// Gives all packets to the daemon, until [`FastPath::renew`].
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn suspend(&mut self) -> Result<(), FastPathError> {
        self.maps.suspend()
    }

    /// Attaches the program to exactly these interfaces. A link that stands gets the program in one
    /// step; links to other interfaces are removed.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses it. What was attached stays.
    pub fn attach(&mut self, interfaces: &Interfaces) -> Result<(), FastPathError> {
        self.places = links::attach(&mut self.ebpf, &self.pins, interfaces)?;
        Ok(())
    }

    /// What the kernel says about each hook to which the program was attached.
    ///
    /// # Errors
    /// An interface is gone, or CAP_NET_ADMIN is missing.
    pub fn hooks(&mut self) -> Result<Vec<HookState>, FastPathError> {
        self.places.iter().map(|place| links::state(&mut self.ebpf, place)).collect()
    }

    /// Whether packets have left by the route of exactly this prefix in the last two or three
    /// seconds.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn is_used(&self, prefix: IpNet) -> Result<bool, FastPathError> {
        self.maps.is_used(prefix)
    }

    /// The underlay devices to which links of this or an earlier process are attached, by index.
    #[must_use]
    pub fn underlays(&self) -> Vec<u32> {
        self.pins.interfaces(Role::Underlay)
    }

    /// Whether a program, ours or that of an earlier process, merges what arrives at the interface
    /// with this index.
    #[must_use]
    pub fn merges_at(&self, index: u32) -> bool {
        let link = crate::sys::bpf::pinned_link(&self.pins.link(Role::Gro, index));
        link.is_ok_and(|link| link.interface == index)
    }

    /// What was counted since the maps were made.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn counters(&self) -> Result<Counters, FastPathError> {
        self.maps.counters()
    }

    /// Detaches the program, and removes maps and links.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn close(self) -> Result<(), FastPathError> {
        remove_pins(&self.pins)
    }

    /// Whether an earlier process has left maps or links in a directory.
    #[must_use]
    pub fn is_left(directory: &Path) -> bool {
        Pins::existing(directory).is_some_and(|pins| pins.has_any())
    }

    /// Detaches what is pinned in a directory, and removes it. Nothing to remove is no error.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn remove(directory: &Path) -> Result<(), FastPathError> {
        Pins::existing(directory).map_or(Ok(()), |pins| remove_pins(&pins))
    }
}

/// Mounts a bpffs in a directory, if it is not in one. A process with CAP_SYS_ADMIN can do this
/// before it gives up that capability.
///
/// # Errors
/// The kernel does not permit it.
pub fn prepare(directory: &Path) -> Result<(), FastPathError> {
    Pins::open(directory).map(|_| ())
}

/// Whether a directory is in a bpffs. It makes and mounts nothing.
///
/// # Errors
/// There is no such directory, or it is in another file system.
pub fn is_prepared(directory: &Path) -> Result<(), FastPathError> {
    let found = bpf::is_bpffs(directory)
        .and_then(|is| if is { Ok(()) } else { Err(io::Error::other("no bpffs is mounted there")) });
    found.map_err(|error| FastPathError::Directory { path: directory.to_owned(), error })
}

/// Whether a bpffs is mounted at this very directory.
#[must_use]
pub fn is_mounted(directory: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());
    let above = directory.parent().and_then(device);
    is_prepared(directory).is_ok() && device(directory) != above
}

/// Unmounts the bpffs at a directory, and removes the directory. Remove its pins before: another
/// mount namespace may have a copy of the mount, and keep them.
///
/// # Errors
/// The kernel does not permit it.
pub fn unmount(directory: &Path) -> Result<(), FastPathError> {
    bpf::unmount(directory)
        .and_then(|()| std::fs::remove_dir(directory))
        .map_err(|error| FastPathError::Directory { path: directory.to_owned(), error })
}

fn remove_pins(pins: &Pins) -> Result<(), FastPathError> {
    Role::ALL.into_iter().try_for_each(|role| pins.remove_links(role, &[]))?;
    pins.remove_maps()
}
