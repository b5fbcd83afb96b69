//! Encryption: the identity of this host, the endpoint that shows it to peers, and new certificates
//! for old ones.
//!
//! [`Credentials`] are loaded before the store is opened, because the lease announces them.
//! [`Encryption`] is the running endpoint. Both have an implementation for a host that does not
//! encrypt, so nothing else asks whether it does. It decides nothing about single packets: the
//! peers of the route table carry what both ends announce.
//!
//! Invariant: what our lease announces is what the endpoint shows, from the first moment on; a
//! certificate that cannot be used never replaces one that can.

mod credentials;
mod endpoint;
mod ends;
mod error;
mod schedule;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub(super) use credentials::{Credentials, overhead};
use endpoint::Endpoint;
pub(super) use ends::Ends;
pub use error::EncryptionError;

use crate::config::Config;
use crate::engine::Engine;
use crate::observe::Part;
use crate::quic::{self, QuicEvent, QuicStatus};
use crate::route::{Announced, Mode};

/// Whether the port of the endpoint can be opened, if this host encrypts. It is closed again.
pub(super) fn check_port(config: &Config, public: IpAddr) -> Result<Option<SocketAddr>, EncryptionError> {
    if config.security.mode == Mode::None {
        return Ok(None);
    }
    let address = SocketAddr::new(public, credentials::port(config)?);
    quic::check_port(address)?;
    Ok(Some(address))
}

/// Running encryption.
#[derive(Debug)]
pub(super) enum Encryption {
    /// This host does not encrypt.
    Off,
    /// QUIC endpoint, which also makes the keys of sealed packets.
    On(Box<Endpoint>),
}

impl Encryption {
    /// Starts what `credentials` call for.
    pub(super) fn start(
        config: &Config,
        credentials: Credentials,
        ends: &Ends<'_>,
        engine: &mut Engine,
    ) -> Result<Self, EncryptionError> {
        match credentials {
            Credentials::Off => Ok(Self::Off),
            Credentials::Loaded(loaded) => {
                Ok(Self::On(Box::new(Endpoint::start(config, *loaded, ends, engine)?)))
            }
        }
    }

    /// The route table has changed.
    pub(super) fn refresh(&self) {
        match self {
            Self::Off => {}
            Self::On(endpoint) => endpoint.refresh(),
        }
    }

    /// Other hosts reach this host at another address.
    pub(super) fn relocate(&self, public: IpAddr) {
        match self {
            Self::Off => {}
            Self::On(endpoint) => endpoint.relocate(public),
        }
    }

    /// Waits for a report of the endpoint. Cancel safe.
    pub(super) async fn report(&mut self) -> QuicEvent {
        match self {
            Self::Off => std::future::pending().await,
            Self::On(endpoint) => endpoint.report().await,
        }
    }

    /// Whether it is time to look for a new certificate. To be called regularly.
    pub(super) fn should_renew(&mut self) -> bool {
        match self {
            Self::Off => false,
            Self::On(endpoint) => endpoint.should_renew(),
        }
    }

    /// Loads certificate, key and CA again. Returns what the lease is to announce, if that has
    /// changed.
    pub(super) fn renew(
        &mut self,
        config: &Config,
        reconnect: bool,
    ) -> Result<Option<Announced>, EncryptionError> {
        match self {
            Self::Off => Ok(None),
            Self::On(endpoint) => endpoint.renew(config, reconnect),
        }
    }

    /// The state of the connections, if there can be any.
    pub(super) fn connections(&self) -> Option<Arc<QuicStatus>> {
        match self {
            Self::Off => None,
            Self::On(endpoint) => Some(endpoint.connections()),
        }
    }

    /// Reports of the connections.
    pub(super) fn parts(&self) -> Vec<Arc<dyn Part>> {
        match self {
            Self::Off => Vec::new(),
            Self::On(endpoint) => vec![endpoint.part()],
        }
    }

    /// Closes the connections.
    pub(super) fn stop(self) {
        match self {
            Self::Off => {}
            Self::On(endpoint) => endpoint.stop(),
        }
    }
}
