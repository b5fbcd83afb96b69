//! `hopsack status`: the state of the daemon on one screen.

use super::ask::Ask;
use super::error::CliError;
use super::output::print;
use super::table::Table;
use crate::api::{FastPathStatus, GroStatus, Request, Status, ThreadRow};

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
    if let Some(text) = scheduling(&status.threads) {
        row("threads", &text);
    }
    row("fast path", &fast_path(&status.fast_path));
    if status.fast_path.is_on {
        row("GRO pair", &gro(&status.fast_path.gro));
    }
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

fn fast_path(fast: &FastPathStatus) -> String {
    if !fast.is_on {
        return format!("off: {}", fast.reason);
    }
    let devices = if fast.devices.is_empty() { "no device yet".to_owned() } else { fast.devices.join(" ") };
    let mut text = format!(
        "on, for {} peers, at {devices}: {} packets sent, {} received",
        fast.peers, fast.egress_packets, fast.ingress_packets
    );
    if !fast.others.is_empty() {
        text = format!("{text}; beside it at {}", fast.others.join("; "));
    }
    text
}

fn gro(gro: &GroStatus) -> String {
    let state = if gro.is_used { "used" } else { "not used" };
    let GroStatus { segments, packets, .. } = gro;
    let merged =
        if *segments > 0 { format!("; {segments} segments became {packets} packets") } else { String::new() };
    format!("{state}: {}{merged}", gro.reason)
}

/// The threads with the same scheduling together.
fn scheduling(threads: &[ThreadRow]) -> Option<String> {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for ThreadRow { name, policy, slice_us, nice } in threads {
        let slice = slice_us.map_or(String::new(), |us| format!(", time slice {us} us"));
        let how = format!("{policy}, nice {nice}{slice}");
        match groups.iter_mut().find(|(known, _)| *known == how) {
            Some((_, names)) => names.push(name),
            None => groups.push((how, vec![name])),
        }
    }
    let groups: Vec<String> =
        groups.iter().map(|(how, names)| format!("{} ({how})", names.join(" "))).collect();
    (!groups.is_empty()).then(|| groups.join("; "))
}

fn lease(seconds: i64) -> String {
    let minutes = seconds.abs() / 60;
    if seconds < 0 {
        format!("expired {minutes} min ago; this host keeps its subnet until another host holds it")
    } else {
        format!("expires in {minutes} min; the daemon renews it before")
    }
}
