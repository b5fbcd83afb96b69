//! Several runs as one report: a matrix that was measured piece by piece.
//!
//! A ratio needs both its values from one run, so a cell may stand in one piece only, and each piece brings its own VXLAN.
//!
//! Invariant: no sample is changed, dropped or put beside one of another run.

use super::super::error::LabError;
use super::report::Report;

/// The pieces, in this order, as one.
///
/// # Errors
/// There is none; they were made on different machines, by different versions or with different times; or two have the same
/// cell.
pub fn join(pieces: Vec<Report>) -> Result<Report, LabError> {
    let mut pieces = pieces.into_iter();
    let mut whole = pieces.next().ok_or_else(|| failed("there is no run to show".into()))?;
    for piece in pieces {
        add(&mut whole, piece)?;
    }
    Ok(whole)
}

fn add(whole: &mut Report, piece: Report) -> Result<(), LabError> {
    let how = |report: &Report| {
        let (machine, plan) = (&report.machine, &report.plan);
        let made = (machine.kernel.clone(), machine.cpu.clone(), machine.cpus, machine.version.clone());
        let measured = (machine.congestion_control.clone(), machine.debug_build, machine.awake.clone());
        (made, measured, plan.repeats, plan.seconds.to_bits())
    };
    if how(whole) != how(&piece) {
        let dates = [&whole.machine.date, &piece.machine.date].map(String::as_str).join(" and ");
        return Err(failed(format!(
            "the runs of {dates} differ in machine, version, repeats, seconds or awake"
        )));
    }
    let double =
        piece.cells.iter().find(|cell| whole.cell(cell.underlay, cell.system, cell.metric).is_some());
    if let Some(cell) = double {
        let (system, metric, underlay) = (cell.system.name(), cell.metric.title(), cell.underlay.name());
        return Err(failed(format!("two runs have {metric} of {system} on {underlay}: show them apart")));
    }
    let (plan, more) = (&mut whole.plan, piece.plan);
    append(&mut plan.systems, more.systems);
    append(&mut plan.underlays, more.underlays);
    append(&mut plan.workloads, more.workloads);
    whole.cells.extend(piece.cells);
    append(&mut whole.unmeasured, piece.unmeasured);
    whole.limits.extend(piece.limits);
    let (machine, more) = (&mut whole.machine, piece.machine);
    machine.command = format!("{}; {}", machine.command, more.command);
    machine.unrest = machine.unrest.max(more.unrest);
    machine.auto = machine.auto.take().or(more.auto);
    Ok(())
}

/// What is not there yet.
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
    fn pieces_stand_beside_each_other() {
        let (first, mut second) = (report(), report());
        second.plan.underlays = vec![Underlay::Noseg];
        second.cells.iter_mut().for_each(|cell| cell.underlay = Underlay::Noseg);
        let whole = join(vec![first.clone(), second.clone()]).expect("they fit");
        assert_eq!(whole.cells.len(), first.cells.len() + second.cells.len());
        assert_eq!(whole.plan.underlays, [Underlay::Pass, Underlay::Noseg]);
        assert_eq!(whole.metrics(), [Metric::Tcp1, Metric::RttP50]);
        assert_eq!(whole.unmeasured.len(), 1);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(join(vec![]).is_err());
        let error = join(vec![report(), report()]).expect_err("the same twice").to_string();
        assert!(error.contains("TCP, 1 stream of vxlan on pass"), "{error}");
        let mut other = report();
        other.machine.kernel = "5.10.0".into();
        other.cells.clear();
        let error = join(vec![report(), other]).expect_err("another machine").to_string();
        assert!(error.contains("differ in machine"), "{error}");
    }
}
