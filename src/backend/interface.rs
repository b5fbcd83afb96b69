//! The interface that every backend has, as closed enums: adding a backend means adding a variant
//! here.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

use super::error::BackendError;
use super::event::{DuplicateSubnet, Event, Renewal};
use super::overhead::Overhead;
use super::setup::Setup;
use super::userspace::{self, Userspace};
use crate::config::Config;
use crate::desired::Desired;
use crate::observe::Part;
use crate::packet::Family;
use crate::route::{Announced, Local, Rib};
use crate::sys::Capabilities;

/// A backend before it is started.
#[derive(Debug)]
pub enum Prepared {
    /// Our own data path.
    Userspace(userspace::Prepared),
}

impl Prepared {
    /// Chooses and prepares the backend, from the configuration and what the kernel can do.
    pub fn new(config: &Config, capabilities: &Capabilities) -> Result<Self, BackendError> {
        Ok(Self::Userspace(userspace::Prepared::new(config, capabilities)?))
    }

    /// What our lease says about encryption.
    #[must_use]
    pub fn announce(&self) -> Option<Announced> {
        match self {
            Self::Userspace(prepared) => prepared.announce(),
        }
    }

    /// Whether peers will accept this host under the name that it has in the store. `port` receives
    /// packets.
    pub fn check(&self, name: &str, port: u16) -> Result<(), BackendError> {
        match self {
            Self::Userspace(prepared) => prepared.check(name, port),
        }
    }

    /// Starts the backend, with a map that is empty.
    pub async fn start(self, config: &Config, setup: Setup) -> Result<Backend, BackendError> {
        match self {
            Self::Userspace(prepared) => {
                Ok(Backend::Userspace(Box::new(prepared.start(config, setup).await?)))
            }
        }
    }
}

/// Bytes that the configured backend takes of each packet, on an underlay of `family`.
#[must_use]
pub fn overhead(config: &Config, family: Family) -> Overhead {
    userspace::overhead(config, family)
}

/// Whether the socket for packets can be opened. It is closed again.
pub fn check_port(address: SocketAddr) -> Result<(), BackendError> {
    userspace::check_port(address)
}

/// A running backend.
#[derive(Debug)]
pub enum Backend {
    /// Our own data path.
    Userspace(Box<Userspace>),
}

impl Backend {
    /// What the kernel should hold for this map.
    #[must_use]
    pub fn desired(&self, _rib: &Rib) -> Desired {
        match self {
            Self::Userspace(userspace) => userspace.desired(),
        }
    }

    /// Puts the map into effect. `changed_at`: when the store reported the changes in it.
    pub fn apply(&mut self, rib: &Rib, changed_at: &[Instant]) {
        match self {
            Self::Userspace(userspace) => userspace.apply(rib, changed_at),
        }
    }

    /// Number of hosts to which packets can be sent.
    #[must_use]
    pub fn peers(&self) -> usize {
        match self {
            Self::Userspace(userspace) => userspace.peers(),
        }
    }

    /// What the backend made survives a crash from here on.
    pub fn keep(&self) -> Result<(), BackendError> {
        match self {
            Self::Userspace(userspace) => userspace.keep(),
        }
    }

    /// Waits for something that the node should know. Cancel safe.
    pub async fn event(&mut self) -> Event {
        match self {
            Self::Userspace(userspace) => userspace.event().await,
        }
    }

    /// This host's address or MTU has changed. The map has to be applied again afterwards. If new
    /// sockets cannot be opened, everything stays as it was.
    pub async fn relocate(&mut self, local: &Local) -> Result<(), BackendError> {
        match self {
            Self::Userspace(userspace) => userspace.relocate(local).await,
        }
    }

    /// Looks for packets from hosts that use the subnet of this host, or of others. To be called
    /// every second or so.
    pub fn check_sources(&mut self) -> DuplicateSubnet {
        match self {
            Self::Userspace(userspace) => userspace.check_sources(),
        }
    }

    /// Looks for a new certificate, if the one in use expires soon. To be called every second or
    /// so.
    pub fn renew_if_due(&mut self, config: &Config) -> Result<Renewal, BackendError> {
        match self {
            Self::Userspace(userspace) => userspace.renew_if_due(config),
        }
    }

    /// Loads certificates again, as `config` names them. If they cannot be used, everything stays
    /// as it was.
    pub fn renew(&mut self, config: &Config) -> Result<Renewal, BackendError> {
        match self {
            Self::Userspace(userspace) => userspace.renew(config, true),
        }
    }

    /// Reports for status, explain and metrics, in the order in which a packet meets them.
    #[must_use]
    pub fn parts(&self) -> Vec<Arc<dyn Part>> {
        match self {
            Self::Userspace(userspace) => userspace.parts(),
        }
    }

    /// Stops, and removes what the backend made.
    pub async fn stop(self) {
        match self {
            Self::Userspace(userspace) => userspace.stop().await,
        }
    }
}
