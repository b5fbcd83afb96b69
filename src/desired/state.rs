//! The two sides of the comparison: what should be, and what is.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::rows::{Address, File, Link, LinkKind, Offload, Route, Sysctl};

/// What should be. Each row belongs to one part of the program; [`Desired::merge`] joins the rows
/// of several parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Devices of ours, by name. Their maker marks them with our alias.
    pub links: BTreeMap<String, Link>,
    /// Names of veth ends that must not exist, if they are ours.
    pub unwanted: BTreeSet<String>,
    /// Offloads of devices of ours.
    pub offloads: BTreeSet<Offload>,
    /// Addresses. On a device of ours these are the only ones.
    pub addresses: BTreeSet<Address>,
    /// Routes, at most one for a destination and a device.
    pub routes: BTreeSet<Route>,
    /// Kernel settings.
    pub sysctls: BTreeSet<Sysctl>,
    /// Files.
    pub files: BTreeSet<File>,
}

impl Desired {
    /// Adds the rows of another part.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.links.extend(other.links);
        self.unwanted.extend(other.unwanted);
        self.offloads.extend(other.offloads);
        self.addresses.extend(other.addresses);
        self.routes.extend(other.routes);
        self.sysctls.extend(other.sysctls);
        self.files.extend(other.files);
        self
    }

    /// Whether there are addresses of IPv4: then this host is of use without IPv6.
    #[must_use]
    pub fn has_ipv4(&self) -> bool {
        self.addresses.iter().any(|address| address.net.addr().is_ipv4())
    }

    /// Whether this host forwards packets without the device `name`: a veth pair only makes it
    /// faster.
    #[must_use]
    pub fn can_do_without(&self, name: &str) -> bool {
        self.unwanted.contains(name) || self.links.get(name).is_some_and(|link| link.kind == LinkKind::Veth)
    }

    /// Adds a device.
    pub fn add_link(&mut self, link: Link) {
        self.links.insert(link.name.clone(), link);
    }
}

/// What is there, as far as it was read: rows of ours and rows of others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// Devices by name.
    pub links: BTreeMap<String, Link>,
    /// Offloads, as far as Desired names them.
    pub offloads: BTreeSet<Offload>,
    /// Addresses.
    pub addresses: BTreeSet<Address>,
    /// Routes.
    pub routes: BTreeSet<Route>,
    /// Values of the kernel settings that exist, by path below /proc/sys.
    pub sysctls: BTreeMap<String, String>,
    /// Files that exist, by path.
    pub files: BTreeMap<PathBuf, File>,
}
