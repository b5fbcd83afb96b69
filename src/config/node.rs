//! `[node]`: this host and the folders that the daemon uses on it.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::PathBuf;

use super::device_name::is_device_name;
use super::error::ConfigError;
use super::key::{Kind, Preset, keys};
use super::settings::Settings;

const ABSOLUTE_PATH: Kind = Kind::Text("an absolute path");

keys! {
    "node";
    INTERFACE = "interface",
        Kind::Text("the name of an interface, an address of it, or \"auto\""),
        Preset::Text("auto"),
        "Underlay interface: its name, one of its addresses, or \"auto\"",
        "\"auto\" takes the interface with the default route, or the one that has public_ip.";
    PUBLIC_IP = "public_ip",
        Kind::Text("an IPv4 or IPv6 address of this host, or \"auto\""),
        Preset::Text("auto"),
        "Address at which other hosts reach this host, or \"auto\"",
        "\"auto\" takes the first address of the interface, IPv4 before IPv6, and follows it: if the address \
         changes while the daemon runs, the other hosts are told. If you write an address here and this host does \
         not have it, the daemon waits until it has.";
    NAME = "name",
        Kind::Text("a name, or \"auto\""),
        Preset::Text("auto"),
        "Name of this host in etcd, or \"auto\" (its host name)",
        "The cluster file has names of its own and ignores this key.";
    STATE_DIR = "state_dir",
        ABSOLUTE_PATH,
        Preset::Text("/var/lib/hopsack"),
        "Folder for files that survive a reboot",
        "The daemon keeps its identity, its certificate and the last map there.";
    RUN_DIR = "run_dir",
        ABSOLUTE_PATH,
        Preset::Text("/run/hopsack"),
        "Folder for files that do not survive a reboot, such as the control socket",
        "";
    SUBNET_ENV = "subnet_env",
        ABSOLUTE_PATH,
        Preset::Text("/run/flannel/subnet.env"),
        "File for this host's subnet and MTU, in Flannel's format",
        "CNI plugins and Docker scripts that were written for Flannel read FLANNEL_SUBNET, FLANNEL_MTU and so on \
         from this file.";
}

/// `[node]`
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The underlay interface.
    pub interface: InterfaceChoice,
    /// Address of this host on the underlay; `None`: the first address of the interface.
    pub public_ip: Option<IpAddr>,
    /// Folder for files that survive a reboot.
    pub state_dir: PathBuf,
    /// Folder for files that do not survive a reboot, such as the control socket.
    pub run_dir: PathBuf,
    /// Path of Flannel's environment file.
    pub subnet_env: PathBuf,
}

/// How the underlay interface is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceChoice {
    /// The interface with the default route, or the one that has `public_ip`.
    Auto,
    /// The interface of this name.
    Name(String),
    /// The interface that has this address.
    Address(IpAddr),
}

impl NodeConfig {
    /// Directory in which the kernel fast path is pinned.
    #[must_use]
    pub fn bpf_dir(&self) -> PathBuf {
        self.run_dir.join("bpf")
    }

    /// Path of the socket on which the running daemon answers.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    pub(super) fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let text = settings.text(&INTERFACE);
        let interface = match (text, text.parse()) {
            ("auto", _) => InterfaceChoice::Auto,
            (_, Ok(address)) => InterfaceChoice::Address(address),
            (name, Err(_)) if is_device_name(name) => InterfaceChoice::Name(name.to_owned()),
            _ => settings.refuse(&INTERFACE)?,
        };
        let public_ip = match settings.text(&PUBLIC_IP) {
            "auto" => None,
            text => match text.parse::<IpAddr>() {
                Ok(address) if !address.is_unspecified() && !address.is_multicast() => Some(address),
                _ => settings.refuse(&PUBLIC_IP)?,
            },
        };
        Ok(Self {
            interface,
            public_ip,
            state_dir: settings.path(&STATE_DIR)?,
            run_dir: settings.path(&RUN_DIR)?,
            subnet_env: settings.path(&SUBNET_ENV)?,
        })
    }
}

/// Name of this host in the store; `None`: its host name.
pub(super) fn name(settings: &Settings) -> Result<Option<String>, ConfigError> {
    match settings.text(&NAME) {
        "auto" => Ok(None),
        name if name.is_empty() || name.chars().any(char::is_control) => settings.refuse(&NAME),
        name => Ok(Some(name.to_owned())),
    }
}
