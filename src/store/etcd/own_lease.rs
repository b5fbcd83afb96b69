//! Our own lease as this process knows it.
#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::guard::Guard;
use crate::store::clock::Clock;
use crate::store::flannel::Keys;
use crate::store::watch::Kv;

/// Our lease, as it was last seen in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnLease {
    /// Key of the lease.
    pub(crate) key: String,
    /// Subnets that the lease holds.
    pub(crate) subnets: Vec<IpNet>,
    /// Value that we wrote, or are about to write.
    pub(crate) value: String,
    /// Revision that created the key.
    pub(crate) created: i64,
    /// Revision of the key.
    pub(crate) mod_revision: i64,
    /// Id of the etcd lease; 0 means a reservation, which does not expire.
    pub(crate) lease: i64,
    /// Time to live that etcd gave.
    pub(crate) granted: Duration,
    /// When the lease expires unless it is renewed; `None` for a reservation.
    pub(crate) expires: Option<SystemTime>,
}

impl OwnLease {
    /// The key as etcd holds it.
    pub(crate) fn kv(&self) -> Kv {
        Kv {
            key: self.key.clone(),
            value: self.value.clone().into_bytes(),
            create_revision: self.created,
            mod_revision: self.mod_revision,
            lease: self.lease,
        }
    }

    /// Records that the lease has its whole time to live again.
    pub(crate) fn renewed(&mut self, clock: Clock) {
        self.expires = (self.lease != 0).then(|| clock.now() + self.granted);
    }

    /// The subnets, for a sentence.
    pub(crate) fn name(&self) -> String {
        subnets_text(&self.subnets)
    }
}

/// Subnets, for a sentence.
pub(crate) fn subnets_text(subnets: &[IpNet]) -> String {
    subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

/// The guard under which a lease of `subnets` is created. `listed` is the revision of the list that
/// showed them free.
///
/// With both families, two nodes may choose the same IPv6 subnet under different keys. All keys are
/// guarded then: this is slower when many nodes start together, but two nodes never get one subnet.
pub(crate) fn creation_guard(keys: &Keys, key: &str, subnets: &[IpNet], listed: i64) -> Guard {
    match subnets {
        [_] => Guard::NoKey(key.to_owned()),
        _ => Guard::Unwritten(keys.subnets(), listed),
    }
}
