//! The overlay device from the node's side: made or adopted at start, shaped, kept across a crash, removed at a clean end.
//!
//! A device is ours if it is a TUN and bears [`ALIAS`]. What a killed daemon left is adopted as it stands, unless it is of
//! the kind that another engine needs: then it is made anew. A device of the same name that is not ours is never touched.
//!
//! Invariant: until [`Device::keep`], everything made here vanishes with the descriptor.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use super::NodeError;
use super::dataplane::{Choice, Tun};
use crate::netlink::{Link, Netlink, Shape};
use crate::packet::Family;
use crate::route::{Local, Networks};
use crate::sys::tun::Persistence;

/// How our devices are known (`ip -d link` shows it).
pub(super) const ALIAS: &str = "hopsack overlay";

/// An overlay device in use.
#[derive(Debug)]
pub(super) struct Device {
    netlink: Netlink,
    name: String,
    index: u32,
    /// The worker has the device itself.
    persistence: Persistence,
}

/// True of a TUN that this program made.
pub(super) fn is_ours(link: &Link) -> bool {
    link.is_tun && link.alias == ALIAS
}

/// Makes or adopts the device `name`, gives it addresses, MTU and routes, and lets the host forward.
pub(super) async fn open(
    netlink: &Netlink,
    name: &str,
    local: &Local,
    networks: &Networks,
    choice: &Choice,
) -> Result<(Device, Tun), NodeError> {
    let found = unused(netlink, name).await?;
    let tun = match (Tun::open(name, choice), &found) {
        (Ok(tun), found) => {
            if found.is_some() {
                tracing::info!(device = name, "adopted the device that an earlier hopsack left");
            }
            tun
        }
        // tun_set_iff: whether a device has queues is settled when it is made.
        (Err(error), Some(link)) if error.raw_os_error() == Some(libc::EINVAL) => {
            netlink.delete(link.index).await?;
            tracing::info!(
                device = name,
                "an earlier hopsack left the device as another engine needs it; made it anew"
            );
            Tun::open(name, choice).map_err(|error| cannot_open(name, &error))?
        }
        (Err(error), _) => return Err(cannot_open(name, &error)),
    };
    let link = netlink.link(name).await?;
    let index = link.ok_or_else(|| NodeError::Environment(format!("the device {name} went away")))?.index;

    quiet(name)?;
    let persistence = tun.persistence().map_err(|error| cannot_open(name, &error))?;
    let device = Device { netlink: netlink.clone(), name: name.to_owned(), index, persistence };
    device.shape(local, networks).await?;
    forward(networks)?;
    Ok((device, tun))
}

/// The device `name`, if it is there: ours, and nobody's who runs.
async fn unused(netlink: &Netlink, name: &str) -> Result<Option<Link>, NodeError> {
    const TRIES: u32 = 10;
    for _ in 0..TRIES {
        match netlink.link(name).await? {
            None => return Ok(None),
            Some(link) if !is_ours(&link) => return Err(taken(name)),
            Some(link) if !link.carrier => return Ok(Some(link)),
            // Several processes may attach to a device with queues. The kernel closes the descriptors of a killed process
            // that used io_uring a moment after its end.
            Some(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    Err(cannot_open(name, &std::io::Error::from_raw_os_error(libc::EBUSY)))
}

impl Device {
    /// Gives it the MTU, addresses and routes that it should have.
    pub(super) async fn shape(&self, local: &Local, networks: &Networks) -> Result<(), NodeError> {
        let addresses: Vec<IpAddr> =
            [Family::V4, Family::V6].into_iter().filter_map(|family| local.device_address(family)).collect();
        let routes = networks.iter().collect();
        let shape = Shape { mtu: local.mtu, alias: ALIAS.into(), addresses, routes };
        Ok(self.netlink.shape(self.index, &shape).await?)
    }

    /// From here on the device survives a crash.
    pub(super) fn keep(&self) -> Result<(), NodeError> {
        self.persistence.set(true).map_err(|error| cannot_open(&self.name, &error))
    }

    /// Removes the device, its addresses and its routes.
    pub(super) async fn remove(self) {
        let there =
            self.netlink.link(&self.name).await.ok().flatten().is_some_and(|link| link.index == self.index);
        if there && let Err(error) = self.netlink.delete(self.index).await {
            tracing::warn!(device = self.name, %error, "the overlay device stays; `hopsack clean` removes it");
        }
    }
}

/// Device settings that have no netlink attribute.
fn quiet(name: &str) -> Result<(), NodeError> {
    // No link-local address, no router solicitations into a network that has no link layer. Without IPv6 there is
    // no such file, and no such noise.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
    // Our ICMP errors come in by the device with the device's own address as source, which the kernel takes for a
    // martian unless told otherwise (fib_validate_source). From peers no such source passes `ingress`.
    set(&format!("/proc/sys/net/ipv4/conf/{name}/accept_local"))
}

/// The name belongs to somebody else.
pub(super) fn taken(name: &str) -> NodeError {
    NodeError::Environment(format!(
        "a device named {name} is there already and is not hopsack's: remove it (ip link del {name}), or set \
         overlay.device to another name"
    ))
}

fn cannot_open(name: &str, error: &std::io::Error) -> NodeError {
    NodeError::Environment(match error.raw_os_error() {
        Some(libc::EBUSY) => {
            format!(
                "the device {name} is in use by another process: stop that hopsack, or set overlay.device"
            )
        }
        Some(libc::EPERM) => format!(
            "the kernel does not let this process make {name} (EPERM): it needs CAP_NET_ADMIN in this network namespace"
        ),
        _ => format!("cannot open the TUN device {name}: {error}"),
    })
}

/// Lets the host route between pods and the overlay. Other programs rely on these switches too, so they stay on when we end.
fn forward(networks: &Networks) -> Result<(), NodeError> {
    let v4 = networks.v4.map(|_| "/proc/sys/net/ipv4/ip_forward");
    let v6 = networks.v6.map(|_| "/proc/sys/net/ipv6/conf/all/forwarding");
    for path in v4.into_iter().chain(v6) {
        if fs::read_to_string(path).is_ok_and(|text| text.trim() == "1") {
            continue;
        }
        set(path)?;
        tracing::info!(path, "set to 1: this host forwards packets now");
    }
    Ok(())
}

fn set(path: &str) -> Result<(), NodeError> {
    fs::write(path, "1").map_err(|error| {
        let key = path.trim_start_matches("/proc/sys/").replace('/', ".");
        NodeError::Environment(format!("cannot set {key} = 1 ({error}); set it with sysctl before the start"))
    })
}
