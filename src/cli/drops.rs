//! `hopsack drops`: how many packets were dropped, by reason.

use super::ask::Ask;
use super::error::CliError;
use super::output::print;
use super::table::Table;
use crate::api::{DropRow, Request};

/// Asks and prints.
pub(super) fn drops(ask: &Ask) -> Result<(), CliError> {
    print(&ask.format, &ask.ask::<Vec<DropRow>>(Request::Drops)?, |rows| table(rows))
}

fn table(rows: &[DropRow]) -> Table {
    let mut table = Table::new(&["DIRECTION", "REASON", "PACKETS", "MEANING"]);
    for row in rows {
        table.row(&[&row.direction, &row.reason, &row.packets.to_string(), &row.meaning]);
    }
    if rows.is_empty() {
        table.row(&["no packet was dropped"]);
    }
    table
}
