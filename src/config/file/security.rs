//! `[security]` from what was typed to what it means.
//!
//! Invariant: nothing that [`crate::config::Security`] says would let packets pass in clear that `require` forbids.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use super::{Merged, NumberOrAuto};
use crate::config::{ConfigError, Security};
use crate::route::Mode;

impl Merged {
    pub(super) fn security(&self) -> Result<Security, ConfigError> {
        let security = &self.file.security;
        let Ok(mode) = security.mode.parse::<Mode>() else {
            return self.wrong("security.mode", "write \"none\", \"sealed\" or \"quic\"");
        };
        if security.require && mode == Mode::None {
            self.wrong(
                "security.require",
                "with security.mode = \"none\" everything would be sent in clear, which this forbids: set security.mode",
            )?;
        }
        if security.require && self.file.overlay.verify_source == "off" {
            self.wrong(
                "security.require",
                "overlay.verify_source = \"off\" takes packets in clear from anywhere, which this forbids: take it out",
            )?;
        }
        let own = self.own_certificate()?;
        let ca = match security.ca.as_str() {
            "" => None,
            _ if own.is_none() => self.wrong(
                "security.ca",
                "a CA needs this node's own certificate, signed by it: name security.cert and security.key (`hopsack pki \
                 issue` makes them)",
            )?,
            ca => Some(self.absolute("security.ca", ca)?),
        };
        let rekey = match u64::try_from(security.rekey_seconds) {
            Ok(seconds @ 1..=3600) => Duration::from_secs(seconds),
            _ => self.wrong("security.rekey_seconds", "write a number of seconds from 1 to 3600")?,
        };
        let idle = match u64::try_from(security.idle_seconds) {
            Ok(seconds @ 1..=86_400) => Duration::from_secs(seconds),
            _ => self.wrong("security.idle_seconds", "write a number of seconds from 1 to 86400")?,
        };
        Ok(Security { mode, require: security.require, port: self.quic_port()?, ca, own, rekey, idle })
    }

    fn own_certificate(&self) -> Result<Option<(PathBuf, PathBuf)>, ConfigError> {
        let security = &self.file.security;
        match (security.cert.as_str(), security.key.as_str()) {
            ("", "") => Ok(None),
            ("", _) => self.wrong("security.key", "name the certificate to which it belongs: security.cert"),
            (_, "") => self.wrong("security.cert", "name the key of it: security.key"),
            (cert, key) => {
                Ok(Some((self.absolute("security.cert", cert)?, self.absolute("security.key", key)?)))
            }
        }
    }

    fn quic_port(&self) -> Result<Option<u16>, ConfigError> {
        let port = match &self.file.security.port {
            NumberOrAuto::Word(word) if word == "auto" => return Ok(None),
            NumberOrAuto::Number(port @ 1..=65535) => *port,
            NumberOrAuto::Number(_) | NumberOrAuto::Word(_) => {
                self.wrong("security.port", "write a UDP port from 1 to 65535, or \"auto\"")?
            }
        };
        if port == self.file.overlay.port {
            self.wrong(
                "security.port",
                "that is overlay.port, where packets of another kind arrive: write another",
            )?;
        }
        Ok(u16::try_from(port).ok())
    }
}
