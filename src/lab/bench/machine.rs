//! Machine and time of a run, for the report.

use std::fs;

use serde::{Deserialize, Serialize};

use super::keep_awake::KeepAwake;
use super::topology::SharedTopology;

/// Machine and time of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Kernel release, as in `uname -r`.
    pub kernel: String,
    /// Name of the processor.
    pub cpu: String,
    /// Number of CPUs that the bench may use.
    pub cpus: usize,
    /// Date and time of the run in UTC.
    pub date: String,
    /// Command line of the run.
    pub command: String,
    /// Version of hopsack.
    pub version: String,
    /// Congestion control of TCP in the pods.
    pub congestion_control: String,
    /// Engine that `auto` chose, if `auto` was measured.
    pub auto: Option<String>,
    /// Part of the CPUs (0 to 1) that was busy before the run.
    pub unrest: f64,
    /// Whether hopsack was built without optimisation.
    pub debug_build: bool,
    /// What kept the CPUs from halting; none if they could halt.
    #[serde(default)]
    pub awake: Option<String>,
}

impl Machine {
    /// Facts about this machine.
    pub(super) fn look(unrest: f64, topology: &SharedTopology<'_>) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let model = read("/proc/cpuinfo");
        let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let mut arguments: Vec<String> =
            std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
        if let Some(program) = arguments.first_mut() {
            // The directory of the program is left out, because results are published.
            *program = program.rsplit('/').next().unwrap_or_default().to_owned();
        }
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: model.map_or(std::env::consts::ARCH, |(_, model)| model).trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            date: date(since.map_or(0, |since| since.as_secs())),
            command: arguments.join(" "),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            congestion_control: topology.congestion_control().to_owned(),
            auto: None,
            unrest,
            debug_build: cfg!(debug_assertions),
            awake: topology.awake().map(|awake| KeepAwake::how(awake).to_owned()),
        }
    }
}

/// Date as `2026-01-31 12:34 UTC`, from seconds since 1970.
fn date(seconds: u64) -> String {
    // This is Howard Hinnant's civil_from_days, which counts years from March 1st of the year 0.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, new_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + new_year;
    let minutes = seconds / 60 % 1440;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_formatted() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_767_225_599), "2025-12-31 23:59 UTC");
    }
}
