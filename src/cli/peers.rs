//! `hopsack peers`: the hosts that packets can be sent to.

use super::ask::Ask;
use super::error::CliError;
use super::output::print;
use super::table::Table;
use crate::api::{PeerRow, Request};

/// Asks and prints.
pub(super) fn peers(ask: &Ask) -> Result<(), CliError> {
    print(&ask.format, &ask.ask::<Vec<PeerRow>>(Request::Peers)?, |rows| table(rows))
}

fn table(rows: &[PeerRow]) -> Table {
    let mut table = Table::new(&[
        "HOST",
        "ENDPOINT",
        "TRANSPORT",
        "PATH",
        "ENCRYPTION",
        "KEY AGE",
        "MTU",
        "RTT",
        "LOSS",
        "SUBNETS",
        "TROUBLE",
    ]);
    for row in rows {
        let (mtu, subnets) = (format!("{} ({})", row.mtu, row.mtu_source), row.subnets.join(" "));
        let rtt = row.rtt_ms.map_or("-".to_owned(), |rtt| format!("{rtt:.2} ms"));
        let loss = row.loss_percent.map_or("-".to_owned(), |percent| format!("{percent} %"));
        let trouble = row.trouble.as_deref().unwrap_or("-");
        let age = row.key_age_seconds.map_or("-".to_owned(), |seconds| format!("{seconds} s"));
        table.row(&[
            &row.name,
            &row.endpoint,
            &row.transport,
            &row.path,
            &row.encryption,
            &age,
            &mtu,
            &rtt,
            &loss,
            &subnets,
            trouble,
        ]);
    }
    table
}
