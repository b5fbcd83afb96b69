//! The daemon: what starts after what, the one select loop, and how it all ends.
//!
//! It brings together parts that can each be tested without it, and holds no logic of its own: a failure at start undoes
//! what was done (descriptors and guards see to that), a failure while running stops the node in order.
//!
//! Start order: privileges, control and metrics sockets, underlay, store, UDP socket, device, engine, subnet.env, ready. Whatever can be refused is asked before anything is made.
//!
//! Invariant: while the node is ready, its routes are those of the last good map; a store out of order changes nothing.

mod check;
mod clean;
mod dataplane;
mod device;
mod subnet_env;
mod underlay;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use check::{Finding, check};
pub use clean::{Cleaned, clean};

use crate::backend::Userspace;
use crate::config::{Config, ConfigError, Origin, Sources};
use crate::control::{ControlError, Identity, Server, State, Watch};
use crate::engine::{Engine, Rules, WorkerError};
use crate::metrics::Metrics;
use crate::netlink::{Netlink, NetlinkError};
use crate::packet::{Family, outer_overhead};
use crate::route::{Fib, Local, Rib};
use crate::store::{Lost, Opened, Store, StoreError, Update};
use crate::sys::{Capabilities, udp};

/// Why a node could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// What was typed cannot be: exit code 2.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Likewise, found out by asking the kernel or the store.
    #[error("{0}")]
    Invalid(String),
    /// This machine or process cannot do it: exit code 1.
    #[error("{0}")]
    Environment(String),
    /// The control socket is taken or cannot be made.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The kernel refused a link, address or route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A worker cannot go on.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Our subnet is another's.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl NodeError {
    /// 2 for what an edit mends, 1 for the rest.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Invalid(_) => 2,
            Self::Environment(_) | Self::Control(_) | Self::Netlink(_) | Self::Worker(_) | Self::Lost(_) => 1,
        }
    }
}

impl From<StoreError> for NodeError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Invalid(text) => Self::Invalid(text),
            StoreError::Unreachable(text) => Self::Environment(text),
        }
    }
}

/// A started node.
#[derive(Debug)]
pub struct Node {
    config: Config,
    signals: Signals,
    servers: JoinSet<()>,
    store: Store,
    rib: Rib,
    backend: Userspace,
    engine: Engine,
    state: Arc<State>,
    metrics: Arc<Metrics>,
    device: device::Device,
    failed: mpsc::UnboundedReceiver<WorkerError>,
}

impl Node {
    /// Brings everything up, or nothing. `None`: a signal ended it while it waited for its store.
    pub async fn start(config: Config) -> Result<Option<Self>, NodeError> {
        let no_signals = |error| NodeError::Environment(format!("cannot wait for signals: {error}"));
        let mut signals = Signals::new().map_err(no_signals)?;
        let capabilities = Capabilities::probe();
        privileged(&capabilities)?;
        let choice = dataplane::choose(&config.dataplane, &capabilities)?;
        let watch = Arc::new(Watch::default());
        let metrics = Arc::new(Metrics::new(watch.clone()));
        let mut servers = JoinSet::new();
        servers.spawn(Server::bind(&config.node.control_socket())?.serve(watch.clone()));
        if let Some(listener) = bind_metrics(config.metrics).await? {
            servers.spawn(metrics.clone().serve(listener));
        }

        let netlink = Netlink::new()?;
        let underlay = underlay::find(&netlink, &config.node).await?;
        let opened = open_store(&config, &underlay, &watch, &mut signals).await?;
        let Some((store, opened)) = opened else { return Ok(None) };
        let local = local(&config, &underlay, &opened)?;
        let networks = opened.cluster.networks;
        tracing::info!(
            host = opened.lease.name, public_ip = %local.public, interface = underlay.interface,
            store = store.describe(), "this host has its place in the cluster"
        );

        let address = SocketAddr::new(local.public, local.port);
        let sockets = dataplane::sockets(&choice, address, config.overlay.spread_ports).await?;
        let (device, tun) =
            device::open(&netlink, &config.overlay.device, &local, &networks, &choice).await?;

        let mut rib = Rib::default();
        rib.apply(opened.snapshot);
        let (failure, failed) = mpsc::unbounded_channel();
        let rules = Rules { verify: config.overlay.verify_source, offload: tun.offload() };
        let engine_reason = choice.reason(tun.offload());
        let engine = Engine::start(tun.between(choice.kind, sockets), rules, Fib::default(), move |error| {
            // The receiver is gone only when the node has stopped already.
            let _ = failure.send(error);
        });
        let engine =
            engine.map_err(|error| NodeError::Environment(format!("cannot start a worker: {error}")))?;
        tracing::info!(
            engine = engine.view().engine(),
            workers = choice.workers,
            reason = engine_reason,
            "packets will be moved"
        );
        let backend = Userspace::new(engine.view(), networks, local.clone());
        metrics.publish_seconds.observe(backend.apply(&rib).as_secs_f64());

        if let Err(error) = subnet_env::write(&config.node, &networks, &local).and_then(|()| device.keep()) {
            // The kernel closes a ring's descriptors a moment after the process has ended: too late for the next start.
            engine.stop();
            device.remove().await;
            return Err(error);
        }
        let identity = Identity {
            name: opened.lease.name,
            networks: networks.iter().map(|net| net.to_string()).collect(),
            interface: underlay.interface,
            device: config.overlay.device.clone(),
            store: store.describe(),
            engine_reason,
            local,
        };
        let state = Arc::new(State::new(identity, engine.view(), netlink));
        watch.attach(state.clone());
        Ok(Some(Self {
            config,
            signals,
            servers,
            store,
            rib,
            backend,
            engine,
            state,
            metrics,
            device,
            failed,
        }))
    }

    /// Serves until a signal, or until a worker cannot go on or our subnet is another's. `reconfigure` is told the new
    /// configuration on SIGHUP, as far as it can change while running (the log filter).
    pub async fn run(mut self, sources: &Sources, reconfigure: impl Fn(&Config)) -> Result<(), NodeError> {
        self.ready();
        let result = self.serve(sources, reconfigure).await;
        self.stop().await;
        result
    }

    async fn serve(&mut self, sources: &Sources, reconfigure: impl Fn(&Config)) -> Result<(), NodeError> {
        /// Often enough for `status` and any watchdog.
        const TICK: Duration = Duration::from_secs(1);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                update = self.store.next() => self.update(update)?,
                error = self.failed.recv() => {
                    // Senders that vanished without a word are workers that panicked.
                    let panicked = || NodeError::Environment("a worker panicked: see above".to_owned());
                    return Err(error.map_or_else(panicked, NodeError::Worker));
                }
                name = self.signals.next() => {
                    if name == "SIGHUP" {
                        self.reload(sources, &reconfigure);
                        continue;
                    }
                    tracing::info!("{name}: stopping");
                    return Ok(());
                }
                _ = tick.tick() => {
                    self.state.facts().health = self.store.health();
                    notify(&[NotifyState::Watchdog]);
                }
            }
        }
    }

    fn update(&mut self, update: Update) -> Result<(), NodeError> {
        self.state.facts().health = self.store.health();
        match update {
            Update::Change(change) => {
                let changed = self.rib.apply(change);
                {
                    let mut facts = self.state.facts();
                    facts.map_since = Instant::now();
                    facts.trouble = None;
                }
                if changed {
                    self.metrics.publish_seconds.observe(self.backend.apply(&self.rib).as_secs_f64());
                }
            }
            Update::Recovered => {
                tracing::info!("the store is in order again");
                self.state.facts().trouble = None;
            }
            Update::Trouble(problem) => {
                tracing::error!("{problem}; the last good map stays in force");
                self.state.facts().trouble = Some(problem);
            }
            Update::Notice(text) => tracing::warn!("{text}"),
            Update::Lost(lost) => return Err(NodeError::Lost(lost)),
        }
        self.ready();
        Ok(())
    }

    fn reload(&mut self, sources: &Sources, reconfigure: &impl Fn(&Config)) {
        notify(&[NotifyState::Reloading]);
        self.store.reload();
        match sources.load() {
            Ok(config) => {
                for (new, old) in config.values.iter().zip(&self.config.values) {
                    if new.value != old.value && new.section != "log" {
                        let key = format!("{}.{}", new.section, new.key);
                        tracing::warn!(
                            key,
                            old = old.value,
                            new = new.value,
                            "needs a restart to take effect"
                        );
                    }
                }
                reconfigure(&config);
                tracing::info!("SIGHUP: read the configuration and the map again");
            }
            Err(error) => tracing::error!("SIGHUP: {error}; everything stays as it was"),
        }
        self.ready();
    }

    /// Tells systemd and all who ask how we are.
    fn ready(&self) {
        let facts = self.state.facts();
        let peers = self.state.view.fib().peers().len();
        let status = match &facts.trouble {
            None => format!("forwarding to {peers} hosts"),
            Some(problem) => format!("forwarding to {peers} hosts by an old map: {problem}"),
        };
        drop(facts);
        notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    /// Every step runs, whatever the one before said.
    async fn stop(self) {
        /// A store that does not answer must not keep a node from ending.
        const PATIENCE: Duration = Duration::from_secs(5);
        notify(&[NotifyState::Stopping]);
        let Self { engine, device, store, mut servers, .. } = self;
        servers.shutdown().await;
        engine.stop();
        device.remove().await;
        match tokio::time::timeout(PATIENCE, store.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => tracing::warn!("{problem}"),
            Err(_) => tracing::warn!("the store did not answer while we ended"),
        }
    }
}

/// Opens the store, and waits for one that cannot be reached: `None` if a signal ended the wait.
async fn open_store(
    config: &Config,
    underlay: &underlay::Underlay,
    watch: &Watch,
    signals: &mut Signals,
) -> Result<Option<(Store, Opened)>, NodeError> {
    tracing::info!(store = config.store.describe(), "asking for this host's place in the cluster");
    let (mut pause, mut said) = (Duration::from_millis(500), String::new());
    loop {
        let problem = tokio::select! {
            opened = Store::open(&config.store, &underlay.addresses) => match opened {
                Ok(opened) => return Ok(Some(opened)),
                Err(StoreError::Invalid(text)) => return Err(NodeError::Invalid(text)),
                Err(StoreError::Unreachable(text)) => text,
            },
            name = signals.end() => {
                tracing::info!("{name}: stopping");
                return Ok(None);
            }
        };
        if problem != said {
            tracing::warn!("{problem}; trying on");
            watch.wait_for(&problem);
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

/// Without systemd there is nobody to tell.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The name of the signal that ended us; there is nothing to reload yet.
    async fn end(&mut self) -> &'static str {
        loop {
            match self.next().await {
                "SIGHUP" => {}
                name => return name,
            }
        }
    }

    /// The name of the signal that came.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

fn privileged(capabilities: &Capabilities) -> Result<(), NodeError> {
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
fn local(config: &Config, underlay: &underlay::Underlay, opened: &Opened) -> Result<Local, NodeError> {
    let lease = &opened.lease;
    let known = |address: &&std::net::IpAddr| lease.public.iter().any(|public| public == **address);
    let Some(&public) = underlay.addresses.iter().find(known) else {
        let text = format!("the lease of {:?} names no address of this host", lease.name);
        return Err(NodeError::Invalid(text));
    };
    let overhead = outer_overhead(Family::of(public));
    let room = u16::try_from(underlay.mtu.saturating_sub(overhead.into())).unwrap_or(u16::MAX);
    // 65507 is what one UDP datagram carries; a loopback underlay would offer more.
    let room = room.min(65507);
    let mtu = config.overlay.mtu.unwrap_or(room);
    let interface = &underlay.interface;
    if mtu > room {
        return Err(NodeError::Invalid(format!(
            "overlay.mtu = {mtu} does not fit {interface}: its MTU of {} less {overhead} bytes of overhead leaves {room}; \
             write \"auto\"",
            underlay.mtu
        )));
    }
    if opened.cluster.networks.v6.is_some() && mtu < 1280 {
        return Err(NodeError::Invalid(format!(
            "an overlay MTU of {mtu} is too small for IPv6, which needs 1280 (RFC 8200): raise the MTU of {interface}, \
             or leave ipv6_network out"
        )));
    }
    Ok(Local { subnets: lease.subnets.clone(), public, port: port(config, opened)?, mtu })
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

fn bind_udp(address: SocketAddr) -> Result<std::net::UdpSocket, NodeError> {
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

async fn bind_metrics(address: Option<SocketAddr>) -> Result<Option<TcpListener>, NodeError> {
    let Some(address) = address else { return Ok(None) };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => Err(NodeError::Environment(format!(
            "cannot serve metrics on {address}: {error}; set metrics.listen to a free address, or to \"\" for off"
        ))),
    }
}
