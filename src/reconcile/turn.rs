//! Turns of the reconciler, and when they are due.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::ReconcileError;
use super::kernel::Kernel;
use super::repairs::Repairs;
use super::repetition::Repetition;
use crate::api::ProblemCode;
use crate::desired::{Desired, Object, ROUTE_PROTOCOL, Step, diff};
use crate::netlink::Notice;
use crate::observe::Problems;

/// Time between two turns that nothing else has caused.
pub const PERIOD: Duration = Duration::from_secs(10);

/// Shortest time between two repairs: another program that undoes each of them must not keep the
/// daemon busy.
const SPACING: Duration = Duration::from_millis(200);

/// Something that is not as it should be.
#[derive(Debug)]
struct Failure {
    /// Name of the device, address, route, setting or file.
    object: String,
    error: ReconcileError,
    /// Whether the host is of use without the object: IPv6 beside IPv4, or a device that only
    /// makes it faster.
    is_optional: bool,
}

/// Result of one turn.
#[derive(Debug, Default)]
struct Turn {
    done: Vec<Step>,
    failures: Vec<Failure>,
    /// Whether the kernel could not be read: then nothing is known about other objects.
    is_blind: bool,
}

/// Keeps one host as desired.
#[derive(Debug)]
pub struct Reconciler {
    kernel: Kernel,
    desired: Desired,
    repairs: Arc<Repairs>,
    problems: Arc<Problems>,
    /// Names of the objects that have a problem since the last turn.
    failing: BTreeSet<String>,
    repetition: Repetition,
    /// Objects of the last change that are not in place yet: to bring them in place later is no
    /// repair.
    unfinished: BTreeSet<String>,
    /// Whether the kernel could not be read during the last change: then every object counts as
    /// unfinished.
    is_unread: bool,
    last: Instant,
    due: Instant,
}

impl Reconciler {
    /// Makes a reconciler for the host of `kernel`. Nothing is desired yet.
    #[must_use]
    pub fn new(kernel: Kernel, problems: Arc<Problems>) -> Self {
        let now = Instant::now();
        Self {
            kernel,
            desired: Desired::default(),
            repairs: Arc::default(),
            problems,
            failing: BTreeSet::new(),
            repetition: Repetition::default(),
            unfinished: BTreeSet::new(),
            is_unread: false,
            last: now,
            due: now + PERIOD,
        }
    }

    /// The counters of repairs.
    #[must_use]
    pub fn repairs(&self) -> &Arc<Repairs> {
        &self.repairs
    }

    /// Sets the desired state and applies it. It fails with the first thing that is not in place.
    /// Without IPv6 objects the host still works if it has IPv4: then they are problems only.
    pub async fn change(&mut self, desired: Desired) -> Result<(), ReconcileError> {
        self.desired = desired;
        let turn = self.turn().await;
        for step in &turn.done {
            if step.object() == Object::Sysctl {
                tracing::info!(%step, "kernel setting changed");
            } else {
                tracing::debug!(%step, "changed");
            }
        }
        self.unfinished = turn.failures.iter().map(|failure| failure.object.clone()).collect();
        self.is_unread = turn.is_blind;
        self.report(&turn);
        turn.failures
            .into_iter()
            .find(|failure| !failure.is_optional)
            .map_or(Ok(()), |failure| Err(failure.error))
    }

    /// Looks whether everything is as desired, and repairs what is not.
    pub async fn repair(&mut self) {
        let turn = self.turn().await;
        let (late, repaired): (Vec<&Step>, Vec<&Step>) =
            turn.done.iter().partition(|step| self.is_unread || self.unfinished.contains(&step.name()));
        for step in late {
            tracing::info!(%step, "change made after all");
        }
        for step in &repaired {
            // While another program undoes each repair, the problem says so, and not the log.
            if self.problems.has_object(ProblemCode::RepairRepeated, &step.name()) {
                tracing::debug!(object = step.object().word(), %step, "repaired");
            } else {
                tracing::warn!(object = step.object().word(), %step, "repaired");
            }
            self.repairs.count(step.object());
        }
        self.repetition.note(&repaired, self.last, &self.problems);
        if !turn.is_blind {
            self.is_unread = false;
            self.unfinished.retain(|object| turn.failures.iter().any(|failure| failure.object == *object));
        }
        self.report(&turn);
    }

    /// Waits until the kernel tells of a change. Cancel safe.
    pub async fn changed(&mut self) -> Notice {
        self.kernel.changed().await
    }

    /// Makes a turn due if `notice` is about an object of ours.
    pub fn note(&mut self, notice: &Notice) {
        if self.is_ours(notice) {
            self.due = self.due.min(self.last + SPACING);
        }
    }

    /// When the next turn is due.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    fn is_ours(&self, notice: &Notice) -> bool {
        match notice {
            Notice::Link { name, .. } => {
                self.desired.links.contains_key(name) || self.desired.unwanted.contains(name)
            }
            Notice::Address { index } => {
                self.desired.links.keys().any(|name| self.kernel.index(name) == Some(*index))
            }
            Notice::Route { protocol } => *protocol == ROUTE_PROTOCOL,
            Notice::Forwarding | Notice::Lost => true,
            Notice::Other => false,
        }
    }

    /// Raises a problem for each failure, and ends those of objects that are in place again.
    fn report(&mut self, turn: &Turn) {
        let mut failing: BTreeSet<String> =
            turn.failures.iter().map(|failure| failure.object.clone()).collect();
        if turn.is_blind {
            failing.append(&mut self.failing);
        }
        for object in self.failing.difference(&failing) {
            self.problems.end(ProblemCode::RepairFailed, object);
        }
        for Failure { object, error, .. } in &turn.failures {
            self.problems.raise(ProblemCode::RepairFailed, object, error.to_string());
        }
        self.failing = failing;
    }

    /// Compares and applies until nothing differs. One pass is enough, unless a step takes rows
    /// along (a device that was down has lost its IPv6 addresses) or another program works at the
    /// same time.
    async fn turn(&mut self) -> Turn {
        const PASSES: usize = 3;
        let mut turn = Turn::default();
        for _ in 0..PASSES {
            let difference = match self.kernel.read(&self.desired).await {
                Ok(actual) => diff(&actual, &self.desired),
                Err(error) => {
                    turn.failures = vec![Failure { object: "netlink".to_owned(), error, is_optional: false }];
                    turn.is_blind = true;
                    break;
                }
            };
            let failure = |unmet: crate::desired::Unmet| Failure {
                object: unmet.link.clone(),
                is_optional: self.desired.can_do_without(&unmet.link),
                error: unmet.into(),
            };
            turn.failures = difference.unmet.into_iter().map(failure).collect();
            if difference.steps.is_empty() {
                break;
            }
            for step in difference.steps {
                let is_spare = step.link().is_some_and(|link| self.desired.can_do_without(link));
                let is_optional = is_spare || step.is_ipv6() && self.desired.has_ipv4();
                let object = step.name();
                match self.kernel.apply(&step).await {
                    Ok(()) => turn.done.push(step),
                    Err(error) => turn.failures.push(Failure { object, error, is_optional }),
                }
            }
        }
        self.last = Instant::now();
        self.due = self.last + PERIOD;
        turn
    }
}
