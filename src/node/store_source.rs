//! Where the store is opened: as configured or, in tests, in memory.

use std::net::IpAddr;

#[cfg(test)]
use super::store_settings::etcd_settings;
use super::store_settings::settings;
use crate::config::StoreConfig;
#[cfg(test)]
use crate::store::etcd::memory::MemoryEtcd;
use crate::store::{Opened, Store, StoreError};

/// Where the store is opened.
#[derive(Debug)]
pub(super) enum StoreSource {
    /// The store that the configuration names.
    Configured,
    /// An etcd in memory, with the settings of the configuration.
    #[cfg(test)]
    Memory(MemoryEtcd),
}

impl StoreSource {
    /// Opens the store for the host that has `addresses`.
    pub(super) async fn open(
        &self,
        config: &StoreConfig,
        addresses: &[IpAddr],
    ) -> Result<(Store, Opened), StoreError> {
        match self {
            Self::Configured => Store::open(&settings(config), addresses).await,
            #[cfg(test)]
            Self::Memory(etcd) => match config {
                StoreConfig::Etcd(config) => {
                    Store::open_memory(etcd, &etcd_settings(config), addresses).await
                }
                StoreConfig::File { .. } => Store::open(&settings(config), addresses).await,
            },
        }
    }
}
