//! `hopsack check`: whether this host can run the daemon.

use std::process::ExitCode;

use super::error::CliError;
use super::options::ConfigOptions;
use super::output::{Format, print};
use super::runtime::runtime;
use super::table::Table;
use crate::node::{self, Finding};

/// Prints one line for each requirement. The exit code is 1 if one of them is not met.
pub(super) fn check(options: &ConfigOptions, format: &Format) -> Result<ExitCode, CliError> {
    let config = options.sources().load()?;
    let findings = runtime()?.block_on(node::check(&config));
    print(format, &findings, |findings| table(findings))?;
    Ok(ExitCode::from(u8::from(!findings.iter().all(|finding| finding.ok))))
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(&[]);
    for finding in findings {
        let verdict = match (finding.ok, finding.warning) {
            (false, _) => "FAIL",
            (true, true) => "WARN",
            (true, false) => "ok",
        };
        table.row(&[verdict, finding.question, &finding.answer]);
    }
    table
}
