//! `hopsack check`: can this host do it? The questions of the start, asked one by one, with nothing made or changed.
//!
//! Invariant: where every finding is good, `hopsack run` starts.

use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;

use super::join::{bind_metrics, bind_udp, local, privileged};
use super::store_settings::{etcd_settings, settings};
use super::{NodeError, dataplane, device, underlay};
use crate::config::{self, Config};
use crate::control::running_daemon;
use crate::netlink::Netlink;
use crate::store::{Store, admin};
use crate::sys::Capabilities;

/// One question and its answer.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was asked.
    pub question: &'static str,
    /// `false`: `hopsack run` would fail.
    pub ok: bool,
    /// What was found; if it is not good, with the mend.
    pub answer: String,
}

/// Asks everything, even after a bad answer.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Findings::default();
    let capabilities = Capabilities::probe();
    findings.add("kernel", Ok(format!("Linux {}", capabilities.kernel)));
    findings.add(
        "privileges",
        privileged(&capabilities).map(|()| "CAP_NET_ADMIN, and /dev/net/tun opens".into()),
    );
    findings.add(
        "io_uring",
        Ok(match &capabilities.ring {
            Ok(()) => "can do what the uring engine needs".into(),
            Err(error) => format!("{}; the batch engine does without", dataplane::no_ring(error)),
        }),
    );
    let running = running_daemon(&config.node.control_socket());
    if let Some(who) = &running {
        findings.add("daemon", Ok(format!("runs{who}: port and device are its own")));
    }
    if let Err(error) = of_the_network(config, running.is_some(), &mut findings).await {
        findings.add("netlink", Err(error));
    }
    findings.add("subnet.env", writable(&config.node.subnet_env));
    findings.add("control socket", writable(&config.node.control_socket()));
    findings.0
}

async fn of_the_network(config: &Config, running: bool, findings: &mut Findings) -> Result<(), NodeError> {
    let netlink = Netlink::new()?;
    let name = &config.overlay.device;
    let device = match netlink.link(name).await? {
        None => Ok(format!("{name} is free")),
        Some(link) if device::is_ours(&link) && running => Ok(format!("{name} is the running daemon's")),
        Some(link) if device::is_ours(&link) => {
            Ok(format!("{name} was left by a hopsack and will be adopted"))
        }
        Some(_) => Err(device::taken(name)),
    };
    findings.add("overlay device", device);
    if !running {
        let free = bind_metrics(config.metrics).await.map(|_| match config.metrics {
            Some(address) => format!("{address} is free"),
            None => "off".into(),
        });
        findings.add("metrics", free);
    }

    let underlay = match underlay::find(&netlink, &config.node).await {
        Ok(underlay) => underlay,
        Err(error) => {
            findings.add("underlay", Err(error));
            return Ok(());
        }
    };
    let addresses: Vec<_> = underlay.addresses.iter().map(ToString::to_string).collect();
    let text = format!("{}, MTU {}, {}", underlay.interface, underlay.mtu, addresses.join(", "));
    findings.add("underlay", Ok(text));

    match &config.store {
        config::Store::File { .. } => of_the_file(config, &underlay, running, findings).await,
        config::Store::Etcd(etcd) => {
            // Joining would take a lease; a check only looks.
            let shown = admin::network_show(&etcd_settings(etcd)).await.map_err(NodeError::from);
            let text = |shown: admin::NetworkShown| format!("etcd has the network {}", shown.config);
            findings.add("store", shown.map(text));
            port(running, (underlay.addresses[0], config.overlay.port).into(), findings);
        }
    }
    Ok(())
}

async fn of_the_file(config: &Config, underlay: &underlay::Underlay, running: bool, findings: &mut Findings) {
    let (store, opened) = match Store::open(&settings(&config.store), &underlay.addresses).await {
        Ok(opened) => opened,
        Err(error) => return findings.add("store", Err(error.into())),
    };
    findings.add("store", Ok(format!("{}; this host is {:?} there", store.describe(), opened.lease.name)));
    match local(config, underlay, &opened) {
        Ok(local) => {
            findings.add("overlay MTU", Ok(format!("{} bytes", local.mtu)));
            port(running, (local.public, local.port).into(), findings);
        }
        Err(error) => findings.add("overlay MTU", Err(error)),
    }
}

fn port(running: bool, address: SocketAddr, findings: &mut Findings) {
    if !running {
        findings.add("UDP port", bind_udp(address).map(|_| format!("{address} is free")));
    }
}

/// Whether the file's folder, or the nearest that exists above it, can be written.
fn writable(path: &Path) -> Result<String, NodeError> {
    let above = path.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let probe = above.join(format!(".hopsack-check-{}", std::process::id()));
    match std::fs::write(&probe, "").and_then(|()| std::fs::remove_file(&probe)) {
        Ok(()) => Ok(format!("{} can be written", path.display())),
        Err(error) => Err(NodeError::Environment(format!(
            "{} cannot be written: {error} in {}; run as root, or set another path",
            path.display(),
            above.display()
        ))),
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, question: &'static str, answer: Result<String, NodeError>) {
        let ok = answer.is_ok();
        let answer = answer.unwrap_or_else(|error| error.to_string());
        self.0.push(Finding { question, ok, answer });
    }
}
