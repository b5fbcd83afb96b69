//! Network configuration of the cluster: the JSON under `<prefix>/config`, with Flannel's defaults,
//! checks and limits.
//!
//! It says which networks there are and which subnets of them are handed out. It hands out none
//! itself.
//!
//! Invariant: a [`Network`] passed all checks of flanneld, so that a flanneld in the same cluster
//! accepts the same text. The other way round, everything that flanneld accepts is accepted, except
//! an empty range (`SubnetMin` above `SubnetMax`), which flanneld notices only when it looks for a
//! subnet.
//!
//! Sources: flannel-io/flannel `pkg/subnet/config.go`. There, an omitted `Backend` means `udp`,
//! although its documentation says `vxlan`.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Map, Value};

use super::json::field;
use super::pool::Pool;
use crate::route::Networks;

/// The network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// IPv4 subnets, if the overlay has IPv4.
    pub v4: Option<Pool>,
    /// IPv6 subnets, if the overlay has IPv6.
    pub v6: Option<Pool>,
    /// Backend type: `Backend.Type`, or `udp` if it is omitted.
    pub backend: String,
    /// Port of the backend: `Backend.Port`, if it is set.
    pub port: Option<u16>,
}

/// Why a network configuration is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// The text is not a JSON object.
    #[error("it is not a JSON object: {0}")]
    NotAnObject(String),
    /// Both families are off.
    #[error("neither EnableIPv4 nor EnableIPv6 is true: set one of them")]
    NoFamily,
    /// The network of an enabled family is not set.
    #[error("{0} is not set: write \"{0}\": \"{1}\"")]
    Missing(&'static str, &'static str),
    /// A member has a value of the wrong kind.
    #[error("{name} {value} is not {wanted}")]
    WrongKind {
        /// Name of the member.
        name: &'static str,
        /// Its value in JSON.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// The network has no room for subnets.
    #[error("a network of /{0} is too small: write one of /{1} or larger")]
    TooSmall(u8, u8),
    /// The subnet length does not fit the network.
    #[error("{name} {value} does not fit a network of /{network}: write {least} to {most}")]
    SubnetLen {
        /// Name of the member.
        name: &'static str,
        /// Its value.
        value: u64,
        /// Prefix length of the network.
        network: u8,
        /// Shortest length that fits.
        least: u8,
        /// Longest length that fits.
        most: u8,
    },
    /// A bound is outside the network.
    #[error("{name} {address} is not inside {network}: write one that is")]
    BoundOutside {
        /// Name of the member.
        name: String,
        /// Its value.
        address: IpAddr,
        /// The network.
        network: IpNet,
    },
    /// A bound is not the first address of a subnet.
    #[error("{name} {address} is not the first address of a subnet: write {first}")]
    BoundUnaligned {
        /// Name of the member.
        name: String,
        /// Its value.
        address: IpAddr,
        /// First address of that subnet.
        first: IpAddr,
    },
    /// The lower bound is above the upper bound.
    #[error("{0}Min {1} is above {0}Max {2}: exchange them")]
    BoundsReversed(&'static str, IpAddr, IpAddr),
    /// `Backend` is not an object.
    #[error("Backend is not an object: write \"Backend\": {{\"Type\": \"udp\"}}")]
    BackendNotAnObject,
    /// `Backend` has no type.
    #[error("Backend has no Type: write \"Backend\": {{\"Type\": \"udp\"}}")]
    BackendWithoutType,
    /// The port of the backend is not a port.
    #[error("Backend.Port {0} is not a port: write 1 to 65535")]
    BackendPort(String),
}

impl Network {
    /// Reads and checks the configuration.
    pub fn parse(text: &str) -> Result<Self, NetworkError> {
        let json: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| NetworkError::NotAnObject(error.to_string()))?;
        let v4 = if flag(&json, "EnableIPv4", true)? { Some(v4_pool(&json)?) } else { None };
        let v6 = if flag(&json, "EnableIPv6", false)? { Some(v6_pool(&json)?) } else { None };
        if v4.is_none() && v6.is_none() {
            return Err(NetworkError::NoFamily);
        }
        let (backend, port) = backend(&json)?;
        Ok(Self { v4, v6, backend, port })
    }

    /// The pools that exist, IPv4 first.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.v4.iter().chain(&self.v6)
    }

    /// The address space, as routes know it.
    #[must_use]
    pub fn networks(&self) -> Networks {
        let mut networks = Networks::default();
        for pool in self.pools() {
            match pool.network() {
                IpNet::V4(net) => networks.v4 = Some((net, pool.subnet_len())),
                IpNet::V6(net) => networks.v6 = Some((net, pool.subnet_len())),
            }
        }
        networks
    }

    /// Whether this configuration hands out a lease of `subnets`.
    #[must_use]
    pub fn fits(&self, subnets: &[IpNet]) -> bool {
        let pools: Vec<&Pool> = self.pools().collect();
        pools.len() == subnets.len() && pools.iter().zip(subnets).all(|(pool, subnet)| pool.fits(*subnet))
    }

    /// Chooses a lease that overlaps no other: in each family one of the first hundred free
    /// subnets, by `random`. The error is the network that is full.
    pub fn choose(&self, taken: &[IpNet], mut random: impl FnMut() -> u64) -> Result<Vec<IpNet>, IpNet> {
        self.pools()
            .map(|pool| {
                let free = pool.free(taken);
                let count = u64::try_from(free.len()).unwrap_or(u64::MAX);
                let index = random().checked_rem(count).and_then(|index| usize::try_from(index).ok());
                index.map(|index| free[index]).ok_or(pool.network())
            })
            .collect()
    }
}

fn v4_pool(json: &Map<String, Value>) -> Result<Pool, NetworkError> {
    let net: Ipv4Net = parsed(json, "Network", "an IPv4 prefix such as \"10.1.0.0/16\"")?
        .ok_or(NetworkError::Missing("Network", "10.1.0.0/16"))?;
    let (min, max) = (bound::<Ipv4Addr>(json, "SubnetMin")?, bound::<Ipv4Addr>(json, "SubnetMax")?);
    let len = subnet_len(json, "SubnetLen", net.prefix_len(), 22, 24, 30)?;
    pool(IpNet::V4(net.trunc()), len, "Subnet", min.map(IpAddr::V4), max.map(IpAddr::V4))
}

fn v6_pool(json: &Map<String, Value>) -> Result<Pool, NetworkError> {
    let net: Ipv6Net = parsed(json, "IPv6Network", "an IPv6 prefix such as \"fd00:1::/48\"")?
        .ok_or(NetworkError::Missing("IPv6Network", "fd00:1::/48"))?;
    let (min, max) = (bound::<Ipv6Addr>(json, "IPv6SubnetMin")?, bound(json, "IPv6SubnetMax")?);
    let len = subnet_len(json, "IPv6SubnetLen", net.prefix_len(), 62, 64, 126)?;
    pool(IpNet::V6(net.trunc()), len, "IPv6Subnet", min.map(IpAddr::V6), max.map(IpAddr::V6))
}

/// The subnet length: as it is set, or `usual` in a network of at most /`wide`, or two bits more
/// than a smaller network. A network has at least four subnets, because the first is left out. A
/// subnet has room for a device, a bridge and two more addresses.
fn subnet_len(
    json: &Map<String, Value>,
    name: &'static str,
    network: u8,
    wide: u8,
    usual: u8,
    most: u8,
) -> Result<u8, NetworkError> {
    let value = match field(json, name) {
        None | Some(Value::Null) => 0,
        Some(value) => value.as_u64().ok_or_else(|| NetworkError::WrongKind {
            name,
            value: value.to_string(),
            wanted: "a whole number",
        })?,
    };
    if network + 2 > most {
        return Err(NetworkError::TooSmall(network, most - 2));
    }
    let least = network + 2;
    match u8::try_from(value) {
        Ok(0) => Ok(if network <= wide { usual } else { least }),
        Ok(len) if (least..=most).contains(&len) => Ok(len),
        _ => Err(NetworkError::SubnetLen { name, value, network, least, most }),
    }
}

fn pool(
    network: IpNet,
    len: u8,
    name: &'static str,
    min: Option<IpAddr>,
    max: Option<IpAddr>,
) -> Result<Pool, NetworkError> {
    let whole = Pool::whole(network, len);
    let (min, max) = (min.unwrap_or(whole.min()), max.unwrap_or(whole.max()));
    for (end, address) in [("Min", min), ("Max", max)] {
        let name = format!("{name}{end}");
        let subnet = IpNet::new(address, len).ok().filter(|_| network.contains(&address));
        match subnet.map(|subnet| subnet.network()) {
            Some(first) if first == address => {}
            Some(first) => return Err(NetworkError::BoundUnaligned { name, address, first }),
            None => return Err(NetworkError::BoundOutside { name, address, network }),
        }
    }
    if min > max {
        return Err(NetworkError::BoundsReversed(name, min, max));
    }
    Ok(whole.between(min, max))
}

fn backend(json: &Map<String, Value>) -> Result<(String, Option<u16>), NetworkError> {
    let Some(backend) = field(json, "Backend") else { return Ok(("udp".into(), None)) };
    let backend = backend.as_object().ok_or(NetworkError::BackendNotAnObject)?;
    let kind = match field(backend, "Type") {
        Some(Value::String(kind)) if !kind.is_empty() => kind.clone(),
        _ => return Err(NetworkError::BackendWithoutType),
    };
    let port = match field(backend, "Port") {
        None | Some(Value::Null) => None,
        Some(port) => match port.as_u64().and_then(|port| u16::try_from(port).ok()) {
            // For vxlan, 0 means the kernel's default.
            Some(0) if kind != "udp" => None,
            Some(port) if port > 0 => Some(port),
            _ => return Err(NetworkError::BackendPort(port.to_string())),
        },
    };
    Ok((kind, port))
}

fn flag(json: &Map<String, Value>, name: &'static str, default: bool) -> Result<bool, NetworkError> {
    match field(json, name) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => {
            Err(NetworkError::WrongKind { name, value: other.to_string(), wanted: "true or false" })
        }
    }
}

fn parsed<T: std::str::FromStr>(
    json: &Map<String, Value>,
    name: &'static str,
    wanted: &'static str,
) -> Result<Option<T>, NetworkError> {
    let wrong = |value: &Value| NetworkError::WrongKind { name, value: value.to_string(), wanted };
    match field(json, name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let parsed = value.as_str().and_then(|text| text.parse().ok());
            parsed.map(Some).ok_or_else(|| wrong(value))
        }
    }
}

/// A bound. As in flanneld, the zero address means that there is none.
fn bound<T: std::str::FromStr + Into<IpAddr> + Copy>(
    json: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<T>, NetworkError> {
    let bound: Option<T> = parsed(json, name, "an address")?;
    Ok(bound.filter(|address| !(*address).into().is_unspecified()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid(text: &str) -> Network {
        Network::parse(text).expect(text)
    }

    fn bounds(pool: Option<Pool>) -> (String, u8, String, String) {
        let pool = pool.expect("a pool");
        let text = |address: IpAddr| address.to_string();
        (pool.network().to_string(), pool.subnet_len(), text(pool.min()), text(pool.max()))
    }

    #[test]
    fn defaults_are_those_of_flannel() {
        let network = valid(r#"{"Network": "10.1.2.3/16"}"#);
        assert_eq!(
            bounds(network.v4),
            ("10.1.0.0/16".into(), 24, "10.1.1.0".into(), "10.1.255.0".into()),
            "the first subnet is left out"
        );
        assert_eq!((network.v6, network.backend.as_str(), network.port), (None, "udp", None));
        assert_eq!(bounds(valid(r#"{"Network": "10.1.0.0/23"}"#).v4).1, 25);
        assert_eq!(bounds(valid(r#"{"Network": "10.1.0.0/28"}"#).v4).1, 30);
        let dual = valid(r#"{"network": "10.1.0.0/16", "ENABLEIPV6": true, "IPv6Network": "fd00::/48"}"#);
        assert_eq!(
            bounds(dual.v6),
            ("fd00::/48".into(), 64, "fd00:0:0:1::".into(), "fd00:0:0:ffff::".into())
        );
        let six = valid(r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/63"}"#);
        assert_eq!((six.v4.is_none(), bounds(six.v6).1), (true, 65));
    }

    #[test]
    fn names_ignore_case_and_unknown_names_are_ignored() {
        let network = valid(
            r#"{"NETWORK": "10.0.0.0/8", "subnetlen": 20, "SubnetMin": "10.10.0.0", "subnetMAX": "10.99.0.0",
                "Later": {"x": 1}, "backend": {"type": "udp", "PORT": 7890, "MTU": 1}}"#,
        );
        assert_eq!(bounds(network.v4), ("10.0.0.0/8".into(), 20, "10.10.0.0".into(), "10.99.0.0".into()));
        assert_eq!(network.port, Some(7890));
        let vxlan = valid(r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "Port": 0}}"#);
        assert_eq!((vxlan.backend.as_str(), vxlan.port), ("vxlan", None));
    }

    #[test]
    fn configuration_that_flanneld_refuses_is_refused() {
        use NetworkError as E;
        let refused = |text: &str| Network::parse(text).expect_err(text);
        for text in ["", "[]"] {
            assert!(matches!(refused(text), E::NotAnObject(_)), "{text}");
        }
        assert_eq!(refused("{}"), E::Missing("Network", "10.1.0.0/16"));
        let six = r#"{"EnableIPv4": false, "EnableIPv6": true}"#;
        assert_eq!(refused(six), E::Missing("IPv6Network", "fd00:1::/48"));
        for (text, wrong) in [
            (r#"{"Network": "10.1.0.0"}"#, "Network"),
            (r#"{"Network": "fd00::/48"}"#, "Network"),
            (r#"{"Network": "10.1.0.0/16", "SubnetLen": "24"}"#, "SubnetLen"),
            (r#"{"EnableIPv4": 1}"#, "EnableIPv4"),
        ] {
            assert!(matches!(refused(text), E::WrongKind { name, .. } if name == wrong), "{text}");
        }
        assert_eq!(refused(r#"{"Network": "10.1.0.0/29"}"#), E::TooSmall(29, 28));
        let six = r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/125"}"#;
        assert_eq!(refused(six), E::TooSmall(125, 124));
        for len in [17, 31] {
            let error = refused(&format!(r#"{{"Network": "10.1.0.0/16", "SubnetLen": {len}}}"#));
            assert!(matches!(error, E::SubnetLen { least: 18, most: 30, .. }), "{error}");
        }
        let with = |bounds: &str| refused(&format!(r#"{{"Network": "10.1.0.0/16", {bounds}}}"#));
        assert!(matches!(with(r#""SubnetMin": "10.2.0.0""#), E::BoundOutside { .. }));
        for text in [r#""SubnetMin": "10.1.5.7""#, r#""SubnetMax": "10.1.5.128""#] {
            let right: IpAddr = [10, 1, 5, 0].into();
            assert!(matches!(with(text), E::BoundUnaligned { first, .. } if first == right), "{text}");
        }
        let reversed = with(r#""SubnetMin": "10.1.9.0", "SubnetMax": "10.1.8.0""#);
        assert!(matches!(reversed, E::BoundsReversed(..)));
        assert_eq!(refused(r#"{"EnableIPv4": false}"#), E::NoFamily);
        assert_eq!(with(r#""Backend": "udp""#), E::BackendNotAnObject);
        assert_eq!(with(r#""Backend": {}"#), E::BackendWithoutType);
        assert_eq!(with(r#""Backend": {"Type": "udp", "Port": 70000}"#), E::BackendPort("70000".into()));
    }

    #[test]
    fn lease_fits_only_inside_the_bounds() {
        let network =
            valid(r#"{"Network": "10.1.0.0/16", "SubnetMin": "10.1.8.0", "SubnetMax": "10.1.9.0"}"#);
        let fits = |text: &str| network.fits(&[text.parse().expect("a prefix")]);
        assert!(fits("10.1.8.0/24") && fits("10.1.9.0/24"));
        assert!(!fits("10.1.7.0/24") && !fits("10.1.10.0/24") && !fits("10.1.8.0/25") && !fits("fd00::/64"));
        assert!(!network.fits(&[]));
    }

    #[test]
    fn full_network_is_reported() {
        let network = valid(r#"{"Network": "10.1.0.0/28"}"#);
        let taken: Vec<IpNet> =
            ["10.1.0.4/30", "10.1.0.8/30"].map(|text| text.parse().expect("net")).to_vec();
        assert_eq!(
            network.choose(&taken, || 7).map(|nets| nets[0].to_string()),
            Ok("10.1.0.12/30".to_owned())
        );
        assert_eq!(
            network.choose(&["10.1.0.0/24".parse().expect("net")], || 7).map_err(|net| net.to_string()),
            Err("10.1.0.0/28".to_owned())
        );
    }
}
