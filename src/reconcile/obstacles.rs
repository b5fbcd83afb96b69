//! What would keep the kernel and the disk from being brought to what is desired: asked without a
//! change, for `hopsack check`.
//!
//! The questions and the errors are those of [`Linux`](super::Linux) when it takes a step.

use std::fs::OpenOptions;
use std::io;

use super::error::ReconcileError;
use super::linux::{foreign_route, read_sysctl, sysctl_path};
use crate::desired::{Desired, Sysctl};
use crate::netlink::Netlink;

/// Finds routes of other programs in the place of ours, and settings that have a wrong value and
/// cannot be written. The devices of `desired` need not exist.
pub async fn obstacles(netlink: &Netlink, desired: &Desired) -> Result<Vec<ReconcileError>, ReconcileError> {
    let mut found = Vec::new();
    let is_needed = |is_ipv6: bool| !is_ipv6 || !desired.has_ipv4();
    for route in &desired.routes {
        if is_needed(route.destination.addr().is_ipv6()) {
            found.extend(foreign_route(netlink, route).await?);
        }
    }
    let needed = |row: &&Sysctl| is_needed(row.key.starts_with("net/ipv6/"));
    for row in desired.sysctls.iter().filter(needed) {
        // A device that does not exist yet will have the values of `default`.
        let key = match row.link().filter(|link| desired.links.contains_key(*link)) {
            Some(link) if read_sysctl(&row.key).is_none() => {
                row.key.replacen(&format!("/{link}/"), "/default/", 1)
            }
            _ => row.key.clone(),
        };
        let is_right = match read_sysctl(&key) {
            Some(value) => value == row.value,
            None => !row.required,
        };
        if !is_right && let Err(error) = writable(&key) {
            found.push(ReconcileError::Sysctl { name: row.name(), value: row.value.clone(), error });
        }
    }
    Ok(found)
}

fn writable(key: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(sysctl_path(key)).map(drop)
}
