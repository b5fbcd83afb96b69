//! The forwarding information base: what a packet meets. Immutable, compiled from a RIB, read by all workers.
//!
//! Every Flannel subnet of a network has one length, so a lookup is arithmetic: subtract the network, shift, index
//! into a dense array. A slot that prefixes of other lengths cut up, and addresses outside the network, fall through
//! to a binary search over disjoint ranges, into which longest-prefix matching was flattened at compile time.
//!
//! It does not tell how it was made, and never changes: a change of routes is a new `Fib`.
//!
//! Invariant: [`Fib::lookup`] equals a linear longest-prefix scan over all leases (property test
//! `fib_equals_a_linear_scan`).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::{Abilities, Dialect, Lease, Networks, Policy, Protection, Rib};
use crate::packet::Family;
use crate::seal::{Lifetime, Session};

/// This host's part in the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The identity of our own lease.
    pub subnets: Vec<IpNet>,
    /// Our address on the underlay; its family is that of all endpoints.
    pub public: IpAddr,
    /// The UDP port at which every host of the cluster receives.
    pub port: u16,
    /// The longest inner packet that fits one underlay packet, in bytes.
    pub mtu: u16,
    /// How packets are to be protected.
    pub policy: Policy,
}

impl Local {
    /// The address that the overlay device bears in a family: the base of our first subnet, as Flannel has it. It is the
    /// source of ICMP errors.
    #[must_use]
    pub fn device_address(&self, family: Family) -> Option<IpAddr> {
        self.subnets.iter().map(IpNet::network).find(|base| Family::of(*base) == family)
    }
}

/// A host that packets can be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name in the store.
    pub name: String,
    /// Where its daemon receives.
    pub endpoint: SocketAddr,
    /// What it owns.
    pub subnets: Vec<IpNet>,
    /// The longest inner packet that it is sent, in bytes.
    pub mtu: u16,
    /// What it understands besides bare IPv4 packets; nothing, for a plain flanneld.
    pub abilities: Abilities,
    /// How packets to it, and from it, travel.
    pub protection: Protection,
    /// Its keys, where packets are sealed and the FIB was [equipped](Fib::equip).
    pub session: Option<Arc<Session>>,
}

/// Where a destination lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop<'a> {
    /// In our own subnets.
    Local,
    /// Behind a peer.
    Peer(&'a Peer),
}

/// A lease that cannot become a route, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unreachable {
    /// The host's name in the store.
    pub name: String,
    /// What cannot be reached.
    pub subnets: Vec<IpNet>,
    /// A sentence for the operator.
    pub reason: String,
}

/// The sessions with peers whose packets are sealed, by their addresses.
#[derive(Debug, Default)]
pub struct Sessions {
    lifetime: Lifetime,
    by_address: BTreeMap<IpAddr, Arc<Session>>,
}

impl Sessions {
    /// None yet; the keys of each will live so long.
    #[must_use]
    pub fn new(lifetime: Lifetime) -> Self {
        Self { lifetime, by_address: BTreeMap::new() }
    }
}

/// The forwarding table.
#[derive(Debug, Default)]
pub struct Fib {
    generation: u64,
    device_v4: Option<IpAddr>,
    device_v6: Option<IpAddr>,
    peers: Box<[Peer]>,
    /// Outer source address -> index into `peers`, sorted by address.
    by_address: Box<[(IpAddr, u32)]>,
    seals: bool,
    v4: Table,
    v6: Table,
    unreachable: Box<[Unreachable]>,
}

impl Fib {
    /// Compiles the table that `rib` means for the host `local`. `generation` is the caller's count of tables.
    #[must_use]
    pub fn compile(generation: u64, rib: &Rib, networks: &Networks, local: &Local) -> Self {
        let mut claims = Claims::default();
        let mut unreachable = Vec::new();
        for subnet in &local.subnets {
            claims.add(*subnet, LOCAL, u64::MAX);
        }
        let mut routed = Vec::new();
        for lease in rib.leases().filter(|lease| lease.subnets != local.subnets) {
            match reach(lease, local) {
                Err(reason) => {
                    let (name, subnets) = (lease.name.clone(), lease.subnets.clone());
                    unreachable.push(Unreachable { name, subnets, reason });
                }
                Ok((endpoint, abilities, protection)) => {
                    routed.push((lease, endpoint, abilities, protection))
                }
            }
        }
        let (numbers, by_address) = number_peers(routed.iter().map(|(_, endpoint, ..)| endpoint.ip()));
        let mut peers: Vec<Peer> = Vec::with_capacity(by_address.len());
        for ((lease, endpoint, abilities, protection), index) in routed.into_iter().zip(numbers) {
            if index == count(&peers) {
                let (name, subnets) = (lease.name.clone(), Vec::with_capacity(lease.subnets.len()));
                let (mtu, session) = (local.mtu, None);
                peers.push(Peer { name, endpoint, subnets, mtu, abilities, protection, session });
            }
            let understood = |subnet: &&IpNet| matches!(subnet, IpNet::V4(_)) || abilities.ipv6;
            for subnet in lease.subnets.iter().filter(understood) {
                peers[index as usize].subnets.push(*subnet);
                claims.add(*subnet, FIRST_PEER + index, lease.revision);
            }
            let left_out: Vec<IpNet> =
                lease.subnets.iter().filter(|subnet| !understood(subnet)).copied().collect();
            if !left_out.is_empty() {
                let reason = "it is a plain flanneld, which would read IPv6 packets as IPv4: its IPv6 subnet \
                              is left out";
                let (name, subnets) = (lease.name.clone(), left_out);
                unreachable.push(Unreachable { name, subnets, reason: reason.into() });
            }
        }
        let v4 = networks.v4.map(|(net, len)| Regular::new(IpNet::V4(net), len));
        let v6 = networks.v6.map(|(net, len)| Regular::new(IpNet::V6(net), len));
        Self {
            generation,
            device_v4: local.device_address(Family::V4),
            device_v6: local.device_address(Family::V6),
            seals: peers.iter().any(|peer| peer.protection == Protection::Sealed),
            peers: peers.into(),
            by_address,
            v4: Table::compile(v4, strongest(claims.v4)),
            v6: Table::compile(v6, strongest(claims.v6)),
            unreachable: unreachable.into(),
        }
    }

    /// Whether packets to any peer are sealed.
    #[must_use]
    #[inline]
    pub fn seals(&self) -> bool {
        self.seals
    }

    /// Gives the peers whose packets are sealed their sessions, which outlive tables.
    pub fn equip(&mut self, sessions: &mut Sessions) {
        let sealed = |peer: &&mut Peer| peer.protection == Protection::Sealed;
        let mut kept = BTreeMap::new();
        for peer in self.peers.iter_mut().filter(sealed) {
            let address = peer.endpoint.ip();
            let known = sessions.by_address.remove(&address);
            let session = known.unwrap_or_else(|| Arc::new(Session::new(sessions.lifetime)));
            peer.session = Some(session.clone());
            kept.insert(address, session);
        }
        // What is left belongs to nobody; workers that still have the last table must not seal by it either.
        std::mem::replace(&mut sessions.by_address, kept).values().for_each(|session| session.forget());
    }

    /// Limits what peers are sent to what the ways to them take, by address, in bytes.
    pub fn narrow(&mut self, paths: &BTreeMap<IpAddr, u16>) {
        for peer in &mut self.peers {
            if let Some(mtu) = paths.get(&peer.endpoint.ip()).filter(|_| peer.protection != Protection::Clear)
            {
                peer.mtu = peer.mtu.min(*mtu);
            }
        }
    }

    /// Where packets to `dst` go; `None` if no lease holds it.
    #[must_use]
    #[inline]
    pub fn lookup(&self, dst: IpAddr) -> Option<Hop<'_>> {
        let (table, bits) = match dst {
            IpAddr::V4(v4) => (&self.v4, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (&self.v6, v6.to_bits()),
        };
        match table.lookup(bits) {
            NONE => None,
            LOCAL => Some(Hop::Local),
            slot => Some(Hop::Peer(&self.peers[(slot - FIRST_PEER) as usize])),
        }
    }

    /// The peer whose datagrams come from `address`.
    #[must_use]
    #[inline]
    pub fn peer_by_address(&self, address: IpAddr) -> Option<&Peer> {
        let at = self.by_address.binary_search_by_key(&address, |(known, _)| *known).ok()?;
        Some(&self.peers[self.by_address[at].1 as usize])
    }

    /// The overlay device's own address, the source of ICMP errors.
    #[must_use]
    pub fn device_address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.device_v4,
            Family::V6 => self.device_v6,
        }
    }

    /// All peers, in the order of their subnets.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Leases that could not become routes.
    #[must_use]
    pub fn unreachable(&self) -> &[Unreachable] {
        &self.unreachable
    }

    /// The caller's count of tables.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// How a lease's owner is reached, or why not.
fn reach(lease: &Lease, local: &Local) -> Result<(SocketAddr, Abilities, Protection), String> {
    let (endpoint, abilities) = (endpoint(lease, local)?, abilities(lease)?);
    let protection = local.policy.with(abilities.secure);
    if protection == Protection::Clear && local.policy.require {
        return Err(
            "it does not encrypt, and this host requires it (security.require): turn it on there".into()
        );
    }
    Ok((endpoint, abilities, protection))
}

fn endpoint(lease: &Lease, local: &Local) -> Result<SocketAddr, String> {
    let family = Family::of(local.public);
    let Some(address) = lease.public.of(family) else {
        return Err(format!(
            "it has no public address of the family that this host uses ({}): give it one, or set node.public_ip here",
            local.public
        ));
    };
    if address == local.public {
        return Err(format!("it claims our own public address {address} for other subnets"));
    }
    Ok(SocketAddr::new(address, local.port))
}

fn abilities(lease: &Lease) -> Result<Abilities, String> {
    match &lease.dialect {
        Dialect::Flannel => Ok(Abilities::default()),
        Dialect::Hopsack(abilities) => Ok(*abilities),
        Dialect::Other(backend) => {
            Err(format!("its backend is {backend}, which takes no packets of Flannel's UDP mode"))
        }
    }
}

/// Slot values: a peer's index plus [`FIRST_PEER`], or one of these.
const NONE: u32 = 0;
const LOCAL: u32 = 1;
const FIRST_PEER: u32 = 2;
/// Several ranges share the slot: search them.
const MIXED: u32 = u32::MAX;
/// A network of more subnets than this gets no dense array (4 MiB), only the search.
const MAX_SLOTS: u32 = 1 << 20;

fn count(peers: &[Peer]) -> u32 {
    u32::try_from(peers.len()).unwrap_or(u32::MAX)
}

/// Each lease's peer, numbered as they come, and the peers by address, sorted. One host may hold several leases: it is one
/// peer with all their subnets.
///
/// A table of thousands is made anew for each change, so this sorts once and looks nothing up in a tree.
fn number_peers(addresses: impl Iterator<Item = IpAddr>) -> (Vec<u32>, Box<[(IpAddr, u32)]>) {
    let mut sorted: Vec<(IpAddr, u32)> = addresses.zip(0u32..).collect();
    sorted.sort_unstable();
    // By lease: the first lease of the same host.
    let mut first = vec![0u32; sorted.len()];
    let mut leader = None;
    for (address, lease) in &sorted {
        let (_, of) =
            *leader.insert(leader.filter(|(known, _)| known == address).unwrap_or((*address, *lease)));
        first[*lease as usize] = of;
    }
    let (mut numbers, mut next) = (vec![0u32; first.len()], 0);
    for (lease, of) in (0u32..).zip(&first) {
        numbers[lease as usize] = if *of == lease { next } else { numbers[*of as usize] };
        next += u32::from(*of == lease);
    }
    sorted.dedup_by_key(|(address, _)| *address);
    let by_address = sorted.into_iter().map(|(address, lease)| (address, numbers[lease as usize])).collect();
    (numbers, by_address)
}

/// Who claims which prefix, in which revision.
#[derive(Default)]
struct Claims {
    v4: Vec<(Prefix, u64, u32)>,
    v6: Vec<(Prefix, u64, u32)>,
}

impl Claims {
    fn add(&mut self, subnet: IpNet, slot: u32, revision: u64) {
        let claim = (Prefix::of(subnet), revision, slot);
        match subnet {
            IpNet::V4(_) => self.v4.push(claim),
            IpNet::V6(_) => self.v6.push(claim),
        }
    }
}

/// Of two owners of the same prefix the later revision wins; we ourselves above all.
fn strongest(mut claims: Vec<(Prefix, u64, u32)>) -> Vec<(Prefix, u32)> {
    claims.sort_unstable();
    let mut owners: Vec<(Prefix, u32)> = Vec::with_capacity(claims.len());
    for (prefix, _, slot) in claims {
        match owners.last_mut() {
            Some((last, owner)) if *last == prefix => *owner = slot,
            _ => owners.push((prefix, slot)),
        }
    }
    owners
}

/// A prefix as the addresses it spans. Ordered so that a prefix stands before those inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    first: u128,
    /// Reversed order of `last`: of two prefixes with one start the longer span comes first.
    last: std::cmp::Reverse<u128>,
}

impl Prefix {
    fn of(net: IpNet) -> Self {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        Self { first: bits(net.network()), last: std::cmp::Reverse(bits(net.broadcast())) }
    }
}

/// Disjoint addresses that share a slot value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u128,
    last: u128,
    slot: u32,
}

/// The regular part of a network: equal subnets.
#[derive(Debug, Clone, Copy)]
struct Regular {
    net: Prefix,
    /// Address bits inside one subnet.
    shift: u32,
}

impl Regular {
    fn new(net: IpNet, subnet_len: u8) -> Self {
        Self { net: Prefix::of(net), shift: u32::from(net.max_prefix_len() - subnet_len) }
    }
}

#[derive(Debug, Default)]
struct Table {
    base: u128,
    shift: u32,
    /// One value for each subnet of the network; empty if there would be too many.
    slots: Box<[u32]>,
    /// What `slots` cannot say, sorted.
    ranges: Box<[Range]>,
}

impl Table {
    fn compile(regular: Option<Regular>, claims: Vec<(Prefix, u32)>) -> Self {
        let mut ranges = flatten(&claims);
        let Some(regular) = regular else {
            return Self { ranges: ranges.into(), ..Self::default() };
        };
        let (base, shift) = (regular.net.first, regular.shift);
        let subnets = ((regular.net.last.0 - base) >> shift) + 1;
        let Some(subnets) = u32::try_from(subnets).ok().filter(|n| *n <= MAX_SLOTS) else {
            return Self { ranges: ranges.into(), ..Self::default() };
        };
        let mut slots = vec![NONE; subnets as usize];
        ranges.retain(|range| {
            let (first, last) = (range.first.max(base), range.last.min(regular.net.last.0));
            let outside = range.first < base || range.last > regular.net.last.0;
            if first > last {
                return true;
            }
            let mut leftover = outside;
            for index in (first - base) >> shift..=(last - base) >> shift {
                let first = base + (index << shift);
                let whole = range.first <= first && range.last >= first + ((1 << shift) - 1);
                leftover |= !whole;
                let Ok(index) = usize::try_from(index) else { continue };
                slots[index] = if whole { range.slot } else { MIXED };
            }
            leftover
        });
        Self { base, shift, slots: slots.into(), ranges: ranges.into() }
    }

    #[inline]
    fn lookup(&self, address: u128) -> u32 {
        let index = address.wrapping_sub(self.base) >> self.shift;
        match usize::try_from(index).ok().and_then(|index| self.slots.get(index)) {
            Some(&slot) if slot != MIXED => slot,
            _ => self.search(address),
        }
    }

    fn search(&self, address: u128) -> u32 {
        let after = self.ranges.partition_point(|range| range.first <= address);
        match after.checked_sub(1).map(|at| self.ranges[at]) {
            Some(range) if address <= range.last => range.slot,
            _ => NONE,
        }
    }
}

/// Longest-prefix matching, flattened: sorted disjoint ranges, each with the slot of the longest prefix that covers it.
/// `claims` is sorted by [`Prefix`] order; prefixes nest or are disjoint, never cross.
fn flatten(claims: &[(Prefix, u32)]) -> Vec<Range> {
    let mut out: Vec<Range> = Vec::new();
    let mut open: Vec<Range> = Vec::new(); // the prefixes around the sweep point, the longest last
    let mut emit = |range: Range| {
        if range.first <= range.last {
            out.push(range);
        }
    };
    for &(Prefix { first, last }, slot) in claims {
        while let Some(outer) = open.pop_if(|outer| outer.last < first) {
            emit(outer);
            resume(&mut open, outer.last);
        }
        if let Some(outer) = open.last().copied()
            && outer.first < first
        {
            emit(Range { last: first - 1, ..outer });
        }
        open.push(Range { first, last: last.0, slot });
    }
    while let Some(range) = open.pop() {
        emit(range);
        resume(&mut open, range.last);
    }
    out
}

/// The prefix around one that has ended at `last` goes on behind it.
fn resume(open: &mut [Range], last: u128) {
    if let Some(outer) = open.last_mut() {
        outer.first = last.saturating_add(1);
        // At the very top of the address space nothing is left: an empty range.
        if last == u128::MAX {
            (outer.first, outer.last) = (1, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Change, Public};
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn fib(subnets: &[(&str, u8)]) -> Fib {
        let leases = subnets
            .iter()
            .map(|(subnet, host)| Lease {
                name: format!("h{host}"),
                subnets: vec![net(subnet)],
                public: Public { v4: Some([192, 0, 2, *host].into()), v6: None },
                dialect: Dialect::Hopsack(Abilities::OURS),
                revision: u64::from(*host),
            })
            .collect();
        let mut rib = Rib::default();
        rib.apply(Change::Snapshot { leases, revision: 1000 });
        let networks = Networks {
            v4: Some(("10.1.0.0/16".parse().expect("net"), 24)),
            v6: Some(("fd00:1::/48".parse().expect("net"), 64)),
        };
        let local = Local {
            subnets: vec![net("10.1.1.0/24"), net("fd00:1:0:1::/64")],
            public: [192, 0, 2, 1].into(),
            port: 8285,
            mtu: 1472,
            policy: Policy::default(),
        };
        Fib::compile(1, &rib, &networks, &local)
    }

    fn name(fib: &Fib, dst: &str) -> String {
        match fib.lookup(dst.parse().expect("an address")) {
            None => "-".to_owned(),
            Some(Hop::Local) => "local".to_owned(),
            Some(Hop::Peer(peer)) => peer.name.clone(),
        }
    }

    #[test]
    fn regular_subnets_are_indexed() {
        let fib = fib(&[("10.1.2.0/24", 2), ("10.1.255.0/24", 3), ("fd00:1:0:2::/64", 2)]);
        assert_eq!(name(&fib, "10.1.1.7"), "local");
        assert_eq!(name(&fib, "10.1.2.255"), "h2");
        assert_eq!(name(&fib, "10.1.255.1"), "h3");
        assert_eq!(name(&fib, "10.1.3.1"), "-");
        assert_eq!(name(&fib, "10.2.0.1"), "-");
        assert_eq!(name(&fib, "10.0.255.255"), "-");
        assert_eq!(name(&fib, "fd00:1:0:2::9"), "h2");
        assert_eq!(name(&fib, "fd00:1:0:1::9"), "local");
        assert!(fib.v4.ranges.is_empty() && fib.v6.ranges.is_empty(), "nothing is left to search");
        assert_eq!(fib.peers().len(), 2, "two leases of one host are one peer");
    }

    #[test]
    fn irregular_prefixes_match_longest_first() {
        let fib = fib(&[("10.1.4.0/22", 2), ("10.1.5.0/24", 3), ("10.1.5.128/25", 4), ("172.16.0.0/12", 5)]);
        assert_eq!(name(&fib, "10.1.4.9"), "h2");
        assert_eq!(name(&fib, "10.1.5.9"), "h3");
        assert_eq!(name(&fib, "10.1.5.129"), "h4");
        assert_eq!(name(&fib, "10.1.7.255"), "h2");
        assert_eq!(name(&fib, "10.1.8.0"), "-");
        assert_eq!(name(&fib, "172.31.255.255"), "h5");
        assert_eq!(name(&fib, "172.32.0.0"), "-");
    }

    #[test]
    fn outer_addresses_find_their_peer() {
        let fib = fib(&[("10.1.2.0/24", 2), ("10.1.3.0/24", 3)]);
        let peer = fib.peer_by_address([192, 0, 2, 3].into()).expect("known");
        assert_eq!(peer.endpoint, SocketAddr::from(([192, 0, 2, 3], 8285)));
        assert_eq!(fib.peer_by_address([192, 0, 2, 4].into()), None);
        assert_eq!(fib.peer_by_address([192, 0, 2, 1].into()), None, "we are no peer of ourselves");
    }

    #[test]
    fn a_lease_out_of_reach_is_reported_not_routed() {
        let mut rib = Rib::default();
        let lease = |name: &str, subnet: &str, public| Lease {
            name: name.to_owned(),
            subnets: vec![net(subnet)],
            public,
            dialect: Dialect::Flannel,
            revision: 1,
        };
        let only_v6 = Public { v4: None, v6: Some("2001:db8::2".parse().expect("an address")) };
        let ours = Public { v4: Some([192, 0, 2, 1].into()), v6: None };
        rib.apply(Change::Snapshot {
            leases: vec![lease("six", "10.1.2.0/24", only_v6), lease("thief", "10.1.3.0/24", ours)],
            revision: 1,
        });
        let local = Local {
            subnets: vec![net("10.1.1.0/24")],
            public: [192, 0, 2, 1].into(),
            port: 8285,
            mtu: 1472,
            policy: Policy::default(),
        };
        let networks = Networks { v4: Some(("10.1.0.0/16".parse().expect("net"), 24)), v6: None };
        let fib = Fib::compile(1, &rib, &networks, &local);
        assert_eq!(name(&fib, "10.1.2.1"), "-");
        assert_eq!(fib.unreachable().len(), 2);
    }

    #[test]
    fn a_plain_flanneld_is_never_sent_ipv6_and_another_backend_nothing() {
        let mut rib = Rib::default();
        let lease = |name: &str, host: u8, dialect| Lease {
            name: name.to_owned(),
            subnets: vec![net(&format!("10.1.{host}.0/24")), net(&format!("fd00:1:0:{host}::/64"))],
            public: Public { v4: Some([192, 0, 2, host].into()), v6: None },
            dialect,
            revision: 1,
        };
        let leases = vec![
            lease("flanneld", 2, Dialect::Flannel),
            lease("hopsack", 3, Dialect::Hopsack(Abilities::OURS)),
            lease("vxlan", 4, Dialect::Other("vxlan".into())),
        ];
        rib.apply(Change::Snapshot { leases, revision: 1 });
        let networks = Networks {
            v4: Some(("10.1.0.0/16".parse().expect("net"), 24)),
            v6: Some(("fd00:1::/48".parse().expect("net"), 64)),
        };
        let local = Local {
            subnets: vec![net("10.1.1.0/24")],
            public: [192, 0, 2, 1].into(),
            port: 8285,
            mtu: 1472,
            policy: Policy::default(),
        };
        let fib = Fib::compile(1, &rib, &networks, &local);
        assert_eq!([name(&fib, "10.1.2.1"), name(&fib, "fd00:1:0:2::1")], ["flanneld", "-"]);
        assert_eq!([name(&fib, "10.1.3.1"), name(&fib, "fd00:1:0:3::1")], ["hopsack", "hopsack"]);
        assert_eq!([name(&fib, "10.1.4.1"), name(&fib, "fd00:1:0:4::1")], ["-", "-"]);
        assert_eq!(fib.unreachable().len(), 2);
    }
}
