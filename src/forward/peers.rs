//! The hosts that packets are sent to, with the state that changes while routes stay the same: keys
//! and path MTUs.
//!
//! It does not know which prefix leads to which host: the [`Fib`](crate::route::Fib) does.
//!
//! Invariant: only a peer with sealed packets has a session.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::path_mtu::{PathLimits, PathSource};
use super::sessions::Sessions;
use super::traffic::Traffic;
use crate::packet::{Family, min_mtu};
use crate::route::{Abilities, Adjacency, Protection, Public, UnreachableReason};
use crate::seal::{self, Session};

/// No announcement makes the MTU for a host smaller: IPv6 needs links of this MTU (RFC 8200).
const MIN_ANNOUNCED_MTU: u16 = 1280;

/// A host to which packets can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The host's name in the store.
    pub name: String,
    /// The address and port at which the host's daemon receives.
    pub endpoint: SocketAddr,
    /// The host's public addresses, which its own packets to pods may have as their source.
    pub public: Public,
    /// The host's subnets that have a route.
    pub subnets: Vec<IpNet>,
    /// The longest inner packet that reaches the host in one piece, in bytes.
    pub mtu: u16,
    /// The longest inner packet that the links at both ends take, in bytes.
    pub widest_mtu: u16,
    /// How [`Peer::mtu`] was learned.
    pub mtu_source: PathSource,
    /// The longest inner packet that our own interface allows, in bytes.
    pub own_mtu: u16,
    /// Whether datagrams that are longer than the path arrive in fragments.
    pub fragments: bool,
    /// What the host accepts in addition to bare IPv4 packets; nothing for a plain flanneld.
    pub abilities: Abilities,
    /// How packets to and from the host are protected.
    pub protection: Protection,
    /// The host's keys, if packets are sealed and the table was [equipped](super::Table::equip).
    pub session: Option<Arc<Session>>,
    /// Whether packets were sent to the host.
    pub traffic: Traffic,
}

impl Peer {
    fn new(adjacency: Adjacency, mtu: u16) -> Self {
        let Adjacency { name, endpoint, public, subnets, abilities, protection } = adjacency;
        let mtu_source = PathSource::Interface;
        Self {
            name,
            endpoint,
            public,
            subnets,
            mtu,
            widest_mtu: mtu,
            mtu_source,
            own_mtu: mtu,
            fragments: true,
            abilities,
            protection,
            session: None,
            traffic: Traffic::default(),
        }
    }

    fn limit(&mut self, mtu: u16, source: PathSource) {
        // A probe has shown that even the greatest length passes.
        if mtu < self.mtu || (mtu == self.mtu && source == PathSource::Probe) {
            (self.mtu, self.mtu_source) = (mtu, source);
        }
    }

    /// Whether packets were sent to the host since the last call.
    #[must_use]
    pub fn take_traffic(&self) -> bool {
        self.traffic.take()
    }

    /// The longest inner packet of a family that is sent to the host, in bytes. It is never less
    /// than [`min_mtu`]: what does not fit the path leaves in a datagram that may be fragmented.
    /// A QUIC connection cannot fragment, and some paths lose fragments.
    #[must_use]
    #[inline]
    pub fn longest(&self, family: Family) -> u16 {
        match self.protection {
            Protection::Clear | Protection::Sealed if self.fragments => {
                self.mtu.max(min_mtu(family).min(self.own_mtu))
            }
            Protection::Clear | Protection::Sealed | Protection::Quic => self.mtu,
        }
    }

    /// Whether packets of a family have no way to the host, because the path is narrower than the
    /// family's smallest MTU and fragments do not arrive.
    #[must_use]
    #[inline]
    pub fn is_too_narrow(&self, family: Family) -> bool {
        self.longest(family) < min_mtu(family).min(self.own_mtu)
    }

    /// Why packets of a family have no way to the host, if they have none.
    #[must_use]
    pub fn narrow_reason(&self, family: Family) -> Option<UnreachableReason> {
        let reason = match self.protection {
            Protection::Quic => UnreachableReason::NarrowPath(self.mtu),
            Protection::Clear | Protection::Sealed => UnreachableReason::LostFragments(self.mtu),
        };
        self.is_too_narrow(family).then_some(reason)
    }

    /// Bytes by which datagrams to the host are longer than their content.
    #[must_use]
    #[inline]
    pub fn overhead(&self) -> usize {
        if self.session.is_some() { seal::OVERHEAD } else { 0 }
    }

    /// Length in bytes that a bundle for the host may have before it is sealed. A packet can be
    /// longer if the host does not announce the MTU of its link.
    #[must_use]
    #[inline]
    pub fn longest_bundle(&self) -> usize {
        let longest = self.abilities.longest_datagram(Family::of(self.endpoint.ip()));
        usize::from(self.mtu).min(usize::from(longest).saturating_sub(self.overhead()))
    }

    /// Whether packets to the host are sealed, and there is a key for it.
    #[must_use]
    #[inline]
    pub fn can_seal(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.keys().sealing().is_some())
    }
}

/// All peers, by number and by underlay address.
#[derive(Debug, Default)]
pub struct Peers {
    all: Box<[Peer]>,
    /// Underlay address and number of each peer, sorted by address.
    by_address: Box<[(IpAddr, u32)]>,
    seals: bool,
}

impl Peers {
    /// Adds the changing state to compiled routes. `mtu` limits the inner packets to every peer.
    #[must_use]
    pub fn new(adjacencies: Vec<Adjacency>, by_address: Box<[(IpAddr, u32)]>, mtu: u16) -> Self {
        let all: Box<[Peer]> = adjacencies.into_iter().map(|adjacency| Peer::new(adjacency, mtu)).collect();
        let seals = all.iter().any(|peer| peer.protection == Protection::Sealed);
        Self { all, by_address, seals }
    }

    /// All peers, in the order of their subnets.
    #[must_use]
    #[inline]
    pub fn all(&self) -> &[Peer] {
        &self.all
    }

    /// The peer that sends from the underlay address `address`.
    #[must_use]
    #[inline]
    pub fn by_address(&self, address: IpAddr) -> Option<&Peer> {
        let at = self.by_address.binary_search_by_key(&address, |(known, _)| *known).ok()?;
        Some(&self.all[self.by_address[at].1 as usize])
    }

    /// Whether packets to any peer are sealed.
    #[must_use]
    #[inline]
    pub fn seals(&self) -> bool {
        self.seals
    }

    /// Gives each peer with sealed packets its session.
    pub fn equip(&mut self, sessions: &mut Sessions) {
        let sealed = |peer: &&mut Peer| peer.protection == Protection::Sealed;
        let addresses = self.all.iter_mut().filter(sealed).map(|peer| peer.endpoint.ip());
        let sessions = sessions.retain(addresses);
        for peer in self.all.iter_mut().filter(sealed) {
            peer.session = sessions.get(&peer.endpoint.ip()).cloned();
        }
    }

    /// Limits the inner packets to each peer that announces the MTU of its link to what this link
    /// takes. `encryption` is the number of bytes that encryption adds to a packet.
    pub fn limit_to_links(&mut self, encryption: u16) {
        for peer in self.all.iter_mut().filter(|peer| peer.abilities.link_mtu.is_some()) {
            let longest = peer.abilities.longest_datagram(Family::of(peer.endpoint.ip()));
            let encryption = if peer.protection == Protection::Clear { 0 } else { encryption };
            let mtu = longest.saturating_sub(encryption).max(MIN_ANNOUNCED_MTU);
            peer.limit(mtu, PathSource::PeerLink);
            peer.widest_mtu = peer.mtu;
        }
    }

    /// Limits the inner packets to peers to what their paths take, by address.
    pub fn limit_mtus(&mut self, paths: &BTreeMap<IpAddr, PathLimits>) {
        for peer in &mut self.all {
            if let Some(limits) = paths.get(&peer.endpoint.ip()) {
                let underlay = Family::of(peer.endpoint.ip());
                let unprobed = PathLimits { probe: None, quic: None, ..*limits };
                let (widest, _) = unprobed.inner(peer.own_mtu, underlay, peer.protection);
                peer.widest_mtu = peer.widest_mtu.min(widest);
                let (mtu, source) = limits.inner(peer.own_mtu, underlay, peer.protection);
                peer.limit(mtu, source);
                peer.fragments = limits.fragments;
            }
        }
    }
}
