//! From flags that were given to hopsack's configuration.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use super::error::FlagError;
use super::flags::Effect;
use super::parse::{Given, add_environment, boolean, check, parse};

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// To run with this configuration.
    Run(Translated),
    /// To print the flags.
    Help,
    /// To print the version.
    Version,
}

/// hopsack's configuration in place of flanneld's.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// Options: section, key, value.
    pub options: Vec<(&'static str, &'static str, String)>,
    /// Flags that have no effect, one sentence each.
    pub notes: Vec<String>,
}

/// What has to be asked of this host.
pub trait Host {
    /// Whether an interface of this name, or with this address, exists.
    fn has(&self, interface: &str) -> bool;
    /// The address from which this host sends to another.
    fn source_towards(&self, other: IpAddr) -> Option<IpAddr>;
}

/// Reads a command line, without the program's name, and an environment.
pub fn translate(
    args: &[String],
    environment: &[(String, String)],
    host: &dyn Host,
) -> Result<Request, FlagError> {
    let Some(mut given) = parse(args)? else { return Ok(Request::Help) };
    add_environment(&mut given, environment);
    given.iter().try_for_each(check)?;
    let last = |name: &str| given.iter().rev().find(|other| other.flag.name == name);
    let text = |name| last(name).map(|given| given.value.as_str()).filter(|value| !value.is_empty());
    if last("version").is_some_and(|given| boolean(&given.value) == Some(true)) {
        return Ok(Request::Version);
    }

    let mut translated = Translated::default();
    let mut set = |section, key, value: &str| translated.options.push((section, key, value.to_owned()));
    set("store", "kind", "etcd");
    // flanneld's default differs from hopsack's.
    let endpoints = text("etcd-endpoints").unwrap_or("http://127.0.0.1:4001,http://127.0.0.1:2379");
    set("store", "endpoints", endpoints);
    if let Some(interface) = interface(&given, text("iface-can-reach"), host)? {
        set("node", "interface", &interface);
    }
    match (text("public-ip"), text("public-ipv6")) {
        (None, None) => {}
        (Some(_), Some(_)) => return Err(FlagError::BothAddresses),
        (Some(address), None) | (None, Some(address)) => set("node", "public_ip", address),
    }
    set("metrics", "listen", &listen(text("healthz-ip"), text("healthz-port"))?);
    if text("v").and_then(|level| level.parse::<i64>().ok()).is_some_and(|level| level > 0) {
        set("log", "filter", "debug");
    }
    for given in &given {
        let is_last = last(given.flag.name).is_some_and(|last| std::ptr::eq(last, given));
        apply(given, is_last, &mut translated)?;
    }
    Ok(Request::Run(translated))
}

/// Applies a flag with a plain effect.
fn apply(given: &Given, is_last: bool, translated: &mut Translated) -> Result<(), FlagError> {
    match given.flag.effect {
        Effect::Key("store", "endpoints") | Effect::Own => {}
        Effect::Key(section, key) if is_last => translated.options.push((section, key, given.value.clone())),
        Effect::Key(..) => {}
        Effect::Nothing(why) => translated.notes.push(format!("{} has no effect: {why}", given.written)),
        Effect::Refused(instead) => {
            let is_off = given.value.is_empty() || boolean(&given.value) == Some(false);
            if !is_off {
                return Err(FlagError::Refused { flag: without_secret(given), instead });
            }
        }
    }
    Ok(())
}

fn without_secret(given: &Given) -> String {
    if given.flag.name == "etcd-password" { given.flag.name.to_owned() } else { given.written.clone() }
}

/// The first of the interfaces that exists, as in flanneld.
fn interface(given: &[Given], reach: Option<&str>, host: &dyn Host) -> Result<Option<String>, FlagError> {
    let named = given.iter().filter(|given| given.flag.name == "iface" && !given.value.is_empty());
    let named: Vec<&str> = named.map(|given| given.value.as_str()).collect();
    match (named.as_slice(), reach) {
        ([], None) => Ok(None),
        ([], Some(text)) => {
            let expected = "an IP address";
            let other: IpAddr = text
                .parse()
                .map_err(|_| FlagError::BadValue { given: format!("iface-can-reach={text}"), expected })?;
            let own = host.source_towards(other).ok_or_else(|| FlagError::NoRoute(text.to_owned()))?;
            Ok(Some(own.to_string()))
        }
        // The daemon reports a single wrong interface, with the interfaces that exist.
        ([only], _) => Ok(Some((*only).to_owned())),
        (several, _) => match several.iter().find(|name| host.has(name)) {
            Some(name) => Ok(Some((*name).to_owned())),
            None => Err(FlagError::NoInterface(several.join(", "))),
        },
    }
}

/// flanneld serves health only if a port is given. hopsack does the same, and serves metrics with
/// it.
fn listen(ip: Option<&str>, port: Option<&str>) -> Result<String, FlagError> {
    let (ip, port) = (ip.unwrap_or("0.0.0.0"), port.unwrap_or("0"));
    let wrong = |flag: &str, value: &str, expected| {
        let given = format!("{flag}={value}");
        FlagError::BadValue { given, expected }
    };
    let ip: IpAddr = ip.parse().map_err(|_| wrong("healthz-ip", ip, "an IP address"))?;
    match port.parse::<u16>() {
        Ok(0) => Ok(String::new()),
        Ok(port) => Ok(SocketAddr::new(ip, port).to_string()),
        Err(_) => Err(wrong("healthz-port", port, "a port, or 0 for off")),
    }
}
