//! A static cluster in a TOML file: the store for those who have no etcd, and for tests.
//!
//! The file is looked at every half second and taken when it changed. A bad edit is refused with line and column, and
//! the last good map stays in force. It does not hand out subnets: every host's are written in the file.
//!
//! Invariant: a map that is in force has disjoint subnets inside the networks, and no address twice.
//!
//! ```toml
//! network         = "10.244.0.0/16"
//! subnet_len      = 24
//! ipv6_network    = "fd00:244::/48"
//! ipv6_subnet_len = 64
//!
//! [[hosts]]
//! name    = "alpha"
//! public  = ["192.0.2.1"]                                   # at most one of each family
//! subnets = ["10.244.1.0/24", "fd00:244:0:1::/64"]
//! security = { mode = "quic", fingerprint = "..." }           # as the host's own configuration has it
//! ```
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use toml::Spanned;

use super::error::{ErrorCode, StoreError};
use super::update::{Cluster, Opened, Update};
use crate::route::{Abilities, Announced, Change, Dialect, Fingerprint, Lease, Mode, Networks, Public};

/// How often the file is looked at (one `stat`).
const INTERVAL: Duration = Duration::from_millis(500);

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

/// What an etcd lease would announce.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSecurity {
    mode: String,
    #[serde(default = "default_quic_port")]
    port: u16,
    /// Of no meaning for hosts that know a CA.
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
        // None that a certificate could have.
        let none = || Ok(Fingerprint([0; 32]));
        let bad = |()| "write the 64 hexadecimal digits that `hopsack pki show` prints as fingerprint";
        let fingerprint = self.fingerprint.as_ref().map_or_else(none, |text| text.parse().map_err(bad))?;
        Ok(Announced { mode, port: self.port, fingerprint })
    }
}

/// The file as the cluster that it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// The networks.
    pub cluster: Cluster,
    /// The hosts, in the order of the file, all at revision 0.
    pub leases: Vec<Lease>,
}

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct MapError {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// One sentence, with the mend.
    pub problem: String,
}

impl Map {
    /// Reads the text of a cluster file.
    pub fn parse(text: &str) -> Result<Self, MapError> {
        let file: FileCluster = toml::from_str(text).map_err(|error| {
            MapError::at(text, error.span().unwrap_or(0..0), error.message().trim().replace('\n', ", "))
        })?;
        let fail = |span: Range<usize>, problem: String| MapError::at(text, span, problem);
        let networks = networks(&file).map_err(|(span, problem)| fail(span, problem))?;
        let mut leases: Vec<Lease> = Vec::new();
        let mut taken = Taken::default();
        for host in &file.hosts {
            let lease = taken.host(host, &networks).map_err(|(span, problem)| fail(span, problem))?;
            leases.push(lease);
        }
        Ok(Self { cluster: Cluster { networks, port: None }, leases })
    }

    fn snapshot(&self, revision: u64) -> Change {
        let with_revision = |lease: &Lease| Lease { revision, ..lease.clone() };
        Change::Snapshot { leases: self.leases.iter().map(with_revision).collect(), revision }
    }
}

impl MapError {
    fn at(text: &str, span: Range<usize>, problem: String) -> Self {
        let (line, column) = place(text, span.start);
        Self { line, column, problem }
    }
}

/// Line and column of a byte offset, both from 1.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

type Problem = (Range<usize>, String);

fn networks(file: &FileCluster) -> Result<Networks, Problem> {
    if file.network.is_none() && file.ipv6_network.is_none() {
        return Err((
            0..0,
            "neither network nor ipv6_network is set: write network = \"10.244.0.0/16\"".into(),
        ));
    }
    let v4 = match &file.network {
        None => None,
        Some(text) => {
            let net: Ipv4Net = parse(text, "an IPv4 prefix such as \"10.244.0.0/16\"")?;
            // Flannel's default: /24, or two bits more than a small network.
            let default = if net.prefix_len() <= 22 { 24 } else { net.prefix_len() + 2 };
            let len = subnet_len(file.subnet_len.as_ref(), default, net.prefix_len(), 30)?;
            exact(text, net.trunc() == net, net.trunc())?;
            Some((net, len))
        }
    };
    let v6 = match &file.ipv6_network {
        None => None,
        Some(text) => {
            let net: Ipv6Net = parse(text, "an IPv6 prefix such as \"fd00:244::/48\"")?;
            let default = if net.prefix_len() <= 62 { 64 } else { net.prefix_len() + 2 };
            let len = subnet_len(file.ipv6_subnet_len.as_ref(), default, net.prefix_len(), 126)?;
            exact(text, net.trunc() == net, net.trunc())?;
            Some((net, len))
        }
    };
    Ok(Networks { v4, v6 })
}

fn subnet_len(said: Option<&Spanned<u8>>, default: u8, network: u8, most: u8) -> Result<u8, Problem> {
    let (len, span) = said.map_or((default, 0..0), |said| (*said.get_ref(), said.span()));
    if (network + 2..=most).contains(&len) {
        return Ok(len);
    }
    let problem = if network + 2 > most {
        format!("a network of /{network} has no room for hosts: write one of /{} or larger", most - 2)
    } else {
        format!(
            "a subnet length of {len} does not fit a network of /{network}: write {} to {most}",
            network + 2
        )
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
    fn host(&mut self, host: &FileHost, networks: &Networks) -> Result<Lease, Problem> {
        let name = host.name.get_ref().clone();
        if name.is_empty() || self.names.contains(&name) {
            let problem =
                format!("a host named {name:?} is there already, or the name is empty: give each its own");
            return Err((host.name.span(), problem));
        }
        let mut public = Public::default();
        for text in &host.public {
            self.address(text, &name, &mut public)?;
        }
        if public == Public::default() {
            return Err((
                host.name.span(),
                format!("host {name:?} has no public address: write public = [\"192.0.2.1\"]"),
            ));
        }
        let mut subnets = Vec::new();
        for text in &host.subnets {
            subnets.push(self.subnet(text, &name, networks)?);
        }
        if subnets.is_empty() {
            return Err((
                host.name.span(),
                format!("host {name:?} has no subnet: write subnets = [\"10.244.1.0/24\"]"),
            ));
        }
        self.names.push(name.clone());
        // Who is in the file runs hopsack: no flanneld reads it.
        let secure = host.security.as_ref().map(|said| {
            said.get_ref()
                .announced()
                .map_err(|problem| (said.span(), format!("security of host {name:?}: {problem}")))
        });
        let abilities = Abilities { secure: secure.transpose()?, ..Abilities::OURS };
        Ok(Lease { name, subnets, public, dialect: Dialect::Hopsack(abilities), revision: 0 })
    }

    fn address(&mut self, text: &Spanned<String>, host: &str, public: &mut Public) -> Result<(), Problem> {
        let address: IpAddr = parse(text, "an IPv4 or IPv6 address, without prefix length")?;
        if address.is_unspecified() || address.is_multicast() {
            return Err((text.span(), format!("{address} is no address of one host")));
        }
        if let Some((_, other)) = self.addresses.iter().find(|(known, _)| *known == address) {
            let problem = format!(
                "hosts {other:?} and {host:?} have the same public address {address}: give each its own"
            );
            return Err((text.span(), problem));
        }
        let before = match address {
            IpAddr::V4(v4) => public.v4.replace(v4).map(IpAddr::V4),
            IpAddr::V6(v6) => public.v6.replace(v6).map(IpAddr::V6),
        };
        if let Some(before) = before {
            let problem = format!(
                "host {host:?} has {before} already: a host has at most one public address of each family"
            );
            return Err((text.span(), problem));
        }
        self.addresses.push((address, host.to_owned()));
        Ok(())
    }

    fn subnet(&mut self, text: &Spanned<String>, host: &str, networks: &Networks) -> Result<IpNet, Problem> {
        let net: IpNet = parse(text, "a prefix such as \"10.244.1.0/24\"")?;
        exact(text, net.trunc() == net, net.trunc())?;
        if !networks.iter().any(|network| network.contains(&net) && network != net) {
            let known: Vec<_> = networks.iter().map(|network| network.to_string()).collect();
            let problem = format!("{net} of host {host:?} is not inside the network {}", known.join(" or "));
            return Err((text.span(), problem));
        }
        let overlap = |(known, _): &&(IpNet, String)| known.contains(&net) || net.contains(known);
        if let Some((known, other)) = self.subnets.iter().find(overlap) {
            let problem =
                format!("{net} of host {host:?} overlaps {known} of host {other:?}: give each its own");
            return Err((text.span(), problem));
        }
        self.subnets.push((net, host.to_owned()));
        Ok(net)
    }
}

fn parse<T: std::str::FromStr>(text: &Spanned<String>, wanted: &str) -> Result<T, Problem> {
    text.get_ref().parse().map_err(|_| (text.span(), format!("{:?} is not {wanted}", text.get_ref())))
}

fn exact(text: &Spanned<String>, exact: bool, trunc: impl std::fmt::Display) -> Result<(), Problem> {
    if exact {
        return Ok(());
    }
    Err((text.span(), format!("{:?} has bits behind its prefix length: write \"{trunc}\"", text.get_ref())))
}

/// The open file.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    own: Lease,
    cluster: Cluster,
    revision: u64,
    /// Identity, size and time of what was read last; `None` forces a look.
    seen: Option<Stamp>,
    in_trouble: bool,
}

/// (device, inode, size, modification time): an editor that writes in place and one that renames both change it.
type Stamp = (u64, u64, u64, i64, i64);

impl FileStore {
    /// Reads `path`, and finds in it the host that is reached at the first of `addresses` that is listed.
    pub fn open(path: &Path, addresses: &[IpAddr]) -> Result<(Self, Opened), StoreError> {
        let seen = stamp(path);
        let text = std::fs::read_to_string(path).map_err(|error| {
            let problem = format!("cannot read the cluster file {}: {error}; ", path.display());
            StoreError::new(
                ErrorCode::FileUnreadable,
                problem + "write it (see configs/cluster.toml), or name another with store.path",
            )
        })?;
        let map = Map::parse(&text)
            .map_err(|e| StoreError::new(ErrorCode::FileInvalid, format!("{}: {e}", path.display())))?;
        let own = addresses.iter().find_map(|address| {
            map.leases.iter().find(|lease| lease.public.iter().any(|known| known == *address)).cloned()
        });
        let Some(own) = own else {
            let ours: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            return Err(StoreError::new(
                ErrorCode::HostNotListed,
                format!(
                    "{} lists no host with this host's address {}: add it under [[hosts]], or set node.public_ip",
                    path.display(),
                    ours.join(" or "),
                ),
            ));
        };
        let opened = Opened { cluster: map.cluster.clone(), lease: own.clone(), snapshot: map.snapshot(1) };
        let cluster = map.cluster;
        let store = Self { path: path.to_owned(), own, cluster, revision: 1, seen, in_trouble: false };
        Ok((store, opened))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file says that this host is reached at `address`.
    #[must_use]
    pub fn admits(&self, address: IpAddr) -> bool {
        self.own.public.iter().any(|listed| listed == address)
    }

    /// Makes the next [`FileStore::next`] read the file, changed or not.
    pub fn reload(&mut self) {
        self.seen = None;
    }

    /// Waits until the file has changed, and says what it brought.
    pub async fn next(&mut self) -> Update {
        loop {
            let now = stamp(&self.path);
            if now != self.seen || now.is_none() && !self.in_trouble {
                self.seen = now;
                if let Some(update) = self.read() {
                    return update;
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    fn read(&mut self) -> Option<Update> {
        let good = std::fs::read_to_string(&self.path)
            .map_err(|error| format!("cannot read {}: {error}", self.path.display()))
            .and_then(|text| Map::parse(&text).map_err(|error| format!("{}: {error}", self.path.display())))
            .and_then(|map| self.accept(map));
        match good {
            Ok(snapshot) => {
                self.in_trouble = false;
                Some(Update::Change(snapshot, Instant::now()))
            }
            Err(problem) => {
                self.in_trouble = true;
                Some(Update::Trouble(problem))
            }
        }
    }

    /// What a running node cannot follow is refused like a bad edit.
    fn accept(&mut self, map: Map) -> Result<Change, String> {
        let path = self.path.display();
        if map.cluster != self.cluster {
            return Err(format!(
                "{path}: the networks or subnet lengths changed: restart hopsack on every host for that"
            ));
        }
        let same = |lease: &&Lease| lease.name == self.own.name && lease.subnets == self.own.subnets;
        let Some(own) = map.leases.iter().find(same) else {
            let name = &self.own.name;
            return Err(format!(
                "{path}: the entry of this host ({name:?}) is gone, or its subnets changed: restart hopsack for that"
            ));
        };
        self.own = own.clone();
        self.revision += 1;
        Ok(map.snapshot(self.revision))
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
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

    fn refused(text: &str) -> String {
        Map::parse(text).expect_err("a bad file").to_string()
    }

    #[test]
    fn a_good_file() {
        let map = Map::parse(GOOD).expect("good");
        assert_eq!(map.cluster.networks.v4.map(|(_, len)| len), Some(24));
        assert_eq!(map.cluster.networks.v6.map(|(_, len)| len), Some(64));
        assert_eq!(map.leases.len(), 2);
        assert_eq!(map.leases[0].public.v6, Some("2001:db8::1".parse().expect("an address")));
    }

    #[test]
    fn bad_files_are_refused_with_their_place() {
        for (from, to, place, says) in [
            (
                "10.244.2.0/24",
                "10.244.1.128/25",
                "line 13, column 12",
                "overlaps 10.244.1.0/24 of host \"alpha\"",
            ),
            ("192.0.2.2", "192.0.2.1", "line 12, column 11", "same public address 192.0.2.1"),
            ("10.244.2.0/24", "10.244.2.0/33", "line 13, column 12", "is not a prefix"),
            ("10.244.2.0/24", "10.244.2.1/24", "line 13", "write \"10.244.2.0/24\""),
            ("10.244.2.0/24", "10.245.2.0/24", "line 13", "not inside the network 10.244.0.0/16"),
            ("10.244.0.0/16", "10.244.0.0", "line 2, column 11", "an IPv4 prefix"),
            ("\"beta\"", "\"alpha\"", "line 11", "named \"alpha\""),
            ("\"192.0.2.2\"", "", "line 11", "no public address"),
            (
                "\"192.0.2.2\"",
                "\"192.0.2.2\", \"192.0.2.3\"",
                "line 12",
                "at most one public address of each family",
            ),
            ("network = \"10", "netwrok = \"10", "line 2, column 1", "netwrok"),
            ("name = \"beta\"", "name = beta", "line 11", ""),
        ] {
            let text = GOOD.replacen(from, to, 1);
            let error = refused(&text);
            assert!(error.starts_with(place) && error.contains(says), "{from} -> {to}: {error}");
            assert!(!error.contains('\n'), "one sentence: {error}");
        }
        assert!(refused("").contains("write network"));
        assert!(refused("network = \"10.0.0.0/16\"\nsubnet_len = 17").contains("write 18 to 30"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_edit_leaves_the_last_good_map_in_force() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("cluster.toml");
        std::fs::write(&path, GOOD).expect("written");
        let addresses = ["192.0.2.9".parse().expect("an address"), "192.0.2.2".parse().expect("an address")];
        let (mut store, opened) = FileStore::open(&path, &addresses).expect("good");
        assert_eq!(opened.lease.name, "beta");

        std::fs::write(&path, GOOD.replace("10.244.1.0/24", "10.244.1.0/240")).expect("written");
        let Update::Trouble(problem) = store.next().await else { panic!("a bad edit was taken") };
        assert!(problem.contains("line 8, column 12"), "{problem}");

        std::fs::write(&path, GOOD.replace("beta", "gamma")).expect("written");
        let Update::Trouble(problem) = store.next().await else { panic!("our own entry is gone") };
        assert!(problem.contains("restart"), "{problem}");

        std::fs::write(&path, GOOD.replace("10.244.1.0/24", "10.244.9.0/24")).expect("written");
        let Update::Change(Change::Snapshot { leases, revision }, _) = store.next().await else {
            panic!("refused")
        };
        assert_eq!((leases[0].subnets[0].to_string(), revision), ("10.244.9.0/24".to_owned(), 2));

        std::fs::remove_file(&path).expect("removed");
        assert!(matches!(store.next().await, Update::Trouble(_)));
    }

    #[test]
    fn a_host_that_is_not_listed_says_so() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("cluster.toml");
        std::fs::write(&path, GOOD).expect("written");
        let error =
            FileStore::open(&path, &["192.0.2.77".parse().expect("an address")]).expect_err("not listed");
        assert!(error.to_string().contains("lists no host with this host's address 192.0.2.77"), "{error}");
    }
}
