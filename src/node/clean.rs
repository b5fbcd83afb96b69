//! `hopsack clean`: removes what earlier daemons have left on this host.
//!
//! It removes the kernel fast path and the mount in which it is pinned, devices with our alias (and
//! with them their addresses and routes), a control socket that no daemon answers, and `subnet.env`
//! if we wrote it. It refuses while a daemon runs, and never touches what is not ours.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::error::NodeError;
use super::subnet_env;
use crate::backend::is_own_device;
use crate::config::Config;
use crate::control::{ControlError, running_daemon};
use crate::fastpath::{self, FastPath};
use crate::netlink::Netlink;

/// An object that was found, and whether it was removed.
#[derive(Debug, Clone, Serialize)]
pub struct Cleaned {
    /// The object, in words.
    pub what: String,
    /// Why the object could not be removed. `None`: it was removed, or with `--dry-run` would be.
    pub problem: Option<String>,
}

/// Removes, or with `dry_run` only lists.
pub async fn clean(config: &Config, dry_run: bool) -> Result<Vec<Cleaned>, NodeError> {
    let socket = config.node.control_socket();
    if let Some(process) = running_daemon(&socket) {
        return Err(ControlError::Running { process, path: socket }.into());
    }
    let mut cleaned = Vec::new();
    let mut add = |what: String, problem: Option<String>| cleaned.push(Cleaned { what, problem });
    // Before the devices, to which it sends.
    let directory = config.node.bpf_dir();
    if FastPath::is_left(&directory) {
        let problem = if dry_run { None } else { FastPath::remove(&directory).err().map(|e| e.to_string()) };
        add(format!("kernel fast path, pinned in {}", directory.display()), problem);
    }
    if fastpath::is_mounted(&directory) {
        let problem = if dry_run { None } else { fastpath::unmount(&directory).err().map(|e| e.to_string()) };
        add(format!("mount of a bpffs at {}", directory.display()), problem);
    }
    let netlink = Netlink::new()?;
    let mut gone = Vec::new();
    for link in netlink.links().await?.iter().filter(|link| is_own_device(link)) {
        // The other end of a veth pair went with the first one.
        if gone.contains(&link.index) {
            continue;
        }
        gone.extend(link.peer);
        let problem =
            if dry_run { None } else { netlink.delete(link.index).await.err().map(|e| e.to_string()) };
        add(format!("device {} with its addresses and routes", link.name), problem);
    }
    let copy = subnet_env::copy(&config.node);
    let ours = fs::read(&copy).ok();
    let env_is_ours = ours.is_some() && fs::read(&config.node.subnet_env).ok() == ours;
    let files = [(socket.as_path(), true), (&config.node.subnet_env, env_is_ours), (copy.as_path(), true)];
    for (path, ours) in files {
        if ours && path.exists() {
            add(format!("file {}", path.display()), if dry_run { None } else { remove(path) });
        }
    }
    Ok(cleaned)
}

fn remove(path: &Path) -> Option<String> {
    fs::remove_file(path).err().map(|error| error.to_string())
}
