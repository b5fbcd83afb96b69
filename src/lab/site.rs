//! Sites of a lab: a host, its pod, and a member of etcd, each with its namespace and addresses.
//!
//! Plain data that [`super::topology`] computes; commands can be run in the namespace of a host or
//! pod.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Output;

use ipnet::{Ipv4Net, Ipv6Net};

use super::error::LabError;
use super::programs::exec;
use crate::packet::Family;

/// Ports that IANA assigns to etcd: one for clients, one for the other members.
pub(super) const ETCD_CLIENT_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;

/// A host of the lab: a namespace with an underlay address, a daemon, and one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name of the host: `h1`, `h2`, ...
    pub name: String,
    /// Network namespace of the host, as `ip netns` shows it.
    pub netns: String,
    /// Address of the host on the underlay.
    pub public: IpAddr,
    /// IPv4 subnet of the host's pods.
    pub subnet_v4: Ipv4Net,
    /// IPv6 subnet of the host's pods.
    pub subnet_v6: Ipv6Net,
    /// Directory of the host's files: `hopsack.toml`, `run/`, `state/`, `subnet.env`, `log`.
    pub directory: PathBuf,
    pub(super) pod: Pod,
}

/// The pod of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Name of the pod: `p1`, `p2`, ... with the number of its host.
    pub name: String,
    /// Network namespace of the pod, as `ip netns` shows it.
    pub netns: String,
    /// IPv4 address of the pod.
    pub v4: Ipv4Addr,
    /// IPv6 address of the pod.
    pub v6: Ipv6Addr,
}

/// A member of the lab's etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EtcdMember {
    /// Name of the member: `etcd1`, `etcd2`, ...
    pub(super) name: String,
    /// Network namespace in which the member runs.
    pub(super) netns: String,
    /// Address of the member on the underlay.
    pub(super) address: IpAddr,
    /// Directory of the member's data, log and process record.
    pub(super) directory: PathBuf,
}

impl Host {
    /// Directory in which the kernel fast path of the host is pinned.
    #[must_use]
    pub fn bpf_directory(&self) -> PathBuf {
        self.directory.join("run/bpf")
    }

    /// Runs a command on the host and waits for its end. A command that fails is not an error: see
    /// its exit status.
    ///
    /// # Errors
    /// `ip` could not be run.
    pub fn exec<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output, LabError> {
        exec(&self.netns, argv)
    }
}

impl Pod {
    /// Address of the pod in one family.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Runs a command in the pod and waits for its end. A command that fails is not an error: see
    /// its exit status.
    ///
    /// # Errors
    /// `ip` could not be run.
    pub fn exec<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output, LabError> {
        exec(&self.netns, argv)
    }

    /// Addresses of the host on the pod's subnets: the first usable ones. The pod has the second.
    pub(super) fn gateways(&self) -> (Ipv4Addr, Ipv6Addr) {
        (Ipv4Addr::from_bits(self.v4.to_bits() - 1), Ipv6Addr::from_bits(self.v6.to_bits() - 1))
    }
}

impl EtcdMember {
    /// URL for clients.
    pub(super) fn url(&self) -> String {
        format!("http://{}", SocketAddr::new(self.address, ETCD_CLIENT_PORT))
    }

    /// URL for the other members.
    pub(super) fn peer_url(&self) -> String {
        format!("http://{}", SocketAddr::new(self.address, ETCD_PEER_PORT))
    }
}
