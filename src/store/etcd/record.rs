//! A lease with the key that holds it, and how leases are read from keys.
//!
//! Reading decides only what is a lease. What a lease means for routes is decided elsewhere.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;

use crate::route::{Lease, Networks, Public, Unfit, unfit_in};
use crate::store::flannel::{Attributes, AttributesError, Key, Keys};
use crate::store::watch::{Decode, Decoded, Kv};

/// A lease and the key that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kv: Kv,
    pub(crate) subnets: Vec<IpNet>,
    pub(crate) attributes: Attributes,
}

impl Record {
    /// Whether the lease does not expire.
    pub(crate) fn is_reserved(&self) -> bool {
        self.kv.lease == 0
    }

    /// Whether the lease has one of these addresses.
    pub(crate) fn claims(&self, public: &Public) -> bool {
        self.attributes.public.iter().any(|theirs| public.iter().any(|ours: IpAddr| ours == theirs))
    }

    /// Id of the node that wrote the lease, if that node runs hopsack.
    pub(crate) fn node_id(&self) -> Option<&str> {
        self.attributes.identity.as_ref().map(|identity| identity.id.as_str())
    }

    /// The lease as routes know it. `exposed` turns a revision of etcd into one of this process.
    pub(crate) fn lease(&self, exposed: impl Fn(i64) -> u64) -> Lease {
        let mut lease = self.attributes.lease(&self.subnets, exposed(self.kv.mod_revision));
        lease.origin.key.clone_from(&self.kv.key);
        lease.origin.created = exposed(self.kv.create_revision);
        lease
    }
}

/// What a key is.
#[derive(Debug)]
pub(crate) enum Reading {
    /// A lease.
    Lease(Record),
    /// An invalid key among the leases: its subnets, if the name of the key contains them, and the
    /// reason.
    Invalid(Option<Vec<IpNet>>, String),
    /// The network configuration.
    Config,
    /// A key with another meaning.
    Other,
}

/// Reads one key. Leases must lie inside `networks`; `None` allows them anywhere.
pub(crate) fn read(keys: &Keys, networks: Option<&Networks>, kv: &Kv) -> Reading {
    match keys.read(&kv.key) {
        Key::Config => Reading::Config,
        Key::Other => Reading::Other,
        Key::Invalid(error) => Reading::Invalid(None, error.to_string()),
        Key::Lease(subnets) => match Attributes::parse(&kv.value) {
            Err(error) => Reading::Invalid(Some(subnets), error.to_string()),
            // A key named 0.0.0.0/0 must not draw all packets to one host.
            Ok(_) if networks.is_some_and(|networks| !is_inside(networks, &subnets)) => {
                Reading::Invalid(Some(subnets), "its subnet is outside the network of this cluster".into())
            }
            Ok(attributes) => match networks.and_then(|networks| unfit_address(networks, &attributes)) {
                Some((address, why)) => {
                    Reading::Invalid(Some(subnets), AttributesError::Unfit(address, why).to_string())
                }
                None => Reading::Lease(Record { kv: kv.clone(), subnets, attributes }),
            },
        },
    }
}

fn unfit_address(networks: &Networks, attributes: &Attributes) -> Option<(IpAddr, Unfit)> {
    attributes.public.iter().find_map(|address| Some((address, unfit_in(networks, address)?)))
}

fn is_inside(networks: &Networks, subnets: &[IpNet]) -> bool {
    subnets.iter().all(|subnet| networks.iter().any(|network| network.contains(subnet) && network != *subnet))
}

/// Reads leases for a watched cache.
#[derive(Debug, Clone)]
pub(crate) struct LeaseDecoder {
    keys: Keys,
    networks: Networks,
}

impl LeaseDecoder {
    pub(crate) fn new(keys: &Keys, networks: Networks) -> Self {
        Self { keys: keys.clone(), networks }
    }
}

impl Decode for LeaseDecoder {
    type Object = Record;

    fn decode(&self, kv: &Kv) -> Decoded<Record> {
        match read(&self.keys, Some(&self.networks), kv) {
            Reading::Lease(record) => Decoded::Object(record),
            Reading::Invalid(_, reason) => Decoded::Invalid(reason),
            Reading::Config | Reading::Other => Decoded::Other,
        }
    }
}
