//! Where this host is reached, while it runs: what to do when the addresses of its underlay interface change.
//!
//! [`decide`] is pure. An address that is still there is kept, whatever else appears. One that vanished is followed at once
//! by one that appeared since it was taken; by one that was there all the time only after a while, because addresses
//! that are renewed go away for a moment. With none left the last one is kept: forwarding goes on with what there is.
//!
//! Invariant: the first held address is the one that we send from, and its family never changes while the node runs.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::underlay::Underlay;
use crate::packet::Family;

/// So long an address may be gone before another old one takes its place.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where we are.
#[derive(Debug)]
pub(super) struct PublicAddress {
    pub(super) interface: String,
    pub(super) index: u32,
    /// What is published, at most one of each family; from the first we send.
    pub(super) held: Vec<IpAddr>,
    /// What there was when these were taken.
    known: Vec<IpAddr>,
    missing: Option<Instant>,
}

/// What a look at the interface brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// All is as it was.
    Stay,
    /// The address is gone, and there is none to go to, yet.
    Wait,
    /// These are to be held.
    Move(Vec<IpAddr>),
}

impl PublicAddress {
    /// `public`: the address that the lease names.
    pub(super) fn new(underlay: &Underlay, public: IpAddr) -> Self {
        let known = underlay.addresses.clone();
        let other = known.iter().find(|address| address.is_ipv4() != public.is_ipv4());
        let held = [public].into_iter().chain(other.copied()).collect();
        let (interface, index) = (underlay.interface.clone(), underlay.index);
        Self { interface, index, held, known, missing: None }
    }

    /// The address that we send from.
    pub(super) fn public(&self) -> IpAddr {
        self.held[0]
    }

    /// The address is not there: look again soon.
    pub(super) fn is_missing(&self) -> bool {
        self.missing.is_some()
    }

    /// The interface has these addresses now, the preferred first.
    pub(super) fn look(&mut self, found: &[IpAddr], now: Instant) -> Decision {
        let there = found.contains(&self.public());
        self.missing = if there { None } else { Some(self.missing.unwrap_or(now)) };
        let patient = self.missing.is_some_and(|since| now.duration_since(since) < PATIENCE);
        match decide(&self.held, &self.known, found, patient) {
            next if next != self.held => Decision::Move(next),
            _ if there => Decision::Stay,
            _ => Decision::Wait,
        }
    }

    /// These are held from here on.
    pub(super) fn moved(&mut self, held: Vec<IpAddr>, underlay: Underlay) {
        let Underlay { interface, index, addresses, .. } = underlay;
        let missing = self.missing.filter(|_| !addresses.contains(&held[0]));
        *self = Self { interface, index, held, known: addresses, missing };
    }
}

/// What is to be held, when `held` was and `found` is there, of which `known` is nothing new.
fn decide(held: &[IpAddr], known: &[IpAddr], found: &[IpAddr], patient: bool) -> Vec<IpAddr> {
    let next = |gone: &IpAddr| {
        let family = Family::of(*gone);
        let mut others = found.iter().filter(|address| Family::of(**address) == family);
        let new = others.clone().find(|address| !known.contains(address));
        new.or_else(|| others.next().filter(|_| !patient)).copied()
    };
    let kept = |address: &IpAddr| match found.contains(address) {
        true => *address,
        false => next(address).unwrap_or(*address),
    };
    let mut all: Vec<IpAddr> = held.iter().map(kept).collect();
    // A family that the host had not before.
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
    fn addresses_are_kept_followed_and_waited_for() {
        for (held, known, found, patient, expected) in [
            ("192.0.2.1", "192.0.2.1", "192.0.2.1", true, "192.0.2.1"),
            // Others come: no reason to move.
            ("192.0.2.1", "192.0.2.1", "192.0.2.9 192.0.2.1", true, "192.0.2.1"),
            // Gone, and a new one there: at once.
            ("192.0.2.1", "192.0.2.1", "192.0.2.9", true, "192.0.2.9"),
            // Gone, and only what was there before: after a while.
            ("192.0.2.1", "192.0.2.1 10.0.0.5", "10.0.0.5", true, "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1 10.0.0.5", "10.0.0.5", false, "10.0.0.5"),
            ("192.0.2.1", "192.0.2.1 10.0.0.5", "10.0.0.5 192.0.2.9", true, "192.0.2.9"),
            // None left: the last one.
            ("192.0.2.1", "192.0.2.1", "", false, "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1", "2001:db8::1", false, "192.0.2.1 2001:db8::1"),
            // Each family by itself.
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
            let next = decide(&addresses(held), &addresses(known), &addresses(found), patient);
            assert_eq!(next, addresses(expected), "{held} ({known}) -> {found}, {patient}");
        }
    }

    #[test]
    fn an_address_may_be_away_for_a_moment() {
        let underlay = Underlay {
            interface: "eth0".into(),
            index: 2,
            mtu: 1500,
            addresses: addresses("192.0.2.1 10.0.0.5"),
        };
        let mut place = PublicAddress::new(&underlay, underlay.addresses[0]);
        let start = Instant::now();
        let after = |millis: u64| start + Duration::from_millis(millis);
        assert_eq!(place.look(&addresses("10.0.0.5"), after(0)), Decision::Wait);
        assert!(place.is_missing());
        assert_eq!(place.look(&addresses("10.0.0.5 192.0.2.1"), after(900)), Decision::Stay);
        assert_eq!(place.look(&addresses("10.0.0.5"), after(1000)), Decision::Wait);
        assert_eq!(place.look(&addresses("10.0.0.5"), after(1999)), Decision::Wait);
        let Decision::Move(next) = place.look(&addresses("10.0.0.5"), after(2000)) else { panic!("waits") };
        place.moved(next, Underlay { addresses: addresses("10.0.0.5"), ..underlay });
        assert!(!place.is_missing());
        // The old one is new now, and no reason to move.
        assert_eq!(place.look(&addresses("192.0.2.1 10.0.0.5"), after(3000)), Decision::Stay);
        assert_eq!(place.look(&[], after(9000)), Decision::Wait);
        assert_eq!(place.look(&[], after(19_000)), Decision::Wait);
    }
}
