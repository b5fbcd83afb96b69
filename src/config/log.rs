//! `[log]`: what is logged, and in which format.
#![forbid(unsafe_code)]

use tracing::level_filters::LevelFilter;

use super::error::ConfigError;
use super::key::{Kind, Preset, keys};
use super::settings::Settings;

keys! {
    "log";
    FILTER = "filter",
        Kind::Text("error, warn, info or debug, or a list such as \"info,hopsack::quic=debug\""),
        Preset::Text("info"),
        "Log level: error, warn, info or debug; module=level,... sets it for each module",
        "SIGHUP makes the daemon read this key again.";
    FORMAT = "format",
        Kind::Choice(&["text", "json"]),
        Preset::Text("text"),
        "Log format: \"text\" or \"json\" (one object on each line)",
        "";
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// A `tracing` filter: a level, or `target=level,...`.
    pub filter: String,
    /// Whether each line is a JSON object.
    pub json: bool,
}

impl LogConfig {
    pub(super) fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let filter = settings.text(&FILTER);
        let level = |text: &str| text.trim().parse::<LevelFilter>().is_ok();
        let directive = |text: &str| level(text.rsplit_once('=').map_or(text, |(_target, level)| level));
        if !filter.split(',').all(directive) {
            settings.refuse(&FILTER)?;
        }
        Ok(Self { filter: filter.to_owned(), json: settings.text(&FORMAT) == "json" })
    }
}
