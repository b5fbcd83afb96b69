//! `hopsack config`: the effective configuration, with the origin of each value, or a file of
//! defaults.

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use super::options::ConfigOptions;
use super::output::{Format, print, say};
use super::table::Table;
use crate::config::{Setting, template};

/// Options of `hopsack config`.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// Print a configuration file that holds every key at its default, and nothing else
    #[arg(long)]
    default: bool,
    #[command(flatten)]
    config: ConfigOptions,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Row {
    key: String,
    value: toml::Value,
    origin: String,
}

/// Prints the configuration.
pub(super) fn config(args: &ConfigArgs) -> Result<(), CliError> {
    if args.default {
        return say(&template());
    }
    let config = args.config.sources().load()?;
    let row = |setting: &Setting| Row {
        key: format!("{}.{}", setting.section, setting.key),
        value: setting.value.clone(),
        origin: setting.origin.to_string(),
    };
    let rows: Vec<Row> = config.values.iter().map(row).collect();
    print(&args.format, &rows, |rows| {
        let mut table = Table::new(&["KEY", "VALUE", "ORIGIN"]);
        for row in rows {
            table.row(&[&row.key, &row.value.to_string(), &row.origin]);
        }
        table
    })
}
