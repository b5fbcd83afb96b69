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
//! Where TCP arrives in single segments, a veth pair merges them ([`gro`], [`VethPair`]). The
//! reconciler keeps the pair; this module lets the program use it while it is there.
//!
//! Invariant: whatever fails, the engine carries the packets: there is one state [`State::Off`],
//! with a reason, and all others fall back to it.

mod canary;
mod gro;
mod part;
mod peers;
mod self_test;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use canary::Canary;
use gro::GroChoice;
pub(super) use part::FastPathPart;
use part::{Facts, Shared};
pub(super) use self_test::self_test;
use tokio::time::{Instant, Interval, MissedTickBehavior, sleep_until};

use super::paths::Health;
use super::peer_routes::UnderlayDevice;
use super::veth_pair::{Ends, VethPair};
use crate::api::ProblemCode;
use crate::backend::event::{Event, Stop};
use crate::desired::Desired;
use crate::engine::EngineView;
use crate::fastpath::{FastPath, FastPathError, Interfaces, Role, Settings, routes_of};
use crate::forward::VerifySource;
use crate::netlink::Netlink;
use crate::route::Local;
use crate::sys::bpf::{interface_index, interface_name, interface_runs};

/// Time between two looks at the hooks, the counters and the canaries.
const TICK: Duration = Duration::from_secs(1);
/// How long the program forwards without the daemon: as long as a lease lives without it.
const VALID_FOR: Duration = Duration::from_secs(24 * 3600);
/// Time between a change about a peer and the new routes: changes that come together cost one look
/// at all routes.
const GATHER: Duration = Duration::from_millis(50);
/// Time after which a fast path that has failed is started again.
const RETRY: Duration = Duration::from_secs(60);
/// Peers whose traffic is looked for in a tick.
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
    /// The veth pair that merges segments, and whether it is to be used.
    pair: VethPair,
    choice: GroChoice,
    /// The pair to the far end of which the program is attached.
    merging: Option<Ends>,
    /// The pair into which the program sends segments.
    used: Option<Ends>,
    /// Whether the reconciler was told that the pair must exist.
    is_pair_desired: bool,
    tick: Interval,
    is_tick: bool,
    /// Position of the peer whose traffic is looked for next.
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
            pair: VethPair::of(&start.overlay),
            choice: GroChoice::default(),
            merging: None,
            used: None,
            is_pair_desired: false,
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
        driver.is_pair_desired = driver.wants_pair();
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
            let ends = self.pair.ends().filter(|ends| fast.merges_at(ends.far));
            if ends.is_some() {
                self.choice = GroChoice::adopted();
                (self.merging, self.used) = (ends, ends);
            }
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
        self.pair.desired(self.wants_pair())
    }

    /// The pair stays until the program is detached from it.
    fn wants_pair(&self) -> bool {
        self.choice.is_pair() || self.merging.is_some()
    }

    pub(super) fn is_on(&self) -> bool {
        self.shared.fast().is_some()
    }

    /// From now on the engine carries all packets.
    fn turn_off(&mut self, reason: String) {
        self.health.set_fast(false);
        self.attached.clear();
        self.settings = None;
        self.choice = GroChoice::default();
        (self.merging, self.used) = (None, None);
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
        let wants = self.wants_pair();
        let is_other = std::mem::replace(&mut self.is_pair_desired, wants) != wants;
        is_other.then_some(Event::Desired)
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

    /// Looks at the devices that the maps name: packets to a device that is gone or
    /// down are lost. Returns whether the routes change.
    fn follow_devices(&mut self) -> bool {
        let used = self.settings.as_ref().map(|settings| settings.overlay);
        let overlay = interface_index(&self.start.overlay);
        if used.is_some() && used != overlay.ok() {
            self.turn_off(format!("the overlay device {} is gone", self.start.overlay));
            return false;
        }
        let devices = self.shared.peers().devices();
        let is_down = |(name, index): &(&String, &u32)| {
            !is_there(name, **index) || !interface_runs(name).is_ok_and(|runs| runs)
        };
        let down: BTreeSet<u32> = devices.iter().filter(is_down).map(|(_, index)| *index).collect();
        let has_changed = self.shared.peers().set_down(&down);
        if has_changed {
            tracing::info!(
                down = down.len(),
                "underlay devices of the kernel fast path went down or came up"
            );
        }
        // A device that is made again has another index, and needs a link of its own.
        let is_lost = self.attached.iter().any(|(name, index)| !is_there(name, *index));
        if is_lost {
            self.attach();
        }
        has_changed
    }

    /// Keeps the program working and attached.
    fn look(&mut self) {
        let mut others = Vec::new();
        let (mut is_whole, mut is_merging) = (true, false);
        let looked = self.with(|fast| {
            fast.renew(VALID_FOR)?;
            for hook in fast.hooks()? {
                match hook.role {
                    Role::Gro => is_merging = hook.is_attached,
                    Role::Overlay | Role::Underlay => is_whole &= hook.is_attached,
                }
                let numbers = hook.others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                if !hook.others.is_empty() {
                    others.push(format!("{}: programs {numbers} of others", hook.interface));
                }
            }
            Ok(())
        });
        // A pair that is gone is the reconciler's to mend; a program that is gone is ours.
        let is_taken = looked && self.used.is_some() && !is_merging && self.pair.ends() == self.used;
        if is_taken {
            tracing::warn!("the kernel fast path was detached from the veth pair: attached again");
            self.shared.count_repair();
            self.merging = None;
        }
        if looked {
            self.follow_pair();
        }
        if looked && !is_whole {
            tracing::warn!("the kernel fast path was detached: it is attached again");
            self.shared.count_repair();
            let attached = std::mem::take(&mut self.attached);
            self.attach_to(attached);
        }
        self.shared.set_others(others);
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

    /// Attaches the program to the devices that lead to peers. If no device does for a while, it
    /// stays where it is.
    fn attach(&mut self) {
        let mut underlays = self.shared.peers().devices();
        if underlays.is_empty() {
            underlays.clone_from(&self.attached);
        }
        underlays.retain(|name, index| is_there(name, *index));
        if underlays != self.attached {
            self.attach_to(underlays);
        }
    }

    fn attach_to(&mut self, underlays: BTreeMap<String, u32>) {
        if !self.configure() || !self.link(&underlays) {
            return;
        }
        let devices: Vec<String> = underlays.keys().cloned().collect();
        tracing::info!(devices = devices.join(" "), "kernel fast path attached");
        self.shared.set_devices(devices);
        self.health.set_fast(!underlays.is_empty());
        self.attached = underlays;
    }

    /// Makes the links to these devices, and to the far end of the veth pair.
    fn link(&mut self, underlays: &BTreeMap<String, u32>) -> bool {
        let mut interfaces = Interfaces {
            overlay: self.start.overlay.clone(),
            underlays: underlays.keys().cloned().collect(),
            gro: self.merging.map(|_| self.pair.far.clone()),
        };
        let is_linked = self.with(|fast| match fast.attach(&interfaces) {
            // The pair may have gone just now.
            Err(error) if interfaces.gro.take().is_some() => {
                tracing::debug!(%error, "the veth pair cannot be used");
                fast.attach(&interfaces)
            }
            result => result,
        });
        self.merging = self.merging.filter(|_| interfaces.gro.is_some());
        is_linked
    }

    /// Decides whether single segments go through the veth pair.
    fn choose(&mut self) {
        let counters = self.shared.fast().as_ref().and_then(|fast| fast.counters().ok());
        let Some(counters) = counters else { return };
        let (ingress, now) = (&counters.ingress, Instant::now());
        self.shared.losses().counted(ingress.segments.to_pair, ingress.segments.from_pair, now);
        if self.choice.look(ingress, now) {
            let pair = if self.choice.is_pair() { "chosen" } else { "left" };
            tracing::info!(reason = self.choice.reason(), "veth pair that merges segments: {pair}");
            self.follow_pair();
        }
        let is_waiting = self.choice.is_pair() && self.used.is_none();
        let wait = if is_waiting { "; the pair is not ready yet" } else { "" };
        self.shared.set_gro(self.used.map(|ends| ends.near), format!("{}{wait}", self.choice.reason()));
    }

    /// A device has changed, come or gone.
    pub(super) fn link_changed(&mut self, name: &str) {
        if self.pair.has(name) {
            self.follow_pair();
        }
    }

    /// Uses the veth pair if it is chosen and there, and only while the program is attached to its
    /// far end. A pair that is left keeps the program for another second: some packets may still be
    /// in it.
    fn follow_pair(&mut self) {
        if self.attached.is_empty() {
            return;
        }
        let found = if self.choice.is_pair() { self.pair.ends() } else { None };
        let must_leave = self.used.is_some() && (self.used != found || self.merging != found);
        if must_leave {
            self.used = None;
            if !self.configure() || !self.choice.is_pair() {
                return;
            }
        }
        if self.merging != found {
            self.merging = found;
            let underlays = self.attached.clone();
            if !self.link(&underlays) {
                return;
            }
        }
        if self.used != self.merging {
            self.used = self.merging;
            self.configure();
        }
    }

    /// Puts the settings into force.
    fn configure(&mut self) -> bool {
        let Start { overlay, local, verify, ports, .. } = &self.start;
        let IpAddr::V4(address) = local.public else {
            let reason = check_underlay(local.public).err().unwrap_or_default();
            self.turn_off(reason);
            return false;
        };
        let public = self.view.table().own_public();
        let (port, verify_source) = (local.port, *verify == VerifySource::Subnet);
        let ports = Settings::spread(ports);
        let overlay = match interface_index(overlay) {
            Ok(index) => index,
            Err(error) => {
                self.turn_off(format!("the overlay device {overlay} is gone: {error}"));
                return false;
            }
        };
        let settings = Settings {
            address,
            port,
            verify_source,
            overlay,
            gro: self.used.map(|ends| ends.near),
            ports,
            public_v4: public.v4,
            public_v6: public.v6,
        };
        if self.settings.as_ref() == Some(&settings) {
            return true;
        }
        let is_set = self.with(|fast| {
            fast.set(&settings)?;
            fast.renew(VALID_FOR)
        });
        self.settings = is_set.then_some(settings);
        is_set
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

/// Whether the interface of this name has this index.
fn is_there(name: &str, index: u32) -> bool {
    interface_index(name).is_ok_and(|found| found == index)
}
