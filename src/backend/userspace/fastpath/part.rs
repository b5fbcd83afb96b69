//! Reports of the kernel fast path: whether it is on, what it has carried, and which peers it sends
//! to.
//!
//! The numbers are read from the kernel when they are asked for. Invariant: the sums of packets in
//! `status` contain the packets of the fast path.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::veth_pair::Losses;
use super::peers::FastPeers;
use crate::api::{CounterRow, Explanation, FastPathStatus, GroStatus, PeerRow, Status, StepCode};
use crate::engine::EngineView;
use crate::fastpath::{Counters, Direction, FastPath, Reason};
use crate::forward::{DropReason, Hop, Peer};
use crate::netlink::Netlink;
use crate::observe::{Drops, Encoder, Part, Pending};

/// What the driver and its reports share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    fast: Mutex<Option<FastPath>>,
    peers: Mutex<FastPeers>,
    facts: Mutex<Facts>,
    losses: Mutex<Losses>,
}

/// What the driver knows about the fast path.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    is_on: bool,
    /// Why it is off.
    reason: String,
    /// Devices to which it is attached.
    devices: Vec<String>,
    /// Other programs at its hooks.
    others: Vec<String>,
    /// How often it had to be attached again.
    repairs: u64,
    /// Whether single segments go through the veth pair, and why.
    gro: (bool, String),
    /// Interface index of its near end, as long as they do.
    near: Option<u32>,
}

impl Facts {
    pub(super) fn on() -> Self {
        Self { is_on: true, ..Self::default() }
    }

    pub(super) fn off(reason: String) -> Self {
        Self { reason, ..Self::default() }
    }
}

impl Shared {
    pub(super) fn fast(&self) -> MutexGuard<'_, Option<FastPath>> {
        self.fast.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn peers(&self) -> MutexGuard<'_, FastPeers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, facts: Facts) {
        *self.facts() = facts;
    }

    pub(super) fn set_devices(&self, devices: Vec<String>) {
        self.facts().devices = devices;
    }

    pub(super) fn set_others(&self, others: Vec<String>) {
        self.facts().others = others;
    }

    pub(super) fn set_gro(&self, near: Option<u32>, reason: String) {
        let mut facts = self.facts();
        (facts.gro, facts.near) = ((near.is_some(), reason), near);
    }

    pub(super) fn losses(&self) -> MutexGuard<'_, Losses> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count_repair(&self) {
        self.facts().repairs += 1;
    }
}

/// The fast path as a part of the daemon's reports. It adds to the sums of the engine, so it comes
/// after it.
#[derive(Debug)]
pub(in crate::backend::userspace) struct FastPathPart {
    shared: Arc<Shared>,
    view: EngineView,
    netlink: Netlink,
}

impl FastPathPart {
    pub(super) fn new(shared: Arc<Shared>, view: EngineView, netlink: Netlink) -> Self {
        Self { shared, view, netlink }
    }

    /// Asks the near end of the veth pair for what it has dropped.
    async fn ask_pair(&self) {
        let Some(near) = self.shared.facts().near else { return };
        if let Ok(Some(link)) = self.netlink.link_by_index(near).await {
            self.shared.losses().dropped(near, link.tx_dropped);
        }
    }

    fn counters(&self) -> Counters {
        let fast = self.shared.fast();
        fast.as_ref().and_then(|fast| fast.counters().ok()).unwrap_or_default()
    }

    /// Why the engine carries the packets to a peer; `None` if the kernel does.
    fn hindrance(&self, peer: &Peer) -> Option<String> {
        let Facts { is_on, reason, .. } = self.shared.facts().clone();
        if is_on { self.shared.peers().hindrance(peer) } else { Some(reason) }
    }
}

impl Part for FastPathPart {
    fn status(&self, status: &mut Status) {
        let Facts { is_on, reason, devices, others, repairs, gro, .. } = self.shared.facts().clone();
        let Counters { egress, ingress } = self.counters();
        status.egress_packets += egress.packets;
        status.egress_bytes += egress.bytes;
        status.ingress_packets += ingress.packets;
        status.ingress_bytes += ingress.bytes;
        let table = self.view.table();
        let peers = table.peers().iter().filter(|peer| self.hindrance(peer).is_none()).count();
        let segments = ingress.segments;
        let gro = GroStatus {
            is_used: gro.0,
            reason: gro.1,
            segments: segments.from_pair,
            packets: segments.merged,
            super_packets: segments.super_packets,
        };
        status.fast_path = FastPathStatus {
            is_on,
            reason,
            devices,
            others,
            repairs,
            peers,
            egress_packets: egress.packets,
            ingress_packets: ingress.packets,
            gro,
        };
    }

    fn peers(&self, rows: &mut Vec<PeerRow>) {
        let table = self.view.table();
        for row in rows {
            let endpoint = row.endpoint.parse().ok().map(|endpoint: std::net::SocketAddr| endpoint.ip());
            let Some(peer) = endpoint.and_then(|address| table.peer_by_address(address)) else { continue };
            row.path_reason = self.hindrance(peer);
            row.path = if row.path_reason.is_none() { "kernel" } else { "engine" }.to_owned();
        }
    }

    fn drops<'a>(&'a self, drops: &'a mut Drops) -> Pending<'a> {
        let (unmarkable, counters) = (DropReason::Unmarkable, self.counters());
        for (direction, Direction { unmarkable: packets, .. }) in directions(&counters) {
            drops.add(direction, unmarkable.label(), *packets, unmarkable.sentence());
        }
        Box::pin(async {
            self.ask_pair().await;
            let meaning = "the veth pair that merges TCP segments was full, or was removed meanwhile";
            drops.add("ingress", "fast_gro_full", self.shared.losses().packets(), meaning);
        })
    }

    fn explain<'a>(&'a self, explanation: &'a mut Explanation) -> Pending<'a> {
        let table = self.view.table();
        if let Some(Hop::Peer(peer)) = table.lookup(explanation.address)
            && explanation.has(StepCode::KernelToOverlay)
        {
            let text = match self.hindrance(peer) {
                None => "the kernel fast path carries it, without the daemon".to_owned(),
                Some(why) => format!("the engine carries it, not the kernel fast path: {why}"),
            };
            explanation.step(StepCode::FastPath, text);
            let Counters { egress, ingress } = self.counters();
            let row = |name: &str, value| CounterRow { name: name.to_owned(), value };
            explanation.counters.push(row("egress packets by the kernel", egress.packets));
            explanation.counters.push(row("ingress packets by the kernel", ingress.packets));
        }
        Box::pin(std::future::ready(()))
    }

    fn metrics(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
        let is_on = i64::from(self.shared.facts().is_on);
        encoder.gauge("fast_path", "Whether the kernel fast path is on", is_on)?;
        let counters = self.counters();
        let by_direction = |count: fn(&Direction) -> u64| {
            directions(&counters).map(move |(name, direction)| ([("direction", name)], count(direction)))
        };
        encoder.counters(
            "fast_packets",
            "Packets that the kernel fast path has carried",
            by_direction(|d| d.packets),
        )?;
        encoder.counters("fast_bytes", "Bytes of these packets", by_direction(|d| d.bytes))?;
        let help = "Super packets among those that the kernel fast path has carried";
        encoder.counters("fast_super_packets", help, by_direction(|d| d.super_packets))?;
        let reasons = directions(&counters).into_iter().flat_map(|(name, direction)| {
            let row = move |reason: Reason| {
                ([("direction", name), ("reason", reason.label())], direction.to_daemon(reason))
            };
            Reason::ALL.into_iter().map(row)
        });
        encoder.counters(
            "fast_to_engine",
            "Packets and super packets that the kernel left to the engine",
            reasons,
        )?;
        let Facts { repairs, gro: (is_used, _), .. } = self.shared.facts().clone();
        let help = "Whether single TCP segments go through the veth pair that merges them";
        encoder.gauge("fast_gro", help, i64::from(is_used))?;
        let segments = counters.ingress.segments;
        let help = "TCP segments that have entered this pair";
        encoder.counter("fast_gro_entered", help, segments.to_pair)?;
        let help = "TCP segments that have left this pair";
        encoder.counter("fast_gro_segments", help, segments.from_pair)?;
        let help = "Packets and super packets as which they left it";
        encoder.counter("fast_gro_merged", help, segments.merged)?;
        let help = "TCP segments that were lost in it";
        encoder.counter("fast_gro_dropped", help, self.shared.losses().packets())?;
        encoder.counter("fast_repairs", "Times that the kernel fast path had to be attached again", repairs)
    }
}

fn directions(counters: &Counters) -> [(&'static str, &Direction); 2] {
    [("egress", &counters.egress), ("ingress", &counters.ingress)]
}
