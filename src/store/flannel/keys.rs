//! Keys: where the network configuration and the leases are in etcd.
//!
//! flanneld reads everything under `<prefix>/subnets`, and before v0.28.10 one key there that it
//! cannot parse makes it drop every route (`watchSubnets` in `pkg/subnet/etcd/registry.go`). So
//! nothing is written there except the keys that [`Keys::of`] makes. A lease that flanneld cannot
//! express, one with IPv6 only, is under `<prefix>/overlay`.
//!
//! Invariant: a key has one spelling only. Two keys never mean the same lease (property test
//! `keys_round_trip`).
//!
//! Sources: flannel-io/flannel `pkg/subnet/subnet.go`.
#![forbid(unsafe_code)]

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Layout of the keys under one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// What a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The network configuration.
    Config,
    /// A lease of these subnets, IPv4 first.
    Lease(Vec<IpNet>),
    /// A key that should be a lease and is invalid.
    Invalid(KeyError),
    /// A key with another meaning.
    Other,
}

/// Why a key among the leases is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key begins with `subnets` but is not below `subnets/`. flanneld lists without the slash.
    #[error("flanneld reads this key as a lease: delete it")]
    BesideLeases,
    /// The name of the key is not a subnet.
    #[error("its name is not a subnet such as 10.5.52.0-24: delete it")]
    NotASubnet,
    /// The subnet is spelled differently from Flannel's spelling.
    #[error("Flannel spells this key {0}: delete it")]
    Spelling(String),
}

impl Keys {
    /// The layout under `prefix`, for instance `/coreos.com/network`.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').to_owned() }
    }

    /// Key of the network configuration.
    #[must_use]
    pub fn config(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// Prefix of all keys: one range read and one watch cover everything.
    #[must_use]
    pub fn root(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// Prefix of the leases that flanneld reads. It has no slash at its end, because flanneld lists
    /// and watches so.
    #[must_use]
    pub fn subnets(&self) -> String {
        format!("{}/subnets", self.prefix)
    }

    /// Key at which a node asks whether another node with its id is alive.
    #[must_use]
    pub fn question(&self, id: &str) -> String {
        format!("{}/overlay/alive/{id}", self.prefix)
    }

    /// Key of a lease; `None` for combinations that no cluster has.
    #[must_use]
    pub fn of(&self, subnets: &[IpNet]) -> Option<String> {
        let prefix = &self.prefix;
        match subnets {
            [IpNet::V4(v4)] => Some(format!("{prefix}/subnets/{}-{}", v4.network(), v4.prefix_len())),
            [IpNet::V4(v4), IpNet::V6(v6)] => {
                let v4 = format!("{}-{}", v4.network(), v4.prefix_len());
                Some(format!("{prefix}/subnets/{v4}&{}-{}", v6.network(), v6.prefix_len()))
            }
            [IpNet::V6(v6)] => Some(format!("{prefix}/overlay/subnets/{}-{}", v6.network(), v6.prefix_len())),
            _ => None,
        }
    }

    /// Reads a key. A lease must be spelled as [`Keys::of`] spells it.
    #[must_use]
    pub fn read(&self, key: &str) -> Key {
        let Some(rest) = key.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('/')) else {
            return Key::Other;
        };
        let subnets = if rest == "config" {
            return Key::Config;
        } else if let Some(text) = rest.strip_prefix("subnets/") {
            flannel_subnets(text)
        } else if let Some(text) = rest.strip_prefix("overlay/subnets/") {
            v6_subnet(text).map(|v6| vec![v6])
        } else if rest.starts_with("subnets") {
            return Key::Invalid(KeyError::BesideLeases);
        } else {
            return Key::Other;
        };
        match subnets {
            Some(subnets) if self.of(&subnets).as_deref() == Some(key) => Key::Lease(subnets),
            Some(subnets) => Key::Invalid(KeyError::Spelling(self.of(&subnets).unwrap_or_default())),
            None => Key::Invalid(KeyError::NotASubnet),
        }
    }
}

/// An IPv4 subnet, and an IPv6 subnet behind an `&` if there is one.
fn flannel_subnets(text: &str) -> Option<Vec<IpNet>> {
    let (v4, v6) = text.split_once('&').map_or((text, None), |(v4, v6)| (v4, Some(v6)));
    let (address, len) = v4.rsplit_once('-')?;
    // Flannel reads the length as five bits, that of IPv6 as seven.
    let len = len.parse().ok().filter(|len| *len <= 31)?;
    let v4 = Ipv4Net::new(address.parse().ok()?, len).ok()?;
    let mut subnets = vec![IpNet::V4(v4)];
    if let Some(v6) = v6 {
        subnets.push(v6_subnet(v6)?);
    }
    Some(subnets)
}

fn v6_subnet(text: &str) -> Option<IpNet> {
    let (address, len) = text.rsplit_once('-')?;
    let len = len.parse().ok().filter(|len| *len <= 127)?;
    Ipv6Net::new(address.parse().ok()?, len).ok().map(IpNet::V6)
}
