//! The session with a peer: holds the keys of successive epochs, from their installation to their
//! removal.
//!
//! The control side [`Session::install`]s the secret of a handshake, [`Session::activate`]s its
//! keys once the peer has installed them too, and asks [`Session::rekey_due`]. Workers take a
//! snapshot of the [`Keys`] for each train. A rekey changes the snapshot inside the session. The
//! holders of a session, such as a forwarding table, are not told, and cannot set a counter back.
//!
//! It makes no handshake and reads no clock.
//!
//! Invariants:
//! * A secret is installed at most once, since its keys would begin again at the first nonce.
//! * The peer can open every packet that is sealed, since it confirms its keys before we seal with
//!   ours.
//! * After [`Session::revoke`], no key of a handshake with that certificate seals or opens.
//! * An older epoch opens for [`Lifetime::open_for`] after its successor is in use, and at most
//!   [`MOST_OPEN`] epochs open.
#![forbid(unsafe_code)]

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};

use super::envelope::{OpeningKeys, SealingKeys};
use super::error::InstallError;
use super::hello::{Agreement, Hello};
use super::keys::Keys;
use super::limits::{Lifetime, REKEY_PACKETS};
use super::schedule::{CertificateHash, Id, Schedule, Secret};
use super::suite::{self, Suite};
use crate::time::Nanos;

/// The most epochs that open at the same time.
const MOST_OPEN: usize = 4;
/// The most names of secrets that a session remembers, so that it installs none twice.
const MOST_NAMES: usize = 1024;

/// The keys that this host shares with one peer.
#[derive(Debug)]
pub struct Session {
    lifetime: Lifetime,
    keys: ArcSwap<Keys>,
    control: Mutex<Control>,
}

/// The part of a session that only the control side uses.
#[derive(Debug, Default)]
struct Control {
    /// Keys that are installed, but do not seal yet.
    pending: Option<Pending>,
    /// Algorithm and name of the secret that the sealing keys come from.
    current: Option<(Suite, Id)>,
    /// Names of the installed secrets, newest first.
    names: VecDeque<Id>,
    /// The certificate of the handshake that each epoch comes from.
    certificates: BTreeMap<u8, CertificateHash>,
    activations: u64,
}

#[derive(Debug)]
struct Pending {
    sealing: Arc<SealingKeys>,
    suite: Suite,
    id: Id,
}

/// The state of a session, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionStatus {
    /// The AEAD algorithm.
    pub suite: Suite,
    /// Epoch of the keys that seal.
    pub epoch: u8,
    /// Age of the keys that seal.
    pub age: Duration,
    /// Number of packets sealed in this epoch.
    pub packets: u64,
    /// Number of key changes since the first key.
    pub rekeys: u64,
    /// Public name of the secret; both hosts show the same name.
    pub name: String,
}

/// A session equals only itself.
impl PartialEq for Session {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}
impl Eq for Session {}

impl Default for Session {
    fn default() -> Self {
        Self::new(Lifetime::default())
    }
}

impl Session {
    /// Creates a session without keys, which can neither seal nor open yet.
    #[must_use]
    pub fn new(lifetime: Lifetime) -> Self {
        Self { lifetime, keys: ArcSwap::default(), control: Mutex::default() }
    }

    /// The hello for a peer that a handshake has authenticated. `workers` is the number of workers
    /// of this host.
    #[must_use]
    pub fn hello(&self, workers: u8) -> Hello {
        let epochs = self.keys.load().opening.iter().map(|opening| opening.epoch()).collect();
        Hello { aes: suite::has_aes(), workers: workers.max(1), epochs }
    }

    /// Derives the keys of a new epoch. They open from now on, but seal only after
    /// [`Session::activate`].
    pub fn install(&self, agreement: Agreement, secret: &Secret, now: Nanos) -> Result<(), InstallError> {
        let Agreement { suite, epoch, role, ours, theirs } = agreement;
        let mut control = self.control();
        let keys = self.keys.load_full();
        if keys.opening.iter().any(|opening| opening.epoch() == epoch && opening.is_open(now)) {
            return Err(InstallError::EpochInUse(epoch));
        }
        let schedule = Schedule::new(secret, suite, epoch);
        let id = schedule.id();
        if control.names.contains(&id) {
            return Err(InstallError::Known);
        }
        control.names.push_front(id);
        control.names.truncate(MOST_NAMES);

        control.certificates.insert(epoch, secret.certificate);
        let times = (now, now + self.lifetime.seal_for);
        let sealing = Arc::new(SealingKeys::new(&schedule, role.sends(), epoch, ours, times));
        control.pending = Some(Pending { sealing, suite, id });
        let newest = Arc::new(OpeningKeys::new(&schedule, role.receives(), epoch, theirs));
        let older = keys.opening.iter().filter(|opening| opening.epoch() != epoch).cloned();
        let opening = std::iter::once(newest).chain(older).take(MOST_OPEN).collect();
        self.keys.store(Arc::new(Keys { sealing: keys.sealing.clone(), opening }));
        Ok(())
    }

    /// Begins to seal with the keys of `epoch`, since the peer has installed them too. Older epochs
    /// stop opening after [`Lifetime::open_for`].
    pub fn activate(&self, epoch: u8, now: Nanos) {
        let mut control = self.control();
        let Some(Pending { sealing, suite, id }) =
            control.pending.take_if(|pending| pending.sealing.epoch() == epoch)
        else {
            return;
        };
        control.current = Some((suite, id));
        control.activations += 1;
        let opening = self.keys.load().opening.clone();
        for older in opening.iter().filter(|opening| opening.epoch() != epoch) {
            older.end(now + self.lifetime.open_for);
        }
        self.keys.store(Arc::new(Keys { sealing: Some(sealing), opening }));
    }

    /// Removes keys that no longer open, and keys that are close to their limits. Activates pending
    /// keys with which the peer already seals, in case its confirmation was lost. Returns whether
    /// the session has just lost its sealing keys. The caller calls this regularly.
    pub fn tick(&self, now: Nanos) -> bool {
        let keys = self.keys.load_full();
        let is_used =
            |epoch| keys.opening.iter().any(|opening| opening.epoch() == epoch && opening.is_used());
        let pending = self.control().pending.as_ref().map(|pending| pending.sealing.epoch());
        if let Some(epoch) = pending.filter(|epoch| is_used(*epoch)) {
            self.activate(epoch, now);
        }
        let mut control = self.control();
        let keys = self.keys.load_full();
        let is_worn = keys.sealing.as_ref().is_some_and(|sealing| sealing.is_worn(now));
        if is_worn {
            control.current = None;
        }
        if is_worn || keys.opening.iter().any(|opening| !opening.is_open(now)) {
            let opening = keys.opening.iter().filter(|opening| opening.is_open(now)).cloned().collect();
            let sealing = keys.sealing.clone().filter(|_| !is_worn);
            self.keys.store(Arc::new(Keys { sealing, opening }));
        }
        is_worn
    }

    /// Whether a new handshake is due, because there is no key, or because it is old or has sealed
    /// many packets.
    #[must_use]
    pub fn rekey_due(&self, now: Nanos) -> bool {
        self.keys.load().sealing.as_ref().is_none_or(|sealing| {
            let is_old = now.since(sealing.since()) >= self.lifetime.rekey_after;
            is_old || sealing.packets().any(|packets| packets >= REKEY_PACKETS)
        })
    }

    /// Removes all keys at once: the peer is not trusted any more.
    pub fn forget(&self) {
        let mut control = self.control();
        (control.pending, control.current) = (None, None);
        control.certificates.clear();
        self.keys.store(Arc::default());
    }

    /// Whether any key comes from a handshake in which the peer has shown this certificate.
    #[must_use]
    pub fn depends_on(&self, certificate: &CertificateHash) -> bool {
        let control = self.control();
        let keys = self.keys.load();
        let pending = control.pending.as_ref().map(|pending| pending.sealing.epoch());
        let opening = keys.opening.iter().map(|opening| opening.epoch());
        let sealing = keys.sealing.as_ref().map(|sealing| sealing.epoch());
        let mut epochs = opening.chain(sealing).chain(pending);
        epochs.any(|epoch| control.certificates.get(&epoch) == Some(certificate))
    }

    /// Removes the keys that come from handshakes in which the peer has shown this certificate,
    /// which is not trusted any more. Other keys stay in use.
    pub fn revoke(&self, certificate: &CertificateHash) {
        let mut control = self.control();
        let revoked = control.certificates.iter().filter(|(_, shown)| *shown == certificate);
        let revoked: Vec<u8> = revoked.map(|(epoch, _)| *epoch).collect();
        control.certificates.retain(|epoch, _| !revoked.contains(epoch));
        let keys = self.keys.load_full();
        let sealing = keys.sealing.clone().filter(|sealing| !revoked.contains(&sealing.epoch()));
        let opening = keys.opening.iter().filter(|opening| !revoked.contains(&opening.epoch())).cloned();
        control.pending.take_if(|pending| revoked.contains(&pending.sealing.epoch()));
        if sealing.is_none() {
            control.current = None;
        }
        self.keys.store(Arc::new(Keys { sealing, opening: opening.collect() }));
    }

    /// The state of the session; `None` while it has no sealing keys.
    #[must_use]
    pub fn status(&self, now: Nanos) -> Option<SessionStatus> {
        let control = self.control();
        let (suite, id) = control.current?;
        let keys = self.keys.load();
        let sealing = keys.sealing.as_ref()?;
        Some(SessionStatus {
            suite,
            epoch: sealing.epoch(),
            age: now.since(sealing.since()),
            packets: sealing.packets().sum(),
            rekeys: control.activations.saturating_sub(1),
            name: id[..8].iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    /// The keys in use, for one train.
    #[inline]
    pub fn keys(&self) -> Guard<Arc<Keys>> {
        self.keys.load()
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
