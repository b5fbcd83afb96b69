//! The cluster's network configuration: the JSON under `<prefix>/config`, with Flannel's defaults, checks and limits.
//!
//! It says which networks there are and which subnets of them are handed out; it doesn't hand out any.
//!
//! Invariant: a [`Network`] passed all of flanneld's checks, so a flanneld beside us accepts the same text; the other
//! way round, what flanneld accepts is accepted, but for an empty range (`SubnetMin` above `SubnetMax`), which flanneld
//! finds out only when it looks for a subnet.
//!
//! Sources: flannel-io/flannel `pkg/subnet/config.go`. An omitted `Backend` is `udp` there, whatever its documentation
//! says.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Map, Value};

use super::{Pool, field};
use crate::route::Networks;

/// What is true of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// IPv4 subnets, if the overlay has IPv4.
    pub v4: Option<Pool>,
    /// IPv6 subnets, if the overlay has IPv6.
    pub v6: Option<Pool>,
    /// `Backend.Type`.
    pub backend: String,
    /// `Backend.Port`, if it is said.
    pub port: Option<u16>,
}

impl Network {
    /// Reads and checks the configuration.
    pub fn parse(text: &str) -> Result<Self, String> {
        let json: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| format!("it is no JSON object: {error}"))?;
        let v4 = if flag(&json, "EnableIPv4", true)? { Some(v4_pool(&json)?) } else { None };
        let v6 = if flag(&json, "EnableIPv6", false)? { Some(v6_pool(&json)?) } else { None };
        if v4.is_none() && v6.is_none() {
            return Err("neither EnableIPv4 nor EnableIPv6 is true: set one".into());
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

    /// Whether a lease of `subnets` is one that this configuration hands out.
    #[must_use]
    pub fn fits(&self, subnets: &[IpNet]) -> bool {
        let pools: Vec<&Pool> = self.pools().collect();
        pools.len() == subnets.len() && pools.iter().zip(subnets).all(|(pool, subnet)| pool.fits(*subnet))
    }

    /// A lease that no other overlaps: in each family one of the first hundred free subnets, which one by `random`. The
    /// error is the network that is full.
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

fn v4_pool(json: &Map<String, Value>) -> Result<Pool, String> {
    let net: Ipv4Net = parsed(json, "Network", "an IPv4 prefix such as \"10.1.0.0/16\"")?
        .ok_or("Network is not set: write \"Network\": \"10.1.0.0/16\"")?;
    let (min, max) = (optional::<Ipv4Addr>(json, "SubnetMin")?, optional::<Ipv4Addr>(json, "SubnetMax")?);
    let len = length(json, "SubnetLen", net.prefix_len(), 22, 24, 30)?;
    pool(IpNet::V4(net.trunc()), len, "Subnet", min.map(IpAddr::V4), max.map(IpAddr::V4))
}

fn v6_pool(json: &Map<String, Value>) -> Result<Pool, String> {
    let net: Ipv6Net = parsed(json, "IPv6Network", "an IPv6 prefix such as \"fd00:1::/48\"")?
        .ok_or("IPv6Network is not set: write \"IPv6Network\": \"fd00:1::/48\"")?;
    let (min, max) = (optional::<Ipv6Addr>(json, "IPv6SubnetMin")?, optional(json, "IPv6SubnetMax")?);
    let len = length(json, "IPv6SubnetLen", net.prefix_len(), 62, 64, 126)?;
    pool(IpNet::V6(net.trunc()), len, "IPv6Subnet", min.map(IpAddr::V6), max.map(IpAddr::V6))
}

/// The subnet length: as said, or `usual` in a network of at most /`wide`, or two bits more than a smaller one. A network
/// has at least four subnets, since the first is left out; a subnet has room for a device, a bridge and two more.
fn length(
    json: &Map<String, Value>,
    name: &str,
    network: u8,
    wide: u8,
    usual: u8,
    most: u8,
) -> Result<u8, String> {
    let said = match field(json, name) {
        None | Some(Value::Null) => 0,
        Some(value) => value.as_u64().ok_or_else(|| format!("{name} is no whole number"))?,
    };
    if network + 2 > most {
        return Err(format!("a network of /{network} is too small: write one of /{} or larger", most - 2));
    }
    match u8::try_from(said) {
        Ok(0) => Ok(if network <= wide { usual } else { network + 2 }),
        Ok(len) if (network + 2..=most).contains(&len) => Ok(len),
        _ => {
            let least = network + 2;
            Err(format!("{name} {said} does not fit a network of /{network}: write {least} to {most}"))
        }
    }
}

fn pool(
    network: IpNet,
    len: u8,
    name: &str,
    min: Option<IpAddr>,
    max: Option<IpAddr>,
) -> Result<Pool, String> {
    let whole = Pool::whole(network, len);
    let (min, max) = (min.unwrap_or(whole.min()), max.unwrap_or(whole.max()));
    for (bound, address) in [("Min", min), ("Max", max)] {
        if !network.contains(&address) {
            return Err(format!("{name}{bound} {address} is not inside {network}: write one that is"));
        }
        let subnet = IpNet::new(address, len).map_err(|error| error.to_string())?;
        if subnet.network() != address {
            let right = subnet.network();
            return Err(format!("{name}{bound} {address} is not where a subnet begins: write {right}"));
        }
    }
    if min > max {
        return Err(format!("{name}Min {min} is above {name}Max {max}: exchange them"));
    }
    Ok(whole.between(min, max))
}

fn backend(json: &Map<String, Value>) -> Result<(String, Option<u16>), String> {
    let Some(backend) = field(json, "Backend") else { return Ok(("udp".into(), None)) };
    let Some(backend) = backend.as_object() else {
        return Err("Backend is no object: write \"Backend\": {\"Type\": \"udp\"}".into());
    };
    let kind = match field(backend, "Type") {
        Some(Value::String(kind)) if !kind.is_empty() => kind.clone(),
        _ => return Err("Backend has no Type: write \"Backend\": {\"Type\": \"udp\"}".into()),
    };
    let port = match field(backend, "Port") {
        None | Some(Value::Null) => None,
        Some(port) => match port.as_u64().and_then(|port| u16::try_from(port).ok()) {
            // vxlan: 0 is the kernel's default.
            Some(0) if kind != "udp" => None,
            Some(port) if port > 0 => Some(port),
            _ => return Err(format!("Backend.Port {port} is no port: write 1 to 65535")),
        },
    };
    Ok((kind, port))
}

fn flag(json: &Map<String, Value>, name: &str, default: bool) -> Result<bool, String> {
    match field(json, name) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(format!("{name} is {other}: write true or false")),
    }
}

fn parsed<T: std::str::FromStr>(
    json: &Map<String, Value>,
    name: &str,
    wanted: &str,
) -> Result<Option<T>, String> {
    match field(json, name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => {
            text.parse().map(Some).map_err(|_| format!("{name} {text:?} is not {wanted}"))
        }
        Some(other) => Err(format!("{name} {other} is not {wanted}")),
    }
}

/// A bound; flanneld takes the zero address for none.
fn optional<T: std::str::FromStr + Into<IpAddr> + Copy>(
    json: &Map<String, Value>,
    name: &str,
) -> Result<Option<T>, String> {
    let bound: Option<T> = parsed(json, name, "an address")?;
    Ok(bound.filter(|address| !(*address).into().is_unspecified()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(text: &str) -> Network {
        Network::parse(text).expect(text)
    }

    fn bounds(pool: Option<Pool>) -> (String, u8, String, String) {
        let pool = pool.expect("a pool");
        let text = |address: IpAddr| address.to_string();
        (pool.network().to_string(), pool.subnet_len(), text(pool.min()), text(pool.max()))
    }

    #[test]
    fn defaults_are_flannels() {
        let network = good(r#"{"Network": "10.1.2.3/16"}"#);
        assert_eq!(
            bounds(network.v4),
            ("10.1.0.0/16".into(), 24, "10.1.1.0".into(), "10.1.255.0".into()),
            "the first subnet is left out"
        );
        assert_eq!((network.v6, network.backend.as_str(), network.port), (None, "udp", None));
        assert_eq!(bounds(good(r#"{"Network": "10.1.0.0/23"}"#).v4).1, 25);
        assert_eq!(bounds(good(r#"{"Network": "10.1.0.0/28"}"#).v4).1, 30);
        let dual = good(r#"{"network": "10.1.0.0/16", "ENABLEIPV6": true, "IPv6Network": "fd00::/48"}"#);
        assert_eq!(
            bounds(dual.v6),
            ("fd00::/48".into(), 64, "fd00:0:0:1::".into(), "fd00:0:0:ffff::".into())
        );
        let six = good(r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/63"}"#);
        assert_eq!((six.v4.is_none(), bounds(six.v6).1), (true, 65));
    }

    #[test]
    fn names_match_without_regard_to_case_and_unknown_ones_are_ignored() {
        let network = good(
            r#"{"NETWORK": "10.0.0.0/8", "subnetlen": 20, "SubnetMin": "10.10.0.0", "subnetMAX": "10.99.0.0",
                "Later": {"x": 1}, "backend": {"type": "udp", "PORT": 7890, "MTU": 1}}"#,
        );
        assert_eq!(bounds(network.v4), ("10.0.0.0/8".into(), 20, "10.10.0.0".into(), "10.99.0.0".into()));
        assert_eq!(network.port, Some(7890));
        let vxlan = good(r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "Port": 0}}"#);
        assert_eq!((vxlan.backend.as_str(), vxlan.port), ("vxlan", None));
    }

    #[test]
    fn what_flanneld_refuses_is_refused_with_the_mend() {
        for (text, mend) in [
            ("", "no JSON object"),
            ("[]", "no JSON object"),
            ("{}", "write \"Network\""),
            (r#"{"Network": "10.1.0.0"}"#, "an IPv4 prefix"),
            (r#"{"Network": "fd00::/48"}"#, "an IPv4 prefix"),
            (r#"{"Network": "10.1.0.0/29"}"#, "/28 or larger"),
            (r#"{"Network": "10.1.0.0/16", "SubnetLen": 31}"#, "18 to 30"),
            (r#"{"Network": "10.1.0.0/16", "SubnetLen": 17}"#, "18 to 30"),
            (r#"{"Network": "10.1.0.0/16", "SubnetLen": "24"}"#, "whole number"),
            (r#"{"Network": "10.1.0.0/16", "SubnetMin": "10.2.0.0"}"#, "not inside 10.1.0.0/16"),
            (r#"{"Network": "10.1.0.0/16", "SubnetMin": "10.1.5.7"}"#, "write 10.1.5.0"),
            (r#"{"Network": "10.1.0.0/16", "SubnetMax": "10.1.5.128"}"#, "write 10.1.5.0"),
            (r#"{"Network": "10.1.0.0/16", "SubnetMin": "10.1.9.0", "SubnetMax": "10.1.8.0"}"#, "exchange"),
            (r#"{"EnableIPv4": false}"#, "set one"),
            (r#"{"EnableIPv4": 1}"#, "true or false"),
            (r#"{"EnableIPv4": false, "EnableIPv6": true}"#, "write \"IPv6Network\""),
            (r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/125"}"#, "/124 or larger"),
            (r#"{"Network": "10.1.0.0/16", "Backend": "udp"}"#, "{\"Type\": \"udp\"}"),
            (r#"{"Network": "10.1.0.0/16", "Backend": {}}"#, "{\"Type\": \"udp\"}"),
            (r#"{"Network": "10.1.0.0/16", "Backend": {"Type": "udp", "Port": 70000}}"#, "1 to 65535"),
        ] {
            let error = Network::parse(text).expect_err(text);
            assert!(error.contains(mend), "{text}: {error}");
        }
    }

    #[test]
    fn a_lease_fits_or_not() {
        let network = good(r#"{"Network": "10.1.0.0/16", "SubnetMin": "10.1.8.0", "SubnetMax": "10.1.9.0"}"#);
        let fits = |text: &str| network.fits(&[text.parse().expect("a prefix")]);
        assert!(fits("10.1.8.0/24") && fits("10.1.9.0/24"));
        assert!(!fits("10.1.7.0/24") && !fits("10.1.10.0/24") && !fits("10.1.8.0/25") && !fits("fd00::/64"));
        assert!(!network.fits(&[]));
    }

    #[test]
    fn a_full_network_says_so() {
        let network = good(r#"{"Network": "10.1.0.0/28"}"#);
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
