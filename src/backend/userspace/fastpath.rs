//! The kernel fast path as a part of this backend: whether it runs, which peers it sends to, and
//! what is done when it does not work.
//!
//! [`crate::fastpath`] loads and attaches the program. This module gives it the routes of the table
//! that the workers use, and tells peers, by the answers to their keep-alives, whether this host
//! receives by it.
//!
//! Packets of a peer leave by it only if its last answer said that it receives by it, and if a
//! transfer to its overlay address by this very way was whole ([`canary`]).
//!
//! Where TCP arrives in single segments, a veth pair merges them ([`merging`]). The
//! reconciler keeps the pair; this module lets the program use it while it is there.
//!
//! Invariant: whatever fails, the engine carries the packets: there is one state [`State::Off`],
//! with a reason, and all others fall back to it.

mod attachment;
mod canary;
mod gro;
mod merging;
mod part;
mod peers;
mod self_test;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use canary::Canary;
use merging::Merging;
pub(super) use part::FastPathPart;
use part::{Facts, Shared};
pub(super) use self_test::self_test;
use tokio::time::{Instant, Interval, MissedTickBehavior, sleep_until};

use super::paths::Health;
use super::peer_routes::UnderlayDevice;
use crate::api::ProblemCode;
use crate::backend::event::{Event, Stop};
use crate::desired::Desired;
use crate::engine::EngineView;
use crate::fastpath::{FastPath, FastPathError, Settings, routes_of};
use crate::forward::VerifySource;
use crate::netlink::Netlink;
use crate::route::Local;
use crate::sys::bpf::interface_name;

/// Time between two looks at the hooks, the counters and the canaries.
const TICK: Duration = Duration::from_secs(1);
/// How long the program forwards without the daemon: as long as a lease lives without it.
const VALID_FOR: Duration = Duration::from_secs(24 * 3600);
/// Time between a change about a peer and the new routes: changes that come together cost one look
/// at all routes.
const GATHER: Duration = Duration::from_millis(50);
/// Time after which a fast path that has failed is started again.
const RETRY: Duration = Duration::from_secs(60);
/// Peers for which a tick looks whether there is traffic.
const TRAFFIC_LOOKS: usize = 500;
/// For how long missed datagrams are a problem after the last one.
const MISSED_SHOWN: u32 = 10;

/// What the fast path is started with.
#[derive(Debug)]
pub(super) struct Start {
    /// Directory for the pins.
    pub(super) directory: PathBuf,
    /// Name of the overlay device.
    pub(super) overlay: String,
    /// The kernel of this host.
    pub(super) netlink: Netlink,
    pub(super) local: Local,
    pub(super) verify: VerifySource,
    /// Ports from which the workers send.
    pub(super) ports: Vec<u16>,
}

/// The fast path of this host.
#[derive(Debug)]
pub(super) struct FastPathDriver {
    start: Start,
    view: EngineView,
    health: Arc<Health>,
    shared: Arc<Shared>,
    canary: Canary,
    /// The devices to which the program is attached, with their indices.
    attached: BTreeMap<String, u32>,
    /// The settings in force.
    settings: Option<Settings>,
    /// The veth pair that merges segments.
    merging: Merging,
    tick: Interval,
    is_tick: bool,
    /// Position of the peer that is looked at next for traffic.
    looked_at: usize,
    /// When the routes are written again, because something about a peer has changed.
    apply_at: Option<Instant>,
    /// When a fast path that has failed is started again.
    retry_at: Option<Instant>,
    /// Datagrams that the daemon took instead of the program, until the last tick.
    missed: u64,
    /// Ticks for which the problem that there were some is shown on.
    missed_shown: u32,
}

impl FastPathDriver {
    /// Starts the fast path. `may`: why there can be none.
    pub(super) fn new(start: Start, may: Result<(), String>, view: EngineView, health: Arc<Health>) -> Self {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut driver = Self {
            merging: Merging::new(&start.overlay),
            start,
            view,
            health,
            shared: Arc::default(),
            canary: Canary::default(),
            attached: BTreeMap::new(),
            settings: None,
            tick,
            is_tick: false,
            looked_at: 0,
            apply_at: None,
            retry_at: None,
            missed: 0,
            missed_shown: 0,
        };
        let may = may.and_then(|()| check_underlay(driver.start.local.public));
        if let Err(reason) = may.and_then(|()| driver.open().map_err(|error| error.to_string())) {
            driver.turn_off(reason);
        }
        driver
    }

    fn open(&mut self) -> Result<(), FastPathError> {
        let fast = FastPath::open(&self.start.directory)?;
        if fast.is_adopted() {
            tracing::info!("adopted the kernel fast path that an earlier hopsack left");
            let underlays: BTreeMap<u32, String> = fast
                .underlays()
                .into_iter()
                .filter_map(|index| Some((index, interface_name(index).ok()?)))
                .collect();
            self.shared.peers().adopt(fast.routes(), &underlays);
            self.merging.adopt(&fast);
        }
        self.shared.set(Facts::on());
        *self.shared.fast() = Some(fast);
        Ok(())
    }

    /// What the fast path reports.
    pub(super) fn part(&self) -> FastPathPart {
        FastPathPart::new(self.shared.clone(), self.view.clone(), self.start.netlink.clone())
    }

    /// What the kernel should hold for the fast path.
    pub(super) fn desired(&self) -> Desired {
        self.merging.desired()
    }

    pub(super) fn is_on(&self) -> bool {
        self.shared.fast().is_some()
    }

    /// From now on the engine carries all packets.
    fn turn_off(&mut self, reason: String) {
        self.health.set_fast(false);
        self.attached.clear();
        self.settings = None;
        self.merging.stop();
        let fast = self.shared.fast().take();
        if let Some(fast) = fast {
            self.retry_at = Some(Instant::now() + RETRY);
            tracing::warn!(reason, "kernel fast path off: the engine carries all packets");
            if let Err(error) = fast.close() {
                tracing::warn!(%error, "the kernel fast path could not be removed");
            }
        } else {
            tracing::info!(reason, "no kernel fast path");
            let directory = &self.start.directory;
            if FastPath::is_left(directory) {
                match FastPath::remove(directory) {
                    Ok(()) => tracing::info!("removed the kernel fast path that an earlier hopsack left"),
                    Err(error) => tracing::warn!(%error, "an earlier kernel fast path could not be removed"),
                }
            }
        }
        self.shared.set(Facts::off(reason));
    }

    /// Does something with the program; an error turns the fast path off.
    fn with(&mut self, act: impl FnOnce(&mut FastPath) -> Result<(), FastPathError>) -> bool {
        let result = match self.shared.fast().as_mut() {
            Some(fast) => act(fast),
            None => return false,
        };
        if let Err(error) = &result {
            self.turn_off(error.to_string());
        }
        result.is_ok()
    }

    /// Follows the table that the workers use from now on.
    pub(super) fn apply(&mut self) {
        if !self.is_on() {
            return;
        }
        let table = self.view.table();
        let routes = {
            let mut peers = self.shared.peers();
            peers.retain(&table);
            let mut routes = routes_of(&table, &self.start.local.subnets, |peer| peers.reach(peer));
            for peer in table.peers() {
                let canary = peers.canary_route(peer, &routes);
                routes.extend(canary);
            }
            routes
        };
        self.with(|fast| fast.apply(&routes).map(|_| ()));
        // At the first table, this takes over the links of an earlier daemon.
        self.attach();
        // Our own lease may have got another public address.
        if !self.attached.is_empty() {
            self.configure();
        }
    }

    /// Another address, MTU or set of ports of this host.
    pub(super) fn relocate(&mut self, local: &Local, ports: Option<Vec<u16>>) {
        self.start.local = local.clone();
        if let Some(ports) = ports {
            self.start.ports = ports;
        }
        self.canary = Canary::default();
        self.shared.peers().forget_canaries();
        if self.is_on() {
            self.configure();
        }
    }

    /// The peer receives by the fast path, or does not any more.
    pub(super) fn peer_is_fast(&mut self, peer: IpAddr, is_fast: bool) {
        let has_changed = self.shared.peers().answered(peer, is_fast);
        if has_changed {
            self.apply_soon();
        }
    }

    /// Packets to a peer leave by this device.
    pub(super) fn device_of_peer(&mut self, peer: IpAddr, device: Option<UnderlayDevice>) {
        let has_changed = self.shared.peers().leaves_by(peer, device);
        if has_changed {
            self.apply_soon();
        }
    }

    fn apply_soon(&mut self) {
        if !self.is_on() {
            return;
        }
        self.apply_at.get_or_insert_with(|| Instant::now() + GATHER);
    }

    /// Waits until [`FastPathDriver::step`] has something to do. Cancel safe.
    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.tick.tick() => self.is_tick = true,
            () = self.canary.finished() => {}
            () = sleep_until(self.apply_at.unwrap_or_else(Instant::now)), if self.apply_at.is_some() => {}
        }
    }

    /// Does what is due. Returns what the node should know.
    pub(super) fn step(&mut self) -> Option<Event> {
        let is_tick = std::mem::take(&mut self.is_tick);
        if !self.is_on() && !self.try_again() {
            // What is due without a fast path would be due again at once, for ever.
            self.apply_at = None;
            return self.desired_changed();
        }
        while let Some((peer, result)) = self.canary.take_result() {
            if self.shared.peers().canary_ended(peer, result) {
                self.apply_soon();
            }
        }
        if self.apply_at.is_some_and(|at| at <= Instant::now()) {
            self.apply_at = None;
            self.attach();
            self.apply();
        }
        if !is_tick {
            return None;
        }
        if self.follow_devices() {
            self.apply();
        }
        self.look();
        self.find_traffic();
        self.choose();
        self.canary.serve(&self.view, &self.start.local);
        let due = self.shared.peers().due_canaries(&self.view.table(), &self.start.local);
        for (peer, from, to) in due {
            self.canary.begin(peer, from, to);
        }
        self.desired_changed().or_else(|| self.check_missed())
    }

    fn desired_changed(&mut self) -> Option<Event> {
        self.merging.has_desired_changed().then_some(Event::Desired)
    }

    /// Starts a fast path that has failed again, if it is time to. Returns whether it is on.
    fn try_again(&mut self) -> bool {
        if self.retry_at.is_none_or(|at| at > Instant::now()) {
            return false;
        }
        self.retry_at = None;
        match self.open() {
            Ok(()) => {
                tracing::info!("kernel fast path started again");
                self.apply_soon();
                true
            }
            Err(error) => {
                self.turn_off(error.to_string());
                self.retry_at = Some(Instant::now() + RETRY);
                false
            }
        }
    }

    /// Marks the peers to which the program sends: their paths are probed as those of the engine
    /// are.
    fn find_traffic(&mut self) {
        let table = self.view.table();
        let (peers, first) = (table.peers(), self.looked_at);
        let next = (first + TRAFFIC_LOOKS).min(peers.len());
        self.looked_at = if next < peers.len() { next } else { 0 };
        self.with(|fast| {
            for peer in peers.get(first..next).unwrap_or_default() {
                for subnet in &peer.subnets {
                    if fast.is_used(*subnet)? {
                        peer.traffic.mark();
                    }
                }
            }
            Ok(())
        });
    }

    /// Tells of datagrams that the daemon took instead of the program.
    fn check_missed(&mut self) -> Option<Event> {
        let count = |account: &Arc<crate::engine::Account>| account.counters.fast_missed.get();
        let missed: u64 = self.view.accounts().iter().map(count).sum();
        let before = std::mem::replace(&mut self.missed, missed);
        let object = self.start.overlay.clone();
        let code = ProblemCode::FastMissed;
        if missed > before {
            self.missed_shown = MISSED_SHOWN;
            let cause = format!(
                "{} datagrams of peers' kernel fast paths reached the daemon, because the program of this host did \
                 not take them: none is lost, but each costs more; see fast_path in `hopsack status`",
                missed - before
            );
            return Some(Event::Problem { code, object, cause: Some(cause) });
        }
        let was_shown = self.missed_shown > 0;
        self.missed_shown = self.missed_shown.saturating_sub(1);
        (was_shown && self.missed_shown == 0).then_some(Event::Problem { code, object, cause: None })
    }

    /// The daemon ends.
    pub(super) fn stop(self, how: Stop) {
        let Some(fast) = self.shared.fast().take() else { return };
        let removes = match how {
            Stop::Leave => false,
            Stop::RollBack => !fast.is_adopted(),
            Stop::Remove => true,
        };
        if removes && let Err(error) = fast.close() {
            tracing::warn!(%error, "the kernel fast path could not be removed; `hopsack clean` removes it");
        }
    }
}

/// Whether the fast path can carry packets between addresses of this family.
pub(super) fn check_underlay(public: IpAddr) -> Result<(), String> {
    match public {
        IpAddr::V4(_) => Ok(()),
        IpAddr::V6(_) => Err("the underlay is IPv6, for which the fast path is not built".to_owned()),
    }
}
