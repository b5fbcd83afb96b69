//! A certificate that a peer has shown, and whether it still belongs to the peer.
//!
//! Leases and the rule of trust change while a connection lasts. So the certificates of all
//! connections and keys are judged again, twice a second. The validity in time is not: an expired
//! certificate ends no connection, it only prevents new ones.
//!
//! It closes nothing: [`super::maintenance`] does. Invariant: a peer has one [`ShownCertificate`]
//! for each fingerprint.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use quinn::Connection;
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::pki::{Claim, Untrusted};
use crate::route::Fingerprint;

/// A certificate that a peer has shown in a handshake.
pub(super) struct ShownCertificate {
    /// The peer's own certificate, then intermediate ones. Never empty.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) fingerprint: Fingerprint,
    /// When the handshake was: the validity of the chain is judged at this time.
    pub(super) accepted_at: UnixTime,
    /// The last judgement, and what it depends on.
    judged: RefCell<Option<(Judged, Result<(), Untrusted>)>>,
    /// Since when the certificate does not belong to the peer any more.
    untrusted_since: Cell<Option<Instant>>,
}

/// What a judgement depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judged {
    /// Name in the lease.
    name: String,
    /// Fingerprint in the lease.
    fingerprint: Fingerprint,
    /// Subnets of the lease.
    subnets: Vec<IpNet>,
    /// Number of the rule of trust.
    trust: u64,
}

impl Judged {
    fn by(&self, claim: &Claim<'_>, trust: u64) -> bool {
        self.name == claim.name
            && self.fingerprint == claim.fingerprint
            && self.subnets == claim.subnets
            && self.trust == trust
    }
}

impl ShownCertificate {
    /// The certificate that a connection's peer has shown just now; `None` if there is none.
    pub(super) fn of(connection: &Connection) -> Option<Self> {
        let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        let fingerprint = Fingerprint::of(chain.first()?);
        let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Some(Self {
            chain: *chain,
            fingerprint,
            accepted_at: UnixTime::since_unix_epoch(Duration::from_secs(since_1970.as_secs())),
            judged: RefCell::new(None),
            untrusted_since: Cell::new(None),
        })
    }

    /// Whether the certificate belongs to the peer with this lease, by the rule with this number.
    /// `judge` decides if any of them has changed.
    pub(super) fn check(
        &self,
        claim: &Claim<'_>,
        trust: u64,
        judge: impl FnOnce(&Self) -> Result<(), Untrusted>,
    ) -> Result<(), Untrusted> {
        let mut judged = self.judged.borrow_mut();
        let result = match judged.as_ref().filter(|(by, _)| by.by(claim, trust)) {
            Some((_, result)) => result.clone(),
            None => {
                let result = judge(self);
                let (name, subnets) = (claim.name.to_owned(), claim.subnets.to_vec());
                let by = Judged { name, fingerprint: claim.fingerprint, subnets, trust };
                *judged = Some((by, result.clone()));
                result
            }
        };
        let since = result.is_err().then(|| self.untrusted_since.get().unwrap_or_else(Instant::now));
        self.untrusted_since.set(since);
        result
    }

    /// For how long the certificate has not belonged to the peer, at the last judgement.
    pub(super) fn untrusted_for(&self) -> Option<Duration> {
        self.untrusted_since.get().map(|since| since.elapsed())
    }
}
