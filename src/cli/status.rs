//! `hopsack status`: the state of the daemon on one screen.

use super::ask::Ask;
use super::error::CliError;
use super::output::print;
use super::table::Table;
use crate::api::{Request, Status};

/// Asks and prints.
pub(super) fn status(ask: &Ask) -> Result<(), CliError> {
    print(&ask.format, &ask.ask::<Status>(Request::Status)?, table)
}

fn table(status: &Status) -> Table {
    let mut table = Table::new(&[]);
    let mut row = |name: &str, text: &str| table.row(&[name, text]);
    row("ready", if status.ready { "yes" } else { "no" });
    for problem in &status.problems {
        row("PROBLEM", &format!("{problem} (for {} s)", problem.since_seconds));
    }
    let Status { version, pid, uptime_seconds, .. } = status;
    row("daemon", &format!("hopsack {version}, pid {pid}, up {uptime_seconds} s"));
    row("host", &format!("{:?} at {} on {}", status.node, status.public_ip, status.interface));
    row("overlay", &format!("{}, MTU {}, UDP port {}", status.device, status.mtu, status.port));
    row("subnets", &format!("{} of {}", status.subnets.join(" "), status.networks.join(" ")));
    let workers = if status.workers == 1 { "worker" } else { "workers" };
    row("engine", &format!("{}, {} {workers}: {}", status.engine, status.workers, status.engine_reason));
    row("store", &format!("{}; map {} s old", status.store, status.map_age_seconds));
    if let Some(seconds) = status.lease_expires_seconds {
        row("lease", &lease(seconds));
    }
    row("encryption", &status.encryption);
    row("peers", &status.peers.to_string());
    for host in &status.unreachable {
        row("unreachable", host);
    }
    row("sent", &format!("{} packets, {} bytes", status.egress_packets, status.egress_bytes));
    row("received", &format!("{} packets, {} bytes", status.ingress_packets, status.ingress_bytes));
    row("dropped", &format!("{} packets (`hopsack drops` lists the reasons)", status.dropped_packets));
    table
}

fn lease(seconds: i64) -> String {
    let minutes = seconds.abs() / 60;
    if seconds < 0 {
        format!("expired {minutes} min ago; this host keeps its subnet until another host holds it")
    } else {
        format!("expires in {minutes} min; the daemon renews it before")
    }
}
