//! The bench: hopsack beside kernel VXLAN and plain routing, on this machine, in one topology and one run.
//!
//! [`run`] makes a lab of two hosts without daemons, and then, repeat by repeat, lets each system in turn carry the same
//! traffic over the same cables: routes, devices and daemons are switched (`rig`), the traffic is made and counted
//! (`measure`, `udp`, `request`), the CPUs are watched (`load`, `limit`). What comes out is a [`Report`]: a table, JSON, or
//! a page with plots ([`page`]). `hopsack lab bench` is a short form of it, `benches/overlay.rs` the long one.
//!
//! Both hosts, both pods and the traffic's ends share this machine's CPUs, so the results are about CPU spent a packet, not
//! about a network. Systems are interleaved because a machine drifts: only values of one run are compared.
//!
//! Invariant: whichever way [`run`] returns, the lab is gone; and what has no value says why.

mod awake;
mod flannel;
mod floor;
mod join;
mod limit;
mod load;
mod measure;
mod naive;
mod page;
mod report;
mod request;
mod rig;
mod system;
mod tunnel;
mod udp;
mod underlay;
mod wireguard;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use floor::{FloorArgs, run as run_floor};
pub use join::join;
pub use measure::{Metric, Workload};
pub use naive::{NaiveArgs, run as run_naive};
pub use page::page;
pub use report::{Cell, Limit, Machine, Report, Unmeasured};
pub use system::System;
pub use underlay::Underlay;

use super::{Interrupt, Lab, LabError, Options, Store, programs};
use crate::packet::Family;
use awake::Awake;
use load::Load;
pub(super) use load::{counters, scrape};
use measure::Times;
use rig::{Refusal, Rig};

/// What to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// In the order of the tables.
    pub systems: Vec<System>,
    /// In the order of the tables.
    pub underlays: Vec<Underlay>,
    /// In the order in which they are done.
    pub workloads: Vec<Workload>,
    /// How often everything is done.
    pub repeats: u32,
    /// How long a TCP measurement takes; others take a part of it.
    pub seconds: f64,
    /// Keep the machine's CPUs from halting meanwhile: it takes wake-ups out of the round trips, and heats.
    pub awake: bool,
}

impl Plan {
    /// A minute or so: the kernel's two and the engine that is chosen here, on cables as they come.
    #[must_use]
    pub fn short() -> Self {
        use Workload::{Connects, Rtt, RttBulk, Tcp1, Tcp4, Udp64, Udp1400};
        Self {
            systems: vec![System::Raw, System::Vxlan, System::Auto],
            underlays: vec![Underlay::Pass],
            workloads: vec![Tcp1, Tcp4, Udp64, Udp1400, Rtt, RttBulk, Connects],
            repeats: 3,
            seconds: 1.0,
            awake: false,
        }
    }

    /// Half an hour: everything.
    #[must_use]
    pub fn full() -> Self {
        use System::{Batch, Flannel, Raw, Simple, Uring, Vxlan};
        use Workload::{Connects, Rtt, RttBulk, RttBulk16, Tcp1, Tcp4, Udp64, Udp64x32, Udp1400, Udp1400x32};
        Self {
            systems: vec![Raw, Vxlan, Flannel, Simple, Batch, Uring],
            underlays: vec![Underlay::Pass, Underlay::Noseg, Underlay::NosegGro, Underlay::NosegNocsum],
            workloads: vec![
                Tcp1, Tcp4, Udp64, Udp64x32, Udp1400, Udp1400x32, Rtt, RttBulk, RttBulk16, Connects,
            ],
            repeats: 10,
            seconds: 1.0,
            awake: false,
        }
    }

    /// About how long it takes, if every system can be measured.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let times = Times::of(self.time());
        let once: Duration = self.workloads.iter().map(|workload| times.total(*workload)).sum();
        let turns = self.repeats as usize * self.underlays.len() * self.systems.len();
        (once + rig::SWITCH) * u32::try_from(turns).unwrap_or(u32::MAX)
    }

    /// Whether the lab has an etcd, which then runs beside all systems alike.
    fn needs_etcd(&self) -> bool {
        let absent = |system: &System| *system == System::Flannel && flannel::program().is_none();
        self.systems.iter().any(|system| system.needs_etcd() && !absent(system))
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.clamp(0.05, 600.0))
    }

    fn check(&self) -> Result<(), LabError> {
        let nothing = self.systems.is_empty() || self.underlays.is_empty() || self.workloads.is_empty();
        if nothing || self.repeats == 0 {
            return Err(LabError::Bench("there is nothing to measure".into()));
        }
        Ok(())
    }
}

/// How long to look at the machine before it is ours.
const LOOK: Duration = Duration::from_millis(500);

/// Measures in a lab with the name, program and interrupt of `options`, and tells `progress` what comes next.
///
/// # Errors
/// The lab could not be made or switched, or [`LabError::Interrupted`]. A system that cannot be measured is no error: see
/// [`Report::unmeasured`] and [`Report::broken`].
pub fn run(options: Options, plan: &Plan, progress: &mut dyn FnMut(&str)) -> Result<Report, LabError> {
    plan.check()?;
    programs::require("ethtool", "ethtool")?;
    let interrupt = options.interrupt.clone();
    // Before there is a lab: making one keeps the CPUs busy too.
    let unrest = load::unrest(LOOK);
    let awake = plan.awake.then(Awake::hold).transpose()?;
    // IPv4 outside, as flannel's backends are measured; pods have an MTU of what each system leaves of 1500.
    let store = if plan.needs_etcd() { Store::Etcd { members: 1 } } else { Store::File };
    let lab = Lab::create(Options { hosts: 2, underlay: Family::V4, mtu: 1500, store, ..options })?;
    let measured = matrix(&lab, plan, (unrest, awake), &interrupt, progress);
    let removed = lab.down();
    let report = measured?;
    removed?;
    Ok(report)
}

/// What was found so far.
#[derive(Debug, Default)]
struct Notes {
    samples: BTreeMap<(Underlay, System, Metric), Vec<f64>>,
    loads: BTreeMap<(Underlay, System, Workload), Load>,
    unmeasured: Vec<Unmeasured>,
}

fn matrix(
    lab: &Lab,
    plan: &Plan,
    (unrest, awake): (f64, Option<Awake>),
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(&str),
) -> Result<Report, LabError> {
    let mut rig = Rig::new(lab, awake)?;
    let mut notes = Notes::default();
    let mut machine = Machine::look(unrest, &rig);
    for repeat in 0..plan.repeats {
        for underlay in &plan.underlays {
            underlay.set(lab)?;
            // Each repeat begins with another system, so that none always comes after the same one.
            let mut systems = plan.systems.clone();
            systems.rotate_left(repeat as usize % plan.systems.len());
            for system in systems {
                if notes.is_out(system, *underlay) {
                    continue;
                }
                progress(&format!(
                    "repeat {} of {}, underlay {}, {}",
                    repeat + 1,
                    plan.repeats,
                    underlay.name(),
                    system.name()
                ));
                interrupt.check()?;
                if let Err(refusal) = rig.activate(system)? {
                    notes.refuse(system, refusal);
                    continue;
                }
                if system == System::Auto {
                    let status = lab.daemon(1).status()?;
                    machine.auto = status["engine"].as_str().map(str::to_owned);
                }
                notes.measure(&rig, plan, (*underlay, system), interrupt)?;
            }
        }
    }
    rig.deactivate()?;
    Ok(notes.report(plan, machine))
}

impl Notes {
    fn is_out(&self, system: System, underlay: Underlay) -> bool {
        let here = |out: &Unmeasured| out.underlay.is_none_or(|there| there == underlay);
        self.unmeasured.iter().any(|out| out.system == system && here(out))
    }

    fn refuse(&mut self, system: System, refusal: Refusal) {
        let (reason, broken) = match refusal {
            Refusal::Absent(why) if system.is_hopsack() => (format!("not in this build: {why}"), false),
            Refusal::Absent(why) => (why, false),
            Refusal::Broken(why) => (why, true),
        };
        self.unmeasured.push(Unmeasured { system, underlay: None, reason, broken });
    }

    /// All workloads, once. A system that fails in one is out on this underlay, with what it has shown so far.
    fn measure(
        &mut self,
        rig: &Rig<'_>,
        plan: &Plan,
        (underlay, system): (Underlay, System),
        interrupt: &Interrupt,
    ) -> Result<(), LabError> {
        for workload in &plan.workloads {
            let counters = system.is_hopsack();
            let outcome = match measure::run(rig, *workload, counters, Times::of(plan.time()), interrupt) {
                Ok(outcome) => outcome,
                Err(LabError::Interrupted) => return Err(LabError::Interrupted),
                Err(error) => {
                    let reason = format!("{} failed: {error}", workload.name());
                    self.unmeasured.push(Unmeasured {
                        system,
                        underlay: Some(underlay),
                        reason,
                        broken: true,
                    });
                    return Ok(());
                }
            };
            for (metric, value) in outcome.values {
                self.samples.entry((underlay, system, metric)).or_default().push(value);
            }
            *self.loads.entry((underlay, system, *workload)).or_default() += outcome.load;
        }
        Ok(())
    }

    fn report(self, plan: &Plan, machine: Machine) -> Report {
        let cell = |((underlay, system, metric), samples)| Cell::new(underlay, system, metric, samples);
        let mut cells: Vec<Cell> = self.samples.into_iter().filter_map(cell).collect();
        report::compare(&mut cells);
        let limit = |((underlay, system, workload), load): (_, Load)| {
            limit::limit(underlay, system, workload, &load, machine.cpus)
        };
        let limits = self.loads.into_iter().filter_map(limit).collect();
        Report { plan: plan.clone(), cells, unmeasured: self.unmeasured, limits, machine }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_form_ends_in_its_time() {
        let seconds = Plan::short().estimate().as_secs();
        assert!((50..=90).contains(&seconds), "{seconds}");
    }

    #[test]
    fn an_empty_plan_is_refused_before_anything_is_made() {
        let plan = Plan { systems: vec![], ..Plan::short() };
        let error = run(Options::named("bench-empty", "/bin/false"), &plan, &mut |_| ()).unwrap_err();
        assert!(matches!(error, LabError::Bench(_)), "{error}");
    }

    #[test]
    fn a_refused_engine_and_a_failure_take_a_system_out() {
        let mut notes = Notes::default();
        notes.refuse(System::Uring, Refusal::Absent("no".into()));
        notes.refuse(System::Batch, Refusal::Broken("bad".into()));
        assert_eq!(notes.unmeasured[0].reason, "not in this build: no");
        assert_eq!([0, 1].map(|at| notes.unmeasured[at].broken), [false, true]);
        assert!(notes.is_out(System::Uring, Underlay::Noseg) && !notes.is_out(System::Raw, Underlay::Pass));
    }
}
