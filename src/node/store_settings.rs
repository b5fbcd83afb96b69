//! Makes the settings of a store from this node's configuration, so that the store knows no
//! configuration type.
#![forbid(unsafe_code)]

use crate::config::{EtcdConfig, StoreConfig};
use crate::store::{EtcdSettings, LEASE_TTL, Settings, Tls};

/// Settings of the configured store.
pub(super) fn settings(store: &StoreConfig) -> Settings {
    match store {
        StoreConfig::File { path } => Settings::File { path: path.clone() },
        StoreConfig::Etcd(etcd) => Settings::Etcd(Box::new(etcd_settings(etcd))),
    }
}

/// Settings of an etcd store.
pub(super) fn etcd_settings(etcd: &EtcdConfig) -> EtcdSettings {
    EtcdSettings {
        endpoints: etcd.endpoints.clone(),
        prefix: etcd.prefix.clone(),
        tls: etcd.tls.as_ref().map(|tls| Tls { ca: tls.ca.clone(), client: tls.client.clone() }),
        user: etcd.user.clone(),
        node_name: etcd.node_name.clone(),
        state_dir: etcd.state_dir.clone(),
        subnet_env: etcd.subnet_env.clone(),
        revoke_on_exit: etcd.revoke_on_exit,
        abilities: etcd.abilities,
        subnets: etcd.subnets.clone(),
        lease_ttl: LEASE_TTL,
    }
}
