//! Flannel's way to write the map down: keys, lease attributes and network configuration, as bytes.
//!
//! Whatever is under `<prefix>/subnets` is read by flanneld too, and one key there that it cannot parse makes it drop
//! every route (`pkg/subnet/etcd/registry.go`, `watchSubnets`). So nothing is written there but what [`Keys::of`] and
//! [`Attributes::to_json`] make; what flanneld cannot express, an IPv6-only lease, lies under `<prefix>/overlay`.
//! Nothing here knows a connection, a clock or chance.
//!
//! Invariant: what is written is read back the same (property tests `keys_round_trip`, `attributes_round_trip`), and a
//! key has one spelling only: two keys never mean one lease.
//!
//! Sources: flannel-io/flannel `pkg/subnet/subnet.go` (keys), `pkg/lease/lease.go` (attributes).
#![forbid(unsafe_code)]

mod network;
mod pool;

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;
use serde_json::{Map, Value};

pub use network::Network;
pub use pool::{FIRST_FREE, Pool};

use crate::route::{Abilities, Announced, Dialect, Lease, Mode, Public};

/// The port of the UDP backend if the cluster's configuration names none (`pkg/backend/udp/udp_amd64.go`).
pub const DEFAULT_PORT: u16 = 8285;

/// Where things lie in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// What a key under the prefix is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The network configuration.
    Config,
    /// A lease of these subnets, IPv4 first.
    Lease(Vec<IpNet>),
    /// Where a lease should be, and none: the reason.
    Bad(String),
    /// Somebody else's business.
    Other,
}

impl Keys {
    /// Keys under `prefix`, for instance `/coreos.com/network`.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').to_owned() }
    }

    /// The network configuration.
    #[must_use]
    pub fn config(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// What all keys begin with: one range read and one watch hold everything.
    #[must_use]
    pub fn root(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// What the keys of leases that flanneld reads begin with: no slash at the end, as flanneld lists and watches.
    #[must_use]
    pub fn subnets(&self) -> String {
        format!("{}/subnets", self.prefix)
    }

    /// Where a node asks whether another with its own id is alive.
    #[must_use]
    pub fn question(&self, id: &str) -> String {
        format!("{}/overlay/alive/{id}", self.prefix)
    }

    /// The key of a lease; `None` for combinations that no cluster has.
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

    /// What a key means. It must be spelt as [`Keys::of`] would spell it.
    #[must_use]
    pub fn read(&self, key: &str) -> Key {
        let Some(rest) = key.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('/')) else {
            return Key::Other;
        };
        let (text, dual) = match (rest.strip_prefix("subnets/"), rest.strip_prefix("overlay/subnets/")) {
            _ if rest == "config" => return Key::Config,
            (Some(text), _) => (text, true),
            (_, Some(text)) => (text, false),
            // flanneld lists without the slash: it reads these as leases, or falls over them.
            _ if rest.starts_with("subnets") => {
                return Key::Bad("flanneld takes it for a lease: delete it".into());
            }
            _ => return Key::Other,
        };
        let subnets = if dual { dual_subnets(text) } else { v6_subnet(text).map(|v6| vec![v6]) };
        match subnets {
            Some(subnets) if self.of(&subnets).as_deref() == Some(key) => Key::Lease(subnets),
            Some(subnets) => {
                let right = self.of(&subnets).unwrap_or_default();
                Key::Bad(format!("it is not spelt as Flannel spells it ({right}): delete it"))
            }
            None => Key::Bad("its name is no subnet such as 10.5.52.0-24: delete it".into()),
        }
    }
}

fn dual_subnets(text: &str) -> Option<Vec<IpNet>> {
    let (v4, v6) = text.split_once('&').map_or((text, None), |(v4, v6)| (v4, Some(v6)));
    let (address, len) = v4.rsplit_once('-')?;
    // Flannel reads the length as five bits, those of IPv6 as seven.
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

/// Who writes a lease, and what its daemon can do: our part of `BackendData`, which flanneld's UDP backend ignores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Stable for the life of an installation; an address is no identity.
    pub id: String,
    /// For people.
    pub name: String,
    /// What the daemon understands besides bare IPv4 packets.
    pub abilities: Abilities,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (node id {})", self.name, self.id)
    }
}

/// What a lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Where the host is reached.
    pub public: Public,
    /// Flannel's backend; empty for the UDP backend, which writes none.
    pub backend: String,
    /// `None`: not written by hopsack.
    pub identity: Option<Identity>,
}

/// In flanneld's order; `PublicIPv6` is there even if null, the rest only if there is something.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Json<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(skip_serializing_if = "str::is_empty")]
    backend_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_data: Option<JsonIdentity<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct JsonIdentity<'a> {
    #[serde(rename = "NodeID")]
    node_id: &'a str,
    name: &'a str,
    abilities: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    security: Option<JsonSecurity>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct JsonSecurity {
    mode: &'static str,
    port: u16,
    fingerprint: String,
}

impl Attributes {
    /// What a hopsack host writes.
    #[must_use]
    pub fn ours(public: Public, identity: &Identity) -> Self {
        Self { public, backend: String::new(), identity: Some(identity.clone()) }
    }

    /// As flanneld would write it. A host without IPv4 address writes 0.0.0.0: flanneld cannot read a lease without
    /// `PublicIP`, nor one where it is null.
    #[must_use]
    pub fn to_json(&self) -> String {
        let json = Json {
            public_ip: self.public.v4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ipv6: self.public.v6,
            backend_type: &self.backend,
            backend_data: self.identity.as_ref().map(|identity| JsonIdentity {
                node_id: &identity.id,
                name: &identity.name,
                abilities: words(identity.abilities),
                security: identity.abilities.secure.map(|announced| JsonSecurity {
                    mode: announced.mode.word(),
                    port: announced.port,
                    fingerprint: announced.fingerprint.to_string(),
                }),
            }),
        };
        serde_json::to_string(&json).expect("strings and addresses are plain JSON")
    }

    /// Reads a lease's value. Names match without regard to case and unknown ones are ignored, as in Go.
    pub fn parse(value: &[u8]) -> Result<Self, String> {
        let object: Map<String, Value> =
            serde_json::from_slice(value).map_err(|error| format!("its value is no JSON object: {error}"))?;
        let v4 = address::<Ipv4Addr>(&object, "PublicIP")?.filter(|v4| !v4.is_unspecified());
        let v6 = address::<Ipv6Addr>(&object, "PublicIPv6")?.filter(|v6| !v6.is_unspecified());
        let public = Public { v4, v6 };
        if public == Public::default() {
            return Err("its value names no PublicIP".into());
        }
        if public.iter().any(|address| address.is_multicast()) {
            return Err("its PublicIP is no address of one host".into());
        }
        let backend = match field(&object, "BackendType") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(backend)) => backend.clone(),
            Some(_) => return Err("its BackendType is no string".into()),
        };
        let data = field(&object, "BackendData").and_then(Value::as_object);
        Ok(Self { public, backend, identity: data.map(identity).transpose()?.flatten() })
    }

    /// The lease that these attributes make of `subnets`. A host without a name goes by its address.
    #[must_use]
    pub fn lease(&self, subnets: &[IpNet], revision: u64) -> Lease {
        let address = self.public.iter().next().map(|address| address.to_string()).unwrap_or_default();
        let (name, dialect) = match &self.identity {
            _ if !matches!(self.backend.as_str(), "" | "udp") => {
                (address, Dialect::Other(self.backend.clone()))
            }
            Some(identity) => (identity.name.clone(), Dialect::Hopsack(identity.abilities)),
            None => (address, Dialect::Flannel),
        };
        Lease { name, subnets: subnets.to_vec(), public: self.public, dialect, revision }
    }

    /// The writer, for a sentence to the operator.
    #[must_use]
    pub fn writer(&self) -> String {
        let address = self.public.iter().next().map(|address| address.to_string()).unwrap_or_default();
        match &self.identity {
            Some(identity) => format!("{identity} at {address}"),
            None => format!("flanneld at {address}"),
        }
    }
}

/// Where an ability is kept.
type Place = fn(&mut Abilities) -> &mut bool;
/// The words for abilities in a lease. Unknown ones are a later version's and are ignored.
const ABILITIES: [(&str, Place); 5] = [
    ("ipv6", |abilities| &mut abilities.ipv6),
    ("control", |abilities| &mut abilities.control),
    ("bundles", |abilities| &mut abilities.bundles),
    ("sealed", |abilities| &mut abilities.sealed),
    ("ecn", |abilities| &mut abilities.ecn),
];

fn words(mut abilities: Abilities) -> Vec<&'static str> {
    ABILITIES.iter().filter(|(_, place)| *place(&mut abilities)).map(|(word, _)| *word).collect()
}

fn identity(data: &Map<String, Value>) -> Result<Option<Identity>, String> {
    let text = |name| field(data, name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let Some(id) = text("NodeID") else { return Ok(None) };
    let mut abilities = Abilities::default();
    let words = field(data, "Abilities").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (word, place) in ABILITIES {
        *place(&mut abilities) = words.iter().any(|said| said.as_str() == Some(word));
    }
    abilities.secure = field(data, "Security").map(security).transpose()?;
    Ok(Some(Identity { id: id.to_owned(), name: text("Name").unwrap_or(id).to_owned(), abilities }))
}

/// What cannot be read makes no lease: its owner wants encryption, and would get clear packets otherwise.
fn security(value: &Value) -> Result<Announced, String> {
    let unreadable = || "its BackendData.Security is of another version of hopsack".to_owned();
    let object = value.as_object().ok_or_else(unreadable)?;
    let text = |name| field(object, name).and_then(Value::as_str);
    let mode = text("Mode").and_then(|mode| mode.parse().ok()).filter(|mode| *mode != Mode::None);
    let port = field(object, "Port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    let fingerprint = text("Fingerprint").and_then(|print| print.parse().ok());
    match (mode, port, fingerprint) {
        (Some(mode), Some(port @ 1..), Some(fingerprint)) => Ok(Announced { mode, port, fingerprint }),
        _ => Err(unreadable()),
    }
}

fn address<T: std::str::FromStr>(object: &Map<String, Value>, name: &str) -> Result<Option<T>, String> {
    match field(object, name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => {
            text.parse().map(Some).map_err(|_| format!("its {name} {text:?} is no address"))
        }
        Some(_) => Err(format!("its {name} is no string")),
    }
}

/// A member by name: the exact spelling first, then any.
fn field<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let folded = || object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    object.get(name).or_else(folded)
}

#[cfg(test)]
mod tests;
