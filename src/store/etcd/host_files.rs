//! Small facts that are read from files of this host: its node id, its name, its boot, and
//! Flannel's environment file.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::api::is_name;
use crate::files::replace;

const NODE_ID: &str = "node-id";

/// Id of the current boot: it differs after each reboot. It is empty if the kernel does not tell.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Id of this installation. The first start creates it.
pub(crate) fn node_id(dir: &Path) -> Result<String, String> {
    if let Some(id) = known_node_id(dir)? {
        return Ok(id);
    }
    let path = dir.join(NODE_ID);
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(no_identity(&path))?;
    replace(&path, id.as_bytes(), 0o644).map_err(no_identity(&path))?;
    Ok(id.trim().to_owned())
}

/// Id of this installation; `None` if there was no start yet.
pub(crate) fn known_node_id(dir: &Path) -> Result<Option<String>, String> {
    let path = dir.join(NODE_ID);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim();
            let is_valid = (8..=64).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            if is_valid {
                Ok(Some(id.to_owned()))
            } else {
                Err(format!("{}: the file does not hold a node id: delete it", path.display()))
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(no_identity(&path)(error)),
    }
}

/// The sentence about an error at the file of the id.
fn no_identity(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| {
        format!("{}: {error}: this node cannot keep its identity; set node.state_dir", path.display())
    }
}

/// Subnets in Flannel's environment file, as a lease holds them; `None` if there is no such file or
/// subnet.
pub(crate) fn subnet_env(path: &Path) -> Option<Vec<IpNet>> {
    let text = std::fs::read_to_string(path).ok()?;
    let value = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
    let v4 = value("FLANNEL_SUBNET").and_then(|text| text.parse::<Ipv4Net>().ok());
    let v6 = value("FLANNEL_IPV6_SUBNET").and_then(|text| text.parse::<Ipv6Net>().ok());
    // The file holds the first usable address, the lease the network.
    let v4 = v4.map(|net| IpNet::V4(net.trunc()));
    let subnets: Vec<IpNet> = v4.into_iter().chain(v6.map(|net| IpNet::V6(net.trunc()))).collect();
    (!subnets.is_empty()).then_some(subnets)
}

/// The kernel's host name, or the first address if there is no valid one.
pub(crate) fn host_name(addresses: &[IpAddr]) -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        name if !is_name(name) => addresses.first().map(ToString::to_string).unwrap_or_default(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_keeps_its_id() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = dir.path().join("new/state");
        let id = node_id(&state).expect("created");
        assert_eq!(node_id(&state), Ok(id));
        std::fs::write(state.join(NODE_ID), "two words").expect("written");
        assert!(node_id(&state).is_err());
    }

    #[test]
    fn flannel_environment_file_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("subnet.env");
        assert_eq!(subnet_env(&path), None);
        std::fs::write(&path, "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\n")
            .expect("written");
        assert_eq!(subnet_env(&path), Some(vec!["10.1.74.0/24".parse().expect("net")]));
    }
}
