//! The sessions of all peers with sealed packets. They outlive forwarding tables.
//!
//! It makes no handshake.
//!
//! Invariant: after its peer is gone, a session has no keys.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::seal::{Lifetime, Session};

/// The sessions of all peers with sealed packets, by underlay address.
#[derive(Debug, Default)]
pub struct Sessions {
    lifetime: Lifetime,
    by_address: BTreeMap<IpAddr, Arc<Session>>,
}

impl Sessions {
    /// Creates an empty set. Its sessions will use `lifetime`.
    #[must_use]
    pub fn new(lifetime: Lifetime) -> Self {
        Self { lifetime, by_address: BTreeMap::new() }
    }

    /// Returns a session for each address, a new one where there is none yet, and forgets all
    /// others.
    pub(super) fn retain(
        &mut self,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> &BTreeMap<IpAddr, Arc<Session>> {
        let mut kept = BTreeMap::new();
        for address in addresses {
            let known = self.by_address.remove(&address);
            kept.insert(address, known.unwrap_or_else(|| Arc::new(Session::new(self.lifetime))));
        }
        // The remaining sessions have no peer. Workers that still use the last table must not seal
        // with them either.
        std::mem::replace(&mut self.by_address, kept).values().for_each(|session| session.forget());
        &self.by_address
    }
}
