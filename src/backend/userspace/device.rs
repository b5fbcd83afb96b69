//! The overlay device: opened or adopted at the start, and kept for the next start.
//!
//! A device that an earlier daemon left is adopted as it is. If this engine needs the device with
//! queues and it has none, or the reverse, it is made again. A device of the same name that is not
//! ours is never touched. MTU, state, addresses and routes are rows of [`desired`]; the reconciler
//! applies them.
//!
//! Invariant: until [`Device::keep`], a device that was made here vanishes with its last
//! descriptor.

use std::io;
use std::time::Duration;

use ipnet::IpNet;

use super::choice::Choice;
use super::tun::Tun;
use super::veth_pair::VethPair;
use crate::desired::{ALIAS, Address, Desired, Link as LinkRow, LinkKind, ROUTE_PROTOCOL, Route, Sysctl};
use crate::netlink::{Link, Netlink, NetlinkError};
use crate::packet::Family;
use crate::route::{Local, Networks};
use crate::sys::tun::Persistence;

/// Why the overlay device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Another program made the device of this name.
    #[error(
        "a device named {0} is there already and is not hopsack's: remove it (ip link del {0}), or set \
         overlay.device to another name"
    )]
    Taken(String),
    /// Another process has the device open.
    #[error("the device {0} is in use by another process: stop that hopsack, or set overlay.device")]
    Busy(String),
    /// The process lacks the right to make a device.
    #[error(
        "the kernel does not let this process make {0} (EPERM): it needs CAP_NET_ADMIN in this network namespace"
    )]
    Forbidden(String),
    /// The kernel refuses for another reason.
    #[error("cannot open the TUN device {name}: {error}")]
    Open {
        /// Name of the device.
        name: String,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// Another program removed the device while it was opened.
    #[error("the device {0} went away")]
    Gone(String),
    /// The kernel refused a netlink request.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl DeviceError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Taken(_) => "device_foreign",
            Self::Busy(_) => "device_busy",
            Self::Forbidden(_) => "device_forbidden",
            Self::Open { .. } => "device_open",
            Self::Gone(_) => "device_gone",
            Self::Netlink(error) => error.code(),
        }
    }

    fn open(name: &str, error: io::Error) -> Self {
        let name = name.to_owned();
        match error.raw_os_error() {
            Some(libc::EBUSY) => Self::Busy(name),
            Some(libc::EPERM) => Self::Forbidden(name),
            _ => Self::Open { name, error },
        }
    }
}

/// An overlay device in use.
#[derive(Debug)]
pub(super) struct Device {
    netlink: Netlink,
    name: String,
    index: u32,
    persistence: Persistence,
    /// Whether an earlier daemon made the device.
    is_adopted: bool,
}

/// Whether this program made the device.
fn is_ours(link: &Link) -> bool {
    link.is_tun && link.alias == ALIAS
}

/// Whether this program made the device, or the veth pair beside it.
pub fn is_ours_or_beside(link: &Link) -> bool {
    is_ours(link) || link.is_veth && link.alias == ALIAS
}

/// Makes or adopts the device `name`, and marks it as ours.
pub(super) async fn open(name: &str, choice: &Choice) -> Result<(Device, Tun), DeviceError> {
    let netlink = Netlink::new()?;
    let found = free(&netlink, name).await?;
    let mut is_adopted = found.is_some();
    let tun = match (Tun::open(name, choice), &found) {
        (Ok(tun), _) => {
            if is_adopted {
                tracing::info!(device = name, "adopted the device that an earlier hopsack left");
            }
            tun
        }
        // tun_set_iff: whether a device has queues is decided when it is made.
        (Err(error), Some(link)) if error.raw_os_error() == Some(libc::EINVAL) => {
            netlink.delete(link.index).await?;
            is_adopted = false;
            tracing::info!(
                device = name,
                "replaced the device of an earlier hopsack: this engine needs another kind"
            );
            Tun::open(name, choice).map_err(|error| DeviceError::open(name, error))?
        }
        (Err(error), _) => return Err(DeviceError::open(name, error)),
    };
    let link = netlink.link(name).await?.ok_or_else(|| DeviceError::Gone(name.to_owned()))?;
    if link.alias != ALIAS {
        netlink.set_alias(link.index, ALIAS).await?;
    }
    let persistence = tun.persistence().map_err(|error| DeviceError::open(name, error))?;
    Ok((Device { netlink, name: name.to_owned(), index: link.index, persistence, is_adopted }, tun))
}

/// Returns the device `name`, if it exists: then it is ours, and no process has it open.
async fn free(netlink: &Netlink, name: &str) -> Result<Option<Link>, DeviceError> {
    const TRIES: u32 = 10;
    for _ in 0..TRIES {
        match netlink.link(name).await? {
            None => return Ok(None),
            Some(link) if !is_ours(&link) => return Err(DeviceError::Taken(name.to_owned())),
            Some(link) if !link.carrier => return Ok(Some(link)),
            // Several processes may attach to a device with queues, so the kernel would not refuse.
            // It closes the descriptors of a killed process that used io_uring shortly after its
            // end.
            Some(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    Err(DeviceError::Busy(name.to_owned()))
}

impl Device {
    /// A connection to the kernel of this host.
    pub(super) fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// From here on the device outlives this process.
    pub(super) fn keep(&self) -> Result<(), DeviceError> {
        self.persistence.set(true).map_err(|error| DeviceError::open(&self.name, error))
    }

    /// Removes the device if this process has made it: its start has failed.
    pub(super) async fn roll_back(self) {
        if !self.is_adopted {
            self.remove().await;
        }
    }

    /// Removes the device, its addresses and its routes, and the veth pair beside it.
    pub(super) async fn remove(self) {
        let pair = self.netlink.link(&VethPair::of(&self.name).near).await.ok().flatten();
        if let Some(near) = pair.filter(is_ours_or_beside)
            && let Err(error) = self.netlink.delete(near.index).await
        {
            tracing::warn!(device = near.name, %error, "veth pair not removed; `hopsack clean` removes it");
        }
        let found = self.netlink.link(&self.name).await.ok().flatten();
        let exists = found.is_some_and(|link| link.index == self.index);
        if exists && let Err(error) = self.netlink.delete(self.index).await {
            tracing::warn!(device = self.name, %error, "overlay device not removed; `hopsack clean` removes it");
        }
    }
}

/// What the kernel should hold for the overlay device `name`, and the settings that let this host
/// forward.
pub(in crate::backend) fn desired(name: &str, local: &Local, networks: &Networks) -> Desired {
    let mut desired = Desired::default();
    desired.add_link(LinkRow {
        name: name.to_owned(),
        kind: LinkKind::Tun,
        alias: ALIAS.to_owned(),
        up: true,
        mtu: local.mtu.into(),
        peer: String::new(),
    });
    let addresses = [Family::V4, Family::V6].into_iter().filter_map(|family| local.device_address(family));
    desired.addresses = addresses.map(|ip| Address { link: name.to_owned(), net: IpNet::from(ip) }).collect();
    desired.routes = networks
        .iter()
        .map(|network| Route {
            destination: network.trunc(),
            link: name.to_owned(),
            source: local.device_address(Family::of(network.addr())),
            protocol: ROUTE_PROTOCOL,
        })
        .collect();
    desired.sysctls = sysctls(name, networks).collect();
    desired
}

fn sysctls(name: &str, networks: &Networks) -> impl Iterator<Item = Sysctl> {
    let sysctl = |key: String, required| Sysctl { key, value: "1".to_owned(), required };
    let own = [
        // No link-local address and no router solicitations, in a network that has no link layer. A
        // kernel without IPv6 lacks the setting.
        sysctl(format!("net/ipv6/conf/{name}/addr_gen_mode"), false),
        // Our ICMP errors come in by the device with the device's own address as source. Without
        // this setting the kernel drops them as martians (fib_validate_source). `ingress` lets no
        // such source from peers pass.
        sysctl(format!("net/ipv4/conf/{name}/accept_local"), true),
    ];
    // Pods and the overlay are reached through this host.
    let forward_v4 = networks.v4.map(|_| sysctl("net/ipv4/ip_forward".to_owned(), true));
    let forward_v6 = networks.v6.map(|_| sysctl("net/ipv6/conf/all/forwarding".to_owned(), true));
    own.into_iter().chain(forward_v4).chain(forward_v6)
}
