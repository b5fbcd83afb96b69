//! Joining the cluster: the wait for the store, and this host's part in the overlay.
//!
//! Each refusal is one sentence that says how to fix it. `hopsack check` uses the same functions.

use std::net::IpAddr;
use std::time::Duration;

use super::error::NodeError;
use super::store_source::StoreSource;
use super::underlay::Underlay;
use super::wait::Wait;
use crate::backend;
use crate::config::{Config, Origin};
use crate::packet::Family;
use crate::route::{Local, Networks, Policy};
use crate::store::{Cluster, Opened, Store};

/// Opens the store, and waits for one that cannot be reached. `None`: a signal ended the wait.
pub(super) async fn open_store(
    (source, config): (&StoreSource, &Config),
    underlay: &Underlay,
    wait: &mut Wait<'_>,
) -> Result<Option<(Store, Opened)>, NodeError> {
    tracing::info!(store = config.store.describe(), "joining the cluster");
    let mut pause = Duration::from_millis(500);
    loop {
        let problem = tokio::select! {
            opened = source.open(&config.store, &underlay.addresses) => match opened {
                Ok(opened) => return Ok(Some(opened)),
                Err(error) if error.is_permanent() => return Err(error.into()),
                Err(error) => error.text,
            },
            signal = wait.signals.end() => {
                tracing::info!("{}: stopping", signal.name());
                return Ok(None);
            }
        };
        if wait.is_ended(&problem, pause).await {
            return Ok(None);
        }
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// This host's part in the overlay: the address that its lease names, and the MTU that the underlay
/// allows.
pub(super) fn local(config: &Config, underlay: &Underlay, opened: &Opened) -> Result<Local, NodeError> {
    let lease = &opened.lease;
    let known = |address: &&IpAddr| lease.public.iter().any(|public| public == **address);
    let Some(&public) = underlay.addresses.iter().find(known) else {
        let text = format!("the lease of {:?} names no address of this host", lease.name);
        return Err(NodeError::Invalid { code: "lease_without_address", text });
    };
    let mtu = overlay_mtu(config, underlay, public, &opened.cluster.networks)?;
    let policy = Policy { mode: config.security.mode, require: config.security.require };
    let (nets, port) = (underlay.own.clone(), port(config, &opened.cluster)?);
    Ok(Local { subnets: lease.subnets.clone(), nets, public, port, mtu, policy })
}

/// The longest inner packet, in bytes, that fits one underlay packet to or from `public`.
pub(super) fn overlay_mtu(
    config: &Config,
    underlay: &Underlay,
    public: IpAddr,
    networks: &Networks,
) -> Result<u16, NodeError> {
    let overhead = backend::overhead(config, Family::of(public));
    let room = u16::try_from(underlay.mtu.saturating_sub(overhead.total.into())).unwrap_or(u16::MAX);
    let room = room.min(overhead.longest);
    let mtu = config.overlay.mtu.unwrap_or(room);
    let interface = &underlay.interface;
    if mtu > room {
        return Err(NodeError::Invalid {
            code: "mtu_too_large",
            text: format!(
                "overlay.mtu = {mtu} does not fit {interface}: its MTU of {} less {} bytes of overhead leaves {room}; \
             write \"auto\"",
                underlay.mtu, overhead.total
            ),
        });
    }
    if networks.v6.is_some() && mtu < 1280 {
        return Err(NodeError::Invalid {
            code: "mtu_too_small",
            text: format!(
                "an overlay MTU of {mtu} is too small for IPv6, which needs 1280 (RFC 8200): raise the MTU of {interface}, \
             or leave ipv6_network out"
            ),
        });
    }
    Ok(mtu)
}

/// The cluster's port. If the store names one, a different one in the configuration is an error.
pub(super) fn port(config: &Config, cluster: &Cluster) -> Result<u16, NodeError> {
    let ours = config.overlay.port;
    let is_port = |value: &&crate::config::Setting| value.section == "overlay" && value.key == "port";
    let origin = config.values.iter().find(is_port).map_or(Origin::Default, |value| value.origin.clone());
    match cluster.port {
        Some(port) if port != ours && origin != Origin::Default => Err(NodeError::Invalid {
            code: "port_mismatch",
            text: format!(
                "overlay.port = {ours} ({origin}), but the cluster's Backend.Port is {port}: take the key out"
            ),
        }),
        port => Ok(port.unwrap_or(ours)),
    }
}
