//! Settings of a store: everything that it must be told about this host and about where the map is
//! kept.
//!
//! The node makes them from its configuration. A store reads no configuration file and no option
//! itself.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::route::Abilities;

/// Time to live of our lease in etcd, as in flanneld (`subnetTTL` in
/// `pkg/subnet/etcd/local_manager.go`).
pub const LEASE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Which store is used, and its settings.
#[derive(Debug, Clone)]
pub enum Settings {
    /// A static cluster in a TOML file.
    File {
        /// Path of the cluster file.
        path: PathBuf,
    },
    /// Flannel's layout in etcd.
    Etcd(Box<EtcdSettings>),
}

/// Settings of the etcd store.
#[derive(Debug, Clone)]
pub struct EtcdSettings {
    /// URLs of the etcd members. The store uses one at a time.
    pub endpoints: Vec<String>,
    /// Prefix of all keys.
    pub prefix: String,
    /// Certificates for `https://` endpoints; `None` if the endpoints are `http://`.
    pub tls: Option<Tls>,
    /// User name, and the path of the file with the password.
    pub user: Option<(String, PathBuf)>,
    /// Name of this host in the store; `None` means the kernel's host name.
    pub node_name: Option<String>,
    /// Folder with the node id and the last map.
    pub state_dir: PathBuf,
    /// Path of Flannel's environment file, which names the subnet that a flanneld on this host had
    /// before us.
    pub subnet_env: PathBuf,
    /// Whether a clean stop gives the lease back.
    pub revoke_on_exit: bool,
    /// What our lease announces.
    pub abilities: Abilities,
    /// Subnets that this host must have; `None`: any that are free.
    pub subnets: Option<Vec<IpNet>>,
    /// Time to live of our lease. It is [`LEASE_TTL`] except in tests.
    pub lease_ttl: Duration,
}

/// Certificates of a connection to etcd.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Path of the CA certificates that etcd's certificate is verified against.
    pub ca: PathBuf,
    /// Paths of the client certificate and its key, if etcd asks for one.
    pub client: Option<(PathBuf, PathBuf)>,
}
