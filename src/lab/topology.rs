//! Topology of a lab: names, addresses, and the text for `ip` and for the daemons. Pure: it runs
//! nothing.
//!
//! ```text
//!   hs-LAB-net        br0 ---- h1 ---- h2 ---- ...            the underlay, one Ethernet
//!                     192.0.2.250 or 2001:db8:64::fa          etcd, if used; more members: .251
//!                               |       |
//!   hs-LAB-h1         eth0 -----+      ...                    192.0.2.1 or 2001:db8:64::1
//!                     cni0 10.244.1.1, fd00:244:0:1::1        a bridge, as container runtimes do
//!                      +- pod
//!                          |
//!   hs-LAB-p1         eth0 10.244.1.2, fd00:244:0:1::2        the pod
//! ```
//!
//! Underlay addresses come from the ranges that are reserved for documentation (RFC 5737, RFC
//! 3849). Pod addresses come from Flannel's usual network. Each address contains the number of its
//! host. An IPv6 address contains the decimal digits of the number (host 10 has `::10`), so it is
//! easy to read.
//!
//! Invariant: every interface is in a namespace of the lab. So two labs never share an interface,
//! and no lab touches the machine's own network.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};

use super::error::LabError;
use super::names::{check_name, namespace};
use super::options::{Options, Store};
use super::site::{EtcdMember, Host, Pod};
use crate::packet::Family;
use crate::quic;

/// Largest number of hosts in a lab. The numbering of addresses ends there.
pub const MAX_HOSTS: u8 = 200;

/// Everything that follows from the [`Options`].
#[derive(Debug, Clone)]
pub(super) struct TopologyPlan {
    pub(super) hosts: Vec<Host>,
    /// Members of etcd; empty if the store is a file.
    pub(super) etcd: Vec<EtcdMember>,
    lab: String,
    mtu: u16,
    extra_config: String,
    directory: PathBuf,
}

impl TopologyPlan {
    pub(super) fn new(options: &Options, directory: &Path) -> Result<Self, LabError> {
        check_name(&options.name)?;
        if !(1..=MAX_HOSTS).contains(&options.hosts) {
            return Err(LabError::Hosts(options.hosts));
        }
        let host = |n: u8| {
            // The decimal digits, read as hexadecimal digits: 10 -> 0x10.
            let digits = u16::from(n / 100) << 8 | u16::from(n / 10 % 10) << 4 | u16::from(n % 10);
            let v6 = |host| Ipv6Addr::new(0xfd00, 0x244, 0, digits, 0, 0, 0, host);
            Host {
                name: format!("h{n}"),
                netns: namespace(&options.name, &format!("h{n}")),
                public: match options.underlay {
                    Family::V4 => Ipv4Addr::new(192, 0, 2, n).into(),
                    Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, digits).into(),
                },
                subnet_v4: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, n, 0), 24),
                subnet_v6: Ipv6Net::new_assert(v6(0), 64),
                directory: directory.join(format!("h{n}")),
                pod: Pod {
                    name: format!("p{n}"),
                    netns: namespace(&options.name, &format!("p{n}")),
                    v4: Ipv4Addr::new(10, 244, n, 2),
                    v6: v6(2),
                },
            }
        };
        let members = match options.store {
            Store::File => 0,
            // Five is the largest size that etcd's authors recommend; more members would also need
            // more addresses than are left.
            Store::Etcd { members } => members.clamp(1, 5),
        };
        let member = |n: u8| EtcdMember {
            name: format!("etcd{n}"),
            netns: namespace(&options.name, "net"),
            // No host has these addresses: their IPv6 form is not made of decimal digits.
            address: match options.underlay {
                Family::V4 => Ipv4Addr::new(192, 0, 2, 249 + n).into(),
                Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 0xf9 + u16::from(n)).into(),
            },
            directory: directory.join(format!("etcd{n}")),
        };
        Ok(Self {
            hosts: (1..=options.hosts).map(host).collect(),
            etcd: (1..=members).map(member).collect(),
            lab: options.name.clone(),
            mtu: options.mtu,
            extra_config: with_fast_path(&options.extra_config, options.fast_path),
            directory: directory.to_owned(),
        })
    }

    /// The namespace of the underlay.
    pub(super) fn underlay(&self) -> String {
        namespace(&self.lab, "net")
    }

    /// Every namespace of the lab.
    pub(super) fn namespaces(&self) -> Vec<String> {
        let sites = self.hosts.iter().flat_map(|host| [host.netns.clone(), host.pod.netns.clone()]);
        std::iter::once(self.underlay()).chain(sites).collect()
    }

    /// MTU of the pods: the underlay's MTU minus the outer IP and UDP headers, and minus the
    /// overhead of encryption if the daemons encrypt.
    pub(super) fn overlay_mtu(&self) -> u16 {
        let v6 = self.hosts.iter().any(|host| host.public.is_ipv6());
        let headers = if v6 { 40 + 8 } else { 20 + 8 };
        self.mtu.saturating_sub(if self.encryption().is_some() {
            headers + quic::OVERHEAD_BYTES
        } else {
            headers
        })
    }

    /// Encryption mode in the daemons' configuration; none if they do not encrypt.
    pub(super) fn encryption(&self) -> Option<String> {
        let config = toml::from_str::<toml::Table>(&self.extra_config).unwrap_or_default();
        let mode = config.get("security").and_then(|security| security.get("mode")?.as_str())?;
        (mode != "none").then(|| mode.to_owned())
    }

    /// `ip` commands for the underlay's namespace: a bridge, and a veth pair to each host.
    pub(super) fn underlay_batch(&self) -> String {
        let mut text = String::from("link set lo up\n") + &BRIDGE.replace("NAME", "br0");
        for EtcdMember { address, .. } in &self.etcd {
            let _ = writeln!(text, "addr add {address}/{} dev br0{}", length(*address), nodad(*address));
        }
        for Host { name, netns, .. } in &self.hosts {
            let mtu = self.mtu;
            let _ =
                writeln!(text, "link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {netns}");
            let _ = writeln!(text, "link set {name} master br0 up");
        }
        text
    }

    /// `ip` commands for a host's namespace: its underlay address, its bridge, and the veth pair to
    /// its pod.
    pub(super) fn host_batch(&self, host: &Host) -> String {
        let Host { public, subnet_v4, subnet_v6, pod, .. } = host;
        let (gateway_v4, gateway_v6) = pod.gateways();
        let (length, mtu) = (length(*public), self.overlay_mtu());
        let mut text = String::from("link set lo up\nlink set eth0 up\n");
        let _ = writeln!(text, "addr add {public}/{length} dev eth0{}", nodad(*public));
        text.push_str(&BRIDGE.replace("NAME", "cni0"));
        let _ = writeln!(text, "addr add {gateway_v4}/{} dev cni0", subnet_v4.prefix_len());
        let _ = writeln!(text, "addr add {gateway_v6}/{} dev cni0 nodad", subnet_v6.prefix_len());
        let netns = &pod.netns;
        let _ = writeln!(text, "link add pod mtu {mtu} type veth peer name eth0 mtu {mtu} netns {netns}");
        text.push_str("link set pod master cni0 up\n");
        text
    }

    /// `ip` commands for a pod's namespace: its addresses and default routes.
    pub(super) fn pod_batch(&self, host: &Host) -> String {
        let Host { subnet_v4, subnet_v6, pod: pod @ Pod { v4, v6, .. }, .. } = host;
        let (gateway_v4, gateway_v6) = pod.gateways();
        format!(
            "link set lo up\nlink set eth0 gso_max_size {POD_GSO_MAX_SIZE} up\n\
             addr add {v4}/{} dev eth0\naddr add {v6}/{} dev eth0 nodad\n\
             route add default via {gateway_v4}\nroute add default via {gateway_v6}\n",
            subnet_v4.prefix_len(),
            subnet_v6.prefix_len(),
        )
    }

    /// Path of the file store, which all daemons read.
    pub(super) fn cluster_path(&self) -> PathBuf {
        self.directory.join("cluster.toml")
    }

    /// Content of the file store. `encryption_lines` has one line for each host, or is empty.
    pub(super) fn cluster_toml(&self, encryption_lines: &[String]) -> String {
        let mut text = String::from(
            "network         = \"10.244.0.0/16\"\nsubnet_len      = 24\n\
             ipv6_network    = \"fd00:244::/48\"\nipv6_subnet_len = 64\n",
        );
        for (number, Host { name, public, subnet_v4, subnet_v6, .. }) in self.hosts.iter().enumerate() {
            let _ = write!(
                text,
                "\n[[hosts]]\nname    = \"{name}\"\npublic  = [\"{public}\"]\n\
                 subnets = [\"{subnet_v4}\", \"{subnet_v6}\"]\n{}",
                encryption_lines.get(number).map_or("", String::as_str),
            );
        }
        text
    }

    /// Network configuration for etcd. It equals the network of the file store.
    pub(super) const NETWORK: &str = r#"{"Network":"10.244.0.0/16","SubnetLen":24,"EnableIPv6":true,"IPv6Network":"fd00:244::/48","IPv6SubnetLen":64,"Backend":{"Type":"udp"}}"#;

    /// Content of `subnet.env`, as an earlier flanneld would have left it. A node takes its
    /// previous subnet if it is free. So each host leases the subnet of this plan, by the same
    /// rules as in production, and pods can have addresses before leases exist.
    pub(super) fn subnet_env(&self, host: &Host) -> String {
        let (v4, v6) = host.pod.gateways();
        let (v4_len, v6_len) = (host.subnet_v4.prefix_len(), host.subnet_v6.prefix_len());
        format!("FLANNEL_SUBNET={v4}/{v4_len}\nFLANNEL_IPV6_SUBNET={v6}/{v6_len}\n")
    }

    /// Configuration file of a host's daemon.
    pub(super) fn hopsack_toml(&self, host: &Host) -> String {
        let (directory, public, name) = (host.directory.display(), host.public, &host.name);
        let store = if self.etcd.is_empty() {
            format!("kind = \"file\"\npath = \"{}\"", self.cluster_path().display())
        } else {
            let urls: Vec<String> = self.etcd.iter().map(|member| format!("{:?}", member.url())).collect();
            format!("kind      = \"etcd\"\nendpoints = [{}]", urls.join(", "))
        };
        format!(
            "[node]\nname       = \"{name}\"\ninterface  = \"eth0\"\npublic_ip  = \"{public}\"\n\
             state_dir  = \"{directory}/state\"\nrun_dir    = \"{directory}/run\"\n\
             subnet_env = \"{directory}/subnet.env\"\n\n\
             [store]\n{store}\n\n\
             [overlay]\ndevice = \"hopsack0\"\nport   = 8285\n\n\
             [metrics]\nlisten = \"127.0.0.1:9285\"\n\n[log]\nfilter = \"info\"\n\n{}",
            self.extra_config,
        )
    }
}

/// Adds the choice of the kernel fast path, unless it is the default.
fn with_fast_path(extra_config: &str, fast_path: bool) -> String {
    const TABLE: &str = "[dataplane]\n";
    const OFF: &str = "fast_path = \"off\"\n";
    if fast_path {
        return extra_config.to_owned();
    }
    if extra_config.contains(TABLE) {
        return extra_config.replacen(TABLE, &format!("{TABLE}{OFF}"), 1);
    }
    format!("{TABLE}{OFF}\n{extra_config}")
}

/// Largest TCP super packet of a pod in bytes. Split into packets of 1,472 bytes, it still fits
/// into the 65,507 bytes of one UDP_SEGMENT send. The kernel's default of 65,536 would need two
/// sends.
const POD_GSO_MAX_SIZE: u32 = 62_000;

/// Multicast snooping is off, so that neighbour discovery works from the first packet. With
/// snooping it would work only after the first MLD query.
const BRIDGE: &str = "link add NAME type bridge mcast_snooping 0\nlink set NAME up\n";

/// Kernel settings of a host, which forwards packets for its pods.
pub(super) const HOST_SYSCTLS: [(&str, &str); 2] =
    [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

/// Kernel settings of every namespace of a lab, written before it gets links. Addresses are usable
/// at once: RFC 4862 would wait one second for a duplicate, which cannot exist here. Router
/// advertisements are ignored.
pub(super) const COMMON_SYSCTLS: [(&str, &str); 4] = [
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
];

/// Prefix length of the underlay's network.
fn length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(hosts: u8, underlay: Family) -> Result<TopologyPlan, LabError> {
        let options = Options { hosts, underlay, ..Options::named("x", "/bin/true") };
        TopologyPlan::new(&options, Path::new("/run/hopsack-lab/x"))
    }

    #[test]
    fn addresses_contain_the_host_number() {
        let plan = plan(200, Family::V6).unwrap();
        let host = &plan.hosts[122];
        assert_eq!(host.netns, "hs-x-h123");
        assert_eq!(host.public.to_string(), "2001:db8:64::123");
        assert_eq!(host.subnet_v6.to_string(), "fd00:244:0:123::/64");
        assert_eq!(host.pod.v4.to_string(), "10.244.123.2");
        assert_eq!(host.pod.v6.to_string(), "fd00:244:0:123::2");
        assert_eq!(plan.overlay_mtu(), 1452);
        assert_eq!(plan.namespaces().len(), 401);
    }

    #[test]
    fn generated_configuration_is_valid_toml() {
        let plan = plan(3, Family::V4).unwrap();
        assert_eq!(plan.overlay_mtu(), 1472);
        let cluster: toml::Table = plan.cluster_toml(&[]).parse().unwrap();
        assert_eq!(cluster["hosts"][1]["subnets"][0].as_str(), Some("10.244.2.0/24"));
        let config: toml::Table = plan.hopsack_toml(&plan.hosts[2]).parse().unwrap();
        assert_eq!(config["node"]["public_ip"].as_str(), Some("192.0.2.3"));
        assert_eq!(config["node"]["run_dir"].as_str(), Some("/run/hopsack-lab/x/h3/run"));
    }

    #[test]
    fn choice_of_the_fast_path_is_added_to_the_table() {
        let of = |extra: &str| with_fast_path(extra, false).parse::<toml::Table>().expect("TOML");
        for extra in ["", "[dataplane]\nengine = \"batch\"\n", "[security]\nmode = \"quic\"\n"] {
            assert_eq!(of(extra)["dataplane"]["fast_path"].as_str(), Some("off"), "{extra}");
            assert_eq!(with_fast_path(extra, true), extra);
        }
    }

    #[test]
    fn etcd_members_get_underlay_addresses() {
        let options = Options { store: Store::Etcd { members: 3 }, ..Options::named("x", "/bin/true") };
        let plan = TopologyPlan::new(&options, Path::new("/run/hopsack-lab/x")).unwrap();
        let config: toml::Table = plan.hopsack_toml(&plan.hosts[0]).parse().unwrap();
        assert_eq!(config["store"]["kind"].as_str(), Some("etcd"));
        assert_eq!(config["store"]["endpoints"][2].as_str(), Some("http://192.0.2.252:2379"));
        assert!(plan.underlay_batch().contains("addr add 192.0.2.250/24 dev br0\n"));
        assert!(plan.subnet_env(&plan.hosts[1]).starts_with("FLANNEL_SUBNET=10.244.2.1/24\n"));
        serde_json::from_str::<serde_json::Value>(TopologyPlan::NETWORK).unwrap();
    }

    #[test]
    fn bad_host_counts_are_refused() {
        assert!(matches!(plan(0, Family::V4), Err(LabError::Hosts(0))));
        assert!(matches!(plan(201, Family::V4), Err(LabError::Hosts(201))));
    }
}
