//! `hopsack check`: whether this host can run the daemon. It asks what a start asks, and makes and
//! changes nothing.
//!
//! Each answer comes from the code that the start uses.
//!
//! Invariant: if every finding is good, `hopsack run` starts.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde::Serialize;

use super::error::NodeError;
use super::join::{self, local};
use super::servers::bind_metrics;
use super::store_settings::{etcd_settings, settings};
use super::{privileges, underlay};
use crate::backend::{self, BackendError, DeviceError, NoRing, is_own_device};
use crate::config::{Config, StoreConfig};
use crate::control::running_daemon;
use crate::files::create;
use crate::netlink::Netlink;
use crate::reconcile::{Reader, obstacles};
use crate::route::{Local, Mode, Networks, Policy};
use crate::store::{Cluster, Store, admin};
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
    /// Stable code of the error that would end the daemon, or that it would wait out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'static str>,
    /// What was found, and if it is not good, how to fix it.
    pub answer: String,
}

/// Checks everything, even after a bad finding.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Findings::default();
    let pins = privileges::can_prepare(config);
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
    match check_network(config, running.is_some(), &mut findings).await {
        Ok(address) => {
            check_fast_path((config, &capabilities), address.map(|public| (public, pins)), &mut findings)
        }
        Err(error) => findings.add(Question::Netlink, Err(error)),
    }
    // The rules of a packet filter would keep pods from the port; the daemon makes none yet.
    if !config.security.require {
        findings.warn(Question::PodInjection, POD_INJECTION);
    }
    if config.security.mode != Mode::None {
        findings.add(Question::Security, check_security(config));
    }
    if let StoreConfig::Etcd(_) = &config.store {
        findings.add(Question::StateDir, check_state_dir(&config.node.state_dir));
    }
    findings.add(Question::SubnetEnv, writable(&config.node.subnet_env, "file_write"));
    findings.add(Question::ControlSocket, writable(&config.node.control_socket(), "file_write"));
    findings.0
}

/// Loads certificate, key and CA as a start does. A certificate that the start would make itself is
/// left to the start.
fn check_security(config: &Config) -> Result<String, NodeError> {
    let is_made = backend::check_credentials(config)?;
    let own = config.security.own.as_ref().map(|(certificate, _)| certificate.display());
    Ok(match own {
        _ if is_made => writable(&config.node.state_dir.join("node.crt"), "pki_write")?,
        Some(certificate) => format!("{certificate} can be used"),
        None => format!("the one in {} can be used", config.node.state_dir.display()),
    })
}

/// Whether a start finds its node id, or can make one.
fn check_state_dir(state_dir: &Path) -> Result<String, NodeError> {
    if admin::has_node_id(state_dir)? {
        return Ok(format!("{} has the id of this node", state_dir.display()));
    }
    writable(&state_dir.join("node-id"), "node_id")
}

/// Runs the self-test of the kernel fast path as a start does. Without a fast path the daemon
/// starts as well.
fn check_fast_path(
    (config, capabilities): (&Config, &Capabilities),
    at: Option<(IpAddr, Result<(), String>)>,
    findings: &mut Findings,
) {
    let Some(at) = at else { return };
    match backend::check_fast_path(config, capabilities, at) {
        Ok(()) => findings.add(Question::FastPath, Ok("the kernel runs it as it should".to_owned())),
        Err(reason) if config.dataplane.fast_path => {
            findings.warn(Question::FastPath, &format!("off: {reason}; the engine carries all packets"));
        }
        Err(reason) => findings.add(Question::FastPath, Ok(format!("off: {reason}"))),
    }
}

/// Returns the address of this host on the underlay, if it has one.
async fn check_network(
    config: &Config,
    running: bool,
    findings: &mut Findings,
) -> Result<Option<IpAddr>, NodeError> {
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

    let underlay = match underlay::find(
        &Reader::Linux(netlink.clone()),
        &config.node,
        &config.store.addresses(),
    )
    .await
    {
        Ok(underlay) => underlay,
        Err(error) => {
            findings.add(Question::Underlay, Err(error.into()));
            return Ok(None);
        }
    };
    let addresses: Vec<_> = underlay.addresses.iter().map(ToString::to_string).collect();
    let text = format!("{}, MTU {}, {}", underlay.interface, underlay.mtu, addresses.join(", "));
    findings.add(Question::Underlay, Ok(text));

    match &config.store {
        StoreConfig::File { .. } => check_file_store(config, (&underlay, &netlink), running, findings).await,
        StoreConfig::Etcd(etcd) => {
            // Joining would take a lease; a check only looks.
            let cluster = match admin::cluster(&etcd_settings(etcd)).await {
                Ok(cluster) => cluster,
                Err(error) => {
                    findings.add(Question::Store, Err(error.into()));
                    return Ok(underlay.addresses.first().copied());
                }
            };
            let networks: Vec<_> = cluster.networks.iter().map(|network| network.to_string()).collect();
            findings.add(Question::Store, Ok(format!("etcd has the network {}", networks.join(" and "))));
            let local = unleased(config, &underlay, &cluster);
            check_place(config, (&cluster.networks, local), &netlink, running, findings).await;
        }
    }
    Ok(underlay.addresses.first().copied())
}

/// This host's part in the overlay, without the subnet that it will lease.
fn unleased(config: &Config, underlay: &underlay::Underlay, cluster: &Cluster) -> Result<Local, NodeError> {
    let public = underlay.addresses[0];
    let mtu = join::overlay_mtu(config, underlay, public, &cluster.networks)?;
    let policy = Policy { mode: config.security.mode, require: config.security.require };
    let subnets = cluster.networks.iter().map(|network| network.trunc()).collect();
    let nets = underlay.own.clone();
    Ok(Local { subnets, nets, public, port: join::port(config, cluster)?, mtu, policy })
}

/// Checks what depends on this host's part in the overlay.
async fn check_place(
    config: &Config,
    (networks, local): (&Networks, Result<Local, NodeError>),
    netlink: &Netlink,
    running: bool,
    findings: &mut Findings,
) {
    let local = match local {
        Ok(local) => local,
        Err(error) => return findings.add(Question::OverlayMtu, Err(error)),
    };
    findings.add(Question::OverlayMtu, Ok(format!("{} bytes", local.mtu)));
    if !running {
        let address = SocketAddr::new(local.public, local.port);
        let free = backend::check_port(address).map(|()| format!("{address} is free"));
        findings.add(Question::UdpPort, free.map_err(NodeError::from));
        let encryption = backend::check_encryption_port(config, local.public).map_err(NodeError::from);
        if let Some(answer) = encryption.map(|port| port.map(|port| format!("{port} is free"))).transpose() {
            findings.add(Question::EncryptionPort, answer);
        }
    }
    let obstacles = obstacles(netlink, &backend::desired(config, &local, networks)).await;
    let obstacle = obstacles.and_then(|found| found.into_iter().next().map_or(Ok(()), Err));
    let answer = obstacle.map(|()| "routes are free, and settings are right or can be written".to_owned());
    findings.add(Question::KernelState, answer.map_err(NodeError::from));
}

async fn check_file_store(
    config: &Config,
    (underlay, netlink): (&underlay::Underlay, &Netlink),
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
    let local = local(config, underlay, &opened);
    check_place(config, (&opened.cluster.networks, local), netlink, running, findings).await;
}

/// Whether the file's folder, or the nearest that exists above it, can be written.
/// `code`: the error of a start that cannot write it.
fn writable(path: &Path, code: &'static str) -> Result<String, NodeError> {
    let above = path.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let probe = above.join(format!(".hopsack-check-{}", std::process::id()));
    match create(&probe, 0o600).and_then(|_| std::fs::remove_file(&probe)) {
        Ok(()) => Ok(format!("{} can be written", path.display())),
        Err(error) => Err(NodeError::Environment {
            code,
            text: format!(
                "{} cannot be written: {error} in {}; run as root, or set another path",
                path.display(),
                above.display()
            ),
        }),
    }
}

/// What a pod can do while hosts accept packets in clear.
const POD_INJECTION: &str = "a pod with masqueraded packets to other hosts can inject packets into the overlay: it \
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
    EncryptionPort,
    StateDir,
    KernelState,
    SubnetEnv,
    ControlSocket,
    FastPath,
    Security,
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
            Self::EncryptionPort => ("encryption_port", "UDP port for encryption"),
            Self::StateDir => ("state_dir", "state folder"),
            Self::KernelState => ("kernel_state", "kernel state"),
            Self::SubnetEnv => ("subnet_env", "subnet.env"),
            Self::FastPath => ("fast_path", "kernel fast path"),
            Self::Security => ("security", "certificate"),
            Self::ControlSocket => ("control_socket", "control socket"),
            Self::PodInjection => ("pod_injection", "pod injection"),
        }
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, question: Question, answer: Result<String, NodeError>) {
        let error = answer.as_ref().err().map(NodeError::code);
        let ok = error.is_none();
        let answer = answer.unwrap_or_else(|error| error.to_string());
        let (code, question) = question.labels();
        self.0.push(Finding { code, question, ok, warning: false, error, answer });
    }

    /// Adds an answer that does not keep the daemon from starting.
    fn warn(&mut self, question: Question, answer: &str) {
        self.add(question, Ok(answer.to_owned()));
        self.0.iter_mut().rev().take(1).for_each(|finding| finding.warning = true);
    }
}
