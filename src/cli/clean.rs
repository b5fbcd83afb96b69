//! `hopsack clean`: removes what earlier daemons left on this host.

use std::process::ExitCode;

use clap::Args;

use super::error::CliError;
use super::options::ConfigOptions;
use super::output::{Format, print};
use super::runtime::runtime;
use super::table::Table;
use crate::node::{self, Cleaned};

/// Options of `hopsack clean`.
#[derive(Debug, Args)]
pub(super) struct CleanArgs {
    /// Only list what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    config: ConfigOptions,
    #[command(flatten)]
    format: Format,
}

/// Prints one line for each thing removed. The exit code is 1 if one of them could not be removed.
pub(super) fn clean(args: &CleanArgs) -> Result<ExitCode, CliError> {
    let config = args.config.sources().load()?;
    let cleaned = runtime()?.block_on(node::clean(&config, args.dry_run))?;
    print(&args.format, &cleaned, |cleaned| table(cleaned, args.dry_run))?;
    Ok(ExitCode::from(u8::from(cleaned.iter().any(|item| item.problem.is_some()))))
}

fn table(cleaned: &[Cleaned], dry_run: bool) -> Table {
    let mut table = Table::new(&[]);
    let done = if dry_run { "would remove" } else { "removed" };
    for item in cleaned {
        match &item.problem {
            None => table.row(&[done, &item.what]),
            Some(problem) => table.row(&["could not remove", &format!("{}: {problem}", item.what)]),
        }
    }
    if cleaned.is_empty() {
        table.row(&["nothing of hopsack's is left on this host"]);
    }
    table
}
