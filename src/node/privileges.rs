//! The privileges that the daemon needs.

use super::error::NodeError;
use crate::sys::Capabilities;

/// Whether this process may do what the daemon has to do.
pub(super) fn check(capabilities: &Capabilities) -> Result<(), NodeError> {
    if !capabilities.net_admin {
        return Err(NodeError::Environment{code:"no_net_admin",text:
            "this process lacks CAP_NET_ADMIN, which the overlay device and its routes need: run it as root, \
             or with AmbientCapabilities=CAP_NET_ADMIN as in configs/hopsack.service"
                .into(),
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
