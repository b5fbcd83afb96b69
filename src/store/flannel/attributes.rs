//! Attributes: the value of a lease, in Flannel's JSON with our fields in `BackendData`.
//!
//! Invariant: a value that is written reads back as the same (property test
//! `attributes_round_trip`).
//!
//! Sources: flannel-io/flannel `pkg/lease/lease.go`.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Map, Value};

use super::json::field;
use crate::api::is_name;
use crate::route::{Abilities, Announced, Dialect, Lease, Mode, Origin, Public, Unfit, unfit};

/// Writer of a lease and abilities of its daemon. This is our part of `BackendData`; flanneld's UDP
/// backend ignores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Node id: it stays the same for the life of an installation. An address is no identity.
    pub id: String,
    /// Name of the node, for people.
    pub name: String,
    /// What the daemon understands besides bare IPv4 packets.
    pub abilities: Abilities,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (node id {})", self.shown_name(), self.id)
    }
}

impl Identity {
    /// The name; the node id if the name is no name of a host.
    #[must_use]
    pub fn shown_name(&self) -> &str {
        if is_name(&self.name) { &self.name } else { &self.id }
    }
}

/// Value of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Addresses at which the host is reached.
    pub public: Public,
    /// Flannel's backend; empty for the UDP backend, which writes none.
    pub backend: String,
    /// Identity of the writer; `None` if hopsack did not write the lease.
    pub identity: Option<Identity>,
    /// Whether the writer announces encryption in a form that this version cannot read. It would
    /// get clear packets if that were ignored.
    pub has_unreadable_security: bool,
}

/// Why a value is not a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttributesError {
    /// The value is not a JSON object.
    #[error("its value is not a JSON object: {0}")]
    NotAnObject(String),
    /// The value names no address.
    #[error("its value names no PublicIP")]
    NoPublicIp,
    /// The address cannot be the address of a host.
    #[error("{0} cannot be the address of a host: {1}")]
    Unfit(IpAddr, Unfit),
    /// A member is not a string.
    #[error("its {0} is not a string")]
    NotAString(&'static str),
    /// A member is not an address.
    #[error("its {0} {1:?} is not an address")]
    NotAnAddress(&'static str, String),
    /// The node id or the backend is not a plain word.
    #[error("its {0} has characters other than letters, digits and -_.:@, or is too long")]
    NotAName(&'static str),
}

/// The members in flanneld's order. `PublicIPv6` is always there, even if it is null; the rest only
/// if it has a value.
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
    #[serde(rename = "LinkMTU", skip_serializing_if = "Option::is_none")]
    link_mtu: Option<u16>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct JsonSecurity {
    mode: &'static str,
    port: u16,
    fingerprint: String,
}

impl Attributes {
    /// The value that a hopsack host writes.
    #[must_use]
    pub fn ours(public: Public, identity: &Identity) -> Self {
        Self {
            public,
            backend: String::new(),
            identity: Some(identity.clone()),
            has_unreadable_security: false,
        }
    }

    /// The value as flanneld would write it. A host without IPv4 address writes 0.0.0.0: flanneld
    /// cannot read a lease without `PublicIP`, nor one where it is null.
    #[must_use]
    pub fn to_json(&self) -> String {
        let json = Json {
            public_ip: self.public.v4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ipv6: self.public.v6,
            backend_type: &self.backend,
            backend_data: self.identity.as_ref().map(|identity| JsonIdentity {
                node_id: &identity.id,
                name: &identity.name,
                abilities: ability_names(identity.abilities),
                security: identity.abilities.secure.map(|announced| JsonSecurity {
                    mode: announced.mode.word(),
                    port: announced.port,
                    fingerprint: announced.fingerprint.to_string(),
                }),
                link_mtu: identity.abilities.link_mtu,
            }),
        };
        serde_json::to_string(&json).expect("strings and addresses are plain JSON")
    }

    /// Reads the value of a lease. Names match without regard to case and unknown names are
    /// ignored, as in Go.
    pub fn parse(value: &[u8]) -> Result<Self, AttributesError> {
        let object: Map<String, Value> =
            serde_json::from_slice(value).map_err(|error| AttributesError::NotAnObject(error.to_string()))?;
        let v4 = address::<Ipv4Addr>(&object, "PublicIP")?.filter(|v4| !v4.is_unspecified());
        let v6 = address::<Ipv6Addr>(&object, "PublicIPv6")?.filter(|v6| !v6.is_unspecified());
        let public = Public { v4, v6 };
        if public == Public::default() {
            return Err(AttributesError::NoPublicIp);
        }
        if let Some((address, why)) = public.iter().find_map(|address| Some((address, unfit(address)?))) {
            return Err(AttributesError::Unfit(address, why));
        }
        let backend = match field(&object, "BackendType") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(backend)) if backend.is_empty() || is_name(backend) => backend.clone(),
            Some(Value::String(_)) => return Err(AttributesError::NotAName("BackendType")),
            Some(_) => return Err(AttributesError::NotAString("BackendType")),
        };
        let data = field(&object, "BackendData").and_then(Value::as_object);
        // As elsewhere in Go's JSON, null is the same as no member.
        let announced = data.and_then(|data| field(data, "Security")).filter(|value| !value.is_null());
        let announced = announced.map(security);
        let mut identity = data.map(identity).transpose()?.flatten();
        let secure = announced.flatten();
        // Without a node id the announcement belongs to no daemon that this version knows.
        let has_unreadable_security = announced.is_some() && (secure.is_none() || identity.is_none());
        if let Some(identity) = &mut identity {
            identity.abilities.secure = secure;
        }
        Ok(Self { public, backend, identity, has_unreadable_security })
    }

    /// The lease of `subnets` with these attributes. A host without a name is called by its
    /// address.
    #[must_use]
    pub fn lease(&self, subnets: &[IpNet], revision: u64) -> Lease {
        let address = self.first_address();
        let (name, dialect) = match &self.identity {
            _ if !matches!(self.backend.as_str(), "" | "udp") => {
                (address, Dialect::Other(self.backend.clone()))
            }
            Some(identity) if self.has_unreadable_security => {
                (identity.shown_name().to_owned(), Dialect::Unreadable)
            }
            Some(identity) => (identity.shown_name().to_owned(), Dialect::Hopsack(identity.abilities)),
            None if self.has_unreadable_security => (address, Dialect::Unreadable),
            None => (address, Dialect::Flannel),
        };
        let node = self.identity.as_ref().map(|identity| identity.id.clone());
        let has_invalid_name = self.identity.as_ref().is_some_and(|identity| !is_name(&identity.name));
        let origin = Origin { node, has_invalid_name, ..Origin::default() };
        Lease { name, subnets: subnets.to_vec(), public: self.public, dialect, revision, origin }
    }

    /// Name, id and address of the writer, for a sentence to the operator.
    #[must_use]
    pub fn writer(&self) -> String {
        let address = self.first_address();
        match &self.identity {
            Some(identity) => format!("{identity} at {address}"),
            None => format!("flanneld at {address}"),
        }
    }

    fn first_address(&self) -> String {
        self.public.iter().next().map(|address| address.to_string()).unwrap_or_default()
    }
}

/// The field of an ability.
type AbilityField = fn(&mut Abilities) -> &mut bool;
/// Names of the abilities in a lease. Unknown names are from a later version and are ignored.
const ABILITIES: [(&str, AbilityField); 6] = [
    ("ipv6", |abilities| &mut abilities.ipv6),
    ("control", |abilities| &mut abilities.control),
    ("bundles", |abilities| &mut abilities.bundles),
    ("sealed", |abilities| &mut abilities.sealed),
    ("ecn", |abilities| &mut abilities.ecn),
    ("fast", |abilities| &mut abilities.fast),
];

fn ability_names(mut abilities: Abilities) -> Vec<&'static str> {
    ABILITIES.iter().filter(|(_, field)| *field(&mut abilities)).map(|(name, _)| *name).collect()
}

fn identity(data: &Map<String, Value>) -> Result<Option<Identity>, AttributesError> {
    let text = |name| field(data, name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let Some(id) = text("NodeID") else { return Ok(None) };
    if !is_name(id) {
        return Err(AttributesError::NotAName("NodeID"));
    }
    let mut abilities = Abilities::default();
    let names = field(data, "Abilities").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (name, ability) in ABILITIES {
        *ability(&mut abilities) = names.iter().any(|value| value.as_str() == Some(name));
    }
    abilities.link_mtu = field(data, "LinkMTU").and_then(link_mtu);
    Ok(Some(Identity { id: id.to_owned(), name: text("Name").unwrap_or(id).to_owned(), abilities }))
}

/// An MTU that is not possible is ignored, as if none were announced.
fn link_mtu(value: &Value) -> Option<u16> {
    /// Every host takes IPv4 packets of this length (RFC 791).
    const SMALLEST: u64 = 576;
    let mtu = value.as_u64().filter(|mtu| *mtu >= SMALLEST)?;
    Some(u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// What a host announces about its encryption; `None` if another version of hopsack wrote it.
fn security(value: &Value) -> Option<Announced> {
    let object = value.as_object()?;
    let text = |name| field(object, name).and_then(Value::as_str);
    let mode = text("Mode").and_then(|mode| mode.parse().ok()).filter(|mode| *mode != Mode::None)?;
    let port = field(object, "Port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    let fingerprint = text("Fingerprint").and_then(|print| print.parse().ok())?;
    Some(Announced { mode, port: port.filter(|port| *port > 0)?, fingerprint })
}

fn address<T: std::str::FromStr>(
    object: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<T>, AttributesError> {
    match field(object, name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => {
            text.parse().map(Some).map_err(|_| AttributesError::NotAnAddress(name, text.clone()))
        }
        Some(_) => Err(AttributesError::NotAString(name)),
    }
}
