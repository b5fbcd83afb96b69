//! Configuration of this node: text from a file, the environment and the command line becomes a
//! [`Config`].
//!
//! Each key is one row ([`Key`]) in the file of its section: type, range, default and help. From
//! the rows come the options, the environment names, `--help`, the man page, `hopsack config` and
//! `configs/hopsack.toml`. Four layers give a key its value; a later one wins: default, file,
//! environment (`HOPSACK_SECTION_KEY`), command line (`--section-key`). Each effective value
//! remembers its [`Origin`].
//!
//! It does not read the store: what concerns the whole cluster is kept there.
//!
//! Invariant: a [`Config`] is consistent. A value that can be recognised as wrong without asking
//! the kernel is refused here, with the place where it was set and what to write.
#![forbid(unsafe_code)]

mod dataplane;
mod device_name;
mod encryption;
mod environment;
mod error;
pub mod flanneld;
mod key;
mod keys;
mod load;
mod log;
mod metrics;
mod nat;
mod node;
mod origin;
mod overlay;
mod position;
mod settings;
mod store;
mod template;
#[cfg(test)]
mod tests;

pub use dataplane::{DataplaneConfig, EngineChoice};
pub use encryption::SecurityConfig;
pub use error::ConfigError;
pub use key::{Key, Kind, Preset};
pub use keys::all as all_keys;
pub use load::{Config, DEFAULT_PATH, Sources};
pub use log::LogConfig;
pub use node::{InterfaceChoice, NodeConfig};
pub use origin::{Origin, Setting};
pub use overlay::{BackendChoice, OverlayConfig};
pub use position::{line_and_column, one_line};
pub use store::{EtcdConfig, EtcdTls, StoreConfig};
pub use template::template;
