//! Why something is not as it should be.

use std::path::PathBuf;

use crate::desired::{Obstacle, Unmet};
use crate::netlink::NetlinkError;

/// Why something is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The kernel refused a request.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A kernel setting cannot be written.
    #[error("cannot set {name} = {value} ({error}); set it with sysctl before the start")]
    Sysctl {
        /// Name, as sysctl takes it.
        name: String,
        /// Value that is needed.
        value: String,
        /// The kernel's answer.
        #[source]
        error: std::io::Error,
    },
    /// An offload of a device cannot be switched.
    #[error("cannot switch the offload {object}: {error}")]
    Offload {
        /// Names of the device and of the offload.
        object: String,
        /// The kernel's answer.
        #[source]
        error: std::io::Error,
    },
    /// Another program has a route for one of our destinations.
    #[error(
        "another program's route for the pod network is there ({found}): remove it (ip route del {destination}), or \
         choose another network"
    )]
    ForeignRoute {
        /// Destination of the route.
        destination: ipnet::IpNet,
        /// The route as it was found.
        found: String,
    },
    /// The kernel refuses an object of IPv6, because IPv6 is off.
    #[error(
        "{object} is missing, because IPv6 is disabled on this host: pods have IPv4 only; enable it \
         (net.ipv6.conf.all.disable_ipv6 = 0), or leave ipv6_network out"
    )]
    NoIpv6 {
        /// Name of the address, route or setting.
        object: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {error}; make its folder writable, or set node.subnet_env", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        error: std::io::Error,
    },
    /// A device does not exist.
    #[error("the device {0} is gone: restart the daemon, which makes it again")]
    Missing(String),
    /// A device belongs to another program.
    #[error(
        "the device {0} is not marked as one of hopsack's: remove it (ip link del {0}) and restart the daemon"
    )]
    Foreign(String),
}

impl ReconcileError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Netlink(error) => error.code(),
            Self::Sysctl { .. } => "sysctl_write",
            Self::Offload { .. } => "offload_switch",
            Self::ForeignRoute { .. } => "route_foreign",
            Self::NoIpv6 { .. } => "ipv6_disabled",
            Self::File { .. } => "file_write",
            Self::Missing(_) => "link_missing",
            Self::Foreign(_) => "link_foreign",
        }
    }
}

impl From<Unmet> for ReconcileError {
    fn from(unmet: Unmet) -> Self {
        match unmet.obstacle {
            Obstacle::Missing => Self::Missing(unmet.link),
            Obstacle::Foreign => Self::Foreign(unmet.link),
        }
    }
}
