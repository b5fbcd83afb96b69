//! hopsack-lab: clusters of network namespaces for trying, testing and measuring hopsack.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage.

use std::process::ExitCode;

use clap::Parser;
use hopsack::lab::cli::LabCli;

fn main() -> ExitCode {
    match LabCli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hopsack-lab: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
