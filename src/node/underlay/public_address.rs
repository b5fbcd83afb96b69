//! The address of this host on the underlay, while the node runs: what to do when the addresses of
//! the interface change.
//!
//! [`decide`] is pure. An address that the interface still has is kept, whatever other addresses
//! appear. An address that vanished is followed at once by one that is new; by one that was there
//! all the time only after [`GRACE`], because an address that is renewed goes away for a moment. If
//! none is left, the last one is kept: forwarding goes on.
//!
//! Invariant: the family of the address never changes while the node runs.

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
    /// Index of the interface by which datagrams leave.
    pub(super) egress: u32,
    /// The address that our lease names, and that the sockets are bound to.
    pub(super) held: IpAddr,
    /// Addresses that the interface had when these were chosen.
    known: Vec<IpAddr>,
    missing_since: Option<Instant>,
    /// The store has not accepted the held address yet.
    pub(super) unpublished: bool,
}

/// What to do after a look at the interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing: the address is there.
    Keep,
    /// The address is gone, and there is no other one to use, yet.
    Wait,
    /// Use this address.
    Move(IpAddr),
}

impl PublicAddress {
    /// `public`: the address that the lease names.
    pub(in crate::node) fn new(underlay: &Underlay, public: IpAddr) -> Self {
        let (known, held) = (underlay.addresses.clone(), public);
        let (interface, index, egress) = (underlay.interface.clone(), underlay.index, underlay.egress);
        Self { interface, index, egress, held, known, missing_since: None, unpublished: false }
    }

    /// The address that we send from.
    pub(super) fn public(&self) -> IpAddr {
        self.held
    }

    /// Whether the interface lacks the address: it has to be looked at again soon.
    pub(super) fn is_missing(&self) -> bool {
        self.missing_since.is_some()
    }

    /// Whether `notice` is about the underlay interface.
    pub(in crate::node) fn concerns(&self, notice: &Notice) -> bool {
        match notice {
            Notice::Link { index, name } => {
                [self.index, self.egress].contains(index) || *name == self.interface
            }
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
        let next = decide(self.held, &self.known, found, in_grace);
        if next != self.held {
            Decision::Move(next)
        } else if present {
            Decision::Keep
        } else {
            Decision::Wait
        }
    }

    /// Takes this address into use.
    pub(super) fn set(&mut self, held: IpAddr, underlay: Underlay) {
        let Underlay { interface, index, egress, addresses, .. } = underlay;
        let missing_since = self.missing_since.filter(|_| !addresses.contains(&held));
        let unpublished = self.unpublished;
        *self = Self { interface, index, egress, held, known: addresses, missing_since, unpublished };
    }
}

/// The address to use, when `held` was in use and `found` are there. Those in `known` are not new.
fn decide(held: IpAddr, known: &[IpAddr], found: &[IpAddr], in_grace: bool) -> IpAddr {
    if found.contains(&held) {
        return held;
    }
    let mut others = found.iter().filter(|address| Family::of(**address) == Family::of(held));
    let new = others.clone().find(|address| !known.contains(address));
    let next = new.or_else(|| others.next().filter(|_| !in_grace));
    next.copied().unwrap_or(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::underlay::find::LinkState;

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
            // An address of the other family does not replace it.
            ("192.0.2.1", "192.0.2.1", "2001:db8::1", false, "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1", "192.0.2.1 2001:db8::2", true, "2001:db8::2"),
        ] {
            let next = decide(addresses(held)[0], &addresses(known), &addresses(found), in_grace);
            assert_eq!(next, addresses(expected)[0], "{held} ({known}) -> {found}, {in_grace}");
        }
    }

    #[test]
    fn address_may_be_gone_for_a_moment() {
        let underlay = Underlay {
            interface: "eth0".into(),
            index: 2,
            egress: 2,
            mtu: 1500,
            link_state: LinkState::Working,
            addresses: addresses("192.0.2.1 10.0.0.5"),
            own: Vec::new(),
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
