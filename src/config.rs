//! Configuration of this node: TOML as typed by a person ([`FileConfig`]) becomes what it means ([`Config`]).
//!
//! Four layers, the later wins: built-in default, file, environment (`HOPSACK_<SECTION>_<KEY>`), command line
//! (`--<section>-<key>`). All four speak of the same keys, listed once in [`keys::KEYS`], and each effective value
//! remembers its [`Origin`]. It does not read the store: what concerns the whole cluster is said there, once.
//!
//! Invariant: a `Config` can be acted on. Whatever can be told wrong without asking the kernel was refused here, with
//! the place where it was said and the mend.
#![forbid(unsafe_code)]

mod file;
pub mod flanneld;
pub mod keys;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use file::FileConfig;

use crate::forward::VerifySource;
use crate::route::{Announced, Mode};

/// Where `hopsack run` looks for its file if it is not told.
pub const DEFAULT_PATH: &str = "/etc/hopsack/hopsack.toml";

/// Why there is no configuration. Always exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read {path}: {error}; name another with --config, or write it (see configs/hopsack.toml)"
    )]
    Unreadable {
        /// As given.
        path: PathBuf,
        /// From the kernel.
        error: std::io::Error,
    },
    /// It is no TOML, or has an unknown key or a value of the wrong type.
    #[error("{path}: line {line}, column {column}: {problem}")]
    Syntax {
        /// As given.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong there.
        problem: String,
    },
    /// One value cannot be.
    #[error("{key} = {value:?} ({origin}): {problem}")]
    Value {
        /// `section.key`.
        key: &'static str,
        /// As written.
        value: String,
        /// Who said it.
        origin: Origin,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// Line and column, both from 1, of a byte offset in a text: what an editor wants to hear.
#[must_use]
pub fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

/// A TOML error as one line.
#[must_use]
pub fn one_line(error: &toml::de::Error) -> String {
    error.message().trim().replace('\n', ", ")
}

/// Who said a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody: built in.
    Default,
    /// This file.
    File(PathBuf),
    /// This environment variable.
    Environment(String),
    /// This option.
    Option(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File(path) => write!(f, "from {}", path.display()),
            Self::Environment(name) => write!(f, "from ${name}"),
            Self::Option(name) => write!(f, "from {name}"),
        }
    }
}

/// What a node is to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who we are and where we keep things.
    pub node: Node,
    /// Where the subnet-to-host map is kept.
    pub store: Store,
    /// The overlay device and wire format.
    pub overlay: Overlay,
    /// How packets are moved.
    pub dataplane: Dataplane,
    /// How they are protected.
    pub security: Security,
    /// Where metrics are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// What is logged.
    pub log: Log,
    /// The effective values as text, with their origins, in the order of [`keys::KEYS`].
    pub values: Vec<Value>,
}

/// One effective value.
#[derive(Debug, Clone)]
pub struct Value {
    /// Section of the file.
    pub section: &'static str,
    /// Key in the section.
    pub key: &'static str,
    /// As TOML.
    pub value: String,
    /// Who said it.
    pub origin: Origin,
}

/// `[node]`
#[derive(Debug, Clone)]
pub struct Node {
    /// The underlay interface.
    pub interface: Interface,
    /// Our address on the underlay; `None`: the interface's.
    pub public_ip: Option<IpAddr>,
    /// What survives a reboot.
    pub state_dir: PathBuf,
    /// What does not: the control socket.
    pub run_dir: PathBuf,
    /// Flannel's environment file.
    pub subnet_env: PathBuf,
}

impl Node {
    /// Where the running daemon answers.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }
}

/// How the underlay interface is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interface {
    /// The one with the default route, or the one that bears `public_ip`.
    Auto,
    /// By name.
    Name(String),
    /// The one that bears this address.
    Address(IpAddr),
}

/// `[store]`
#[derive(Debug, Clone)]
pub enum Store {
    /// A static cluster in a TOML file.
    File {
        /// The file.
        path: PathBuf,
    },
    /// Flannel's layout in etcd.
    Etcd(Box<Etcd>),
}

impl Store {
    /// Which store, and where, before it has been opened.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::File { path } => format!("file {}", path.display()),
            Self::Etcd(etcd) => format!("etcd at {}", etcd.endpoints.join(", ")),
        }
    }
}

/// `[store]` with `kind = "etcd"`, and what of `[node]` it needs.
#[derive(Debug, Clone)]
pub struct Etcd {
    /// URLs; one is used at a time.
    pub endpoints: Vec<String>,
    /// Prefix of all keys.
    pub prefix: String,
    /// `None`: in clear.
    pub tls: Option<Tls>,
    /// User name, and the file with the password.
    pub user: Option<(String, PathBuf)>,
    /// How this host is called in the store; `None`: its host name.
    pub node_name: Option<String>,
    /// Where identity and last map are kept.
    pub state_dir: PathBuf,
    /// Flannel's environment file: the subnet of the flanneld before us.
    pub subnet_env: PathBuf,
    /// Give the lease back on a clean stop.
    pub revoke_on_exit: bool,
    /// What our lease tells of encryption; the node fills it in.
    pub announced: Option<Announced>,
    /// Time to live of our lease; [`LEASE_TTL`] but in tests.
    pub lease_ttl: Duration,
}

/// As flanneld's (`subnetTTL` in `pkg/subnet/etcd/local_manager.go`).
pub const LEASE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How etcd is known and how it knows us.
#[derive(Debug, Clone)]
pub struct Tls {
    /// File with the CA certificates to trust.
    pub ca: PathBuf,
    /// Files with client certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// `[overlay]`
#[derive(Debug, Clone)]
pub struct Overlay {
    /// Name of the TUN device; at most 15 bytes.
    pub device: String,
    /// UDP port of every host in the cluster.
    pub port: u16,
    /// MTU of the overlay device in bytes; `None`: interface MTU minus overhead.
    pub mtu: Option<u16>,
    /// One source port a worker; else all send from the cluster's.
    pub spread_ports: bool,
    /// What inner sources must prove.
    pub verify_source: VerifySource,
}

/// `[dataplane]`
#[derive(Debug, Clone)]
pub struct Dataplane {
    /// Which engine moves packets.
    pub engine: EngineChoice,
    /// Its queues of the overlay device, each with a socket of its own; `None`: as many as are good for this machine.
    pub workers: Option<u8>,
    /// Whether the kernel may hand over and take super packets.
    pub offload: bool,
    /// For how many microseconds a worker may spin before it sleeps; 0: never.
    pub busy_poll_us: u16,
}

/// `dataplane.engine`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineChoice {
    /// The best that runs here.
    Auto,
    /// io_uring, or an error where it is forbidden.
    Uring,
    /// Plain system calls with offloads.
    Batch,
    /// One packet a system call.
    Simple,
}

/// `[security]`
#[derive(Debug, Clone)]
pub struct Security {
    /// What this host does with hosts that encrypt too.
    pub mode: Mode,
    /// Nothing passes to or from hosts that do not.
    pub require: bool,
    /// The UDP port of the QUIC endpoint; `None`: the overlay's plus one.
    pub port: Option<u16>,
    /// File with the CA certificates to trust; `None`: the store says whose certificate is whose.
    pub ca: Option<PathBuf>,
    /// Files with this host's certificate and key; `None`: its own in `state_dir`.
    pub own: Option<(PathBuf, PathBuf)>,
    /// How long keys for sealed packets live.
    pub rekey: Duration,
    /// A QUIC connection without packets for so long is closed; the next packet brings it back.
    pub idle: Duration,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// A `tracing` filter: a level, or `target=level,...`.
    pub filter: String,
    /// One JSON object a line instead of text.
    pub json: bool,
}

/// What a command line and environment add to the file.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`; `None`: [`DEFAULT_PATH`] if it is there.
    pub file: Option<PathBuf>,
    /// `HOPSACK_*` variables.
    pub environment: Vec<(String, String)>,
    /// `--section-key value`, as (`section`, `key`, value).
    pub options: Vec<(&'static str, &'static str, String)>,
}

impl Sources {
    /// Only this process's environment and the default file.
    #[must_use]
    pub fn from_environment() -> Self {
        let environment = std::env::vars().filter(|(name, _)| name.starts_with("HOPSACK_")).collect();
        Self { environment, ..Self::default() }
    }

    /// Reads, layers and checks.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let (text, path) = self.read_file()?;
        let merged = file::merge(&text, &path, self)?;
        merged.mean()
    }

    fn read_file(&self) -> Result<(String, PathBuf), ConfigError> {
        let path = self.file.clone().unwrap_or_else(|| Path::new(DEFAULT_PATH).to_owned());
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok((text, path)),
            Err(error) if self.file.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok((String::new(), path))
            }
            Err(error) => Err(ConfigError::Unreadable { path, error }),
        }
    }
}
