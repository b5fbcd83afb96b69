//! `[metrics]`: the address of the metrics and health endpoints.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use super::error::ConfigError;
use super::key::{Kind, Preset, keys};
use super::settings::Settings;

keys! {
    "metrics";
    LISTEN = "listen",
        Kind::Text("address:port, such as \"127.0.0.1:9285\", or \"\" for off"),
        Preset::Text("127.0.0.1:9285"),
        "Address and port of /metrics, /healthz and /readyz; \"\" is off",
        "";
}

/// Address at which metrics are served; `None`: they are not served.
pub(super) fn listen(settings: &Settings) -> Result<Option<SocketAddr>, ConfigError> {
    match settings.text(&LISTEN) {
        "" => Ok(None),
        text => match text.parse() {
            Ok(address) => Ok(Some(address)),
            Err(_) => settings.refuse(&LISTEN),
        },
    }
}
