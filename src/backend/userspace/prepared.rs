//! The userspace backend before it is started, and its start.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tokio::sync::mpsc;

use super::choice::{Choice, EngineKind};
use super::encryption::{self, Credentials, Encryption, Ends};
use super::fastpath::{self, self_test};
use super::publisher::{Publisher, sessions};
use super::running::{Parts, Userspace};
use super::{device, sockets};
use crate::backend::error::BackendError;
use crate::backend::overhead::Overhead;
use crate::backend::setup::Setup;
use crate::config::Config;
use crate::engine::{Engine, WorkerOptions};
use crate::forward::Table;
use crate::packet::{Family, outer_overhead};
use crate::route::Announced;
use crate::sys::Capabilities;

/// Largest UDP payload: 65535 bytes less the headers of IPv4 and UDP.
const UDP_PAYLOAD_MAX_BYTES: u16 = 65507;

/// The choice of an engine and the credentials.
#[derive(Debug)]
pub struct Prepared {
    choice: Choice,
    credentials: Credentials,
    /// Why there can be no kernel fast path.
    fast_path: Result<(), String>,
}

/// Whether the socket for packets can be opened. It is closed again.
pub(in crate::backend) fn check_port(address: SocketAddr) -> Result<(), BackendError> {
    sockets::bind(address)?;
    Ok(())
}

/// Whether certificate, key and CA can be loaded. Returns whether a start would make a certificate.
pub(in crate::backend) fn check_credentials(config: &Config) -> Result<bool, BackendError> {
    Ok(Credentials::check_files(config)?)
}

/// Whether the port for encrypted connections can be opened, if there is one. It is closed again.
pub(in crate::backend) fn check_encryption_port(
    config: &Config,
    public: IpAddr,
) -> Result<Option<SocketAddr>, BackendError> {
    Ok(encryption::check_port(config, public)?)
}

/// Whether this host can have the kernel fast path at this address, or why not. `pins`: whether its
/// maps can be pinned.
pub(in crate::backend) fn check_fast_path(
    config: &Config,
    capabilities: &Capabilities,
    (public, pins): (IpAddr, Result<(), String>),
) -> Result<(), String> {
    may_be_fast(config, &Choice::new(&config.dataplane, capabilities))?;
    fastpath::check_underlay(public)?;
    pins
}

/// Bytes that this backend takes of each packet.
pub(in crate::backend) fn overhead(config: &Config, family: Family) -> Overhead {
    let encryption = encryption::overhead(config);
    Overhead { total: outer_overhead(family) + encryption, longest: UDP_PAYLOAD_MAX_BYTES - encryption }
}

impl Prepared {
    pub(in crate::backend) fn new(
        config: &Config,
        capabilities: &Capabilities,
    ) -> Result<Self, BackendError> {
        let choice = Choice::new(&config.dataplane, capabilities);
        let credentials = Credentials::load(config)?;
        let fast_path = may_be_fast(config, &choice);
        Ok(Self { choice, credentials, fast_path })
    }

    /// Whether this host can have the kernel fast path at this address, or why not.
    pub(in crate::backend) fn fast_path(
        &self,
        public: IpAddr,
        pins: Result<(), String>,
    ) -> Result<(), String> {
        self.fast_path.clone()?;
        fastpath::check_underlay(public)?;
        pins
    }

    pub(in crate::backend) fn announce(&self) -> Option<Announced> {
        self.credentials.announced()
    }

    pub(in crate::backend) fn subnets(&self) -> Option<Vec<IpNet>> {
        self.credentials.subnets()
    }

    pub(in crate::backend) fn check(&self, lease: (&str, &[IpNet]), port: u16) -> Result<(), BackendError> {
        Ok(self.credentials.check(lease, port)?)
    }

    /// Opens sockets and device, then starts the workers and, last, encryption: its packets need
    /// the workers.
    pub(in crate::backend) async fn start(
        self,
        config: &Config,
        setup: Setup,
    ) -> Result<Userspace, BackendError> {
        let Self { mut choice, credentials, fast_path } = self;
        let Setup { name, networks, local, underlay_mtu } = setup;
        let address = SocketAddr::new(local.public, local.port);
        let sockets = sockets::open_patiently(&choice, address, config.overlay.spread_ports).await?;
        let (ports, missed) = (sockets::ports(&sockets), sockets::missed(&choice, address)?);
        let control = sockets::control(&choice, address, config.overlay.spread_ports, &sockets)?;
        let (device, tun) = device::open(&config.overlay.device, &choice).await?;
        let shared = tun.try_clone().map_err(BackendError::NoWorker)?;

        let offload = tun.offload();
        let options = WorkerOptions {
            verify: config.overlay.verify_source,
            offload,
            busy_poll_us: config.dataplane.busy_poll_us,
            realtime: config.dataplane.realtime,
        };
        let io = tun.join(&mut choice, sockets);
        let reason = choice.reason(offload);
        let (failure, failed) = mpsc::unbounded_channel();
        let report = move |error| {
            // The receiver is gone only when the node has stopped already.
            let _ = failure.send(error);
        };
        let mut engine =
            Engine::start(io, options, Table::default(), report).map_err(BackendError::NoWorker)?;
        tracing::info!(
            engine = engine.view().engine(),
            workers = choice.workers,
            reason,
            "data path started"
        );

        let payload = payload(underlay_mtu, local.public);
        let ends = Ends { name: &name, subnets: &local.subnets, address, payload, policy: local.policy };
        let encryption = match Encryption::start(config, credentials, &ends, &mut engine) {
            Ok(encryption) => encryption,
            Err(error) => {
                // The kernel closes a ring's descriptors shortly after the process has ended: too
                // late for the next start.
                engine.stop();
                device.roll_back().await;
                return Err(error.into());
            }
        };
        let receiver = engine.missed_receiver().map_err(BackendError::NoWorker)?;
        let missed = receiver.zip(missed);
        let start = fastpath::Start {
            directory: config.node.bpf_dir(),
            overlay: config.overlay.device.clone(),
            netlink: device.netlink().clone(),
            local: local.clone(),
            verify: options.verify,
            ports,
        };
        let publisher = Publisher::new(engine.view(), networks, local, sessions(&config.security));
        let spread_ports = config.overlay.spread_ports;
        let parts =
            Parts { name, engine, reason, publisher, choice, tun: shared, device, encryption, failed };
        Ok(Userspace::new(parts, spread_ports, options.verify, control, (missed, start, fast_path)))
    }
}

/// Whether this configuration and this kernel permit the kernel fast path.
fn may_be_fast(config: &Config, choice: &Choice) -> Result<(), String> {
    if !config.dataplane.fast_path {
        return Err("dataplane.fast_path says so".to_owned());
    }
    if choice.engine == EngineKind::Simple {
        return Err("the simple engine cannot take what it misses".to_owned());
    }
    if config.security.require {
        return Err("security.require: all packets are encrypted".to_owned());
    }
    self_test()
}

/// The longest UDP payload that the underlay takes.
fn payload(underlay_mtu: u32, public: IpAddr) -> u16 {
    let overhead = outer_overhead(Family::of(public));
    let payload = underlay_mtu.saturating_sub(overhead.into());
    u16::try_from(payload).unwrap_or(u16::MAX).min(UDP_PAYLOAD_MAX_BYTES)
}
