//! Output of the commands: one value, printed as a table for people or as JSON for programs.
//!
//! Invariant: with `--json` a command prints one JSON value on standard output, and nothing else
//! there.

use std::io::{ErrorKind, Write};

use clap::Args;
use serde::Serialize;

use super::error::CliError;
use crate::api::shown_lines;

/// The option that every command with output has.
#[derive(Debug, Args)]
pub(super) struct Format {
    /// Print JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

/// Prints `value`: as JSON if `format` says so, otherwise as `table` formats it.
pub(super) fn print<T: Serialize, P: std::fmt::Display>(
    format: &Format,
    value: &T,
    table: impl FnOnce(&T) -> P,
) -> Result<(), CliError> {
    let text = if format.json {
        let json = serde_json::to_string_pretty(value).map_err(std::io::Error::other)? + "\n";
        shown_lines(&json, true).into_owned()
    } else {
        shown_lines(&table(value).to_string(), false).into_owned()
    };
    say(&text)
}

/// Writes `text` to standard output.
pub(super) fn say(text: &str) -> Result<(), CliError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader may stop reading early, as in `hopsack routes | head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
