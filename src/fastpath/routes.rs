//! The route set of the program, and the steps from one set to another.
//!
//! It does not write maps, and does not know where the routes come from.
//!
//! Invariant: at each step, the longest prefix of each address leads to where it led before all
//! steps, to where it leads after them, or to the daemon. So a packet never goes to a peer that
//! neither the old nor the new set names.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::layout::Route;

/// Routes by prefix.
pub type Routes = BTreeMap<IpNet, Route>;

/// One change of a map. The kernel makes it atomically.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Adds a route, or replaces the route of the same prefix.
    Set(IpNet, Route),
    /// Removes a route.
    Remove(IpNet),
}

/// The steps that turn `old` into `new`.
///
/// First the daemon gets the prefixes that vanish: if they vanished at once, their packets would go
/// by a shorter prefix, which may still lead to its old peer. Then the others change or are added,
/// the longest first, so that no shorter prefix takes the packets of a longer one that is to come.
/// At last, the vanishing prefixes are removed.
#[must_use]
pub fn steps(old: &Routes, new: &Routes) -> Vec<Step> {
    let gone = || old.keys().filter(|prefix| !new.contains_key(prefix)).copied();
    let mut set: Vec<(IpNet, Route)> = new
        .iter()
        .filter(|(prefix, route)| old.get(prefix) != Some(route))
        .map(|(prefix, route)| (*prefix, *route))
        .collect();
    set.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
    let to_daemon = gone().filter(|prefix| old.get(prefix) != Some(&Route::DAEMON));
    to_daemon
        .map(|prefix| Step::Set(prefix, Route::DAEMON))
        .chain(set.into_iter().map(|(prefix, route)| Step::Set(prefix, route)))
        .chain(gone().map(Step::Remove))
        .collect()
}

impl Step {
    /// Makes the step in `routes`.
    pub fn make(self, routes: &mut Routes) {
        match self {
            Self::Set(prefix, route) => {
                routes.insert(prefix, route);
            }
            Self::Remove(prefix) => {
                routes.remove(&prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;
    use crate::fastpath::layout::RouteKind;

    /// Where an address leads, as the program sees it.
    fn lookup(routes: &Routes, address: IpAddr) -> Route {
        let matching = routes.iter().filter(|(prefix, _)| prefix.contains(&address));
        matching.max_by_key(|(prefix, _)| prefix.prefix_len()).map_or(Route::DAEMON, |(_, route)| *route)
    }

    /// Prefixes that nest in many ways: inside 10.0.0.0/28.
    fn prefix() -> impl Strategy<Value = IpNet> {
        (0u32..16, 28u8..=32).prop_map(|(host, length)| {
            let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() | host);
            IpNet::new(address.into(), length).expect("a length of IPv4").trunc()
        })
    }

    fn route() -> impl Strategy<Value = Route> {
        (0u8..4, 1u8..4).prop_map(|(kind, peer)| match kind {
            0 => Route::LOCAL,
            kind => Route {
                kind: if kind == 1 { RouteKind::Host } else { RouteKind::Peer },
                peer: [192, 0, 2, peer].into(),
                ..Route::DAEMON
            },
        })
    }

    fn routes() -> impl Strategy<Value = Routes> {
        btree_map(prefix(), route(), 0..12)
    }

    proptest! {
        #[test]
        fn steps_lead_to_the_new_routes(old in routes(), new in routes()) {
            let mut now = old.clone();
            steps(&old, &new).into_iter().for_each(|step| step.make(&mut now));
            prop_assert_eq!(&now, &new);
            prop_assert!(steps(&new, &new).is_empty());
        }

        #[test]
        fn no_address_ever_leads_to_a_third_peer(old in routes(), new in routes()) {
            let mut now = old.clone();
            for step in steps(&old, &new) {
                step.make(&mut now);
                for host in 0..16 {
                    let address = IpAddr::from([10, 0, 0, host]);
                    let (found, before, after) =
                        (lookup(&now, address), lookup(&old, address), lookup(&new, address));
                    let is_allowed = found == before || found == after || found == Route::DAEMON;
                    prop_assert!(is_allowed, "{} leads to {:?} after {:?}", address, found, step);
                }
            }
        }

        #[test]
        fn an_interrupted_change_can_be_completed(old in routes(), new in routes(), made in 0usize..20) {
            let mut now = old.clone();
            steps(&old, &new).into_iter().take(made).for_each(|step| step.make(&mut now));
            let rest = steps(&now, &new);
            rest.into_iter().for_each(|step| step.make(&mut now));
            prop_assert_eq!(now, new);
        }
    }
}
