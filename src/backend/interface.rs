//! The interface that every backend has, as closed enums: adding a backend means adding a variant
//! here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use tokio::time::Instant;

use super::error::BackendError;
use super::event::{DuplicateSubnet, Event, Renewal, Stop};
use super::null::Null;
use super::overhead::Overhead;
use super::setup::Setup;
use super::userspace::{self, Userspace};
use crate::api::ProblemCode;
use crate::config::{BackendChoice, Config};
use crate::desired::Desired;
use crate::observe::Part;
use crate::packet::Family;
use crate::route::{Announced, Local, Networks, Remark, Rib};
use crate::sys::Capabilities;

/// A backend before it is started.
#[derive(Debug)]
pub enum Prepared {
    /// Our own data path.
    Userspace(userspace::Prepared),
    /// No data path.
    Null,
}

impl Prepared {
    /// Chooses and prepares the backend, from the configuration and what the kernel can do.
    pub fn new(config: &Config, capabilities: &Capabilities) -> Result<Self, BackendError> {
        match config.overlay.backend {
            BackendChoice::Userspace => Ok(Self::Userspace(userspace::Prepared::new(config, capabilities)?)),
            BackendChoice::Null => Ok(Self::Null),
        }
    }

    /// What our lease says about encryption.
    #[must_use]
    pub fn announce(&self) -> Option<Announced> {
        match self {
            Self::Userspace(prepared) => prepared.announce(),
            Self::Null => None,
        }
    }

    /// Whether this host can have the kernel fast path at the address `public`. `pins`: whether
    /// there is a directory for pins.
    ///
    /// # Errors
    /// Why it cannot, in words.
    pub fn fast_path(&self, public: IpAddr, pins: Result<(), String>) -> Result<(), String> {
        match self {
            Self::Userspace(prepared) => prepared.fast_path(public, pins),
            Self::Null => Err("the backend moves no packets".to_owned()),
        }
    }

    /// The subnets that this host must have, by its certificate; `None` if it may have any.
    #[must_use]
    pub fn subnets(&self) -> Option<Vec<IpNet>> {
        match self {
            Self::Userspace(prepared) => prepared.subnets(),
            Self::Null => None,
        }
    }

    /// Whether peers will accept this host under the name and with the subnets that it has in the
    /// store. `port` receives packets.
    pub fn check(&self, lease: (&str, &[IpNet]), port: u16) -> Result<(), BackendError> {
        match self {
            Self::Userspace(prepared) => prepared.check(lease, port),
            Self::Null => Ok(()),
        }
    }

    /// Starts the backend, with a map that is empty.
    pub async fn start(self, config: &Config, setup: Setup) -> Result<Backend, BackendError> {
        match self {
            Self::Userspace(prepared) => {
                Ok(Backend::Userspace(Box::new(prepared.start(config, setup).await?)))
            }
            Self::Null => Ok(Backend::Null(Null::new(setup.networks, setup.local))),
        }
    }
}

/// Bytes that the configured backend takes of each packet, on an underlay of `family`.
#[must_use]
pub fn overhead(config: &Config, family: Family) -> Overhead {
    match config.overlay.backend {
        BackendChoice::Userspace => userspace::overhead(config, family),
        BackendChoice::Null => Overhead { total: 0, longest: u16::MAX },
    }
}

/// What the kernel would hold for the configured backend.
#[must_use]
pub fn desired(config: &Config, local: &Local, networks: &Networks) -> Desired {
    match config.overlay.backend {
        BackendChoice::Userspace => userspace::desired(&config.overlay.device, local, networks),
        BackendChoice::Null => Desired::default(),
    }
}

/// Whether the socket for packets can be opened. It is closed again.
pub fn check_port(address: SocketAddr) -> Result<(), BackendError> {
    userspace::check_port(address)
}

/// Whether certificate, key and CA can be loaded. Returns whether a start would make a certificate.
pub fn check_credentials(config: &Config) -> Result<bool, BackendError> {
    userspace::check_credentials(config)
}

/// Whether the port for encrypted connections can be opened, if there is one. It is closed again.
pub fn check_encryption_port(config: &Config, public: IpAddr) -> Result<Option<SocketAddr>, BackendError> {
    userspace::check_encryption_port(config, public)
}

/// Whether this host can have the kernel fast path at this address, or why not. `pins`: whether its
/// maps can be pinned.
pub fn check_fast_path(
    config: &Config,
    capabilities: &Capabilities,
    at: (IpAddr, Result<(), String>),
) -> Result<(), String> {
    match config.overlay.backend {
        BackendChoice::Userspace => userspace::check_fast_path(config, capabilities, at),
        BackendChoice::Null => Err("this backend has none".to_owned()),
    }
}

/// A running backend.
#[derive(Debug)]
pub enum Backend {
    /// Our own data path.
    Userspace(Box<Userspace>),
    /// No data path.
    Null(Null),
}

impl Backend {
    /// What the kernel should hold for this map.
    #[must_use]
    pub fn desired(&self, _rib: &Rib) -> Desired {
        match self {
            Self::Userspace(userspace) => userspace.desired(),
            Self::Null(_) => Desired::default(),
        }
    }

    /// Puts the map into effect. `changed_at`: when the store reported the changes in it.
    pub fn apply(&mut self, rib: &Rib, changed_at: &[Instant]) {
        match self {
            Self::Userspace(userspace) => userspace.apply(rib, changed_at),
            Self::Null(null) => null.apply(rib),
        }
    }

    /// Number of hosts that packets can be sent to.
    #[must_use]
    pub fn peers(&self) -> usize {
        match self {
            Self::Userspace(userspace) => userspace.peers(),
            Self::Null(null) => null.peers(),
        }
    }

    /// What the operator must know about single leases of the map in effect.
    #[must_use]
    pub fn remarks(&self) -> Vec<Remark> {
        match self {
            Self::Userspace(userspace) => userspace.remarks(),
            Self::Null(null) => null.remarks(),
        }
    }

    /// From now on, the backend's kernel objects outlive this process.
    pub fn keep(&self) -> Result<(), BackendError> {
        match self {
            Self::Userspace(userspace) => userspace.keep(),
            Self::Null(_) => Ok(()),
        }
    }

    /// Waits for something that the node should know. Cancel safe.
    pub async fn event(&mut self) -> Event {
        match self {
            Self::Userspace(userspace) => userspace.event().await,
            Self::Null(_) => std::future::pending().await,
        }
    }

    /// A network device has changed, come or gone.
    pub fn link_changed(&mut self, name: &str) {
        match self {
            Self::Userspace(userspace) => userspace.link_changed(name),
            Self::Null(_) => {}
        }
    }

    /// This host's address or MTU has changed. The map has to be applied again afterwards. If new
    /// sockets cannot be opened, everything stays as it was.
    pub fn relocate(&mut self, local: &Local) -> Result<(), BackendError> {
        match self {
            Self::Userspace(userspace) => userspace.relocate(local),
            Self::Null(null) => {
                null.relocate(local);
                Ok(())
            }
        }
    }

    /// Problems with single peers, by kind: name and sentence of each peer that has one. To be
    /// called every second or so.
    #[must_use]
    pub fn peer_problems(&self) -> Vec<(ProblemCode, Vec<(String, String)>)> {
        match self {
            Self::Userspace(userspace) => userspace.peer_problems(),
            Self::Null(_) => Vec::new(),
        }
    }

    /// Looks for packets from hosts that use the subnet of this host, or of others. To be called
    /// every second or so.
    pub fn check_sources(&mut self) -> DuplicateSubnet {
        match self {
            Self::Userspace(userspace) => userspace.check_sources(),
            Self::Null(_) => DuplicateSubnet::Unchanged,
        }
    }

    /// Number of datagrams that the kernel refused to send because a packet filter forbids them.
    #[must_use]
    pub fn refused_sends(&self) -> u64 {
        match self {
            Self::Userspace(userspace) => userspace.refused_sends(),
            Self::Null(_) => 0,
        }
    }

    /// Looks for a new certificate, if the one in use expires soon. To be called every second or
    /// so.
    pub fn renew_if_due(&mut self, config: &Config) -> Result<Renewal, BackendError> {
        match self {
            Self::Userspace(userspace) => userspace.renew_if_due(config),
            Self::Null(_) => Ok(Renewal::NotDue),
        }
    }

    /// Loads certificates again, as `config` names them. If they cannot be used, everything stays
    /// as it was.
    pub fn renew(&mut self, config: &Config) -> Result<Renewal, BackendError> {
        match self {
            Self::Userspace(userspace) => userspace.renew(config, true),
            Self::Null(_) => Ok(Renewal::NotDue),
        }
    }

    /// Reports for status, explain and metrics, in the order in which a packet passes through them.
    #[must_use]
    pub fn parts(&self) -> Vec<Arc<dyn Part>> {
        match self {
            Self::Userspace(userspace) => userspace.parts(),
            Self::Null(_) => Vec::new(),
        }
    }

    /// Stops moving packets.
    pub async fn stop(self, how: Stop) {
        match self {
            Self::Userspace(userspace) => userspace.stop(how).await,
            Self::Null(_) => {}
        }
    }
}
