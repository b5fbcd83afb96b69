//! The kernel of this host: netlink for links, addresses and routes, /proc/sys for settings, and
//! the disk for files.
//!
//! Invariant: a reader of one of our files sees the whole old file or the whole new one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::ReconcileError;
use crate::desired::{
    ALIAS, Actual, Address, Desired, Feature, File, Link, LinkKind, Offload, ROUTE_PROTOCOL, Route, Step,
    Sysctl,
};
use crate::files::replace;
use crate::netlink::{self, Monitor, Netlink, NetlinkError, Notice};
use crate::sys::ethtool;

/// The network namespace of the thread that made it.
#[derive(Debug)]
pub struct Linux {
    netlink: Netlink,
    monitor: Monitor,
    /// Device indexes by name, as last read.
    indexes: BTreeMap<String, u32>,
}

impl Linux {
    /// Connects. The monitor comes first: changes that are made while the caller reads are told.
    pub fn new() -> Result<Self, NetlinkError> {
        let (monitor, netlink) = (Monitor::new(ROUTE_PROTOCOL)?, Netlink::new()?);
        Ok(Self { netlink, monitor, indexes: BTreeMap::new() })
    }

    /// The connection.
    #[must_use]
    pub fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    pub(super) fn known_index(&self, name: &str) -> Option<u32> {
        self.indexes.get(name).copied()
    }

    pub(super) async fn changed(&mut self) -> Notice {
        self.monitor.next().await
    }

    pub(super) async fn read(&mut self, desired: &Desired) -> Result<Actual, ReconcileError> {
        let links = self.netlink.links().await?;
        self.indexes = links.iter().map(|link| (link.name.clone(), link.index)).collect();
        let names: BTreeMap<u32, String> = links.iter().map(|link| (link.index, link.name.clone())).collect();
        let name = |index: u32| names.get(&index).cloned();

        let address =
            |address: netlink::Address| Some(Address { link: name(address.index)?, net: address.net });
        let addresses = self.netlink.addresses().await?.into_iter().filter_map(address).collect();
        let route = |route: netlink::Route| {
            let netlink::Route { destination, index, source, protocol } = route;
            Some(Route { destination, link: name(index)?, source, protocol })
        };
        let routes = self.netlink.routes(ROUTE_PROTOCOL).await?.into_iter().filter_map(route).collect();
        let sysctl = |sysctl: &Sysctl| Some((sysctl.key.clone(), read_sysctl(&sysctl.key)?));
        let file = |file: &File| Some((file.path.clone(), read_file(&file.path)?));
        let offload = |row: &Offload| {
            let on = ethtool::offload(&row.link, offload(row.feature)).ok()?;
            Some(Offload { on, ..row.clone() })
        };
        let row = |link: netlink::Link| {
            let peer = link.peer.and_then(name).unwrap_or_default();
            (link.name.clone(), row(link, peer))
        };
        Ok(Actual {
            links: links.into_iter().map(row).collect(),
            offloads: desired.offloads.iter().filter_map(offload).collect(),
            addresses,
            routes,
            sysctls: desired.sysctls.iter().filter_map(sysctl).collect(),
            files: desired.files.iter().filter_map(file).collect(),
        })
    }

    pub(super) async fn apply(&mut self, step: &Step) -> Result<(), ReconcileError> {
        let error = match self.take(step).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let errno = match &error {
            ReconcileError::Netlink(error) => error.errno(),
            ReconcileError::Sysctl { error, .. }
            | ReconcileError::Offload { error, .. }
            | ReconcileError::File { error, .. } => error.raw_os_error(),
            ReconcileError::ForeignRoute { .. }
            | ReconcileError::NoIpv6 { .. }
            | ReconcileError::Missing(_)
            | ReconcileError::Foreign(_) => None,
        };
        match (errno, step) {
            (Some(libc::EEXIST), Step::AddRoute(route)) => {
                let found = foreign_route(&self.netlink, route).await?;
                Err(found.unwrap_or(error))
            }
            (Some(libc::EACCES | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT), step)
                if step.is_ipv6() && is_ipv6_off() =>
            {
                Err(ReconcileError::NoIpv6 { object: step.name() })
            }
            _ => Err(error),
        }
    }

    async fn take(&mut self, step: &Step) -> Result<(), ReconcileError> {
        match step {
            Step::SetSysctl(sysctl) => write_sysctl(sysctl)?,
            Step::AddVeth(link) => self.add_veth(link).await?,
            Step::RemoveLink(link) => self.netlink.delete(self.index(&link.name)?).await?,
            Step::SetOffload(row) => {
                let error = |error| ReconcileError::Offload { object: step.name(), error };
                ethtool::set_offload(&row.link, offload(row.feature), row.on).map_err(error)?;
            }
            Step::SetLink(link) => {
                self.netlink.set_link(self.index(&link.name)?, link.mtu, link.up).await?;
            }
            Step::AddAddress(address) => {
                self.netlink.add_address(self.index(&address.link)?, address.net).await?;
            }
            Step::RemoveAddress(address) => {
                self.netlink.remove_address(self.index(&address.link)?, address.net).await?;
            }
            Step::AddRoute(route) => self.netlink.add_route(&self.route(route)?).await?,
            Step::ReplaceRoute(route) => self.netlink.replace_route(&self.route(route)?).await?,
            Step::RemoveRoute(route) => self.netlink.remove_route(&self.route(route)?).await?,
            Step::WriteFile(file) => {
                replace(&file.path, &file.content, file.mode)
                    .map_err(|error| ReconcileError::File { path: file.path.clone(), error })?;
            }
        }
        Ok(())
    }

    /// Makes a veth pair with a queue for each CPU, and marks both ends as ours.
    async fn add_veth(&self, near: &Link) -> Result<(), ReconcileError> {
        let ends = [&near.name, &near.peer];
        for name in ends {
            // The other end may have gone with the first one.
            if let Some(left) = self.netlink.link(name).await? {
                self.netlink.delete(left.index).await?;
            }
        }
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let queues = u32::try_from(cpus).unwrap_or(1);
        self.netlink.add_veth((&near.name, &near.peer), near.mtu, queues).await?;
        for name in ends {
            let made = self.netlink.link(name).await?.ok_or_else(|| ReconcileError::Missing(name.clone()))?;
            self.netlink.set_alias(made.index, ALIAS).await?;
        }
        Ok(())
    }

    fn index(&self, link: &str) -> Result<u32, ReconcileError> {
        self.indexes.get(link).copied().ok_or_else(|| ReconcileError::Missing(link.to_owned()))
    }

    fn route(&self, route: &Route) -> Result<netlink::Route, ReconcileError> {
        let Route { destination, ref link, source, protocol } = *route;
        Ok(netlink::Route { destination, index: self.index(link)?, source, protocol })
    }
}

fn row(link: netlink::Link, peer: String) -> Link {
    let kind = match (link.is_tun, link.is_veth) {
        (true, _) => LinkKind::Tun,
        (false, true) => LinkKind::Veth,
        (false, false) => LinkKind::Other,
    };
    Link { name: link.name, kind, alias: link.alias, up: link.up, mtu: link.mtu, peer }
}

fn offload(feature: Feature) -> ethtool::Offload {
    match feature {
        Feature::Tso => ethtool::Offload::Tso,
        Feature::Gro => ethtool::Offload::Gro,
    }
}

/// The error about a route of another program in the place of `route`, if there is one.
pub(super) async fn foreign_route(
    netlink: &Netlink,
    route: &Route,
) -> Result<Option<ReconcileError>, ReconcileError> {
    let destination = route.destination;
    let found = netlink.foreign_route(destination, ROUTE_PROTOCOL).await?;
    Ok(found.map(|found| ReconcileError::ForeignRoute { destination, found }))
}

fn is_ipv6_off() -> bool {
    // A kernel without IPv6 lacks the setting.
    read_sysctl("net/ipv6/conf/all/disable_ipv6").is_none_or(|value| value != "0")
}

/// The files below /proc/sys/net are those of the reader's network namespace.
pub(super) fn sysctl_path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key)
}

pub(super) fn read_sysctl(key: &str) -> Option<String> {
    fs::read_to_string(sysctl_path(key)).ok().map(|text| text.trim().to_owned())
}

fn write_sysctl(sysctl: &Sysctl) -> Result<(), ReconcileError> {
    fs::write(sysctl_path(&sysctl.key), &sysctl.value).map_err(|error| ReconcileError::Sysctl {
        name: sysctl.name(),
        value: sysctl.value.clone(),
        error,
    })
}

fn read_file(path: &Path) -> Option<File> {
    // A link is not our file: it is replaced.
    let metadata = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    let (content, mode) = (fs::read(path).ok()?, metadata.permissions().mode() & 0o7777);
    Some(File { path: path.to_owned(), content, mode })
}
