//! BenchPlan of a bench run: systems, underlays, workloads, repeats. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::error::LabError;
use super::flannel;
use super::measure::{Times, Workload};
use super::system::System;
use super::topology::SWITCH;
use super::underlay::Underlay;

/// What a bench run measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchPlan {
    /// Systems, in the order of the tables.
    pub systems: Vec<System>,
    /// Underlays, in the order of the tables.
    pub underlays: Vec<Underlay>,
    /// Workloads, in the order in which they run.
    pub workloads: Vec<Workload>,
    /// Number of repeats of the whole matrix.
    pub repeats: u32,
    /// Duration of a TCP measurement in seconds. Other measurements take a part of it.
    pub seconds: f64,
    /// Whether to keep the machine's CPUs from halting. This removes the CPU's wake-up time from
    /// the round trips, and heats the CPU.
    pub awake: bool,
}

impl BenchPlan {
    /// The short plan, about a minute: plain routing, kernel VXLAN and the engine that is chosen
    /// here.
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

    /// The full plan, about half an hour: everything.
    #[must_use]
    pub fn full() -> Self {
        use System::{Batch, Fast, Flannel, Raw, Simple, Uring, Vxlan};
        use Workload::{Connects, Rtt, RttBulk, RttBulk16, Tcp1, Tcp4, Udp64, Udp64x32, Udp1400, Udp1400x32};
        Self {
            systems: vec![Raw, Vxlan, Flannel, Simple, Batch, Uring, Fast],
            underlays: vec![Underlay::Pass, Underlay::Noseg, Underlay::NosegGro, Underlay::NosegNocsum],
            workloads: vec![
                Tcp1, Tcp4, Udp64, Udp64x32, Udp1400, Udp1400x32, Rtt, RttBulk, RttBulk16, Connects,
            ],
            repeats: 10,
            seconds: 1.0,
            awake: false,
        }
    }

    /// Approximate duration of the run, if every system can be measured.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let times = Times::of(self.time());
        let once: Duration = self.workloads.iter().map(|workload| times.total(*workload)).sum();
        let turns = self.repeats as usize * self.underlays.len() * self.systems.len();
        (once + SWITCH) * u32::try_from(turns).unwrap_or(u32::MAX)
    }

    /// Whether the lab needs an etcd. It then runs for all systems, so that all have the same load.
    pub(super) fn needs_etcd(&self) -> bool {
        let absent = |system: &System| *system == System::Flannel && flannel::program().is_none();
        self.systems.iter().any(|system| system.needs_etcd() && !absent(system))
    }

    pub(super) fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.clamp(0.05, 600.0))
    }

    pub(super) fn check(&self) -> Result<(), LabError> {
        let nothing = self.systems.is_empty() || self.underlays.is_empty() || self.workloads.is_empty();
        if nothing || self.repeats == 0 {
            return Err(LabError::Bench(
                "the plan is empty: name at least one system, underlay, workload and repeat".into(),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_plan_takes_about_a_minute() {
        let seconds = BenchPlan::short().estimate().as_secs();
        assert!((50..=90).contains(&seconds), "{seconds}");
    }
}
