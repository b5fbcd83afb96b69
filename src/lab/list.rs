//! List of the labs on this machine, for `hopsack lab list`.

use serde::Serialize;

use super::state::{self, Record};

/// One lab, as `hopsack lab list` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct LabSummary {
    /// Name of the lab.
    pub name: String,
    /// Number of hosts that the lab was made with; none if its record cannot be read.
    pub hosts: Option<u8>,
    /// Number of daemons that run.
    pub daemons: usize,
    /// Whether the lab was made completely.
    pub whole: bool,
    /// Process that will remove the lab when it ends, while that process runs.
    pub owner: Option<u32>,
    /// Whether the owner ended without removing the lab.
    pub abandoned: bool,
}

/// All labs of this machine, sorted by name.
#[must_use]
pub fn list() -> Vec<LabSummary> {
    let summary = |name: String| {
        let record = state::record(&name);
        let owner = record.as_ref().and_then(Record::live_owner);
        LabSummary {
            hosts: record.as_ref().map(|record| record.options.hosts),
            daemons: state::daemons(&name).len(),
            whole: record.as_ref().is_some_and(|record| record.built),
            owner: owner.map(|owner| owner.pid),
            abandoned: owner.is_none() && record.is_some_and(|record| record.owner.is_some()),
            name,
        }
    };
    state::names().into_iter().map(summary).collect()
}
