//! What a node tells etcd about itself.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::route::Public;
use crate::store::flannel::{Attributes, Identity, Keys};

/// Identity of this node in etcd.
#[derive(Debug, Clone)]
pub(crate) struct NodeIdentity {
    /// Layout of the keys.
    pub(crate) keys: Keys,
    /// Node id, name and abilities.
    pub(crate) identity: Identity,
    /// Addresses at which other hosts reach this node.
    pub(crate) public: Public,
    /// Subnets that this node must have; `None`: any that are free.
    pub(crate) subnets: Option<Vec<IpNet>>,
    /// Time to live of our lease.
    pub(crate) ttl: Duration,
}

impl NodeIdentity {
    /// Value of our key.
    pub(crate) fn value(&self) -> String {
        Attributes::ours(self.public, &self.identity).to_json()
    }

    /// Name, id and address of this node, for a sentence.
    pub(crate) fn describe(&self) -> String {
        Attributes::ours(self.public, &self.identity).writer()
    }
}

/// The address that a lease publishes: the first one. Sockets are bound to it, so a datagram to an
/// address of the other family would find no receiver.
pub(crate) fn published(addresses: &[IpAddr]) -> Public {
    match addresses.first() {
        Some(IpAddr::V4(v4)) => Public { v4: Some(*v4), v6: None },
        Some(IpAddr::V6(v6)) => Public { v4: None, v6: Some(*v6) },
        None => Public::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sockets are bound to the first address only.
    #[test]
    fn only_the_address_with_a_socket_is_published() {
        let (v4, v6): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into());
        let published = |addresses: &[IpAddr]| published(addresses).iter().collect::<Vec<_>>();
        assert_eq!(published(&[v4, v6]), [v4]);
        assert_eq!(published(&[v6]), [v6]);
        assert!(published(&[]).is_empty());
    }
}
