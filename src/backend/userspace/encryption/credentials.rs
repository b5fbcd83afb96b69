//! Credentials: the identity of this host, and which certificates it trusts.

use ipnet::IpNet;

use super::error::EncryptionError;
use crate::config::{Config, StoreConfig};
use crate::pki::{Identity, Trust, check_own};
use crate::quic::OVERHEAD_BYTES;
use crate::route::{Announced, Mode};

/// What this host shows and trusts.
#[derive(Debug)]
pub(in crate::backend::userspace) enum Credentials {
    /// This host does not encrypt.
    Off,
    /// Loaded from files.
    Loaded(Box<Loaded>),
}

/// Certificate, key and trust, as loaded from files.
#[derive(Debug)]
pub(in crate::backend::userspace) struct Loaded {
    pub(super) identity: Identity,
    pub(super) trust: Trust,
    pub(super) announced: Announced,
}

impl Credentials {
    /// Loads the files that the configuration names.
    pub(in crate::backend::userspace) fn load(config: &Config) -> Result<Self, EncryptionError> {
        match config.security.mode {
            Mode::None => Ok(Self::Off),
            Mode::Sealed | Mode::Quic => Ok(Self::Loaded(Box::new(Loaded::load(config)?))),
        }
    }

    /// Whether [`Credentials::load`] would succeed, as far as that can be told without making the
    /// certificate of a first start. Returns whether one would be made.
    pub(in crate::backend::userspace) fn check_files(config: &Config) -> Result<bool, EncryptionError> {
        let security = &config.security;
        if security.mode == Mode::None {
            return Ok(false);
        }
        if security.own.is_some() || Identity::usable(&config.node.state_dir)?.is_some() {
            return Self::load(config).map(|_| false);
        }
        if let Some(ca) = &security.ca {
            Trust::load(ca, security.bind_subnets)?;
        }
        Ok(true)
    }

    /// What our lease says about encryption.
    pub(in crate::backend::userspace) fn announced(&self) -> Option<Announced> {
        match self {
            Self::Off => None,
            Self::Loaded(loaded) => Some(loaded.announced),
        }
    }

    /// The subnets that this host must have, by its certificate; `None` if it may have any.
    pub(in crate::backend::userspace) fn subnets(&self) -> Option<Vec<IpNet>> {
        match self {
            Self::Off => None,
            Self::Loaded(loaded) => loaded.trust.required_subnets(&loaded.identity.key().cert[0]),
        }
    }

    /// Whether peers will accept this host under the name and with the subnets that it has in the
    /// store. `port` receives packets.
    pub(in crate::backend::userspace) fn check(
        &self,
        lease: (&str, &[IpNet]),
        port: u16,
    ) -> Result<(), EncryptionError> {
        match self {
            Self::Off => Ok(()),
            Self::Loaded(loaded) => loaded.check(lease, port),
        }
    }
}

impl Loaded {
    pub(super) fn load(config: &Config) -> Result<Self, EncryptionError> {
        let security = &config.security;
        let identity = match &security.own {
            Some((certificate, key)) => Identity::load(certificate, key)?,
            None => Identity::load_or_make(&config.node.state_dir, &host_name(config))?,
        };
        let trust = match &security.ca {
            Some(ca) => Trust::load(ca, security.bind_subnets)?,
            None => Trust::Store,
        };
        let announced =
            Announced { mode: security.mode, port: port(config)?, fingerprint: identity.fingerprint() };
        Ok(Self { identity, trust, announced })
    }

    pub(super) fn check(&self, lease: (&str, &[IpNet]), port: u16) -> Result<(), EncryptionError> {
        if self.announced.port == port {
            return Err(EncryptionError::SamePort(port));
        }
        Ok(check_own(&self.trust, &self.identity, lease)?)
    }
}

/// UDP port of the endpoint.
pub(super) fn port(config: &Config) -> Result<u16, EncryptionError> {
    config.security.port.or(config.overlay.port.checked_add(1)).ok_or(EncryptionError::NoPort)
}

/// Bytes of each underlay packet that encryption takes.
pub(in crate::backend::userspace) fn overhead(config: &Config) -> u16 {
    match config.security.mode {
        Mode::None => 0,
        // Sealed packets take less, but while there is no key they travel by QUIC.
        Mode::Sealed | Mode::Quic => OVERHEAD_BYTES,
    }
}

/// The name in a certificate that is made here.
fn host_name(config: &Config) -> String {
    let configured = match &config.store {
        StoreConfig::Etcd(etcd) => etcd.node_name.clone(),
        StoreConfig::File { .. } => None,
    };
    configured.unwrap_or_else(|| {
        std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map_or("hopsack".into(), |name| name.trim().into())
    })
}
