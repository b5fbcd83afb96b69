//! `[store]`: where the subnet-to-host map is kept. It opens no store.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::error::ConfigError;
use super::key::{Kind, Preset, keys};
use super::node;
use super::settings::Settings;
use crate::route::Abilities;

const FILE_OR_NOTHING: Kind = Kind::Text("the absolute path of a file, or \"\" for none");

keys! {
    "store";
    KIND = "kind",
        Kind::Choice(&["etcd", "file"]),
        Preset::Text("etcd"),
        "Where the subnet-to-host map is kept: \"etcd\" or \"file\"",
        "\"etcd\": Flannel's layout. Each host leases its subnet there, and flannelds in UDP mode may share the network.\n\
         \"file\": a static cluster without etcd; cluster.toml next to this file is an example.";
    PATH = "path",
        Kind::Text("an absolute path"),
        Preset::Text("/etc/hopsack/cluster.toml"),
        "Path of the cluster file (kind = \"file\")",
        "The daemon reads the file again when it changes.";
    ENDPOINTS = "endpoints",
        Kind::List("URLs such as \"http://127.0.0.1:2379\" or \"https://...\""),
        Preset::List(&["http://127.0.0.1:2379"]),
        "Endpoints of etcd (kind = \"etcd\"); outside the file separated by commas",
        "The daemon uses one endpoint at a time. It notices within seconds that an endpoint does not answer, and \
         takes the next.";
    PREFIX = "prefix",
        Kind::Text("a prefix that begins with a slash, such as \"/coreos.com/network\""),
        Preset::Text("/coreos.com/network"),
        "Prefix of all keys in etcd",
        "Several networks in one etcd need a prefix each.";
    CA = "ca",
        FILE_OR_NOTHING,
        Preset::Text(""),
        "File with the CA certificates to trust for https:// endpoints",
        "";
    CERT = "cert",
        FILE_OR_NOTHING,
        Preset::Text(""),
        "File with the client certificate for etcd",
        "";
    KEY = "key",
        FILE_OR_NOTHING,
        Preset::Text(""),
        "File with the key of the client certificate",
        "Other users must not be able to read this file.";
    USERNAME = "username",
        Kind::Text("a user name of etcd, or \"\" for none"),
        Preset::Text(""),
        "User name in etcd",
        "";
    PASSWORD_FILE = "password_file",
        FILE_OR_NOTHING,
        Preset::Text(""),
        "File with the password of this user",
        "Other users must not be able to read this file.";
    REVOKE_ON_EXIT = "revoke_on_exit",
        Kind::Bool,
        Preset::Bool(false),
        "Give the lease back on a clean stop: for hosts that leave the cluster for good",
        "Without this, etcd keeps the subnet for this host for 24 hours.";
}

/// `[store]`
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// A static cluster in a TOML file.
    File {
        /// Path of the cluster file.
        path: PathBuf,
    },
    /// Flannel's layout in etcd.
    Etcd(Box<EtcdConfig>),
}

/// `[store]` with `kind = "etcd"`, and those keys of `[node]` that this store needs.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// URLs of the endpoints; one is used at a time.
    pub endpoints: Vec<String>,
    /// Prefix of all keys.
    pub prefix: String,
    /// Certificates for `https://`; `None`: the connection is in clear.
    pub tls: Option<EtcdTls>,
    /// User name, and the file with the password.
    pub user: Option<(String, PathBuf)>,
    /// Name of this host in the store; `None`: its host name.
    pub node_name: Option<String>,
    /// Folder where identity and last map are kept.
    pub state_dir: PathBuf,
    /// Path of Flannel's environment file, which names the subnet that a flanneld had on this host.
    pub subnet_env: PathBuf,
    /// Whether a clean stop gives the lease back.
    pub revoke_on_exit: bool,
    /// What our lease announces; the node fills it in.
    pub abilities: Abilities,
    /// Subnets that this host must have; the node fills them in. `None`: any.
    pub subnets: Option<Vec<IpNet>>,
}

/// Files with the certificates for a connection to etcd.
#[derive(Debug, Clone)]
pub struct EtcdTls {
    /// File with the CA certificates to trust.
    pub ca: PathBuf,
    /// Files with the client's certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl StoreConfig {
    /// Addresses of the store, as far as the configuration names addresses and not names.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let Self::Etcd(etcd) = self else { return Vec::new() };
        let address = |url: &String| {
            let authority = url.split("://").last()?.split('/').next()?;
            let host = authority.parse().map(|address: SocketAddr| address.ip());
            host.or_else(|_| authority.parse()).ok()
        };
        etcd.endpoints.iter().filter_map(address).collect()
    }

    /// Whether a clean stop gives this host's subnet back.
    #[must_use]
    pub fn revokes_on_exit(&self) -> bool {
        matches!(self, Self::Etcd(etcd) if etcd.revoke_on_exit)
    }

    /// Kind and place of the store, known before it is opened.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::File { path } => format!("file {}", path.display()),
            Self::Etcd(etcd) => format!("etcd at {}", etcd.endpoints.join(", ")),
        }
    }

    pub(super) fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        match settings.text(&KIND) {
            "file" => Ok(Self::File { path: settings.path(&PATH)? }),
            _ => Ok(Self::Etcd(Box::new(EtcdConfig::from_settings(settings)?))),
        }
    }
}

impl EtcdConfig {
    fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let endpoints = settings.list(&ENDPOINTS);
        let tls = tls(settings, &endpoints)?;
        let user = match (settings.text(&USERNAME), settings.text(&PASSWORD_FILE)) {
            ("", "") => None,
            ("", _) => settings
                .refuse_with(&PASSWORD_FILE, "name the user of this password too: set store.username")?,
            (_, "") => settings.refuse_with(
                &USERNAME,
                "name the file with the password of this user: set store.password_file",
            )?,
            (user, _) => Some((user.to_owned(), settings.path(&PASSWORD_FILE)?)),
        };
        let prefix = settings.text(&PREFIX).trim_end_matches('/');
        if !prefix.starts_with('/') {
            settings.refuse(&PREFIX)?;
        }
        Ok(Self {
            endpoints,
            prefix: prefix.to_owned(),
            tls,
            user,
            node_name: node::name(settings)?,
            state_dir: settings.path(&node::STATE_DIR)?,
            subnet_env: settings.path(&node::SUBNET_ENV)?,
            revoke_on_exit: settings.is_set(&REVOKE_ON_EXIT),
            abilities: Abilities::OURS,
            subnets: None,
        })
    }
}

/// Checks that endpoints and certificates agree. flanneld continues in clear if a certificate is
/// missing; hopsack refuses, because a store that is protected by half is a mistake.
fn tls(settings: &Settings, endpoints: &[String]) -> Result<Option<EtcdTls>, ConfigError> {
    let secure = endpoints.iter().filter(|url| url.starts_with("https://")).count();
    let clear = endpoints.iter().filter(|url| url.starts_with("http://")).count();
    if endpoints.is_empty() || secure + clear < endpoints.len() {
        settings.refuse(&ENDPOINTS)?;
    }
    if secure > 0 && clear > 0 {
        settings.refuse_with(
            &ENDPOINTS,
            "some endpoints begin with http:// and some with https://: write all of them alike",
        )?;
    }
    let has_ca = !settings.text(&CA).is_empty();
    let has_client = !settings.text(&CERT).is_empty() || !settings.text(&KEY).is_empty();
    match (secure > 0, has_ca) {
        (true, true) => {
            let client = settings.certificate(&CERT, &KEY)?;
            Ok(Some(EtcdTls { ca: settings.path(&CA)?, client }))
        }
        (true, false) => {
            settings.refuse_with(&CA, "https:// endpoints need the file with the CA certificates to trust")
        }
        (false, true) => {
            settings.refuse_with(&CA, "a CA is used only with https:// endpoints: change store.endpoints")
        }
        (false, false) if has_client => {
            settings.refuse_with(&CERT, "a client certificate needs https:// endpoints, and store.ca")
        }
        (false, false) => Ok(None),
    }
}
