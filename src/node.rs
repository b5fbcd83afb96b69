//! The daemon: what starts after what, the one select loop, and how it all ends.
//!
//! It brings together parts that can each be tested without it, and holds no logic of its own: a failure at start undoes
//! what was done (descriptors and guards see to that), a failure while running stops the node in order.
//!
//! Start order: privileges, control and metrics sockets, underlay, store, UDP socket, device, engine, subnet.env, ready. Whatever can be refused is asked before anything is made.
//!
//! Invariant: while the node is ready, its routes are those of the last good map; a store out of order changes nothing.

pub mod admin;
mod check;
mod clean;
mod dataplane;
mod device;
mod duplicate_subnet;
mod follow;
mod join;
mod observe;
mod public_address;
mod security;
mod signals;
mod store_settings;
mod subnet_env;
mod underlay;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use check::{Finding, check};
pub use clean::{Cleaned, clean};

use crate::backend::{FibPart, Userspace};
use crate::config::{Config, ConfigError, Sources};
use crate::control::{ControlError, Server};
use crate::engine::{Engine, EnginePart, WorkerError, WorkerOptions};
use crate::forward::Table;
use crate::netlink::{Monitor, Netlink, NetlinkError};
use crate::observe::Registry;
use crate::quic::QuicPart;
use crate::route::{Change, Local, Networks, Rib};
use crate::store::{Lost, Store, StoreError, StorePart, Update};
use crate::sys::Capabilities;
use observe::{HostPart, Reports};
use security::{Encryption, Material};
use signals::{Signals, notify};

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
        if error.is_permanent() { Self::Invalid(error.text) } else { Self::Environment(error.text) }
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
    /// When the store told of changes that are in the RIB, and not yet in force.
    heard: Vec<Instant>,
    published: Instant,
    backend: Userspace,
    engine: Engine,
    choice: dataplane::Choice,
    /// The device's queues once more, for other sockets beside them.
    tun: dataplane::Tun,
    reports: Reports,
    device: device::Device,
    networks: Networks,
    local: Local,
    netlink: Netlink,
    monitor: Monitor,
    place: public_address::PublicAddress,
    /// The store has not taken our new addresses yet.
    unpublished: bool,
    alarm: duplicate_subnet::Alarm,
    forgers: duplicate_subnet::Forgers,
    /// What systemd was told last.
    told: String,
    failed: mpsc::UnboundedReceiver<WorkerError>,
    encryption: Option<Encryption>,
}

/// Tables are published no faster than this: what arrives meanwhile goes into one. A table of thousands of leases takes
/// the better part of it to make.
const SPACING: Duration = Duration::from_millis(1);

impl Node {
    /// Brings everything up, or nothing. `None`: a signal ended it while it waited for its store.
    pub async fn start(mut config: Config) -> Result<Option<Self>, NodeError> {
        let no_signals = |error| NodeError::Environment(format!("cannot wait for signals: {error}"));
        let mut signals = Signals::new().map_err(no_signals)?;
        let capabilities = Capabilities::probe();
        join::privileged(&capabilities)?;
        let mut choice = dataplane::choose(&config.dataplane, &capabilities)?;
        let registry = Arc::<Registry>::default();
        let mut servers = JoinSet::new();
        servers.spawn(Server::bind(&config.node.control_socket())?.serve(registry.clone()));
        if let Some(listener) = join::bind_metrics(config.metrics).await? {
            servers.spawn(crate::observe::serve(registry.clone(), listener));
        }

        // First the monitor: what changes while we look is told.
        let (monitor, netlink) = (Monitor::new()?, Netlink::new()?);
        let underlay = underlay::find(&netlink, &config.node).await?;
        let material = Material::announce(&mut config)?;
        let opened = join::open_store(&config, &underlay, &registry, &mut signals).await?;
        let Some((store, opened)) = opened else { return Ok(None) };
        let local = join::local(&config, &underlay, &opened)?;
        if let Some(material) = &material {
            material.check(&opened.lease.name, local.port)?;
        }
        let networks = opened.cluster.networks;
        tracing::info!(
            host = opened.lease.name, public_ip = %local.public, interface = underlay.interface,
            store = store.describe(), "this host has its place in the cluster"
        );

        let address = SocketAddr::new(local.public, local.port);
        let sockets = dataplane::sockets(&choice, address, config.overlay.spread_ports).await?;
        let (device, tun) =
            device::open(&netlink, &config.overlay.device, &local, &networks, &choice).await?;
        let shared = tun.try_clone().map_err(|error| no_worker(&error))?;

        let mut rib = Rib::default();
        rib.apply(opened.snapshot);
        let (failure, failed) = mpsc::unbounded_channel();
        let rules = WorkerOptions {
            verify: config.overlay.verify_source,
            offload: tun.offload(),
            busy_poll_us: config.dataplane.busy_poll_us,
        };
        let offload = tun.offload();
        let io = tun.between(&mut choice, sockets);
        let engine_reason = choice.reason(offload);
        let engine = Engine::start(io, rules, Table::default(), move |error| {
            // The receiver is gone only when the node has stopped already.
            let _ = failure.send(error);
        });
        let mut engine = engine.map_err(|error| no_worker(&error))?;
        tracing::info!(
            engine = engine.view().engine(),
            workers = choice.workers,
            reason = engine_reason,
            "packets will be moved"
        );
        let ends = (address, security::payload(&underlay, local.public));
        let encryption = match Encryption::start(&config, material, &opened.lease.name, ends, &mut engine) {
            Ok(encryption) => encryption,
            Err(error) => {
                engine.stop();
                device.remove().await;
                return Err(error);
            }
        };
        let sessions = security::sessions(&config);
        let mut backend = Userspace::new(engine.view(), networks, local.clone(), sessions);
        let published = backend.apply(&rib);
        tracing::info!(peers = engine.view().fib().peers().len(), "routes are in force");

        if let Err(error) = subnet_env::write(&config.node, &networks, &local).and_then(|()| device.keep()) {
            // The kernel closes a ring's descriptors a moment after the process has ended: too late for the next start.
            engine.stop();
            device.remove().await;
            return Err(error);
        }
        let place = public_address::PublicAddress::new(&underlay, local.public);
        let problems = registry.problems().clone();
        let host = Arc::new(HostPart::new(
            (opened.lease.name, config.overlay.device.clone()),
            networks,
            (local.clone(), underlay.interface),
            netlink.clone(),
            problems.clone(),
        ));
        let fib = Arc::new(FibPart::new(engine.view(), &networks, local.policy));
        let store_part = Arc::new(StorePart::new(store.describe(), problems));
        // In the order in which a packet meets them.
        registry.add(host.clone());
        registry.add(fib.clone());
        registry.add(Arc::new(EnginePart::new(engine.view(), engine_reason)));
        if let Some(encryption) = &encryption {
            registry.add(Arc::new(QuicPart::new(encryption.board(), local.policy)));
        }
        registry.add(store_part.clone());
        registry.set_ready();
        let reports = Reports { registry, host, fib, store: store_part };
        Ok(Some(Self {
            config,
            signals,
            servers,
            store,
            rib,
            heard: Vec::new(),
            published,
            backend,
            engine,
            choice,
            tun: shared,
            reports,
            device,
            networks,
            local,
            netlink,
            monitor,
            place,
            unpublished: false,
            alarm: duplicate_subnet::Alarm::default(),
            forgers: duplicate_subnet::Forgers::default(),
            told: String::new(),
            failed,
            encryption,
        }))
    }

    /// Serves until a signal, or until a worker cannot go on or our subnet is another's. `reconfigure` is told the new
    /// configuration on SIGHUP, as far as it can change while running (the log filter).
    pub async fn run(mut self, sources: &Sources, reconfigure: impl Fn(&Config)) -> Result<(), NodeError> {
        self.reports.store.set_health(self.store.health());
        self.tell(false);
        let result = self.serve(sources, reconfigure).await;
        self.stop().await;
        result
    }

    async fn serve(&mut self, sources: &Sources, reconfigure: impl Fn(&Config)) -> Result<(), NodeError> {
        /// Often enough for `status` and any watchdog.
        const TICK: Duration = Duration::from_secs(1);
        let mut tick = tokio::time::interval(TICK);
        self.encryption.iter().for_each(Encryption::refresh);
        loop {
            let due = tokio::time::Instant::from_std(self.published + SPACING);
            tokio::select! {
                update = self.store.next() => self.updates(update).await?,
                () = tokio::time::sleep_until(due), if !self.heard.is_empty() => self.publish(),
                () = self.monitor.changed(&self.place.interface, self.place.index) => self.look_around().await?,
                error = self.failed.recv() => {
                    return Err(error.map_or_else(|| NodeError::Worker(WorkerError::Panicked), NodeError::Worker));
                }
                report = Encryption::report(&mut self.encryption) => self.report(report)?,
                name = self.signals.next() => {
                    if name == "SIGHUP" {
                        self.reload(sources, &reconfigure);
                        continue;
                    }
                    tracing::info!("{name}: stopping");
                    return Ok(());
                }
                _ = tick.tick() => {
                    self.reports.store.set_health(self.store.health());
                    self.look_for_doubles();
                    self.look_again().await?;
                    notify(&[NotifyState::Watchdog]);
                    if self.encryption.as_mut().is_some_and(Encryption::should_renew) {
                        self.renew(None);
                    }
                }
            }
        }
    }

    /// Takes all updates that are waiting, and puts them into effect together.
    async fn updates(&mut self, first: Update) -> Result<(), NodeError> {
        let (mut next, mut listed) = (Some(first), false);
        while let Some(update) = next {
            listed |= matches!(update, Update::Change(Change::Snapshot { .. }, _));
            self.update(update)?;
            next = self.store.try_next();
        }
        self.reports.store.set_health(self.store.health());
        if !self.heard.is_empty() && self.published.elapsed() >= SPACING {
            self.publish();
        }
        // A file says in a list where this host is reached.
        if listed {
            self.look_around().await?;
        }
        self.tell(false);
        Ok(())
    }

    fn update(&mut self, update: Update) -> Result<(), NodeError> {
        match update {
            Update::Change(change, heard) => {
                if self.rib.apply(change) {
                    self.heard.push(heard);
                }
                self.reports.store.available();
            }
            Update::Recovered => self.reports.store.available(),
            Update::Trouble(problem) => self.reports.store.unavailable(problem),
            Update::Notice(notice) => tracing::warn!("{notice}"),
            Update::Lost(lost) => return Err(NodeError::Lost(lost)),
        }
        Ok(())
    }

    /// Makes the RIB the table that packets meet.
    fn publish(&mut self) {
        self.published = self.backend.apply(&self.rib);
        for heard in self.heard.drain(..) {
            self.reports.fib.published(self.published.duration_since(heard).as_secs_f64());
        }
        self.encryption.iter().for_each(Encryption::refresh);
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
                self.renew(Some(&config));
                tracing::info!("SIGHUP: read the configuration and the map again");
            }
            Err(error) => tracing::error!("SIGHUP: {error}; everything stays as it was"),
        }
        self.tell(true);
    }

    /// Tells systemd how we are, if that has changed or it asked.
    fn tell(&mut self, asked: bool) {
        let peers = self.engine.view().fib().peers().len();
        let mut status = format!("forwarding to {peers} hosts");
        for problem in self.reports.problems().list() {
            status = format!("{status}; {problem}");
        }
        if asked || status != self.told {
            notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
            self.told = status;
        }
    }

    /// Every step runs, whatever the one before said.
    async fn stop(self) {
        /// A store that does not answer must not keep a node from ending.
        const PATIENCE: Duration = Duration::from_secs(5);
        notify(&[NotifyState::Stopping]);
        let Self { engine, device, tun, store, mut servers, encryption, .. } = self;
        servers.shutdown().await;
        encryption.into_iter().for_each(Encryption::stop);
        engine.stop();
        device.remove().await;
        drop(tun);
        match tokio::time::timeout(PATIENCE, store.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => tracing::warn!("{problem}"),
            Err(_) => tracing::warn!("the store did not answer while we ended"),
        }
    }
}

fn no_worker(error: &std::io::Error) -> NodeError {
    NodeError::Environment(format!("cannot start a worker: {error}"))
}
