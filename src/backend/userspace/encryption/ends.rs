//! What an endpoint is started with.

use std::net::SocketAddr;

use ipnet::IpNet;

use crate::route::Policy;

/// What the endpoint is started with.
#[derive(Debug)]
pub(in crate::backend::userspace) struct Ends<'a> {
    /// Name of this host in the store.
    pub(in crate::backend::userspace) name: &'a str,
    /// Subnets of this host in the store.
    pub(in crate::backend::userspace) subnets: &'a [IpNet],
    /// Address and port at which this host receives packets.
    pub(in crate::backend::userspace) address: SocketAddr,
    /// Longest UDP payload that the underlay interface takes, in bytes.
    pub(in crate::backend::userspace) payload: u16,
    /// How packets must be protected.
    pub(in crate::backend::userspace) policy: Policy,
}
