//! `subnet.env`: what CNI plugins and Docker scripts that know Flannel read.
//!
//! Order, names and file mode are Flannel's (pkg/subnet/subnet.go). It stays when the daemon ends, as Flannel's does:
//! containers may be started before the next daemon is up. A copy in `run_dir` remembers what we wrote, so that `clean`
//! never removes a file of flanneld's.
//!
//! Invariant: a reader sees the whole old file or the whole new one.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::NodeError;
use crate::config;
use crate::packet::Family;
use crate::route::{Local, Networks};

/// Where we remember what we wrote.
pub(super) fn copy(node: &config::Node) -> PathBuf {
    node.run_dir.join("subnet.env")
}

/// Writes the file.
pub(super) fn write(node: &config::Node, networks: &Networks, local: &Local) -> Result<(), NodeError> {
    let text = render(networks, local);
    for path in [&copy(node), &node.subnet_env] {
        replace(path, &text).map_err(|error| {
            let path = path.display();
            NodeError::Environment(format!(
                "cannot write {path}: {error}; make its folder writable, or set node.subnet_env"
            ))
        })?;
    }
    Ok(())
}

fn render(networks: &Networks, local: &Local) -> String {
    let mut text = String::new();
    let first = |family: Family| local.subnets.iter().find(|net| Family::of(net.addr()) == family);
    for (prefix, network, family) in [
        ("FLANNEL", networks.v4.map(|(net, _)| IpNet::V4(net)), Family::V4),
        ("FLANNEL_IPV6", networks.v6.map(|(net, _)| IpNet::V6(net)), Family::V6),
    ] {
        if let (Some(network), Some(subnet)) = (network, first(family)) {
            let gateway = first_usable(subnet.network());
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{prefix}_NETWORK={network}");
            let _ = writeln!(text, "{prefix}_SUBNET={gateway}/{}", subnet.prefix_len());
        }
    }
    // FLANNEL_IPMASQ=true would tell Docker and CNI that the daemon masquerades; this one leaves it to them.
    let _ = write!(text, "FLANNEL_MTU={}\nFLANNEL_IPMASQ=false\n", local.mtu);
    text
}

/// The address behind the base: the bridge's.
fn first_usable(base: IpAddr) -> IpAddr {
    match base {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() | 1).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() | 1).into()),
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_flannel_writes_it() {
        let networks = Networks {
            v4: Some(("10.1.0.0/16".parse().unwrap(), 24)),
            v6: Some(("fd00:1::/48".parse().unwrap(), 64)),
        };
        let mut local = Local {
            subnets: vec!["10.1.74.0/24".parse().unwrap(), "fd00:1:0:74::/64".parse().unwrap()],
            public: [192, 0, 2, 1].into(),
            port: 8285,
            mtu: 1472,
            policy: crate::route::Policy::default(),
        };
        assert_eq!(
            render(&networks, &local),
            "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_IPV6_NETWORK=fd00:1::/48\n\
             FLANNEL_IPV6_SUBNET=fd00:1:0:74::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
        );
        local.subnets.remove(1);
        assert!(!render(&networks, &local).contains("IPV6"));
    }
}
