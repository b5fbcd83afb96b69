//! The text of a cluster file, read and checked.
//!
//! Invariant: a map that was accepted has disjoint subnets inside the networks, and no address
//! twice.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::ops::Range;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use toml::Spanned;

use crate::api::is_name;
use crate::route::{
    Abilities, Announced, Change, Dialect, Fingerprint, Lease, Mode, Networks, Origin, Public, Unfit,
    unfit_in,
};
use crate::store::update::Cluster;

/// The file as a person writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileCluster {
    network: Option<Spanned<String>>,
    subnet_len: Option<Spanned<u8>>,
    ipv6_network: Option<Spanned<String>>,
    ipv6_subnet_len: Option<Spanned<u8>>,
    #[serde(default)]
    hosts: Vec<FileHost>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHost {
    name: Spanned<String>,
    public: Vec<Spanned<String>>,
    subnets: Vec<Spanned<String>>,
    security: Option<Spanned<FileSecurity>>,
}

/// What a lease in etcd would announce about encryption.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSecurity {
    mode: String,
    #[serde(default = "default_quic_port")]
    port: u16,
    /// Fingerprint of the host's certificate. Hosts that trust a CA do not use it.
    fingerprint: Option<String>,
}

fn default_quic_port() -> u16 {
    8286
}

impl FileSecurity {
    fn announced(&self) -> Result<Announced, &'static str> {
        let mode = self.mode.parse().ok().filter(|mode| *mode != Mode::None);
        let mode = mode.ok_or("write mode = \"sealed\" or \"quic\"")?;
        if self.port == 0 {
            return Err("write a port from 1 to 65535");
        }
        // No certificate has this fingerprint.
        let none = || Ok(Fingerprint([0; 32]));
        let wrong = |()| "write the 64 hexadecimal digits that `hopsack pki show` prints as fingerprint";
        let fingerprint = self.fingerprint.as_ref().map_or_else(none, |text| text.parse().map_err(wrong))?;
        Ok(Announced { mode, port: self.port, fingerprint })
    }
}

/// The cluster that a file describes.
///
/// ```toml
/// network         = "10.244.0.0/16"
/// subnet_len      = 24
/// ipv6_network    = "fd00:244::/48"
/// ipv6_subnet_len = 64
///
/// [[hosts]]
/// name     = "alpha"
/// public   = ["192.0.2.1"]                           # at most one address of each family
/// subnets  = ["10.244.1.0/24", "fd00:244:0:1::/64"]
/// security = { mode = "quic", fingerprint = "..." }  # as in the host's own configuration
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Facts about the cluster.
    pub cluster: Cluster,
    /// The hosts in the order of the file, all at revision 0.
    pub leases: Vec<Lease>,
}

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct MapError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub problem: MapProblem,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapProblem {
    /// The text is not TOML, or has an unknown key or a value of the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// The file has no network.
    #[error("neither network nor ipv6_network is set: write network = \"10.244.0.0/16\"")]
    NoNetwork,
    /// The network is too small.
    #[error("a network of /{0} has no room for hosts: write one of /{1} or larger")]
    TooSmall(u8, u8),
    /// The subnet length does not fit the network.
    #[error("a subnet length of {len} does not fit a network of /{network}: write {least} to {most}")]
    SubnetLen {
        /// The length.
        len: u8,
        /// Prefix length of the network.
        network: u8,
        /// Shortest length that fits.
        least: u8,
        /// Longest length that fits.
        most: u8,
    },
    /// A value cannot be parsed.
    #[error("{0:?} is not {1}")]
    WrongKind(String, &'static str),
    /// A prefix has bits behind its length.
    #[error("{0:?} has bits behind its prefix length: write \"{1}\"")]
    HostBits(String, String),
    /// The name of a host is invalid or was used before.
    #[error(
        "the host name {0:?} is not made of letters, digits and -_.:@, or was used before: give each host a name of its own"
    )]
    Name(String),
    /// A host has no address.
    #[error("host {0:?} has no public address: write public = [\"192.0.2.1\"]")]
    NoAddress(String),
    /// A host has no subnet.
    #[error("host {0:?} has no subnet: write subnets = [\"10.244.1.0/24\"]")]
    NoSubnet(String),
    /// The announcement of encryption is wrong.
    #[error("security of host {0:?}: {1}")]
    Security(String, &'static str),
    /// An address cannot be the address of a host.
    #[error("{0} of host {1:?} cannot be the address of a host: {2}")]
    Unfit(IpAddr, String, Unfit),
    /// Two hosts have the same address.
    #[error("hosts {0:?} and {1:?} have the same public address {2}: give each host its own")]
    SharedAddress(String, String, IpAddr),
    /// A host has two addresses of one family.
    #[error("host {0:?} already has {1}: a host has at most one public address of each family")]
    SecondAddress(String, IpAddr),
    /// A subnet is outside the networks.
    #[error("{0} of host {1:?} is not inside the network {2}")]
    OutsideNetwork(IpNet, String, String),
    /// Two subnets overlap.
    #[error("{0} of host {1:?} overlaps {2} of host {3:?}: give each host its own")]
    Overlap(IpNet, String, IpNet, String),
}

impl Map {
    /// Reads the text of a cluster file.
    pub fn parse(text: &str) -> Result<Self, MapError> {
        let file: FileCluster = toml::from_str(text).map_err(|error| {
            let problem = MapProblem::Syntax(error.message().trim().replace('\n', ", "));
            MapError::at(text, (error.span().unwrap_or(0..0), problem))
        })?;
        let networks = networks(&file).map_err(|wrong| MapError::at(text, wrong))?;
        let mut leases: Vec<Lease> = Vec::new();
        let mut taken = Taken::default();
        for host in &file.hosts {
            leases.push(taken.host(host, &networks).map_err(|wrong| MapError::at(text, wrong))?);
        }
        Ok(Self { cluster: Cluster { networks, port: None }, leases })
    }

    /// All leases as one change.
    pub(super) fn snapshot(&self, revision: u64) -> Change {
        let with_revision = |lease: &Lease| Lease { revision, ..lease.clone() };
        Change::Snapshot { leases: self.leases.iter().map(with_revision).collect(), revision }
    }
}

/// A problem and the bytes of the text that have it.
type Wrong = (Range<usize>, MapProblem);

impl MapError {
    fn at(text: &str, (span, problem): Wrong) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Self { line, column, problem }
    }
}

fn networks(file: &FileCluster) -> Result<Networks, Wrong> {
    if file.network.is_none() && file.ipv6_network.is_none() {
        return Err((0..0, MapProblem::NoNetwork));
    }
    let v4 = match &file.network {
        None => None,
        Some(text) => {
            let net: Ipv4Net = parse(text, "an IPv4 prefix such as \"10.244.0.0/16\"")?;
            // Flannel's default: /24, or two bits more than a small network.
            let default = if net.prefix_len() <= 22 { 24 } else { net.prefix_len() + 2 };
            let len = subnet_len(file.subnet_len.as_ref(), default, net.prefix_len(), 30)?;
            without_host_bits(text, net == net.trunc(), net.trunc())?;
            Some((net, len))
        }
    };
    let v6 = match &file.ipv6_network {
        None => None,
        Some(text) => {
            let net: Ipv6Net = parse(text, "an IPv6 prefix such as \"fd00:244::/48\"")?;
            let default = if net.prefix_len() <= 62 { 64 } else { net.prefix_len() + 2 };
            let len = subnet_len(file.ipv6_subnet_len.as_ref(), default, net.prefix_len(), 126)?;
            without_host_bits(text, net == net.trunc(), net.trunc())?;
            Some((net, len))
        }
    };
    Ok(Networks { v4, v6 })
}

fn subnet_len(written: Option<&Spanned<u8>>, default: u8, network: u8, most: u8) -> Result<u8, Wrong> {
    let (len, span) = written.map_or((default, 0..0), |len| (*len.get_ref(), len.span()));
    let least = network + 2;
    if (least..=most).contains(&len) {
        return Ok(len);
    }
    let problem = if least > most {
        MapProblem::TooSmall(network, most - 2)
    } else {
        MapProblem::SubnetLen { len, network, least, most }
    };
    Err((span, problem))
}

/// What the hosts before have taken.
#[derive(Default)]
struct Taken {
    names: Vec<String>,
    addresses: Vec<(IpAddr, String)>,
    subnets: Vec<(IpNet, String)>,
}

impl Taken {
    fn host(&mut self, host: &FileHost, networks: &Networks) -> Result<Lease, Wrong> {
        let name = host.name.get_ref().clone();
        let wrong = |problem: fn(String) -> MapProblem| (host.name.span(), problem(name.clone()));
        if !is_name(&name) || self.names.contains(&name) {
            return Err(wrong(MapProblem::Name));
        }
        let mut public = Public::default();
        for text in &host.public {
            self.address(text, (&name, networks), &mut public)?;
        }
        if public == Public::default() {
            return Err(wrong(MapProblem::NoAddress));
        }
        let mut subnets = Vec::new();
        for text in &host.subnets {
            subnets.push(self.subnet(text, &name, networks)?);
        }
        if subnets.is_empty() {
            return Err(wrong(MapProblem::NoSubnet));
        }
        self.names.push(name.clone());
        // Every host in the file runs hopsack: no flanneld reads it.
        let secure = host.security.as_ref().map(|security| {
            let announced = security.get_ref().announced();
            announced.map_err(|fix| (security.span(), MapProblem::Security(name.clone(), fix)))
        });
        let abilities = Abilities { secure: secure.transpose()?, is_assumed: true, ..Abilities::OURS };
        // The names differ, so they can stand for the nodes' ids and for the keys.
        let origin =
            Origin { key: name.clone(), node: Some(name.clone()), created: 0, has_invalid_name: false };
        Ok(Lease { name, subnets, public, dialect: Dialect::Hopsack(abilities), revision: 0, origin })
    }

    fn address(
        &mut self,
        text: &Spanned<String>,
        (host, networks): (&str, &Networks),
        public: &mut Public,
    ) -> Result<(), Wrong> {
        let address: IpAddr = parse(text, "an IPv4 or IPv6 address, without prefix length")?;
        let host = host.to_owned();
        if let Some(why) = unfit_in(networks, address) {
            return Err((text.span(), MapProblem::Unfit(address, host, why)));
        }
        if let Some((_, other)) = self.addresses.iter().find(|(known, _)| *known == address) {
            return Err((text.span(), MapProblem::SharedAddress(other.clone(), host, address)));
        }
        let before = match address {
            IpAddr::V4(v4) => public.v4.replace(v4).map(IpAddr::V4),
            IpAddr::V6(v6) => public.v6.replace(v6).map(IpAddr::V6),
        };
        if let Some(before) = before {
            return Err((text.span(), MapProblem::SecondAddress(host, before)));
        }
        self.addresses.push((address, host));
        Ok(())
    }

    fn subnet(&mut self, text: &Spanned<String>, host: &str, networks: &Networks) -> Result<IpNet, Wrong> {
        let net: IpNet = parse(text, "a prefix such as \"10.244.1.0/24\"")?;
        let host = host.to_owned();
        without_host_bits(text, net == net.trunc(), net.trunc())?;
        if !networks.iter().any(|network| network.contains(&net) && network != net) {
            let known: Vec<_> = networks.iter().map(|network| network.to_string()).collect();
            return Err((text.span(), MapProblem::OutsideNetwork(net, host, known.join(" or "))));
        }
        let overlaps = |(known, _): &&(IpNet, String)| known.contains(&net) || net.contains(known);
        if let Some((known, other)) = self.subnets.iter().find(overlaps) {
            return Err((text.span(), MapProblem::Overlap(net, host, *known, other.clone())));
        }
        self.subnets.push((net, host));
        Ok(net)
    }
}

fn parse<T: std::str::FromStr>(text: &Spanned<String>, wanted: &'static str) -> Result<T, Wrong> {
    let wrong = |_| (text.span(), MapProblem::WrongKind(text.get_ref().clone(), wanted));
    text.get_ref().parse().map_err(wrong)
}

fn without_host_bits(
    text: &Spanned<String>,
    is_exact: bool,
    exact: impl std::fmt::Display,
) -> Result<(), Wrong> {
    if is_exact {
        return Ok(());
    }
    Err((text.span(), MapProblem::HostBits(text.get_ref().clone(), exact.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = r#"
network = "10.244.0.0/16"
ipv6_network = "fd00:244::/48"

[[hosts]]
name = "alpha"
public = ["192.0.2.1", "2001:db8::1"]
subnets = ["10.244.1.0/24", "fd00:244:0:1::/64"]

[[hosts]]
name = "beta"
public = ["192.0.2.2"]
subnets = ["10.244.2.0/24"]
"#;

    fn refused(text: &str) -> MapError {
        Map::parse(text).expect_err(text)
    }

    #[test]
    fn valid_file_is_read() {
        let map = Map::parse(VALID).expect("valid");
        assert_eq!(map.cluster.networks.v4.map(|(_, len)| len), Some(24));
        assert_eq!(map.cluster.networks.v6.map(|(_, len)| len), Some(64));
        assert_eq!(map.leases.len(), 2);
        assert_eq!(map.leases[0].public.v6, Some("2001:db8::1".parse().expect("an address")));
    }

    #[test]
    fn wrong_file_is_refused_with_line_and_problem() {
        use MapProblem as P;

        type Case = (&'static str, &'static str, usize, fn(&MapProblem) -> bool);
        let cases: [Case; 13] = [
            ("192.0.2.2", "10.244.9.9", 12, |p| matches!(p, P::Unfit(_, _, Unfit::InOverlay(_)))),
            ("192.0.2.2", "127.0.0.1", 12, |p| matches!(p, P::Unfit(_, _, Unfit::Loopback))),
            (
                "10.244.2.0/24",
                "10.244.1.128/25",
                13,
                |p| matches!(p, P::Overlap(_, _, _, host) if host == "alpha"),
            ),
            ("192.0.2.2", "192.0.2.1", 12, |p| matches!(p, P::SharedAddress(..))),
            ("10.244.2.0/24", "10.244.2.0/33", 13, |p| matches!(p, P::WrongKind(..))),
            (
                "10.244.2.0/24",
                "10.244.2.1/24",
                13,
                |p| matches!(p, P::HostBits(_, right) if right == "10.244.2.0/24"),
            ),
            ("10.244.2.0/24", "10.245.2.0/24", 13, |p| matches!(p, P::OutsideNetwork(..))),
            ("10.244.0.0/16", "10.244.0.0", 2, |p| matches!(p, P::WrongKind(..))),
            ("\"beta\"", "\"alpha\"", 11, |p| matches!(p, P::Name(_))),
            ("\"192.0.2.2\"", "", 11, |p| matches!(p, P::NoAddress(_))),
            ("\"192.0.2.2\"", "\"192.0.2.2\", \"192.0.2.3\"", 12, |p| matches!(p, P::SecondAddress(..))),
            (
                "network = \"10",
                "netwrok = \"10",
                2,
                |p| matches!(p, P::Syntax(text) if text.contains("netwrok")),
            ),
            ("name = \"beta\"", "name = beta", 11, |p| matches!(p, P::Syntax(_))),
        ];
        for (from, to, line, is_expected) in cases {
            let error = refused(&VALID.replacen(from, to, 1));
            assert!(error.line == line && is_expected(&error.problem), "{from} -> {to}: {error:?}");
            assert!(!error.to_string().contains('\n'), "one line: {error}");
        }
        assert_eq!(refused("").problem, P::NoNetwork);
        let len = refused("network = \"10.0.0.0/16\"\nsubnet_len = 17");
        assert!(matches!(len.problem, P::SubnetLen { least: 18, most: 30, .. }), "{len}");
    }

    #[test]
    fn column_points_at_the_value() {
        let error = refused(&VALID.replacen("10.244.2.0/24", "10.244.2.0/33", 1));
        assert_eq!((error.line, error.column), (13, 12));
    }
}
