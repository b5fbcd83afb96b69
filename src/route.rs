//! Routes in a router's two senses: the [`Rib`] is what the store has told us, the [`Fib`] is what packets meet.
//!
//! A [`Lease`] says that a host owns subnets; a [`Change`] is all that ever crosses from a store to the node;
//! [`Rib::apply`] folds changes, [`Fib::compile`] turns the result into the immutable table that workers read.
//! Nothing here knows a store, a clock, a socket or a thread.
//!
//! Invariant: whatever the order and repetition of deliveries, a RIB ends in the state of a fresh list at the
//! highest revision it has seen (property test `rib_equals_a_fresh_list`).
#![forbid(unsafe_code)]

mod encryption_policy;
mod fib;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use encryption_policy::{Announced, Fingerprint, Mode, Policy, Protection};
pub use fib::{Fib, Hop, Local, Peer, Sessions, Unreachable};

use crate::packet::Family;

/// The overlay's address space, and the prefix length of one host's share in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Networks {
    /// IPv4 network and subnet length.
    pub v4: Option<(Ipv4Net, u8)>,
    /// IPv6 network and subnet length.
    pub v6: Option<(Ipv6Net, u8)>,
}

impl Networks {
    /// The networks that exist, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.map(|(net, _)| IpNet::V4(net));
        let v6 = self.v6.map(|(net, _)| IpNet::V6(net));
        v4.into_iter().chain(v6)
    }
}

/// The addresses at which a host is reached on the underlay, at most one of each family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Public {
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl Public {
    /// The address of one family.
    #[must_use]
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// The addresses that exist, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// What a hopsack daemon understands besides bare IPv4 packets, as it announced it itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Bare IPv6 packets (first nibble 6).
    pub ipv6: bool,
    /// Control messages (first nibble 2).
    pub control: bool,
    /// Bundles of small packets (first nibble 3).
    pub bundles: bool,
    /// Sealed packets (first nibble 1).
    pub sealed: bool,
    /// The outer ECN field, which it applies to the inner packet (RFC 6040).
    pub ecn: bool,
    /// How its packets are encrypted; `None`: not at all.
    pub secure: Option<Announced>,
}

impl Abilities {
    /// What this version of hopsack understands.
    pub const OURS: Self =
        Self { ipv6: true, control: false, bundles: true, sealed: false, ecn: true, secure: None };
}

/// What may be sent to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dialect {
    /// A plain flanneld in UDP mode: bare IPv4 packets and nothing else. It would read IPv6 as IPv4.
    Flannel,
    /// A hopsack daemon.
    Hopsack(Abilities),
    /// Another backend of Flannel's, by name: it has no socket that takes our packets.
    Other(String),
}

/// A host's claim to a part of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The host, as the store names it.
    pub name: String,
    /// What it owns, in the store's order: the identity of the lease. Never empty.
    pub subnets: Vec<IpNet>,
    /// Where it is reached.
    pub public: Public,
    /// What it may be sent.
    pub dialect: Dialect,
    /// The store's revision that wrote this; later is higher.
    pub revision: u64,
}

/// What a store tells the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Everything there is at `revision`: what is not in it is gone.
    Snapshot {
        /// All leases.
        leases: Vec<Lease>,
        /// The store's revision of this list.
        revision: u64,
    },
    /// Single changes, each with a revision of its own.
    Delta(Vec<Event>),
}

/// One lease changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Written, at `lease.revision`.
    Put(Lease),
    /// Deleted or run out.
    Delete {
        /// The lease's identity.
        subnets: Vec<IpNet>,
        /// The store's revision of the deletion.
        revision: u64,
    },
}

/// The routing information base: every lease as last known.
#[derive(Debug, Clone, Default)]
pub struct Rib {
    /// By identity. A deleted lease stays as a tombstone, so that a late, older Put doesn't bring it back; the next
    /// snapshot clears it.
    entries: BTreeMap<Vec<IpNet>, Entry>,
    snapshot: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    revision: u64,
    lease: Option<Lease>,
}

impl Rib {
    /// Folds a change in. Returns whether any lease is different now.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Snapshot { leases, revision } => self.replace(leases, revision),
            Change::Delta(events) => {
                let mut changed = false;
                for event in events {
                    changed |= match event {
                        Event::Put(lease) => {
                            let (key, revision) = (lease.subnets.clone(), lease.revision);
                            self.set(key, Entry { revision, lease: Some(lease) })
                        }
                        Event::Delete { subnets, revision } => {
                            self.set(subnets, Entry { revision, lease: None })
                        }
                    };
                }
                changed
            }
        }
    }

    /// The leases, ordered by subnet.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.entries.values().filter_map(|entry| entry.lease.as_ref())
    }

    fn replace(&mut self, leases: Vec<Lease>, revision: u64) -> bool {
        if revision < self.snapshot {
            return false;
        }
        self.snapshot = revision;
        let listed: BTreeMap<_, _> = leases
            .into_iter()
            .map(|lease| (lease.subnets.clone(), Entry { revision: lease.revision, lease: Some(lease) }))
            .collect();
        // What a delta has told since the list was made is newer than the list.
        let newer = |entry: &Entry| entry.revision > revision;
        let before: Vec<Lease> = self.leases().cloned().collect();
        self.entries.retain(|_, entry| newer(entry));
        for (key, entry) in listed {
            self.entries.entry(key).or_insert(entry);
        }
        !self.leases().eq(before.iter())
    }

    fn set(&mut self, key: Vec<IpNet>, entry: Entry) -> bool {
        let known = self.entries.get(&key);
        let stale = known.map_or(self.snapshot, |known| known.revision) >= entry.revision;
        if stale {
            return false;
        }
        let before = self.entries.insert(key, entry.clone()).and_then(|known| known.lease);
        before.map(without_revision) != entry.lease.map(without_revision)
    }
}

/// A renewal writes the same lease at a new revision: no change that a packet could notice.
fn without_revision(mut lease: Lease) -> Lease {
    lease.revision = 0;
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(third: u8, host: u8, revision: u64) -> Lease {
        Lease {
            name: format!("h{host}"),
            subnets: vec![IpNet::V4(Ipv4Net::new_assert([10, 1, third, 0].into(), 24))],
            public: Public { v4: Some([192, 0, 2, host].into()), v6: None },
            dialect: Dialect::Flannel,
            revision,
        }
    }

    #[test]
    fn a_snapshot_replaces_and_says_whether_it_mattered() {
        let mut rib = Rib::default();
        let snapshot = |leases: &[Lease], revision| Change::Snapshot { leases: leases.to_vec(), revision };
        assert!(rib.apply(snapshot(&[lease(1, 1, 1), lease(2, 2, 2)], 2)));
        assert!(!rib.apply(snapshot(&[lease(1, 1, 1), lease(2, 2, 2)], 3)), "nothing new");
        assert!(rib.apply(snapshot(&[lease(1, 1, 1)], 4)));
        assert_eq!(rib.leases().count(), 1);
        assert!(!rib.apply(snapshot(&[lease(9, 9, 1)], 3)), "an older list is no news");
    }

    #[test]
    fn deltas_are_idempotent_and_late_ones_lose() {
        let mut rib = Rib::default();
        let put = |lease: Lease| Change::Delta(vec![Event::Put(lease)]);
        let subnets = lease(1, 1, 0).subnets;
        assert!(rib.apply(put(lease(1, 1, 5))));
        assert!(!rib.apply(put(lease(1, 1, 5))), "delivered twice");
        assert!(!rib.apply(put(lease(1, 1, 6))), "a renewal changes nothing");
        assert!(rib.apply(put(lease(1, 7, 8))), "another host");
        assert!(rib.apply(Change::Delta(vec![Event::Delete { subnets, revision: 9 }])));
        assert!(!rib.apply(put(lease(1, 1, 7))), "older than the deletion");
        assert_eq!(rib.leases().count(), 0);
    }
}
