//! Joins several reports that measured different parts of a matrix.
//!
//! A ratio needs both values from one run. So a cell may be in one report only, and each report has
//! its own VXLAN values.
//!
//! Invariant: no sample is changed, dropped, or compared with one of another run.

use super::super::error::LabError;
use super::report::Report;

/// Joins reports in this order.
///
/// # Errors
/// There is no report; the reports are from different machines, versions or durations; or two
/// reports have the same cell.
pub fn join(reports: Vec<Report>) -> Result<Report, LabError> {
    let mut reports = reports.into_iter();
    let mut whole = reports.next().ok_or_else(|| failed("there is no report to show".into()))?;
    for part in reports {
        add(&mut whole, part)?;
    }
    Ok(whole)
}

fn add(whole: &mut Report, part: Report) -> Result<(), LabError> {
    let how = |report: &Report| {
        let (machine, plan) = (&report.machine, &report.plan);
        let made = (machine.kernel.clone(), machine.cpu.clone(), machine.cpus, machine.version.clone());
        let measured = (machine.congestion_control.clone(), machine.debug_build, machine.awake.clone());
        (made, measured, plan.repeats, plan.seconds.to_bits())
    };
    if how(whole) != how(&part) {
        let dates = [&whole.machine.date, &part.machine.date].map(String::as_str).join(" and ");
        return Err(failed(format!(
            "the runs of {dates} cannot be joined: they differ in machine, version, repeats, seconds or awake"
        )));
    }
    let double = part.cells.iter().find(|cell| whole.cell(cell.underlay, cell.system, cell.metric).is_some());
    if let Some(cell) = double {
        let (system, metric, underlay) = (cell.system.name(), cell.metric.title(), cell.underlay.name());
        return Err(failed(format!(
            "two runs have {metric} of {system} on {underlay}: show them separately"
        )));
    }
    let (plan, more) = (&mut whole.plan, part.plan);
    append(&mut plan.systems, more.systems);
    append(&mut plan.underlays, more.underlays);
    append(&mut plan.workloads, more.workloads);
    whole.cells.extend(part.cells);
    append(&mut whole.unmeasured, part.unmeasured);
    whole.limits.extend(part.limits);
    let (machine, more) = (&mut whole.machine, part.machine);
    machine.command = format!("{}; {}", machine.command, more.command);
    machine.unrest = machine.unrest.max(more.unrest);
    machine.auto = machine.auto.take().or(more.auto);
    Ok(())
}

/// Appends the items that are not there yet.
fn append<T: PartialEq>(to: &mut Vec<T>, from: Vec<T>) {
    for item in from {
        if !to.contains(&item) {
            to.push(item);
        }
    }
}

fn failed(why: String) -> LabError {
    LabError::Bench(why)
}

#[cfg(test)]
mod tests {
    use super::super::measure::Metric;
    use super::super::report::tests::report;
    use super::super::underlay::Underlay;
    use super::*;

    #[test]
    fn different_parts_are_joined() {
        let (first, mut second) = (report(), report());
        second.plan.underlays = vec![Underlay::Noseg];
        second.cells.iter_mut().for_each(|cell| cell.underlay = Underlay::Noseg);
        let whole = join(vec![first.clone(), second.clone()]).expect("the parts differ");
        assert_eq!(whole.cells.len(), first.cells.len() + second.cells.len());
        assert_eq!(whole.plan.underlays, [Underlay::Pass, Underlay::Noseg]);
        assert_eq!(whole.metrics(), [Metric::Tcp1, Metric::RttP50]);
        assert_eq!(whole.unmeasured.len(), 1);
    }

    #[test]
    fn unfitting_reports_are_refused() {
        assert!(join(vec![]).is_err());
        assert!(join(vec![report(), report()]).is_err(), "both have the same cells");
        let mut other = report();
        other.machine.kernel = "5.10.0".into();
        other.cells.clear();
        assert!(join(vec![report(), other]).is_err(), "the machines differ");
    }
}
