//! Effective values as text, each with the place where it was set: what `hopsack config` prints.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;

/// Place where a value was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable, by name.
    Environment(String),
    /// A command-line option, with its dashes.
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

/// An effective value.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Section of the file.
    pub section: &'static str,
    /// Name of the key within its section.
    pub key: &'static str,
    /// Value.
    pub value: toml::Value,
    /// Place where the value was set.
    pub origin: Origin,
}
