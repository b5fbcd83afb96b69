//! `subnet.env`: the file that CNI plugins and Docker scripts for Flannel read.
//!
//! Order, names and file mode are Flannel's (pkg/subnet/subnet.go). The file stays when the daemon
//! ends, as Flannel's does: containers may be started before the next daemon runs. A copy in
//! `run_dir` records what we wrote, so that `clean` never removes a file of flanneld's. This module
//! says what both files should hold; the reconciler writes them.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::config::NodeConfig;
use crate::desired::{Desired, File};
use crate::packet::Family;
use crate::route::{Local, Networks};

/// Path of the copy of what we wrote.
pub(super) fn copy(node: &NodeConfig) -> PathBuf {
    node.run_dir.join("subnet.env")
}

/// Both files.
pub(super) fn desired(node: &NodeConfig, networks: &Networks, local: &Local) -> Desired {
    let content = render(networks, local).into_bytes();
    let file = |path: PathBuf| File { path, content: content.clone(), mode: 0o644 };
    let files = [copy(node), node.subnet_env.clone()].into_iter().map(file).collect();
    Desired { files, ..Desired::default() }
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
    // FLANNEL_IPMASQ=true would tell Docker and CNI that the daemon masquerades. This daemon leaves
    // that to them.
    let _ = write!(text, "FLANNEL_MTU={}\nFLANNEL_IPMASQ=false\n", local.mtu);
    text
}

/// The address that follows the base of a subnet: the bridge has it.
fn first_usable(base: IpAddr) -> IpAddr {
    match base {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() | 1).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() | 1).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_what_flannel_writes() {
        let networks = Networks {
            v4: Some(("10.1.0.0/16".parse().unwrap(), 24)),
            v6: Some(("fd00:1::/48".parse().unwrap(), 64)),
        };
        let mut local = Local {
            subnets: vec!["10.1.74.0/24".parse().unwrap(), "fd00:1:0:74::/64".parse().unwrap()],
            nets: Vec::new(),
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
