//! Overlapping leases: which one stays.
//!
//! Our own subnets are ours, whatever else lies inside them. Of two other hosts' overlapping leases
//! the one with the older key stays; the later one is ignored as a whole, and does not
//! displace any lease itself. Leases of one host may overlap.
//!
//! The common case, in which nothing overlaps, costs one pass over the sorted prefixes.
//!
//! Invariant: of the leases that stay, no two of different hosts overlap.
#![forbid(unsafe_code)]

use ipnet::IpNet;

use super::lease::Lease;
use super::prefix_table::Prefix;
use crate::packet::Family;

/// A prefix of a lease.
struct Span {
    family: Family,
    prefix: Prefix,
    /// Index of the lease.
    lease: usize,
    /// Index of the closest span that contains this one.
    parent: Option<usize>,
}

/// For each lease the index of the lease that it overlaps and must give way to; `None`: it stays.
/// The first lease is our own and always stays.
pub(super) fn losers(leases: &[&Lease]) -> Vec<Option<usize>> {
    let mut losers = vec![None; leases.len()];
    let (spans, contested) = spans(leases);
    if contested.is_empty() {
        return losers;
    }
    let mut places: Vec<Vec<usize>> = vec![Vec::new(); leases.len()];
    for (at, span) in spans.iter().enumerate() {
        places[span.lease].push(at);
    }
    let mut order = contested;
    order.sort_unstable_by_key(|lease| (*lease != 0, leases[*lease].origin.created, *lease));
    order.dedup();
    let mut stays = vec![false; leases.len()];
    for lease in order {
        let is_rival = |other: &usize| stays[*other] && !leases[*other].is_same_host(leases[lease]);
        let rival = places[lease].iter().find_map(|at| neighbours(&spans, *at).find(is_rival));
        stays[lease] = rival.is_none();
        losers[lease] = rival;
    }
    losers
}

/// All prefixes, sorted, and the leases of those groups of nested prefixes that belong to more than
/// one host.
fn spans(leases: &[&Lease]) -> (Vec<Span>, Vec<usize>) {
    fn of_lease<'a>((lease, it): (usize, &&'a Lease)) -> impl Iterator<Item = Span> + use<'a> {
        let span = move |net: &IpNet| {
            let (family, prefix) = (Family::of(net.addr()), Prefix::of(*net));
            Span { family, prefix, lease, parent: None }
        };
        it.subnets.iter().map(span)
    }
    let mut spans: Vec<Span> = leases.iter().enumerate().flat_map(of_lease).collect();
    spans.sort_unstable_by_key(|span| (span.family, span.prefix, span.lease));
    let mut contested = Vec::new();
    // The spans that contain the current one, and where their outermost one is.
    let (mut open, mut group, mut is_contested): (Vec<usize>, usize, bool) = (Vec::new(), 0, false);
    for at in 0..spans.len() {
        while open.pop_if(|outer| !spans[*outer].contains(&spans[at])).is_some() {}
        if open.is_empty() {
            if is_contested {
                contested.extend(spans[group..at].iter().map(|span| span.lease));
            }
            (group, is_contested) = (at, false);
        }
        let lease = leases[spans[at].lease];
        let is_rival = |outer: &usize| !leases[spans[*outer].lease].is_same_host(lease);
        is_contested = is_contested || open.iter().any(is_rival);
        spans[at].parent = open.last().copied();
        open.push(at);
    }
    if is_contested {
        contested.extend(spans[group..].iter().map(|span| span.lease));
    }
    (spans, contested)
}

impl Span {
    fn contains(&self, inner: &Self) -> bool {
        self.family == inner.family && self.prefix.contains(&inner.prefix)
    }
}

/// The leases of the spans that contain this one, or lie in it.
fn neighbours(spans: &[Span], at: usize) -> impl Iterator<Item = usize> {
    let outer = std::iter::successors(spans[at].parent, |outer| spans[*outer].parent);
    let inner = (at + 1..spans.len()).take_while(move |inner| spans[at].contains(&spans[*inner]));
    outer.chain(inner).map(|span| spans[span].lease)
}
