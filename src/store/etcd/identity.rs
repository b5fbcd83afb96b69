//! What a node tells etcd about itself.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

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

/// The addresses that a lease publishes: the first of each family.
pub(crate) fn published(addresses: &[IpAddr]) -> Public {
    let mut public = Public::default();
    for address in addresses {
        match address {
            IpAddr::V4(v4) => public.v4 = public.v4.or(Some(*v4)),
            IpAddr::V6(v6) => public.v6 = public.v6.or(Some(*v6)),
        }
    }
    public
}
