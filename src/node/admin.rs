//! Operator commands on the store, as the command line calls them: by this node's configuration.
//!
//! They connect to the store themselves and need no running daemon. Printing is left to the caller.
#![forbid(unsafe_code)]

use ipnet::IpNet;

pub use crate::store::admin::{LeaseRow, LeaseTable, NetworkShown, PoolShown, Released};

use super::error::NodeError;
use super::store_settings::etcd_settings;
use crate::config::EtcdConfig;
use crate::store::admin;

/// Writes the network configuration (Flannel's JSON) if there is none.
pub async fn network_init(etcd: &EtcdConfig, json: &str) -> Result<NetworkShown, NodeError> {
    Ok(admin::network_init(&etcd_settings(etcd), json).await?)
}

/// Reads the network configuration.
pub async fn network_show(etcd: &EtcdConfig) -> Result<NetworkShown, NodeError> {
    Ok(admin::network_show(&etcd_settings(etcd)).await?)
}

/// Replaces the network configuration.
pub async fn network_set(etcd: &EtcdConfig, json: &str) -> Result<NetworkShown, NodeError> {
    Ok(admin::network_set(&etcd_settings(etcd), json).await?)
}

/// Lists the leases; with `with_expiry`, also when each expires.
pub async fn leases_list(etcd: &EtcdConfig, with_expiry: bool) -> Result<LeaseTable, NodeError> {
    Ok(admin::leases_list(&etcd_settings(etcd), with_expiry).await?)
}

/// Deletes the lease that holds `subnet`; a reservation only if `reserved` is set.
pub async fn leases_release(etcd: &EtcdConfig, subnet: IpNet, reserved: bool) -> Result<Released, NodeError> {
    Ok(admin::leases_release(&etcd_settings(etcd), subnet, reserved).await?)
}
