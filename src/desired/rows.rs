//! The kinds of rows, and the marks by which ours are known.
//!
//! A row holds exactly what is compared: two rows are equal if and only if nothing has to be done.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// The alias of our devices (`ip -d link` shows it).
pub const ALIAS: &str = "hopsack overlay";

/// The protocol number of our routes (`ip route` shows "proto 182"). iproute2's rt_protos does not
/// use it.
pub const ROUTE_PROTOCOL: u8 = 182;

/// The kind of a network device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    /// TUN device: it exists from the moment that a process opens it, so only that process can make
    /// it.
    Tun,
    /// One end of a veth pair. Both ends are rows, and the reconciler makes them together.
    Veth,
    /// Any other kind of device. hopsack never creates one.
    #[default]
    Other,
}

/// A network device.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Device name.
    pub name: String,
    /// Device kind.
    pub kind: LinkKind,
    /// Device alias, [`ALIAS`] if the device is ours.
    pub alias: String,
    /// The device is up (administratively).
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Name of the other end of a veth pair; empty for other kinds.
    pub peer: String,
}

/// An offload of a device, as `ethtool -k` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// TCP segmentation offload.
    Tso,
    /// Generic receive offload: the merging of segments.
    Gro,
}

impl Feature {
    /// The name that `ethtool -K` takes.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Tso => "tso",
            Self::Gro => "gro",
        }
    }
}

/// An offload that a device needs on or off.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offload {
    /// Name of the device.
    pub link: String,
    /// Which offload.
    pub feature: Feature,
    /// Whether it is on.
    pub on: bool,
}

impl Link {
    /// Whether this program made the device.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.kind != LinkKind::Other && self.alias == ALIAS
    }
}

/// An address of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Name of the device.
    pub link: String,
    /// Address and prefix length.
    pub net: IpNet,
}

/// A route to a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination prefix.
    pub destination: IpNet,
    /// Name of the device that packets leave by.
    pub link: String,
    /// Source address that the kernel prefers for packets of this host.
    pub source: Option<IpAddr>,
    /// Who made the route: [`ROUTE_PROTOCOL`] if we did.
    pub protocol: u8,
}

/// A kernel setting below /proc/sys. It is never set back: other programs may rely on it as well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl {
    /// Path below /proc/sys, with slashes, because a device name may contain dots.
    pub key: String,
    /// Value without the line's end.
    pub value: String,
    /// `true`: a missing setting is an error. `false`: a missing setting is ignored.
    pub required: bool,
}

impl Sysctl {
    /// The name that `sysctl` takes.
    #[must_use]
    pub fn name(&self) -> String {
        // As sysctl(8) has it: a dot in a device name becomes a slash.
        self.key
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect()
    }

    /// The device (or `all`, or `default`) that the setting belongs to; `None` if it belongs to no
    /// device.
    #[must_use]
    pub fn link(&self) -> Option<&str> {
        let row =
            self.key.strip_prefix("net/ipv4/conf/").or_else(|| self.key.strip_prefix("net/ipv6/conf/"))?;
        row.split_once('/').map(|(link, _)| link)
    }
}

/// A file with all of its content. It is never removed when the daemon ends; `hopsack clean` does
/// that.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct File {
    /// Absolute path.
    pub path: PathBuf,
    /// Whole content.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}
