//! Reports of this host: its address, its subnets, its devices, and the kernel's step of `explain`.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::{Explanation, Outcome, ProblemCode, RouteRow, Status, StepCode};
use crate::netlink::Way;
use crate::observe::{Drops, Encoder, Part, Pending, Problems, Registry};
use crate::reconcile::Reader;
use crate::route::{Local, Networks};
use crate::store::StorePart;

/// What the node tells its reports while it runs.
#[derive(Debug)]
pub(super) struct Reports {
    pub(super) registry: Arc<Registry>,
    pub(super) host: Arc<HostPart>,
    pub(super) store: Arc<StorePart>,
}

impl Reports {
    pub(super) fn problems(&self) -> &Problems {
        self.registry.problems()
    }
}

/// This host as a part of the daemon's reports.
#[derive(Debug)]
pub(super) struct HostPart {
    pub(super) name: String,
    networks: Networks,
    pub(super) device: String,
    pub(super) kernel: Reader,
    problems: Arc<Problems>,
    position: Mutex<Position>,
}

/// Addresses, MTU and interface of this host, which may change while the node runs.
#[derive(Debug)]
struct Position {
    local: Local,
    interface: String,
}

impl HostPart {
    /// `names`: those of this host in the store, and of the overlay device.
    pub(super) fn new(
        (name, device): (String, String),
        networks: Networks,
        (local, interface): (Local, String),
        kernel: Reader,
        problems: Arc<Problems>,
    ) -> Self {
        let position = Mutex::new(Position { local, interface });
        Self { name, networks, device, kernel, problems, position }
    }

    /// Records a new address, MTU or underlay interface.
    pub(super) fn moved(&self, local: Local, interface: String) {
        *self.position() = Position { local, interface };
    }

    fn position(&self) -> MutexGuard<'_, Position> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn explain_kernel(&self, explanation: &mut Explanation) {
        let to = explanation.address;
        explanation.device = self.kernel.route_to(to).await.ok().and_then(Way::device);
        let own = self.position().local.subnets.iter().filter(|subnet| subnet.contains(&to)).max().copied();
        if let Some(subnet) = own {
            explanation.subnet = Some(subnet.to_string());
            explanation.host = Some(self.name.clone());
        }
        let ours = &self.device;
        let (code, outcome, sentence) = match explanation.device.as_deref() {
            Some(device) if device == ours => (
                StepCode::KernelToOverlay,
                Outcome::Dropped,
                format!("the kernel routes it to the overlay device {ours}"),
            ),
            Some("lo") => (
                StepCode::KernelToThisHost,
                Outcome::Local,
                "its address belongs to this host itself".to_owned(),
            ),
            Some(device) => (
                StepCode::KernelToOtherDevice,
                Outcome::Elsewhere,
                format!("the kernel sends it by {device}, not by {ours}: see `ip route get {to}`"),
            ),
            None => (
                StepCode::KernelNoRoute,
                Outcome::Dropped,
                format!("the kernel has no route for it, not even to {ours}"),
            ),
        };
        explanation.outcome = outcome;
        explanation.sentence.clone_from(&sentence);
        explanation.step(code, sentence);
    }
}

impl Part for HostPart {
    fn status(&self, status: &mut Status) {
        let position = self.position();
        let local = &position.local;
        status.node.clone_from(&self.name);
        status.public_ip = local.public;
        status.interface.clone_from(&position.interface);
        status.device.clone_from(&self.device);
        status.mtu = local.mtu;
        status.port = local.port;
        status.subnets = local.subnets.iter().map(ToString::to_string).collect();
        status.networks = self.networks.iter().map(|network| network.to_string()).collect();
    }

    fn routes(&self, rows: &mut Vec<RouteRow>) {
        let local = &self.position().local;
        rows.extend(local.subnets.iter().map(|subnet| RouteRow {
            subnet: subnet.to_string(),
            host: self.name.clone(),
            next_hop: "local".to_owned(),
            mtu: local.mtu,
        }));
    }

    fn drops<'a>(&'a self, drops: &'a mut Drops) -> Pending<'a> {
        Box::pin(async move {
            let link = self.kernel.link(&self.device).await.ok().flatten();
            let packets = link.map_or(0, |link| link.tx_dropped);
            let meaning = "the queue of the overlay device was full, or no daemon had the device open";
            drops.add("egress", "device_queue_full", packets, meaning);
        })
    }

    fn explain<'a>(&'a self, explanation: &'a mut Explanation) -> Pending<'a> {
        Box::pin(self.explain_kernel(explanation))
    }

    fn metrics(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
        let has = |code| self.problems.has(code);
        let underlay = has(ProblemCode::UnderlayAddress)
            || has(ProblemCode::UnderlayMtu)
            || has(ProblemCode::UnderlayLink);
        let help = "0 if the public address, the MTU or the link of the underlay is not usable";
        encoder.gauge("underlay_in_order", help, i64::from(!underlay))?;
        let alarm = i64::from(has(ProblemCode::DuplicateSubnet));
        encoder.gauge("own_subnet_alarm", "1 if another host uses this host's subnet", alarm)
    }
}
