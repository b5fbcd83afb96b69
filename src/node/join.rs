//! What a start settles before anything is made: privileges, our place in the cluster, MTU, port, and that they are free.
//!
//! Each refusal is one sentence with its mend. `hopsack check` asks the same questions.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;

use super::signals::{Signals, notify};
use super::store_settings::settings;
use super::underlay::Underlay;
use super::{NodeError, security};
use crate::config::{Config, Origin};
use crate::observe::Registry;
use crate::packet::{Family, outer_overhead};
use crate::route::{Local, Networks};
use crate::store::{Opened, Store};
use crate::sys::{Capabilities, udp};

/// Opens the store, and waits for one that cannot be reached: `None` if a signal ended the wait.
pub(super) async fn open_store(
    config: &Config,
    underlay: &Underlay,
    registry: &Registry,
    signals: &mut Signals,
) -> Result<Option<(Store, Opened)>, NodeError> {
    tracing::info!(store = config.store.describe(), "asking for this host's place in the cluster");
    let settings = settings(&config.store);
    let (mut pause, mut said) = (Duration::from_millis(500), String::new());
    loop {
        let problem = tokio::select! {
            opened = Store::open(&settings, &underlay.addresses) => match opened {
                Ok(opened) => return Ok(Some(opened)),
                Err(error) if error.is_permanent() => return Err(error.into()),
                Err(error) => error.text,
            },
            name = signals.end() => {
                tracing::info!("{name}: stopping");
                return Ok(None);
            }
        };
        if problem != said {
            tracing::warn!("{problem}; trying on");
            registry.wait_for(&problem);
            notify(&[NotifyState::Status(&format!("waiting: {problem}"))]);
            said = problem;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            name = signals.end() => {
                tracing::info!("{name}: stopping");
                return Ok(None);
            }
        }
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

pub(super) fn privileged(capabilities: &Capabilities) -> Result<(), NodeError> {
    if !capabilities.net_admin {
        return Err(NodeError::Environment(
            "this process lacks CAP_NET_ADMIN, which the overlay device and its routes need: run it as root, \
             or with AmbientCapabilities=CAP_NET_ADMIN as in configs/hopsack.service"
                .into(),
        ));
    }
    capabilities.tun.as_ref().map_err(|error| {
        let mend =
            "load the module (modprobe tun); in a container, give it the device (--device /dev/net/tun)";
        NodeError::Environment(format!("cannot open /dev/net/tun: {error}; {mend}"))
    })?;
    Ok(())
}

/// Our part in the overlay: which of our addresses the lease names, and what fits between.
pub(super) fn local(config: &Config, underlay: &Underlay, opened: &Opened) -> Result<Local, NodeError> {
    let lease = &opened.lease;
    let known = |address: &&std::net::IpAddr| lease.public.iter().any(|public| public == **address);
    let Some(&public) = underlay.addresses.iter().find(known) else {
        let text = format!("the lease of {:?} names no address of this host", lease.name);
        return Err(NodeError::Invalid(text));
    };
    let mtu = overlay_mtu(config, underlay, public, &opened.cluster.networks)?;
    Ok(Local {
        subnets: lease.subnets.clone(),
        public,
        port: port(config, opened)?,
        mtu,
        policy: security::policy(config),
    })
}

/// What fits one underlay packet to or from `public`, in bytes of inner packet.
pub(super) fn overlay_mtu(
    config: &Config,
    underlay: &Underlay,
    public: IpAddr,
    networks: &Networks,
) -> Result<u16, NodeError> {
    let overhead = outer_overhead(Family::of(public));
    let (overhead, encryption) = (overhead + security::overhead(config), security::overhead(config));
    let room = u16::try_from(underlay.mtu.saturating_sub(overhead.into())).unwrap_or(u16::MAX);
    // 65507 is what one UDP datagram carries; a loopback underlay would offer more.
    let room = room.min(65507 - encryption);
    let mtu = config.overlay.mtu.unwrap_or(room);
    let interface = &underlay.interface;
    if mtu > room {
        return Err(NodeError::Invalid(format!(
            "overlay.mtu = {mtu} does not fit {interface}: its MTU of {} less {overhead} bytes of overhead leaves {room}; \
             write \"auto\"",
            underlay.mtu
        )));
    }
    if networks.v6.is_some() && mtu < 1280 {
        return Err(NodeError::Invalid(format!(
            "an overlay MTU of {mtu} is too small for IPv6, which needs 1280 (RFC 8200): raise the MTU of {interface}, \
             or leave ipv6_network out"
        )));
    }
    Ok(mtu)
}

/// The cluster's port, if the store says it; a node that was told another is wrong about its cluster.
fn port(config: &Config, opened: &Opened) -> Result<u16, NodeError> {
    let ours = config.overlay.port;
    let said = |value: &&crate::config::Value| value.section == "overlay" && value.key == "port";
    let origin = config.values.iter().find(said).map_or(Origin::Default, |value| value.origin.clone());
    match opened.cluster.port {
        Some(port) if port != ours && origin != Origin::Default => Err(NodeError::Invalid(format!(
            "overlay.port = {ours} ({origin}), but the cluster's Backend.Port is {port}: take the key out"
        ))),
        port => Ok(port.unwrap_or(ours)),
    }
}

pub(super) fn bind_udp(address: SocketAddr) -> Result<std::net::UdpSocket, NodeError> {
    udp::bind(address).map_err(|error| {
        let (port, ip) = (address.port(), address.ip());
        NodeError::Environment(if error.kind() == std::io::ErrorKind::AddrInUse {
            format!(
                "UDP port {port} is in use on {ip}: another hopsack or flanneld? stop it (see `ss -ulpn`), or change \
                 overlay.port on every host"
            )
        } else {
            format!("cannot bind UDP {address}: {error}")
        })
    })
}

pub(super) async fn bind_metrics(address: Option<SocketAddr>) -> Result<Option<TcpListener>, NodeError> {
    let Some(address) = address else { return Ok(None) };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => Err(NodeError::Environment(format!(
            "cannot serve metrics on {address}: {error}; set metrics.listen to a free address, or to \"\" for off"
        ))),
    }
}
