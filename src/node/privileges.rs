//! The privileges that the configured parts of the daemon need: checked, and all others given up.

use std::io;

use super::error::NodeError;
use crate::config::Config;
use crate::fastpath;
use crate::sys::{Capabilities, Part, may_mount, missing, restrict};

/// Does what only a privileged process can do: mounts the bpffs in which the kernel fast path is
/// pinned, if there is none. If it cannot, the status says why there is no fast path.
pub(super) fn prepare(config: &Config) {
    if config.dataplane.fast_path {
        let _ = fastpath::prepare(&config.node.bpf_dir());
    }
}

/// Whether [`prepare`] can do it. To be asked before [`take`].
pub(super) fn can_prepare(config: &Config) -> Result<(), String> {
    match fastpath::is_prepared(&config.node.bpf_dir()) {
        Err(error) if !may_mount() => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Checks that this process may do what the daemon has to do, and gives up everything else.
pub(super) fn take(config: &Config) -> Result<Capabilities, NodeError> {
    let parts = parts(config);
    // Without it the fast path is off, and the status says why. Nothing else depends on it.
    let optional = config.dataplane.fast_path.then_some(Part::FastPath);
    let kept: Vec<Part> = parts.iter().copied().chain(optional).collect();
    restrict(&kept).map_err(|error: io::Error| NodeError::Environment {
        code: "privileges_kept",
        text: format!("cannot give up privileges that the daemon does not need: {error}"),
    })?;
    let capabilities = Capabilities::probe();
    check(&capabilities, &parts)?;
    Ok(capabilities)
}

/// Parts of the daemon that this configuration uses.
pub(super) fn parts(config: &Config) -> Vec<Part> {
    /// Ports below this one need a capability (ip_unprivileged_port_start, ip-sysctl.rst).
    const FIRST_FREE_PORT: u16 = 1024;
    let metrics = config.metrics.map(|address| address.port());
    let ports = [Some(config.overlay.port), config.security.port, metrics];
    let mut parts = vec![Part::Control, Part::Internet, Part::Overlay, Part::Ring];
    if ports.into_iter().flatten().any(|port| (1..FIRST_FREE_PORT).contains(&port)) {
        parts.push(Part::LowPort);
    }
    if config.dataplane.realtime {
        parts.push(Part::Realtime);
    }
    parts
}

fn check(capabilities: &Capabilities, parts: &[Part]) -> Result<(), NodeError> {
    if let Some(missing) = missing(parts) {
        let name = &missing.capability;
        return Err(NodeError::Environment {
            code: missing.code,
            text: format!(
                "this process lacks {name}, which {} needs: run it as root, or with AmbientCapabilities={name} \
                 as in configs/hopsack.service",
                missing.purpose
            ),
        });
    }
    capabilities.tun.as_ref().map_err(|error| {
        let fix =
            "load the module (modprobe tun); in a container, give it the device (--device /dev/net/tun)";
        NodeError::Environment {
            code: "no_tun_device",
            text: format!("cannot open /dev/net/tun: {error}; {fix}"),
        }
    })?;
    Ok(())
}
