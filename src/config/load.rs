//! The whole configuration, and how it is loaded.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::dataplane::DataplaneConfig;
use super::encryption::SecurityConfig;
use super::error::ConfigError;
use super::key::Key;
use super::log::LogConfig;
use super::node::NodeConfig;
use super::origin::Setting;
use super::overlay::OverlayConfig;
use super::settings::{Overrides, Settings};
use super::store::StoreConfig;
use super::{environment, keys, metrics, nat};

/// Path of the file that is read if no other is named.
pub const DEFAULT_PATH: &str = "/etc/hopsack/hopsack.toml";

/// Configuration of this node.
#[derive(Debug, Clone)]
pub struct Config {
    /// This host and its folders.
    pub node: NodeConfig,
    /// Where the subnet-to-host map is kept.
    pub store: StoreConfig,
    /// The overlay device and wire format.
    pub overlay: OverlayConfig,
    /// The engine and its workers.
    pub dataplane: DataplaneConfig,
    /// Encryption between hosts.
    pub security: SecurityConfig,
    /// Address at which metrics are served; `None`: they are not served.
    pub metrics: Option<SocketAddr>,
    /// What is logged.
    pub log: LogConfig,
    /// Effective values with their origins, in the order of the file.
    pub values: Vec<Setting>,
}

/// File, environment and command line of a program.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// File that was named; `None`: [`DEFAULT_PATH`], if it exists.
    pub file: Option<PathBuf>,
    /// Environment variables that begin with `HOPSACK_`.
    pub environment: Vec<(String, String)>,
    /// Command-line options: section, key, value.
    pub options: Vec<(&'static str, &'static str, String)>,
}

impl Sources {
    /// This process's environment and the default file, without options.
    #[must_use]
    pub fn from_environment() -> Self {
        let environment = std::env::vars().filter(|(name, _)| name.starts_with("HOPSACK_")).collect();
        Self { environment, ..Self::default() }
    }

    /// Reads the file, merges the layers and checks the result.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let (text, path) = self.read_file()?;
        self.load_text(&text, &path)
    }

    pub(super) fn load_text(&self, text: &str, path: &Path) -> Result<Config, ConfigError> {
        let overrides = Overrides { environment: &self.environment, options: &self.options };
        let keys: Vec<&Key> = keys::all().collect();
        environment::check(&keys, &self.environment)?;
        let settings = Settings::merge(&keys, text, path, overrides)?;
        nat::check(&settings)?;
        Ok(Config {
            node: NodeConfig::from_settings(&settings)?,
            store: StoreConfig::from_settings(&settings)?,
            overlay: OverlayConfig::from_settings(&settings)?,
            dataplane: DataplaneConfig::from_settings(&settings)?,
            security: SecurityConfig::from_settings(&settings)?,
            metrics: metrics::listen(&settings)?,
            log: LogConfig::from_settings(&settings)?,
            values: settings.into_list(),
        })
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
