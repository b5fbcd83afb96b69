//! `hopsack routes`: which subnet is reached through which host.

use super::ask::Ask;
use super::error::CliError;
use super::output::print;
use super::table::Table;
use crate::api::{Request, RouteRow};

/// Asks and prints.
pub(super) fn routes(ask: &Ask) -> Result<(), CliError> {
    print(&ask.format, &ask.ask::<Vec<RouteRow>>(Request::Routes)?, |rows| table(rows))
}

fn table(rows: &[RouteRow]) -> Table {
    let mut table = Table::new(&["SUBNET", "HOST", "NEXT HOP", "MTU"]);
    for row in rows {
        table.row(&[&row.subnet, &row.host, &row.next_hop, &row.mtu.to_string()]);
    }
    table
}
