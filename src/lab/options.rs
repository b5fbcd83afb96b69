//! Options: what a lab consists of.
//!
//! Plain data, stored in the lab's record, so that a later process can open the same lab.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use super::interrupt::Interrupt;
use crate::packet::Family;

/// What a lab consists of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// Name of the lab: 1 to 32 of a-z, 0-9 and '-'. Two labs at the same time need two names.
    pub name: String,
    /// Number of hosts, 1 to 200.
    pub hosts: u8,
    /// Address family of the underlay. Pods always have both families.
    #[serde(with = "FamilyName")]
    pub underlay: Family,
    /// MTU of the underlay in bytes. Pods get what the overlay leaves of it.
    pub mtu: u16,
    /// Path of the `hopsack` program, which runs as the daemon of each host.
    pub binary: PathBuf,
    /// Path of the `hopsack-lab` program, which runs the tunnels that the bench compares with.
    pub lab_binary: PathBuf,
    /// Store that describes the cluster.
    pub store: Store,
    /// Whether the daemons use the kernel fast path where they can, as the product does by default.
    pub fast_path: bool,
    /// TOML that is appended to each daemon's configuration, for example a `[dataplane]` table.
    pub extra_config: String,
    /// Flag that ends the current work on the lab.
    #[serde(skip)]
    pub interrupt: Interrupt,
}

/// Where the daemons of a lab find the map of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Store {
    /// A file that all hosts read.
    File,
    /// An etcd with this number of members (at most five), which the lab starts itself.
    Etcd { members: u8 },
}

/// Spelling of an address family in `lab.json`.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Family")]
enum FamilyName {
    V4,
    V6,
}

impl Options {
    /// Three hosts on an IPv4 underlay of MTU 1500, described by a file. `binary` is the path of
    /// `hopsack`; `hopsack-lab` is expected in the same directory.
    pub fn named(name: impl Into<String>, binary: impl Into<PathBuf>) -> Self {
        let binary = binary.into();
        Self {
            name: name.into(),
            hosts: 3,
            underlay: Family::V4,
            mtu: 1500,
            lab_binary: binary.with_file_name("hopsack-lab"),
            binary,
            store: Store::File,
            fast_path: true,
            extra_config: String::new(),
            interrupt: Interrupt::default(),
        }
    }

    /// The same as [`Options::named`], with a name that is unique on this machine. Tests use it
    /// because they run side by side.
    pub fn unique(label: &str, binary: impl Into<PathBuf>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::named(format!("{label}-{}-{count}", std::process::id()), binary)
    }
}
