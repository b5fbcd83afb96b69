//! What all leases of one address say together: which daemon is there, and how packets to it are
//! protected.
//!
//! A lease outlives its host's daemon by up to a day, so that several leases may name one address.
//! If any of them announces encryption, packets to the address are never sent in clear by a host
//! that encrypts itself.
//!
//! Invariant: the protection of an address does not depend on which of its subnets a packet goes
//! to.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::abilities::Abilities;
use super::encryption_policy::{Announced, Mode, Protection};
use super::lease::{Dialect, Lease};
use super::local::Local;
use super::remark::{Remark, RemarkKind};
use super::unreachable::UnreachableReason;

/// The leases of one address that are not of another backend. Some of them may not be routed.
pub(super) struct Address<'a> {
    pub(super) ip: IpAddr,
    leases: Vec<(&'a Lease, bool)>,
    /// The lease that describes the daemon at the address.
    pub(super) speaker: &'a Lease,
}

impl<'a> Address<'a> {
    /// `leases`: each with whether it can be routed. It is not empty.
    pub(super) fn new(ip: IpAddr, leases: Vec<(&'a Lease, bool)>) -> Option<Self> {
        // A lease that announces encryption speaks for the address, then one of hopsack, then the
        // one that was written last.
        let rank = |(lease, is_routable): &&(&Lease, bool)| {
            let is_hopsack = matches!(lease.dialect, Dialect::Hopsack(_));
            let is_readable = lease.dialect != Dialect::Unreadable;
            (announced(lease).is_some(), *is_routable, is_readable, is_hopsack, lease.revision)
        };
        let (speaker, _) = *leases.iter().max_by_key(rank)?;
        Some(Self { ip, leases, speaker })
    }

    /// What the daemon at the address accepts, and how packets to it are protected; or why there is
    /// no route to it.
    pub(super) fn verdict(&self, local: &Local) -> Result<(Abilities, Protection), UnreachableReason> {
        if let Some(rival) = self.rival() {
            return Err(UnreachableReason::TwoCertificates(rival.origin.key.clone()));
        }
        if let Some(unreadable) = self.unreadable()
            && (local.policy.mode != Mode::None || std::ptr::eq(unreadable, self.speaker))
        {
            return Err(UnreachableReason::Unreadable(unreadable.origin.key.clone()));
        }
        let abilities = match &self.speaker.dialect {
            Dialect::Hopsack(abilities) => *abilities,
            Dialect::Flannel | Dialect::Unreadable | Dialect::Other(_) => Abilities::default(),
        };
        let protection = local.policy.with(abilities.secure);
        if protection == Protection::Clear && local.policy.require {
            return Err(UnreachableReason::NotEncrypted);
        }
        Ok((abilities, protection))
    }

    /// A lease with another certificate than the speaker's.
    fn rival(&self) -> Option<&'a Lease> {
        let ours = announced(self.speaker)?.fingerprint;
        let differs = |lease: &&Lease| announced(lease).is_some_and(|it| it.fingerprint != ours);
        self.leases.iter().map(|(lease, _)| *lease).find(differs)
    }

    /// A lease with an announcement of encryption that this version cannot read.
    fn unreadable(&self) -> Option<&'a Lease> {
        let leases = self.leases.iter().map(|(lease, _)| *lease);
        // The speaker is one only if all are.
        leases.filter(|lease| lease.dialect == Dialect::Unreadable).max_by_key(|lease| lease.revision)
    }

    /// The contradictions between the leases.
    pub(super) fn remarks(&self) -> Vec<Remark> {
        let (Some(ours), true) = (announced(self.speaker), self.leases.len() > 1) else { return Vec::new() };
        let rival = self.rival();
        let about = |lease: &Lease| {
            let (speaker, address) = (self.speaker.origin.key.clone(), self.ip);
            let kind = match (announced(lease), rival) {
                (None, _) => RemarkKind::Unencrypted { other: speaker, address },
                (Some(_), Some(rival)) if lease.origin.key == speaker => {
                    RemarkKind::TwoCertificates { other: rival.origin.key.clone(), address }
                }
                (Some(theirs), _) if theirs.fingerprint != ours.fingerprint => {
                    RemarkKind::TwoCertificates { other: speaker, address }
                }
                (Some(_), _) => return None,
            };
            Some(Remark { key: lease.origin.key.clone(), kind })
        };
        self.leases.iter().filter_map(|(lease, _)| about(lease)).collect()
    }
}

fn announced(lease: &Lease) -> Option<Announced> {
    match &lease.dialect {
        Dialect::Hopsack(abilities) => abilities.secure,
        Dialect::Flannel | Dialect::Unreadable | Dialect::Other(_) => None,
    }
}
