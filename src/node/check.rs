//! `hopsack check`: whether this host can run the daemon. It asks what a start asks, and makes and
//! changes nothing.
//!
//! Invariant: if every finding is good, `hopsack run` starts.

use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;

use super::error::NodeError;
use super::join::local;
use super::servers::bind_metrics;
use super::store_settings::{etcd_settings, settings};
use super::{privileges, underlay};
use crate::backend::{self, BackendError, DeviceError, NoRing, is_own_device};
use crate::config::{Config, StoreConfig};
use crate::control::running_daemon;
use crate::files::create;
use crate::netlink::Netlink;
use crate::reconcile::Reader;
use crate::store::{Store, admin};
use crate::sys::{Capabilities, names};

/// One question and its answer.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Stable code of the question.
    pub code: &'static str,
    /// What was checked.
    pub question: &'static str,
    /// The daemon can start as far as this is concerned.
    pub ok: bool,
    /// The daemon starts, but the operator should know the answer.
    pub warning: bool,
    /// What was found, and if it is not good, how to fix it.
    pub answer: String,
}

/// Checks everything, even after a bad finding.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Findings::default();
    // First, so that everything below is tried with the privileges that the daemon will have.
    let privileges = privileges::take(config);
    let capabilities = Capabilities::probe();
    findings.add(Question::Kernel, Ok(format!("Linux {}", capabilities.kernel)));
    let needed = names(&privileges::parts(config)).join(", ");
    let answer = privileges.map(|_| format!("{needed}, and /dev/net/tun opens"));
    findings.add(Question::Privileges, answer);
    findings.add(
        Question::IoUring,
        Ok(match &capabilities.ring {
            Ok(()) => "can do what the uring engine needs".into(),
            Err(error) => format!("{}; the batch engine works without it", NoRing(error)),
        }),
    );
    let running = running_daemon(&config.node.control_socket());
    if let Some(process) = &running {
        findings.add(Question::Daemon, Ok(format!("runs{process}: port and device belong to it")));
    }
    if let Err(error) = check_network(config, running.is_some(), &mut findings).await {
        findings.add(Question::Netlink, Err(error));
    }
    // The rules of a packet filter would keep pods from the port; the daemon makes none yet.
    if !config.security.require {
        findings.warn(Question::PodInjection, POD_INJECTION);
    }
    findings.add(Question::SubnetEnv, writable(&config.node.subnet_env));
    findings.add(Question::ControlSocket, writable(&config.node.control_socket()));
    findings.0
}

async fn check_network(config: &Config, running: bool, findings: &mut Findings) -> Result<(), NodeError> {
    let netlink = Netlink::new()?;
    let name = &config.overlay.device;
    let device = match netlink.link(name).await? {
        None => Ok(format!("{name} is free")),
        Some(link) if is_own_device(&link) && running => Ok(format!("{name} is the running daemon's")),
        Some(link) if is_own_device(&link) => {
            Ok(format!("{name} was left by an earlier daemon and will be adopted"))
        }
        Some(_) => Err(BackendError::from(DeviceError::Taken(name.clone())).into()),
    };
    findings.add(Question::OverlayDevice, device);
    if !running {
        let free = bind_metrics(config).await.map(|_| match config.metrics {
            Some(address) => format!("{address} is free"),
            None => "off".into(),
        });
        findings.add(Question::Metrics, free);
    }

    let underlay = match underlay::find(&Reader::Linux(netlink), &config.node).await {
        Ok(underlay) => underlay,
        Err(error) => {
            findings.add(Question::Underlay, Err(error.into()));
            return Ok(());
        }
    };
    let addresses: Vec<_> = underlay.addresses.iter().map(ToString::to_string).collect();
    let text = format!("{}, MTU {}, {}", underlay.interface, underlay.mtu, addresses.join(", "));
    findings.add(Question::Underlay, Ok(text));

    match &config.store {
        StoreConfig::File { .. } => check_file_store(config, &underlay, running, findings).await,
        StoreConfig::Etcd(etcd) => {
            // Joining would take a lease; a check only looks.
            let shown = admin::network_show(&etcd_settings(etcd)).await.map_err(NodeError::from);
            let text = |shown: admin::NetworkShown| format!("etcd has the network {}", shown.config);
            findings.add(Question::Store, shown.map(text));
            port(running, (underlay.addresses[0], config.overlay.port).into(), findings);
        }
    }
    Ok(())
}

async fn check_file_store(
    config: &Config,
    underlay: &underlay::Underlay,
    running: bool,
    findings: &mut Findings,
) {
    let (store, opened) = match Store::open(&settings(&config.store), &underlay.addresses).await {
        Ok(opened) => opened,
        Err(error) => return findings.add(Question::Store, Err(error.into())),
    };
    findings.add(
        Question::Store,
        Ok(format!("{}; this host is {:?} there", store.describe(), opened.lease.name)),
    );
    match local(config, underlay, &opened) {
        Ok(local) => {
            findings.add(Question::OverlayMtu, Ok(format!("{} bytes", local.mtu)));
            port(running, (local.public, local.port).into(), findings);
        }
        Err(error) => findings.add(Question::OverlayMtu, Err(error)),
    }
}

fn port(running: bool, address: SocketAddr, findings: &mut Findings) {
    if !running {
        let free = backend::check_port(address).map(|()| format!("{address} is free"));
        findings.add(Question::UdpPort, free.map_err(NodeError::from));
    }
}

/// Whether the file's folder, or the nearest that exists above it, can be written.
fn writable(path: &Path) -> Result<String, NodeError> {
    let above = path.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let probe = above.join(format!(".hopsack-check-{}", std::process::id()));
    match create(&probe, 0o600).and_then(|_| std::fs::remove_file(&probe)) {
        Ok(()) => Ok(format!("{} can be written", path.display())),
        Err(error) => Err(NodeError::Environment {
            code: "file_write",
            text: format!(
                "{} cannot be written: {error} in {}; run as root, or set another path",
                path.display(),
                above.display()
            ),
        }),
    }
}

/// What a pod can do while hosts accept packets in clear.
const POD_INJECTION: &str = "a pod whose packets to other hosts are masqueraded can inject packets into the overlay: it \
                             sends them by UDP to another host's overlay.port, with the address of this host; drop \
                             such packets of pods in the packet filter, or set security.mode and security.require";

/// What is checked.
#[derive(Debug, Clone, Copy)]
enum Question {
    Kernel,
    Privileges,
    IoUring,
    Daemon,
    Netlink,
    OverlayDevice,
    Metrics,
    Underlay,
    Store,
    OverlayMtu,
    UdpPort,
    SubnetEnv,
    ControlSocket,
    PodInjection,
}

impl Question {
    /// Its stable code, and its name for people.
    fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::Kernel => ("kernel", "kernel"),
            Self::Privileges => ("privileges", "privileges"),
            Self::IoUring => ("io_uring", "io_uring"),
            Self::Daemon => ("daemon", "daemon"),
            Self::Netlink => ("netlink", "netlink"),
            Self::OverlayDevice => ("overlay_device", "overlay device"),
            Self::Metrics => ("metrics", "metrics"),
            Self::Underlay => ("underlay", "underlay"),
            Self::Store => ("store", "store"),
            Self::OverlayMtu => ("overlay_mtu", "overlay MTU"),
            Self::UdpPort => ("udp_port", "UDP port"),
            Self::SubnetEnv => ("subnet_env", "subnet.env"),
            Self::ControlSocket => ("control_socket", "control socket"),
            Self::PodInjection => ("pod_injection", "pod injection"),
        }
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, question: Question, answer: Result<String, NodeError>) {
        let ok = answer.is_ok();
        let answer = answer.unwrap_or_else(|error| error.to_string());
        let (code, question) = question.labels();
        self.0.push(Finding { code, question, ok, warning: false, answer });
    }

    /// Adds an answer that does not keep the daemon from starting.
    fn warn(&mut self, question: Question, answer: &str) {
        self.add(question, Ok(answer.to_owned()));
        self.0.iter_mut().rev().take(1).for_each(|finding| finding.warning = true);
    }
}
