//! Bench: compares hopsack with kernel VXLAN and plain routing, on one machine, in one topology and
//! one run.
//!
//! [`run`] makes a lab of two hosts without daemons. In each repeat, each system in turn carries
//! the same traffic over the same links. `topology` switches routes, devices and daemons;
//! `measure`, `udp` and `request` make and count the traffic; `cpu_usage` and `limit` watch the
//! CPUs. The result is a [`Report`]: a table, JSON, or an HTML page with plots ([`page`]). `hopsack
//! lab bench` is the short form, `benches/overlay.rs` the long one.
//!
//! Both hosts, both pods and both ends of the traffic share the CPUs of one machine. So the results
//! compare CPU time for each packet, not networks. Systems are interleaved because a machine
//! drifts: only values of one run can be compared.
//!
//! Invariant: [`run`] always removes the lab, and every value that is missing has a reason.

mod cpu_usage;
mod file;
mod flannel;
mod floor;
mod join;
mod keep_awake;
mod limit;
mod machine;
mod measure;
mod naive;
mod page;
mod plan;
mod report;
mod request;
mod system;
mod topology;
mod tunnel;
mod udp;
mod underlay;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use file::{from_json, to_json};
pub use floor::{FloorArgs, run as run_floor};
pub use join::join;
pub use machine::Machine;
pub use measure::{Metric, Workload};
pub use naive::{NaiveArgs, run as run_naive};
pub use page::page;
pub use plan::BenchPlan;
pub use report::{Cell, Limit, Report, Unmeasured};
pub use system::System;
pub use underlay::Underlay;

use super::cluster::Lab;
use super::error::LabError;
use super::interrupt::Interrupt;
use super::options::{Options, Store};
use super::programs;
use crate::api::{Request, Status};
use crate::packet::Family;
use cpu_usage::CpuUsage;
use keep_awake::KeepAwake;
use measure::Times;
use topology::{Refusal, SharedTopology};

/// Time during which the load of the machine is watched before the run.
const IDLE_CHECK: Duration = Duration::from_millis(500);

/// Measures in a lab with the name, programs and interrupt of `options`. Calls `progress` before
/// each step.
///
/// # Errors
/// The lab could not be made or switched, or [`LabError::Interrupted`]. A system that cannot be
/// measured is not an error: see [`Report::unmeasured`] and [`Report::broken`].
pub fn run(options: Options, plan: &BenchPlan, progress: &mut dyn FnMut(&str)) -> Result<Report, LabError> {
    plan.check()?;
    programs::require("ethtool", "ethtool")?;
    let interrupt = options.interrupt.clone();
    // This is done before the lab is made, because making it uses the CPUs too.
    let unrest = cpu_usage::unrest(IDLE_CHECK);
    let awake = plan.awake.then(KeepAwake::hold).transpose()?;
    // The underlay is IPv4, as flannel's backends need it. Pods get the MTU that each system leaves
    // of 1500.
    let store = if plan.needs_etcd() { Store::Etcd { members: 1 } } else { Store::File };
    let lab = Lab::create(Options { hosts: 2, underlay: Family::V4, mtu: 1500, store, ..options })?;
    let measured = matrix(&lab, plan, (unrest, awake), &interrupt, progress);
    let removed = lab.down();
    let report = measured?;
    removed?;
    Ok(report)
}

/// Results so far.
#[derive(Debug, Default)]
struct Notes {
    samples: BTreeMap<(Underlay, System, Metric), Vec<f64>>,
    usages: BTreeMap<(Underlay, System, Workload), CpuUsage>,
    unmeasured: Vec<Unmeasured>,
    disturbed: BTreeSet<Metric>,
}

fn matrix(
    lab: &Lab,
    plan: &BenchPlan,
    (unrest, awake): (f64, Option<KeepAwake>),
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(&str),
) -> Result<Report, LabError> {
    let mut topology = SharedTopology::new(lab, awake)?;
    let mut notes = Notes::default();
    let mut machine = Machine::look(unrest, &topology);
    for repeat in 0..plan.repeats {
        for underlay in &plan.underlays {
            underlay.set(lab)?;
            // Each repeat begins with another system, so that no system always runs after the same
            // one.
            let mut systems = plan.systems.clone();
            systems.rotate_left(repeat as usize % plan.systems.len());
            for system in systems {
                if notes.is_left_out(system, *underlay) {
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
                if let Err(refusal) = topology.activate(system)? {
                    notes.refuse(system, refusal);
                    continue;
                }
                if *underlay != Underlay::Pass {
                    topology.warm_up(system)?;
                }
                if system == System::Auto {
                    let status: Status = lab.daemon(1).query(Request::Status)?;
                    machine.auto = Some(status.engine);
                }
                notes.measure(&topology, plan, (*underlay, system), interrupt)?;
            }
        }
    }
    topology.deactivate()?;
    Ok(notes.report(plan, machine))
}

impl Notes {
    fn is_left_out(&self, system: System, underlay: Underlay) -> bool {
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

    /// Runs all workloads once. A system that fails in one is left out on this underlay from then
    /// on; its values so far are kept.
    fn measure(
        &mut self,
        topology: &SharedTopology<'_>,
        plan: &BenchPlan,
        (underlay, system): (Underlay, System),
        interrupt: &Interrupt,
    ) -> Result<(), LabError> {
        for workload in &plan.workloads {
            let counters = system.is_hopsack();
            let outcome = match measure::run(topology, *workload, counters, Times::of(plan.time()), interrupt)
            {
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
            self.disturbed.extend(outcome.disturbed);
            for (metric, value) in outcome.values {
                self.samples.entry((underlay, system, metric)).or_default().push(value);
            }
            *self.usages.entry((underlay, system, *workload)).or_default() += outcome.usage;
        }
        Ok(())
    }

    fn report(self, plan: &BenchPlan, machine: Machine) -> Report {
        let cell = |((underlay, system, metric), samples)| Cell::new(underlay, system, metric, samples);
        let mut cells: Vec<Cell> = self.samples.into_iter().filter_map(cell).collect();
        report::compare(&mut cells);
        let limit = |((underlay, system, workload), usage): (_, CpuUsage)| {
            limit::limit(underlay, system, workload, &usage, machine.cpus)
        };
        let limits = self.usages.into_iter().filter_map(limit).collect();
        let disturbed = self.disturbed.into_iter().collect();
        Report { plan: plan.clone(), cells, disturbed, unmeasured: self.unmeasured, limits, machine }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_plan_is_refused() {
        let plan = BenchPlan { systems: vec![], ..BenchPlan::short() };
        let error = run(Options::named("bench-empty", "/bin/false"), &plan, &mut |_| ()).unwrap_err();
        assert!(matches!(error, LabError::Bench(_)), "{error}");
    }

    #[test]
    fn refused_or_failed_system_is_left_out() {
        let mut notes = Notes::default();
        notes.refuse(System::Uring, Refusal::Absent("no".into()));
        notes.refuse(System::Batch, Refusal::Broken("bad".into()));
        assert_eq!(notes.unmeasured[0].reason, "not in this build: no");
        assert_eq!([0, 1].map(|at| notes.unmeasured[at].broken), [false, true]);
        assert!(
            notes.is_left_out(System::Uring, Underlay::Noseg)
                && !notes.is_left_out(System::Raw, Underlay::Pass)
        );
    }
}
