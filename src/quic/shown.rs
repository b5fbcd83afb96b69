//! A certificate that a peer has shown, and whether it still belongs to the peer.
//!
//! Leases and the rule of trust change while a connection lasts. So the certificates of all
//! connections and keys are judged again, twice a second. The validity in time is not: an expired
//! certificate ends no connection, it only prevents new ones.
//!
//! It closes nothing: [`super::maintenance`] does. Invariant: a peer has one [`ShownCertificate`]
//! for each fingerprint.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime};

use quinn::Connection;
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::route::Fingerprint;

/// A certificate that a peer has shown in a handshake.
pub(super) struct ShownCertificate {
    /// The peer's own certificate, then intermediate ones. Never empty.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) fingerprint: Fingerprint,
    /// When the handshake was: the validity of the chain is judged at this time.
    pub(super) accepted_at: UnixTime,
    /// The last judgement, with the numbers of the table and of the rule of trust that it is for.
    judged: Cell<Option<(Judged, bool)>>,
    /// Since when the certificate does not belong to the peer any more.
    untrusted_since: Cell<Option<Instant>>,
}

/// What a judgement depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Judged {
    /// Number of the forwarding table, which holds the peer's lease.
    pub(super) table: u64,
    /// Number of the rule of trust.
    pub(super) trust: u64,
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
            judged: Cell::new(None),
            untrusted_since: Cell::new(None),
        })
    }

    /// Whether the certificate belongs to the peer. `judge` decides if `by` has changed.
    pub(super) fn is_trusted(&self, by: Judged, judge: impl FnOnce(&Self) -> bool) -> bool {
        let known = self.judged.get().filter(|(known, _)| *known == by);
        let is_trusted = known.map_or_else(|| judge(self), |(_, is_trusted)| is_trusted);
        self.judged.set(Some((by, is_trusted)));
        let since = (!is_trusted).then(|| self.untrusted_since.get().unwrap_or_else(Instant::now));
        self.untrusted_since.set(since);
        is_trusted
    }

    /// For how long the certificate has not belonged to the peer, at the last judgement.
    pub(super) fn untrusted_for(&self) -> Option<Duration> {
        self.untrusted_since.get().map(|since| since.elapsed())
    }
}
