//! The plan of a lab: names, addresses, and the text that `ip` and the daemons are given. Pure: nothing is run here.
//!
//! ```text
//!   hs-LAB-net        br0 ---- h1 ---- h2 ---- ...            the underlay, one Ethernet
//!                     192.0.2.250 or 2001:db8:64::fa          etcd, if that is the store; further members .251 ...
//!                               |       |
//!   hs-LAB-h1         eth0 -----+      ...                    192.0.2.1 or 2001:db8:64::1
//!                     cni0 10.244.1.1, fd00:244:0:1::1        a bridge, as container runtimes make it
//!                      +- pod
//!                          |
//!   hs-LAB-p1         eth0 10.244.1.2, fd00:244:0:1::2        the pod
//! ```
//!
//! Addresses are those that documentation reserves (RFC 5737, RFC 3849) and Flannel's customary network; the number of a
//! host is in all of them. In IPv6 it is written with the same digits, so host 10 has `::10`, for the reader's sake.
//!
//! Invariant: every interface lives in a namespace of the lab, so two labs never meet, and neither meets the machine.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};

use super::etcd::Member;
use super::{LabError, Options, Store};
use crate::packet::Family;
use crate::quic;

/// The most hosts that the numbering has room for.
pub const MAX_HOSTS: u8 = 200;

/// A host of the lab: a namespace with an underlay address, a daemon, and one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// `h1`, `h2`, ...
    pub name: String,
    /// Its network namespace, as `ip netns` knows it.
    pub netns: String,
    /// Its address on the underlay.
    pub public: IpAddr,
    /// The IPv4 subnet of its pods.
    pub subnet_v4: Ipv4Net,
    /// The IPv6 subnet of its pods.
    pub subnet_v6: Ipv6Net,
    /// Where its files are: `hopsack.toml`, `run/`, `state/`, `subnet.env`, `log`.
    pub directory: PathBuf,
    pub(super) pod: Pod,
}

/// The pod of a host: what the overlay is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// `p1`, `p2`, ...; the number is its host's.
    pub name: String,
    /// Its network namespace, as `ip netns` knows it.
    pub netns: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Pod {
    /// The address of one family.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

/// All that follows from the options.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) hosts: Vec<Host>,
    /// The members of etcd; none if the store is a file.
    pub(super) etcd: Vec<Member>,
    lab: String,
    mtu: u16,
    extra_config: String,
    directory: PathBuf,
}

impl Plan {
    pub(super) fn new(options: &Options, directory: &Path) -> Result<Self, LabError> {
        check_name(&options.name)?;
        if !(1..=MAX_HOSTS).contains(&options.hosts) {
            return Err(LabError::Hosts(options.hosts));
        }
        let host = |n: u8| {
            // The decimal digits read as hexadecimal ones: 10 -> 0x10.
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
            // Five is the most that etcd's authors advise, and what is left of the addresses.
            Store::Etcd { members } => members.clamp(1, 5),
        };
        let member = |n: u8| Member {
            name: format!("etcd{n}"),
            netns: namespace(&options.name, "net"),
            // No host has these: in IPv6 they are no decimal digits.
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
            extra_config: options.extra_config.clone(),
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

    /// What a pod may send in one packet: the underlay's MTU less the outer IP and UDP headers, and less what encryption
    /// takes if the daemons are told to encrypt.
    pub(super) fn overlay_mtu(&self) -> u16 {
        let v6 = self.hosts.iter().any(|host| host.public.is_ipv6());
        let headers = if v6 { 40 + 8 } else { 20 + 8 };
        self.mtu.saturating_sub(if self.encryption().is_some() { headers + quic::OVERHEAD } else { headers })
    }

    /// How the daemons are told to encrypt.
    pub(super) fn encryption(&self) -> Option<String> {
        let said = toml::from_str::<toml::Table>(&self.extra_config).unwrap_or_default();
        let mode = said.get("security").and_then(|security| security.get("mode")?.as_str())?;
        (mode != "none").then(|| mode.to_owned())
    }

    /// The batch for the underlay's namespace: a bridge, and a cable to each host.
    pub(super) fn underlay_batch(&self) -> String {
        let mut text = String::from("link set lo up\n") + &BRIDGE.replace("NAME", "br0");
        for Member { address, .. } in &self.etcd {
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

    /// The batch for a host's namespace: its end of the cable, its bridge, its pod's cable.
    pub(super) fn host_batch(&self, host: &Host) -> String {
        let Host { public, subnet_v4, subnet_v6, pod, .. } = host;
        let (gateway_v4, gateway_v6) = gateways(pod);
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

    /// The batch for a pod's namespace.
    pub(super) fn pod_batch(&self, host: &Host) -> String {
        let Host { subnet_v4, subnet_v6, pod: pod @ Pod { v4, v6, .. }, .. } = host;
        let (gateway_v4, gateway_v6) = gateways(pod);
        format!(
            "link set lo up\nlink set eth0 gso_max_size {POD_GSO_MAX_SIZE} up\n\
             addr add {v4}/{} dev eth0\naddr add {v6}/{} dev eth0 nodad\n\
             route add default via {gateway_v4}\nroute add default via {gateway_v6}\n",
            subnet_v4.prefix_len(),
            subnet_v6.prefix_len(),
        )
    }

    /// Where the cluster is described, for all daemons.
    pub(super) fn cluster_path(&self) -> PathBuf {
        self.directory.join("cluster.toml")
    }

    /// The file store's content.
    /// `announced`: a line for each host about its encryption, or none.
    pub(super) fn cluster_toml(&self, announced: &[String]) -> String {
        let mut text = String::from(
            "network         = \"10.244.0.0/16\"\nsubnet_len      = 24\n\
             ipv6_network    = \"fd00:244::/48\"\nipv6_subnet_len = 64\n",
        );
        for (number, Host { name, public, subnet_v4, subnet_v6, .. }) in self.hosts.iter().enumerate() {
            let _ = write!(
                text,
                "\n[[hosts]]\nname    = \"{name}\"\npublic  = [\"{public}\"]\n\
                 subnets = [\"{subnet_v4}\", \"{subnet_v6}\"]\n{}",
                announced.get(number).map_or("", String::as_str),
            );
        }
        text
    }

    /// The network configuration for etcd: the same as the file store's.
    pub(super) const NETWORK: &str = r#"{"Network":"10.244.0.0/16","SubnetLen":24,"EnableIPv6":true,"IPv6Network":"fd00:244::/48","IPv6SubnetLen":64,"Backend":{"Type":"udp"}}"#;

    /// What a flanneld before us would have left. A node takes its previous subnet if that is free, so hosts that lease
    /// get the subnets of the plan, by the rules that hold in production, and pods have addresses before there are leases.
    pub(super) fn subnet_env(&self, host: &Host) -> String {
        let (v4, v6) = gateways(&host.pod);
        let (v4_len, v6_len) = (host.subnet_v4.prefix_len(), host.subnet_v6.prefix_len());
        format!("FLANNEL_SUBNET={v4}/{v4_len}\nFLANNEL_IPV6_SUBNET={v6}/{v6_len}\n")
    }

    /// A daemon's configuration.
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

/// Bytes of a pod's largest TCP super packet: cut into packets of 1,472 bytes, it still fits the 65,507 bytes of one
/// UDP_SEGMENT send, where the kernel's 65,536 would take two (DATAPLANE.md §4.2).
const POD_GSO_MAX_SIZE: u32 = 62_000;

/// Without multicast snooping, neighbour discovery works from the first packet, not from the first MLD query on.
const BRIDGE: &str = "link add NAME type bridge mcast_snooping 0\nlink set NAME up\n";

/// Kernel settings of a host: it forwards for its pods.
pub(super) const HOST_SYSCTLS: [(&str, &str); 2] =
    [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

/// Kernel settings of every namespace of a lab, before it gets links: addresses are usable at once (RFC 4862 would have
/// them wait a second for a duplicate that cannot exist), and nobody waits for a router's advertisement.
pub(super) const COMMON_SYSCTLS: [(&str, &str); 4] = [
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
];

/// The name of a namespace: `site` is `net`, `h1`, `p1`, ...
pub(super) fn namespace(lab: &str, site: &str) -> String {
    format!("hs-{lab}-{site}")
}

/// The lab that a namespace belongs to, if to any.
pub(super) fn lab_of(namespace: &str) -> Option<&str> {
    let (lab, site) = namespace.strip_prefix("hs-")?.rsplit_once('-')?;
    let numbered = |prefix| {
        let digits = site.strip_prefix(prefix).unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let ours = check_name(lab).is_ok() && (site == "net" || numbered("h") || numbered("p"));
    ours.then_some(lab)
}

/// A name becomes part of namespace names, paths and a unix socket's path, which ends at 107 bytes (`unix(7)`).
pub(super) fn check_name(name: &str) -> Result<(), LabError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let plain = (1..=32).contains(&name.len()) && name.bytes().all(allowed);
    if plain && !name.starts_with('-') { Ok(()) } else { Err(LabError::Name(name.to_owned())) }
}

/// The first usable addresses of the subnets in which a pod has the second.
fn gateways(pod: &Pod) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::from_bits(pod.v4.to_bits() - 1), Ipv6Addr::from_bits(pod.v6.to_bits() - 1))
}

/// Of the underlay's network.
fn length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(hosts: u8, underlay: Family) -> Result<Plan, LabError> {
        let options = Options { hosts, underlay, ..Options::named("x", "/bin/true") };
        Plan::new(&options, Path::new("/run/hopsack-lab/x"))
    }

    #[test]
    fn numbers_are_readable_in_every_address() {
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
    fn the_configurations_are_toml() {
        let plan = plan(3, Family::V4).unwrap();
        assert_eq!(plan.overlay_mtu(), 1472);
        let cluster: toml::Table = plan.cluster_toml(&[]).parse().unwrap();
        assert_eq!(cluster["hosts"][1]["subnets"][0].as_str(), Some("10.244.2.0/24"));
        let config: toml::Table = plan.hopsack_toml(&plan.hosts[2]).parse().unwrap();
        assert_eq!(config["node"]["public_ip"].as_str(), Some("192.0.2.3"));
        assert_eq!(config["node"]["run_dir"].as_str(), Some("/run/hopsack-lab/x/h3/run"));
    }

    #[test]
    fn a_lab_with_etcd_has_its_members_beside_the_hosts() {
        let options = Options { store: Store::Etcd { members: 3 }, ..Options::named("x", "/bin/true") };
        let plan = Plan::new(&options, Path::new("/run/hopsack-lab/x")).unwrap();
        let config: toml::Table = plan.hopsack_toml(&plan.hosts[0]).parse().unwrap();
        assert_eq!(config["store"]["kind"].as_str(), Some("etcd"));
        assert_eq!(config["store"]["endpoints"][2].as_str(), Some("http://192.0.2.252:2379"));
        assert!(plan.underlay_batch().contains("addr add 192.0.2.250/24 dev br0\n"));
        assert!(plan.subnet_env(&plan.hosts[1]).starts_with("FLANNEL_SUBNET=10.244.2.1/24\n"));
        serde_json::from_str::<serde_json::Value>(Plan::NETWORK).unwrap();
    }

    #[test]
    fn a_namespace_tells_its_lab() {
        assert_eq!(lab_of("hs-lab-net"), Some("lab"));
        assert_eq!(lab_of("hs-a-h1-h12"), Some("a-h1"));
        assert_eq!(lab_of("hs-a-h1-net"), Some("a-h1"));
        for foreign in ["hs-lab", "hs-lab-h", "hs-lab-h1x", "hs--h1", "cni-1234", "hs-LAB-h1"] {
            assert_eq!(lab_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn bad_names_and_numbers_are_refused() {
        for name in ["", "-x", "Lab", "a/b", "a b", &"x".repeat(33)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(matches!(plan(0, Family::V4), Err(LabError::Hosts(0))));
        assert!(matches!(plan(201, Family::V4), Err(LabError::Hosts(201))));
    }
}
