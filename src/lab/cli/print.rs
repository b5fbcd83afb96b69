//! Output for people: the summary of a lab, the list of labs, what was removed.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::super::cluster::Lab;
use super::super::error::LabError;
use super::super::list::LabSummary;
use super::super::removal::Removed;
use crate::packet::Family;

/// Number of hosts that the summary shows; more are only counted.
const SUMMARY_HOSTS: usize = 10;

/// Hosts and pods of a lab, and commands to try.
pub(super) fn summary(lab: &Lab) -> String {
    let mut text =
        String::from("host  underlay            pod   address          address                overlay MTU\n");
    for host in lab.hosts().iter().take(SUMMARY_HOSTS) {
        let pod = &host.pod;
        let (public, v4, v6) = (host.public.to_string(), pod.v4.to_string(), pod.v6.to_string());
        let mtu = lab.overlay_mtu();
        let _ = writeln!(text, "{:<6}{public:<20}{:<6}{v4:<17}{v6:<23}{mtu}", host.name, pod.name);
    }
    let more = lab.hosts().len().saturating_sub(SUMMARY_HOSTS);
    if more > 0 {
        let _ = writeln!(text, "... and {more} more hosts, numbered in the same way");
    }
    let name = &lab.options().name;
    let option = if name == "lab" { String::new() } else { format!(" --name {name}") };
    let to = lab.hosts().last().map(|host| (host.pod.v4, host.pod.v6));
    let _ = writeln!(text, "\nTry:");
    if let Some((v4, v6)) = to {
        let _ = writeln!(text, "  hopsack lab exec{option} p1 -- ping -c 3 {v4}");
        let _ = writeln!(text, "  hopsack lab exec{option} p1 -- ping -c 3 {v6}");
    }
    let _ = writeln!(text, "  hopsack status --config {}", lab.daemon(1).config_path().display());
    let _ = writeln!(text, "  hopsack lab down{option}");
    text
}

/// What [`super::down`] removed.
pub(super) fn removal(name: &str, removed: Removed) -> String {
    let Removed { processes, namespaces, .. } = removed;
    if removed == Removed::default() {
        return format!("lab {name} does not exist\n");
    }
    format!("lab {name} removed: {processes} processes, {namespaces} namespaces\n")
}

/// The labs of this machine, one in each line.
pub(super) fn table(labs: &[LabSummary]) -> String {
    if labs.is_empty() {
        return "this machine has no lab\n".into();
    }
    let mut text = String::from("name                              hosts  daemons  state\n");
    for LabSummary { name, hosts, daemons, whole, owner, abandoned } in labs {
        let hosts = hosts.map_or("?".into(), |hosts| hosts.to_string());
        let state = match owner {
            Some(pid) => format!("used by process {pid}"),
            None if *abandoned => format!("abandoned: hopsack lab down --name {name}"),
            None if *whole => "up".into(),
            None => format!("incomplete: hopsack lab down --name {name}"),
        };
        let _ = writeln!(text, "{name:<34}{hosts:>5}  {daemons:>7}  {state}");
    }
    text
}

/// Name of an address family.
pub(super) fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Writes to standard output. A reader that has closed it (`hopsack lab up | head -1`) does not end
/// the work.
pub(super) fn print(text: &str) -> Result<(), LabError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(LabError::io("write to standard output")),
    }
}
