//! What our lease announces, and whether the store knows it.
//!
//! It decides nothing: the backend says how this host encrypts, the underlay what its link takes.
//!
//! Invariant: what the store was too busy to take is offered again every second.

use crate::route::{Abilities, Announced};
use crate::store::Store;

/// What our lease announces.
#[derive(Debug)]
pub(super) struct Announcement {
    abilities: Abilities,
    /// The store has not taken it yet.
    unpublished: bool,
}

impl Announcement {
    /// The announcement with which the store was opened.
    pub(super) fn new(abilities: Abilities) -> Self {
        Self { abilities, unpublished: false }
    }

    /// This host has another certificate.
    pub(super) fn encryption(&mut self, secure: Announced, store: &mut Store) {
        self.change(Abilities { secure: Some(secure), ..self.abilities }, store);
    }

    /// The underlay interface has this MTU, in bytes.
    pub(super) fn link_mtu(&mut self, mtu: u32, store: &mut Store) {
        self.change(Abilities { link_mtu: Some(clamp(mtu)), ..self.abilities }, store);
    }

    /// Offers the store what it has not taken yet.
    pub(super) fn publish(&mut self, store: &mut Store) {
        if self.unpublished {
            self.unpublished = !store.announce(self.abilities);
        }
    }

    fn change(&mut self, abilities: Abilities, store: &mut Store) {
        if abilities != self.abilities {
            (self.abilities, self.unpublished) = (abilities, true);
            self.publish(store);
        }
    }
}

/// What a host with this encryption and this MTU of its underlay interface announces. `fast`:
/// whether it can receive by the kernel fast path.
pub(super) fn abilities(secure: Option<Announced>, link_mtu: u32, fast: bool) -> Abilities {
    Abilities { secure, fast, link_mtu: Some(clamp(link_mtu)), ..Abilities::OURS }
}

/// A lease has 16 bits for an MTU; the loopback interface has a longer one.
fn clamp(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}
