//! The address of this host on the underlay, while the node runs: what to do when the addresses of
//! the interface change.
//!
//! [`decide`] is pure. An address that the interface still has is kept, whatever other addresses
//! appear. An address that vanished is followed at once by one that is new; by one that was there
//! all the time only after [`GRACE`], because an address that is renewed goes away for a moment. If
//! none is left, the last one is kept: forwarding goes on.
//!
//! Invariant: the first held address is the one that we send from, and its family never changes
//! while the node runs.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::find::Underlay;
use crate::netlink::Notice;
use crate::packet::Family;

/// Time that an address may be gone before another old one replaces it.
const GRACE: Duration = Duration::from_secs(1);

/// The interface and the addresses that are in use.
#[derive(Debug)]
pub(in crate::node) struct PublicAddress {
    pub(super) interface: String,
    pub(super) index: u32,
    /// Addresses that our lease names, at most one of each family. We send from the first one.
    pub(super) held: Vec<IpAddr>,
    /// Addresses that the interface had when these were chosen.
    known: Vec<IpAddr>,
    missing_since: Option<Instant>,
    /// The store has not accepted the held addresses yet.
    pub(super) unpublished: bool,
}

/// What to do after a look at the interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing: the address is there.
    Keep,
    /// The address is gone, and there is no other one to use, yet.
    Wait,
    /// Use these addresses.
    Move(Vec<IpAddr>),
}

impl PublicAddress {
    /// `public`: the address that the lease names.
    pub(in crate::node) fn new(underlay: &Underlay, public: IpAddr) -> Self {
        let known = underlay.addresses.clone();
        let other = known.iter().find(|address| address.is_ipv4() != public.is_ipv4());
        let held = [public].into_iter().chain(other.copied()).collect();
        let (interface, index) = (underlay.interface.clone(), underlay.index);
        Self { interface, index, held, known, missing_since: None, unpublished: false }
    }

    /// The address that we send from.
    pub(super) fn public(&self) -> IpAddr {
        self.held[0]
    }

    /// Whether the interface lacks the address: it has to be looked at again soon.
    pub(super) fn is_missing(&self) -> bool {
        self.missing_since.is_some()
    }

    /// Whether `notice` is about the underlay interface.
    pub(in crate::node) fn concerns(&self, notice: &Notice) -> bool {
        match notice {
            Notice::Link { index, name } => *index == self.index || *name == self.interface,
            Notice::Address { index } => *index == self.index,
            Notice::Lost => true,
            Notice::Route { .. } | Notice::Forwarding | Notice::Other => false,
        }
    }

    /// Decides by the addresses that the interface has now, the preferred one first.
    pub(super) fn check(&mut self, found: &[IpAddr], now: Instant) -> Decision {
        let present = found.contains(&self.public());
        self.missing_since = if present { None } else { Some(self.missing_since.unwrap_or(now)) };
        let in_grace = self.missing_since.is_some_and(|since| now.duration_since(since) < GRACE);
        match decide(&self.held, &self.known, found, in_grace) {
            next if next != self.held => Decision::Move(next),
            _ if present => Decision::Keep,
            _ => Decision::Wait,
        }
    }

    /// Takes these addresses into use.
    pub(super) fn set(&mut self, held: Vec<IpAddr>, underlay: Underlay) {
        let Underlay { interface, index, addresses, .. } = underlay;
        let missing_since = self.missing_since.filter(|_| !addresses.contains(&held[0]));
        let unpublished = self.unpublished;
        *self = Self { interface, index, held, known: addresses, missing_since, unpublished };
    }
}

/// The addresses to use, when `held` were in use and `found` are there. Those in `known` are not
/// new.
fn decide(held: &[IpAddr], known: &[IpAddr], found: &[IpAddr], in_grace: bool) -> Vec<IpAddr> {
    let next = |gone: &IpAddr| {
        let family = Family::of(*gone);
        let mut others = found.iter().filter(|address| Family::of(**address) == family);
        let new = others.clone().find(|address| !known.contains(address));
        new.or_else(|| others.next().filter(|_| !in_grace)).copied()
    };
    let kept = |address: &IpAddr| match found.contains(address) {
        true => *address,
        false => next(address).unwrap_or(*address),
    };
    let mut all: Vec<IpAddr> = held.iter().map(kept).collect();
    // A family that the host did not have before.
    let missing = |address: &&IpAddr| held.iter().all(|old| Family::of(*old) != Family::of(**address));
    all.extend(found.iter().find(missing));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|address| address.parse().expect("an address")).collect()
    }

    #[test]
    fn addresses_are_kept_followed_or_awaited() {
        for (held, known, found, in_grace, expected) in [
            ("192.0.2.1", "192.0.2.1", "192.0.2.1", true, "192.0.2.1"),
            // Other addresses appear: no reason to move.
            ("192.0.2.1", "192.0.2.1", "192.0.2.9 192.0.2.1", true, "192.0.2.1"),
            // The address is gone and a new one is there: move at once.
            ("192.0.2.1", "192.0.2.1", "192.0.2.9", true, "192.0.2.9"),
            // The address is gone and the other one is old: move after a while.
            ("192.0.2.1", "192.0.2.1 10.0.0.5", "10.0.0.5", true, "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1 10.0.0.5", "10.0.0.5", false, "10.0.0.5"),
            ("192.0.2.1", "192.0.2.1 10.0.0.5", "10.0.0.5 192.0.2.9", true, "192.0.2.9"),
            // No address is left: keep the last one.
            ("192.0.2.1", "192.0.2.1", "", false, "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1", "2001:db8::1", false, "192.0.2.1 2001:db8::1"),
            // Each family is decided by itself.
            (
                "192.0.2.1 2001:db8::1",
                "192.0.2.1 2001:db8::1",
                "192.0.2.1 2001:db8::2",
                true,
                "192.0.2.1 2001:db8::2",
            ),
            (
                "2001:db8::1 192.0.2.1",
                "2001:db8::1 192.0.2.1",
                "192.0.2.1 2001:db8::2",
                true,
                "2001:db8::2 192.0.2.1",
            ),
            ("192.0.2.1", "192.0.2.1", "192.0.2.1 2001:db8::2", true, "192.0.2.1 2001:db8::2"),
        ] {
            let next = decide(&addresses(held), &addresses(known), &addresses(found), in_grace);
            assert_eq!(next, addresses(expected), "{held} ({known}) -> {found}, {in_grace}");
        }
    }

    #[test]
    fn address_may_be_gone_for_a_moment() {
        let underlay = Underlay {
            interface: "eth0".into(),
            index: 2,
            mtu: 1500,
            addresses: addresses("192.0.2.1 10.0.0.5"),
        };
        let mut address = PublicAddress::new(&underlay, underlay.addresses[0]);
        let start = Instant::now();
        let after = |millis: u64| start + Duration::from_millis(millis);
        assert_eq!(address.check(&addresses("10.0.0.5"), after(0)), Decision::Wait);
        assert!(address.is_missing());
        assert_eq!(address.check(&addresses("10.0.0.5 192.0.2.1"), after(900)), Decision::Keep);
        assert_eq!(address.check(&addresses("10.0.0.5"), after(1000)), Decision::Wait);
        assert_eq!(address.check(&addresses("10.0.0.5"), after(1999)), Decision::Wait);
        let Decision::Move(next) = address.check(&addresses("10.0.0.5"), after(2000)) else {
            panic!("it waits")
        };
        address.set(next, Underlay { addresses: addresses("10.0.0.5"), ..underlay });
        assert!(!address.is_missing());
        // The old address is new now, which is no reason to move.
        assert_eq!(address.check(&addresses("192.0.2.1 10.0.0.5"), after(3000)), Decision::Keep);
        assert_eq!(address.check(&[], after(9000)), Decision::Wait);
        assert_eq!(address.check(&[], after(19_000)), Decision::Wait);
    }
}
