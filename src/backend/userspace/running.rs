//! The running userspace backend.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::choice::Choice;
use super::device::{self, Device};
use super::duplicate_subnet::{DuplicateSubnetMonitor, LogLimit, SpoofingMonitor};
use super::encryption::{Encryption, EncryptionError};
use super::fastpath::{self, FastPathDriver};
use super::fib_part::FibPart;
use super::missed::Missed;
use super::paths::{PathChange, Paths};
use super::peer_problems;
use super::peer_routes::{PeerRoute, PeerRoutes};
use super::publisher::Publisher;
use super::sockets::{self, ControlSockets};
use super::tun::Tun;
use crate::api::ProblemCode;
use crate::backend::error::BackendError;
use crate::backend::event::{DuplicateSubnet, Event, Renewal, Stop};
use crate::config::Config;
use crate::desired::Desired;
use crate::engine::{Engine, EnginePart, MissedReceiver, Op, WorkerError};
use crate::forward::VerifySource;
use crate::observe::Part;
use crate::quic::QuicEvent;
use crate::route::{Local, Remark, Rib};

/// What a start has made.
#[derive(Debug)]
pub(super) struct Parts {
    /// Name of this host in the store.
    pub(super) name: String,
    pub(super) engine: Engine,
    /// Why this engine runs.
    pub(super) reason: String,
    pub(super) publisher: Publisher,
    pub(super) choice: Choice,
    /// Second descriptors of the device's queues, to be joined with other sockets later.
    pub(super) tun: Tun,
    pub(super) device: Device,
    pub(super) encryption: Encryption,
    pub(super) failed: mpsc::UnboundedReceiver<WorkerError>,
}

/// Our own data path.
#[derive(Debug)]
pub struct Userspace {
    parts: Parts,
    spread_ports: bool,
    report: Arc<FibPart>,
    duplicate_subnet: DuplicateSubnetMonitor,
    spoofing: SpoofingMonitor,
    peer_routes: PeerRoutes,
    source_log: LogLimit,
    paths: Paths,
    missed: Option<Missed>,
    fast: FastPathDriver,
}

impl Userspace {
    pub(super) fn new(
        parts: Parts,
        spread_ports: bool,
        verify: VerifySource,
        control: ControlSockets,
        (missed, start, may): (Option<(MissedReceiver, UdpSocket)>, fastpath::Start, Result<(), String>),
    ) -> Self {
        let Parts { engine, publisher, device, encryption, .. } = &parts;
        let peer_routes = PeerRoutes::start(engine.view(), device.netlink().clone());
        let paths = Paths::start(engine.view(), control, encryption.connections());
        let policies = (publisher.local().policy, verify);
        let health = paths.health().clone();
        let start_missed =
            |(receiver, socket)| Missed::start(engine.view(), receiver, socket, health.clone());
        let missed = missed.map(start_missed);
        let fast = FastPathDriver::new(start, may, engine.view(), health.clone());
        let report = Arc::new(FibPart::new(engine.view(), publisher.networks(), policies, health));
        Self {
            parts,
            spread_ports,
            report,
            duplicate_subnet: DuplicateSubnetMonitor::default(),
            spoofing: SpoofingMonitor::default(),
            peer_routes,
            source_log: LogLimit::default(),
            paths,
            missed,
            fast,
        }
    }

    pub(in crate::backend) fn desired(&self) -> Desired {
        let Parts { device, publisher, .. } = &self.parts;
        let desired = device::desired(device.name(), publisher.local(), publisher.networks());
        desired.merge(self.fast.desired())
    }

    pub(in crate::backend) fn link_changed(&mut self, name: &str) {
        self.fast.link_changed(name);
    }

    pub(in crate::backend) fn apply(&mut self, rib: &Rib, changed_at: &[Instant]) {
        let published = self.parts.publisher.apply(rib);
        for changed in changed_at {
            self.report.published(published.duration_since(*changed).as_secs_f64());
        }
        self.fast.apply();
        self.parts.encryption.refresh();
    }

    pub(in crate::backend) fn peers(&self) -> usize {
        self.parts.engine.view().table().peers().len()
    }

    pub(in crate::backend) fn remarks(&self) -> Vec<Remark> {
        self.parts.engine.view().table().remarks().to_vec()
    }

    pub(in crate::backend) fn keep(&self) -> Result<(), BackendError> {
        Ok(self.parts.device.keep()?)
    }

    pub(in crate::backend) async fn event(&mut self) -> Event {
        loop {
            let Parts { failed, encryption, publisher, .. } = &mut self.parts;
            tokio::select! {
                error = failed.recv() => {
                    let error = error.unwrap_or(WorkerError::Panicked);
                    return Event::Failed(error.into());
                }
                report = encryption.report() => match report {
                    QuicEvent::PathMtu { peer, mtu } => {
                        if let Some(mtu) = publisher.change_path(peer, |limits| limits.quic = Some(mtu)) {
                            return Event::PathMtu { peer, mtu };
                        }
                    }
                    QuicEvent::Problem { code, object, cause } => {
                        return Event::Problem { code, object, cause };
                    }
                    QuicEvent::Failed => return Event::Failed(EncryptionError::Panicked.into()),
                },
                (peer, change) = self.paths.next() => match change {
                    PathChange::Mtu(mtu) => {
                        if let Some(mtu) = publisher.change_path(peer, |limits| limits.probe = mtu) {
                            return Event::PathMtu { peer, mtu };
                        }
                    }
                    PathChange::Fragments(arrive) => {
                        if let Some(mtu) = publisher.change_path(peer, |limits| limits.fragments = arrive) {
                            return Event::PathMtu { peer, mtu };
                        }
                    }
                    PathChange::Fast(is_fast) => self.fast.peer_is_fast(peer, is_fast),
                },
                () = self.fast.wait() => {
                    if let Some(event) = self.fast.step() {
                        return event;
                    }
                }
                PeerRoute { peer, mtu, device } = self.peer_routes.next() => {
                    self.fast.device_of_peer(peer, device);
                    if let Some(mtu) = publisher.change_path(peer, |limits| limits.route = mtu) {
                        return Event::PathMtu { peer, mtu };
                    }
                }
            }
        }
    }

    /// Opens sockets on a new address first, without waiting for it: the caller tries again. Then
    /// the workers start again between these and the queues of the device. Packets wait in the
    /// queues meanwhile.
    pub(in crate::backend) fn relocate(&mut self, local: &Local) -> Result<(), BackendError> {
        let Parts { engine, publisher, choice, tun, encryption, .. } = &mut self.parts;
        let mut ports = None;
        if local.public != publisher.local().public {
            let address = SocketAddr::new(local.public, local.port);
            let sockets = sockets::open(choice, address, self.spread_ports)?;
            ports = Some(sockets::ports(&sockets));
            if let (Some(missed), Some(socket)) = (&self.missed, sockets::missed(choice, address)?) {
                missed.relocate(socket);
            }
            let control = sockets::control(choice, address, self.spread_ports, &sockets)?;
            let tun = tun.try_clone().map_err(BackendError::NoWorker)?;
            let io = tun.join(choice, sockets);
            engine.replace(io).map_err(BackendError::NoWorker)?;
            encryption.relocate(local.public);
            self.paths.relocate(control);
        }
        publisher.relocate(local.clone());
        self.fast.relocate(local, ports);
        Ok(())
    }

    pub(in crate::backend) fn peer_problems(&self) -> Vec<(ProblemCode, Vec<(String, String)>)> {
        let table = self.parts.engine.view().table();
        peer_problems::list(&table, &self.paths.health().all())
    }

    pub(in crate::backend) fn check_sources(&mut self) -> DuplicateSubnet {
        let Parts { name, engine, publisher, .. } = &self.parts;
        let (view, now) = (engine.view(), Instant::now());
        let table = view.table();
        let log = &mut self.source_log;
        let seen = self.duplicate_subnet.check(view.accounts(), &table, (name, publisher.local()), log, now);
        if let Some(from) = self.spoofing.check(view.accounts(), log, now) {
            let host = table.peer_by_address(from).map_or("?", |peer| peer.name.as_str());
            tracing::warn!(
                host, peer = %from,
                "dropped packets of a host with sources in no subnet of its own (spoofed_source)"
            );
        }
        seen
    }

    pub(in crate::backend) fn refused_sends(&self) -> u64 {
        let view = self.parts.engine.view();
        let errors = view.accounts().iter().flat_map(|account| account.errors());
        let packets: u64 = errors
            .filter(|(op, errno, _)| (*op, *errno) == (Op::UdpSend, libc::EPERM))
            .map(|(.., count)| count)
            .sum();
        packets + self.paths.health().refused_sends()
    }

    pub(in crate::backend) fn renew_if_due(&mut self, config: &Config) -> Result<Renewal, BackendError> {
        match self.parts.encryption.should_renew() {
            true => self.renew(config, false),
            false => Ok(Renewal::NotDue),
        }
    }

    /// `reconnect`: also with a certificate that is the same.
    pub(in crate::backend) fn renew(
        &mut self,
        config: &Config,
        reconnect: bool,
    ) -> Result<Renewal, BackendError> {
        let announced = self.parts.encryption.renew(config, reconnect)?;
        Ok(announced.map_or(Renewal::Same, Renewal::Announce))
    }

    pub(in crate::backend) fn parts(&self) -> Vec<Arc<dyn Part>> {
        let engine = EnginePart::new(self.parts.engine.view(), self.parts.reason.clone());
        let mut parts: Vec<Arc<dyn Part>> = vec![self.report.clone(), Arc::new(engine)];
        parts.push(Arc::new(self.fast.part()));
        parts.extend(self.parts.encryption.parts());
        parts
    }

    pub(in crate::backend) async fn stop(self, how: Stop) {
        self.fast.stop(how);
        let Parts { engine, tun, device, encryption, .. } = self.parts;
        encryption.stop();
        engine.stop();
        match how {
            Stop::Leave => {}
            Stop::RollBack => device.roll_back().await,
            Stop::Remove => device.remove().await,
        }
        drop(tun);
    }
}
