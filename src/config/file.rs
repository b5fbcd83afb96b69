//! The configuration as typed: serde's view of the file, the layering of the four sources, and the step to meaning.
//!
//! Values that are known but not built yet (masquerading ...) are refused by name rather than ignored.
//!
//! Invariant: an unknown key or a value of the wrong type is an error with its place, never skipped.
#![forbid(unsafe_code)]

mod security;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value as Toml};

use super::keys::{KEYS, Key};
use super::{
    Config, ConfigError, Dataplane, EngineChoice, Etcd, Interface, LEASE_TTL, Log, Node, Origin, Overlay,
    Sources, Store, Tls, Value, one_line, place,
};
use crate::forward::VerifySource;

/// The file, section by section. `Default` is the built-in layer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileConfig {
    pub node: NodeSection,
    pub store: StoreSection,
    pub overlay: OverlaySection,
    pub dataplane: DataplaneSection,
    pub security: SecuritySection,
    pub nat: NatSection,
    pub metrics: MetricsSection,
    pub log: LogSection,
}

/// A section: its keys, their types and their defaults.
macro_rules! section {
    ($name:ident { $($key:ident: $kind:ty = $default:expr),* $(,)? }) => {
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $(pub $key: $kind),* }
        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default),* }
            }
        }
    };
}

section!(NodeSection {
    interface: String = "auto".into(),
    public_ip: String = "auto".into(),
    name: String = "auto".into(),
    state_dir: String = "/var/lib/hopsack".into(),
    run_dir: String = "/run/hopsack".into(),
    subnet_env: String = "/run/flannel/subnet.env".into(),
});
section!(StoreSection {
    kind: String = "etcd".into(),
    path: String = "/etc/hopsack/cluster.toml".into(),
    endpoints: Vec<String> = vec!["http://127.0.0.1:2379".into()],
    prefix: String = "/coreos.com/network".into(),
    ca: String = String::new(),
    cert: String = String::new(),
    key: String = String::new(),
    username: String = String::new(),
    password_file: String = String::new(),
    revoke_on_exit: bool = false,
});
section!(OverlaySection {
    device: String = "hopsack0".into(),
    port: i64 = 8285,
    mtu: NumberOrAuto = NumberOrAuto::default(),
    source_port: String = "spread".into(),
    verify_source: String = "subnet".into(),
});
section!(DataplaneSection {
    engine: String = "auto".into(),
    workers: NumberOrAuto = NumberOrAuto::default(),
    offload: bool = true,
    busy_poll_us: i64 = 0,
});
section!(SecuritySection {
    mode: String = "none".into(),
    require: bool = false,
    port: NumberOrAuto = NumberOrAuto::default(),
    ca: String = String::new(),
    cert: String = String::new(),
    key: String = String::new(),
    rekey_seconds: i64 = 3600,
    idle_seconds: i64 = 120,
});
section!(NatSection { masquerade: bool = false });
section!(MetricsSection { listen: String = "127.0.0.1:9285".into() });
section!(LogSection { filter: String = "info".into(), format: String = "text".into() });

/// `"auto"` or a number.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum NumberOrAuto {
    Number(i64),
    Word(String),
}

impl Default for NumberOrAuto {
    fn default() -> Self {
        Self::Word("auto".into())
    }
}

/// The four layers laid over one another.
#[derive(Debug)]
pub(super) struct Merged {
    file: FileConfig,
    values: Vec<Value>,
}

/// Lays environment and options over the file's `text`.
pub(super) fn merge(text: &str, path: &Path, sources: &Sources) -> Result<Merged, ConfigError> {
    let syntax = |error: toml::de::Error| {
        let (line, column) = place(text, error.span().map_or(0, |span| span.start));
        ConfigError::Syntax { path: path.to_owned(), line, column, problem: one_line(&error) }
    };
    // Once into the typed form, for errors with line and column; once into a table, to see what was said at all.
    toml::from_str::<FileConfig>(text).map_err(syntax)?;
    let said: Table = toml::from_str(text).map_err(syntax)?;
    let mut effective = Table::try_from(FileConfig::default()).expect("the defaults are plain TOML");
    let mut values = Vec::new();

    for key in KEYS {
        let default = effective[key.section][key.name].clone();
        let (value, origin) = if let Some((value, origin)) = override_of(key, sources) {
            (typed(key, &default, &value, &origin)?, origin)
        } else if let Some(value) = said.get(key.section).and_then(|section| section.get(key.name)) {
            (value.clone(), Origin::File(path.to_owned()))
        } else {
            (default, Origin::Default)
        };
        values.push(Value { section: key.section, key: key.name, value: value.to_string(), origin });
        effective[key.section][key.name] = value;
    }
    let file = effective.try_into().map_err(syntax)?;
    Ok(Merged { file, values })
}

/// What the command line says of a key, or else the environment.
fn override_of(key: &Key, sources: &Sources) -> Option<(String, Origin)> {
    let option =
        sources.options.iter().find(|(section, name, _)| *section == key.section && *name == key.name);
    if let Some((_, _, value)) = option {
        return Some((value.clone(), Origin::Option(format!("--{}", key.option))));
    }
    let variable = key.variable();
    let (_, value) = sources.environment.iter().find(|(name, _)| *name == variable)?;
    Some((value.clone(), Origin::Environment(variable)))
}

/// Text from outside the file, read as the type that the key's default has.
fn typed(key: &'static Key, default: &Toml, text: &str, origin: &Origin) -> Result<Toml, ConfigError> {
    let wrong = |problem: &str| ConfigError::Value {
        key: full_name(key),
        value: text.to_owned(),
        origin: origin.clone(),
        problem: problem.to_owned(),
    };
    Ok(match default {
        Toml::Boolean(_) => Toml::Boolean(text.parse().map_err(|_| wrong("write true or false"))?),
        Toml::Integer(_) => Toml::Integer(text.parse().map_err(|_| wrong("write a whole number"))?),
        Toml::Array(_) => Toml::Array(text.split(',').map(|item| Toml::String(item.trim().into())).collect()),
        Toml::String(word) if word == "auto" => match text.parse::<i64>() {
            Ok(number) if matches!(key.name, "mtu" | "workers" | "port") => Toml::Integer(number),
            _ => Toml::String(text.to_owned()),
        },
        Toml::String(_) | Toml::Float(_) | Toml::Datetime(_) | Toml::Table(_) => {
            Toml::String(text.to_owned())
        }
    })
}

fn full_name(key: &Key) -> &'static str {
    // One leak per wrong value, and the program ends with it; it keeps the error type free of lifetimes.
    Box::leak(format!("{}.{}", key.section, key.name).into_boxed_str())
}

impl Merged {
    /// From what was typed to what it means.
    pub(super) fn mean(self) -> Result<Config, ConfigError> {
        let file = &self.file;
        Ok(Config {
            node: self.node()?,
            store: self.store()?,
            overlay: self.overlay()?,
            dataplane: self.dataplane()?,
            security: self.security()?,
            metrics: match file.metrics.listen.as_str() {
                "" => None,
                text => Some(text.parse::<SocketAddr>().or_else(|_| {
                    self.wrong(
                        "metrics.listen",
                        "write address:port, such as \"127.0.0.1:9285\", or \"\" for off",
                    )
                })?),
            },
            log: self.log()?,
            values: self.values,
        })
    }

    fn node(&self) -> Result<Node, ConfigError> {
        let node = &self.file.node;
        let interface = match (node.interface.as_str(), node.interface.parse()) {
            ("auto", _) => Interface::Auto,
            (_, Ok(address)) => Interface::Address(address),
            (name, Err(_)) if is_device_name(name) => Interface::Name(name.to_owned()),
            _ => self.wrong(
                "node.interface",
                "write an interface's name, an address that it bears, or \"auto\"",
            )?,
        };
        let public_ip = match node.public_ip.as_str() {
            "auto" => None,
            text => match text.parse::<IpAddr>() {
                Ok(address) if !address.is_unspecified() && !address.is_multicast() => Some(address),
                _ => {
                    self.wrong("node.public_ip", "write an IPv4 or IPv6 address of this host, or \"auto\"")?
                }
            },
        };
        Ok(Node {
            interface,
            public_ip,
            state_dir: self.absolute("node.state_dir", &node.state_dir)?,
            run_dir: self.absolute("node.run_dir", &node.run_dir)?,
            subnet_env: self.absolute("node.subnet_env", &node.subnet_env)?,
        })
    }

    fn store(&self) -> Result<Store, ConfigError> {
        match self.file.store.kind.as_str() {
            "file" => Ok(Store::File { path: self.absolute("store.path", &self.file.store.path)? }),
            "etcd" => Ok(Store::Etcd(Box::new(self.etcd()?))),
            _ => self.wrong("store.kind", "write \"etcd\" or \"file\""),
        }
    }

    fn etcd(&self) -> Result<Etcd, ConfigError> {
        let (node, store) = (&self.file.node, &self.file.store);
        let secure = store.endpoints.iter().filter(|url| url.starts_with("https://")).count();
        let plain = store.endpoints.iter().filter(|url| url.starts_with("http://")).count();
        if store.endpoints.is_empty() || secure + plain < store.endpoints.len() {
            self.wrong("store.endpoints", "write URLs such as \"http://127.0.0.1:2379\" or \"https://...\"")?;
        }
        // flanneld goes on in clear if a certificate is missing; a half-secured store is a mistake to be told.
        if secure > 0 && plain > 0 {
            self.wrong("store.endpoints", "some are http:// and some https://: write all of them alike")?;
        }
        let tls = match (secure > 0, store.ca.as_str()) {
            (true, "") => {
                self.wrong("store.ca", "https:// needs the file with the CA certificates to trust")?
            }
            (true, ca) => Some(Tls { ca: self.absolute("store.ca", ca)?, client: self.client()? }),
            (false, "") if store.cert.is_empty() && store.key.is_empty() => None,
            (false, "") => {
                self.wrong("store.cert", "a certificate needs endpoints with https://, and store.ca")?
            }
            (false, _) => self.wrong("store.ca", "a CA needs endpoints with https://")?,
        };
        let user = match (store.username.as_str(), store.password_file.as_str()) {
            ("", "") => None,
            ("", _) => self.wrong("store.username", "name the user to whom store.password_file belongs")?,
            (_, "") => {
                self.wrong("store.password_file", "name the file with the password of store.username")?
            }
            (user, file) => Some((user.to_owned(), self.absolute("store.password_file", file)?)),
        };
        let prefix = store.prefix.trim_end_matches('/');
        if !prefix.starts_with('/') {
            self.wrong(
                "store.prefix",
                "write a prefix that begins with a slash, such as \"/coreos.com/network\"",
            )?;
        }
        if node.name.is_empty() || node.name.chars().any(char::is_control) {
            self.wrong("node.name", "write a name, or \"auto\"")?;
        }
        Ok(Etcd {
            endpoints: store.endpoints.clone(),
            prefix: prefix.to_owned(),
            tls,
            user,
            node_name: (node.name != "auto").then(|| node.name.clone()),
            state_dir: self.absolute("node.state_dir", &node.state_dir)?,
            subnet_env: self.absolute("node.subnet_env", &node.subnet_env)?,
            revoke_on_exit: store.revoke_on_exit,
            announced: None,
            lease_ttl: LEASE_TTL,
        })
    }

    fn client(&self) -> Result<Option<(std::path::PathBuf, std::path::PathBuf)>, ConfigError> {
        let store = &self.file.store;
        match (store.cert.as_str(), store.key.as_str()) {
            ("", "") => Ok(None),
            ("", _) => self.wrong("store.cert", "name the certificate to which store.key belongs"),
            (_, "") => self.wrong("store.key", "name the key of store.cert"),
            (cert, key) => Ok(Some((self.absolute("store.cert", cert)?, self.absolute("store.key", key)?))),
        }
    }

    fn overlay(&self) -> Result<Overlay, ConfigError> {
        let overlay = &self.file.overlay;
        if !is_device_name(&overlay.device) {
            self.wrong("overlay.device", "write 1 to 15 letters, digits, '-', '_' or '.'")?;
        }
        let port = match u16::try_from(overlay.port) {
            Ok(port) if port > 0 => port,
            _ => self.wrong("overlay.port", "write a port from 1 to 65535")?,
        };
        // 68 is the least that IPv4 allows (RFC 791), 1280 what IPv6 needs (RFC 8200); 65507 fits one UDP datagram.
        let mtu = match &overlay.mtu {
            NumberOrAuto::Word(word) if word == "auto" => None,
            NumberOrAuto::Number(mtu @ 68..=65507) => u16::try_from(*mtu).ok(),
            NumberOrAuto::Number(_) | NumberOrAuto::Word(_) => {
                self.wrong("overlay.mtu", "write a number of bytes from 68 to 65507, or \"auto\"")?
            }
        };
        let spread_ports = match overlay.source_port.as_str() {
            "spread" => true,
            "fixed" => false,
            _ => self.wrong("overlay.source_port", "write \"spread\" or \"fixed\"")?,
        };
        let verify_source = match overlay.verify_source.as_str() {
            "subnet" => VerifySource::Subnet,
            "peer" => VerifySource::Peer,
            "off" => VerifySource::Off,
            _ => self.wrong("overlay.verify_source", "write \"subnet\", \"peer\" or \"off\"")?,
        };
        Ok(Overlay { device: overlay.device.clone(), port, mtu, spread_ports, verify_source })
    }

    fn dataplane(&self) -> Result<Dataplane, ConfigError> {
        let dataplane = &self.file.dataplane;
        let engine = match dataplane.engine.as_str() {
            "auto" => EngineChoice::Auto,
            "uring" => EngineChoice::Uring,
            "batch" => EngineChoice::Batch,
            "simple" => EngineChoice::Simple,
            _ => self.wrong("dataplane.engine", "write \"auto\", \"uring\", \"batch\" or \"simple\"")?,
        };
        let workers = match &dataplane.workers {
            NumberOrAuto::Word(word) if word == "auto" => None,
            NumberOrAuto::Number(2..) if engine == EngineChoice::Simple => {
                self.wrong("dataplane.workers", "the simple engine has one worker: write 1 or \"auto\"")?
            }
            NumberOrAuto::Number(count @ 1..=64) => u8::try_from(*count).ok(),
            NumberOrAuto::Number(_) | NumberOrAuto::Word(_) => {
                self.wrong("dataplane.workers", "write a number from 1 to 64, or \"auto\"")?
            }
        };
        let busy_poll_us = match u16::try_from(dataplane.busy_poll_us) {
            Ok(1..) if engine == EngineChoice::Simple => {
                self.wrong("dataplane.busy_poll_us", "the simple engine does not spin: write 0")?
            }
            Ok(time @ 0..=1000) => time,
            _ => self.wrong("dataplane.busy_poll_us", "write a number from 0 to 1000; 100 is a good one")?,
        };
        if self.file.nat.masquerade {
            self.wrong(
                "nat.masquerade",
                "not in this version: write false and let Docker or CNI masquerade",
            )?;
        }
        Ok(Dataplane { engine, workers, offload: dataplane.offload, busy_poll_us })
    }

    fn log(&self) -> Result<Log, ConfigError> {
        let log = &self.file.log;
        let level = |text: &str| text.trim().parse::<tracing::level_filters::LevelFilter>().is_ok();
        let directive = |text: &str| level(text.rsplit_once('=').map_or(text, |(_target, level)| level));
        if !log.filter.split(',').all(directive) {
            self.wrong("log.filter", "write error, warn, info, debug, or target=level,...")?;
        }
        match log.format.as_str() {
            "text" | "json" => Ok(Log { filter: log.filter.clone(), json: log.format == "json" }),
            _ => self.wrong("log.format", "write \"text\" or \"json\""),
        }
    }

    fn absolute(&self, key: &'static str, text: &str) -> Result<std::path::PathBuf, ConfigError> {
        let path = Path::new(text);
        // The daemon and the commands that ask it have different working directories.
        if path.is_absolute() { Ok(path.to_owned()) } else { self.wrong(key, "write an absolute path") }
    }

    fn wrong<T>(&self, key: &'static str, problem: &str) -> Result<T, ConfigError> {
        let said = self.values.iter().find(|value| key.split_once('.') == Some((value.section, value.key)));
        let (value, origin) = said.map_or((String::new(), Origin::Default), |said| {
            (said.value.trim_matches('"').to_owned(), said.origin.clone())
        });
        Err(ConfigError::Value { key, value, origin, problem: problem.to_owned() })
    }
}

/// IFNAMSIZ is 16 with the final zero (include/uapi/linux/if.h).
fn is_device_name(name: &str) -> bool {
    let characters = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    let length = (1..=15).contains(&name.len());
    length && characters && !matches!(name, "." | ".." | "all" | "default")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(
        text: &str,
        environment: &[(&str, &str)],
        options: &[(&'static str, &'static str, &str)],
    ) -> Result<Config, ConfigError> {
        let sources = Sources {
            file: None,
            environment: environment.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            options: options.iter().map(|(s, k, v)| (*s, *k, (*v).into())).collect(),
        };
        merge(text, Path::new("test.toml"), &sources)?.mean()
    }

    #[test]
    fn keys_are_those_of_the_file() {
        let defaults = Table::try_from(FileConfig::default()).expect("plain TOML");
        let mut in_file: Vec<String> = Vec::new();
        for (section, keys) in &defaults {
            in_file.extend(keys.as_table().expect("a section").keys().map(|key| format!("{section}.{key}")));
        }
        let mut listed: Vec<String> =
            KEYS.iter().map(|key| format!("{}.{}", key.section, key.name)).collect();
        in_file.sort();
        listed.sort();
        assert_eq!(in_file, listed);
        for key in KEYS {
            assert_eq!(key.option, format!("{}-{}", key.section, key.name).replace('_', "-"));
        }
    }

    #[test]
    fn the_shipped_file_holds_every_key_at_its_default() {
        let text = include_str!("../../configs/hopsack.toml");
        let shipped: Table = toml::from_str(text).expect("it parses");
        let defaults = Table::try_from(FileConfig::default()).expect("plain TOML");
        assert_eq!(shipped, defaults);
    }

    #[test]
    fn later_layers_win_and_are_named() {
        let text = "[overlay]\nport = 1000\nmtu = 1400\ndevice = \"file0\"";
        let environment = [("HOPSACK_OVERLAY_PORT", "2000"), ("HOPSACK_OVERLAY_MTU", "1401")];
        let config = load(text, &environment, &[("overlay", "port", "3000")]).expect("a good configuration");
        assert_eq!(config.overlay.port, 3000);
        assert_eq!(config.overlay.mtu, Some(1401));
        assert_eq!(config.overlay.device, "file0");
        let origin = |key: &str| {
            let value = config.values.iter().find(|value| value.key == key).expect("listed");
            value.origin.to_string()
        };
        assert_eq!(origin("port"), "from --overlay-port");
        assert_eq!(origin("mtu"), "from $HOPSACK_OVERLAY_MTU");
        assert_eq!(origin("device"), "from test.toml");
        assert_eq!(origin("verify_source"), "default");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let error = load("[overlay]\nprot = 1", &[], &[]).expect_err("refused").to_string();
        assert!(error.contains("test.toml") && error.contains("line 2") && error.contains("prot"), "{error}");
        assert!(error.contains("port"), "what would be right: {error}");
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_mend() {
        for (section, key, value, mend) in [
            ("overlay", "port", "0", "1 to 65535"),
            ("overlay", "port", "http", "whole number"),
            ("overlay", "mtu", "big", "68 to 65507"),
            ("overlay", "device", "a-name-of-16-chars", "1 to 15"),
            ("overlay", "verify_source", "maybe", "\"subnet\""),
            ("node", "public_ip", "10.0.0.0/8", "address"),
            ("node", "run_dir", "run", "absolute"),
            ("store", "kind", "consul", "\"etcd\""),
            ("dataplane", "engine", "dpdk", "\"simple\""),
            ("dataplane", "workers", "65", "1 to 64"),
            ("dataplane", "busy_poll_us", "1001", "0 to 1000"),
            ("security", "mode", "tls", "\"sealed\""),
            ("security", "require", "true", "security.mode"),
            ("security", "port", "0", "1 to 65535"),
            ("security", "port", "8285", "overlay.port"),
            ("security", "cert", "/c.pem", "name the key"),
            ("security", "key", "/k.pem", "name the certificate"),
            ("security", "ca", "/ca.pem", "hopsack pki"),
            ("security", "rekey_seconds", "0", "1 to 3600"),
            ("security", "idle_seconds", "0", "1 to 86400"),
            ("nat", "masquerade", "true", "false"),
            ("metrics", "listen", "9285", "address:port"),
            ("log", "filter", "chatty", "debug"),
        ] {
            let error = load("", &[], &[(section, key, value)]).expect_err(value).to_string();
            assert!(error.contains(mend) && error.contains(value), "{error}");
            assert!(!error.contains('\n'), "one sentence: {error}");
        }
    }

    #[test]
    fn etcd_is_meant_or_refused() {
        let etcd = |options: &[(&'static str, &'static str, &str)]| {
            let mut all = vec![("store", "kind", "etcd")];
            all.extend(options);
            match load("", &[], &all).map(|config| config.store) {
                Ok(Store::Etcd(etcd)) => Ok(*etcd),
                Ok(Store::File { .. }) => panic!("the wrong store"),
                Err(error) => Err(error.to_string()),
            }
        };
        let plain = etcd(&[]).expect("the defaults");
        assert_eq!(
            (plain.prefix.as_str(), plain.tls.is_none(), plain.user),
            ("/coreos.com/network", true, None)
        );
        let tls = [("store", "endpoints", "https://a:1, https://b:1"), ("store", "ca", "/ca.pem")];
        assert_eq!(etcd(&tls).expect("CA only").tls.expect("TLS").client, None);
        for (options, mend) in [
            (&[("store", "endpoints", "a:2379")][..], "http://127.0.0.1:2379"),
            (&[("store", "endpoints", "")], "http://127.0.0.1:2379"),
            (&[("store", "endpoints", "http://a:1,https://b:1")], "all of them alike"),
            (&[("store", "endpoints", "https://a:1")], "CA certificates to trust"),
            (&[("store", "ca", "/ca.pem")], "https://"),
            (&[("store", "cert", "/c.pem")], "https://"),
            (&[tls[0], tls[1], ("store", "cert", "/c.pem")], "name the key"),
            (&[tls[0], tls[1], ("store", "key", "/k.pem")], "name the certificate"),
            (&[("store", "username", "root")], "file with the password"),
            (&[("store", "password_file", "/p")], "name the user"),
            (&[("store", "prefix", "network")], "begins with a slash"),
            (&[("node", "name", "")], "write a name"),
        ] {
            let error = etcd(options).expect_err(mend);
            assert!(error.contains(mend), "{error}");
        }
    }
}
