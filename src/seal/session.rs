//! What two hosts have agreed, over the time that they know each other: keys come, are used, grow old and go.
//!
//! The control side [`Session::install`]s what a handshake gave, [`Session::activate`]s it once the peer has installed it too,
//! and asks [`Session::rekey_due`]. Workers take a snapshot of the [`Keys`] for each train. A rekey changes the snapshot inside;
//! who holds the session, a forwarding table above all, need not be told, and cannot set a counter back.
//!
//! Invariants: a secret is installed once (its keys would begin again at the first nonce); what is sealed, the peer can open,
//! since it says so before it is sealed by; an older epoch opens for [`Lifetime::open_for`] more, and at most [`MOST_OPEN`] do.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};

use super::envelope::{Opening, Sealing};
use super::hello::{self, Agreement, Hello, Suite};
use super::schedule::{Id, Schedule, Secret};
use super::{Header, OpenError, REKEY_PACKETS, SealError};
use crate::packet::Train;
use crate::time::Nanos;

/// Epochs that open at the same time.
const MOST_OPEN: usize = 4;
/// Names of secrets that are remembered, so that none is installed twice.
const MOST_NAMES: usize = 1024;
const SECOND: u64 = 1_000_000_000;

/// How long keys are used, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// A rekey is due after this time.
    pub rekey_after: u64,
    /// Nothing is sealed by a key that is this old, whatever keeps the handshake from succeeding; after seven eighths of it
    /// the key is let go, so that packets take another way before they would be refused.
    pub seal_for: u64,
    /// An older epoch opens for so long after a newer one is in use: what was on its way arrives.
    pub open_for: u64,
}

impl Default for Lifetime {
    fn default() -> Self {
        Self { rekey_after: 3600 * SECOND, seal_for: 2 * 3600 * SECOND, open_for: 30 * SECOND }
    }
}

/// A secret that must not become keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// The secret was installed before: its keys would meet their nonces again. Shake hands anew.
    #[error("the secret was installed before: its keys would meet their nonces again; shake hands anew")]
    Known,
    /// The epoch is in use: two handshakes went on at once. Shake hands anew.
    #[error("the epoch {0} is in use: two handshakes went on at once; shake hands anew")]
    EpochInUse(u8),
}

/// What two hosts have agreed.
#[derive(Debug)]
pub struct Session {
    lifetime: Lifetime,
    keys: ArcSwap<Keys>,
    control: Mutex<Control>,
}

/// The keys in force: what a worker sees of a session.
#[derive(Debug, Default)]
pub struct Keys {
    sealing: Option<Arc<Sealing>>,
    /// The newest first.
    opening: Vec<Arc<Opening>>,
}

/// What only the control side needs.
#[derive(Debug, Default)]
struct Control {
    /// Installed, and not yet sealed by.
    pending: Option<Pending>,
    /// Of what is sealed by.
    current: Option<(Suite, Id)>,
    names: VecDeque<Id>,
    activations: u64,
}

#[derive(Debug)]
struct Pending {
    sealing: Arc<Sealing>,
    suite: Suite,
    id: Id,
}

/// What can be said of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The algorithm.
    pub suite: Suite,
    /// The epoch that is sealed by.
    pub epoch: u8,
    /// Since when, in nanoseconds.
    pub age: u64,
    /// Packets sealed in this epoch.
    pub packets: u64,
    /// Changes of keys since the first.
    pub rekeys: u64,
    /// Name of the secret: both hosts show the same.
    pub name: String,
}

/// Two sessions are equal if they are one.
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
    /// Without keys: nothing can be sealed or opened yet.
    #[must_use]
    pub fn new(lifetime: Lifetime) -> Self {
        Self { lifetime, keys: ArcSwap::default(), control: Mutex::default() }
    }

    /// What to tell the peer when a handshake has authenticated it, for a host that seals on so many workers.
    #[must_use]
    pub fn hello(&self, workers: u8) -> Hello {
        let epochs = self.keys.load().opening.iter().map(|opening| opening.epoch()).collect();
        Hello { aes: hello::has_aes(), workers: workers.max(1), epochs }
    }

    /// Derives the keys of a new epoch. From here on we open by them; we don't seal by them until [`Session::activate`].
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

        let times = (now, Nanos(now.0.saturating_add(self.lifetime.seal_for)));
        let sealing = Arc::new(Sealing::new(&schedule, role.sends(), epoch, ours, times));
        control.pending = Some(Pending { sealing, suite, id });
        let newest = Arc::new(Opening::new(&schedule, role.receives(), epoch, theirs));
        let older = keys.opening.iter().filter(|opening| opening.epoch() != epoch).cloned();
        let opening = std::iter::once(newest).chain(older).take(MOST_OPEN).collect();
        self.keys.store(Arc::new(Keys { sealing: keys.sealing.clone(), opening }));
        Ok(())
    }

    /// The peer has installed `epoch` too: from here on we seal by it, and older epochs open for a while only.
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
            older.end(Nanos(now.0.saturating_add(self.lifetime.open_for)));
        }
        self.keys.store(Arc::new(Keys { sealing: Some(sealing), opening }));
    }

    /// To be called now and then: lets go of what no longer opens or may soon not seal, and activates what the peer seals by
    /// already (its word that it has installed was lost). Returns whether there was a key to seal by and is none from here on.
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

    /// Whether a handshake should be made: there is no key, or it has sealed or lived long enough.
    #[must_use]
    pub fn rekey_due(&self, now: Nanos) -> bool {
        self.keys.load().sealing.as_ref().is_none_or(|sealing| {
            let is_old = now.0.saturating_sub(sealing.since().0) >= self.lifetime.rekey_after;
            is_old || sealing.packets().any(|packets| packets >= REKEY_PACKETS)
        })
    }

    /// The peer is trusted no more: all keys go at once.
    pub fn forget(&self) {
        let mut control = self.control();
        (control.pending, control.current) = (None, None);
        self.keys.store(Arc::default());
    }

    /// What can be said of it; `None` before the first key.
    #[must_use]
    pub fn status(&self, now: Nanos) -> Option<Status> {
        let control = self.control();
        let (suite, id) = control.current?;
        let keys = self.keys.load();
        let sealing = keys.sealing.as_ref()?;
        Some(Status {
            suite,
            epoch: sealing.epoch(),
            age: now.0.saturating_sub(sealing.since().0),
            packets: sealing.packets().sum(),
            rekeys: control.activations.saturating_sub(1),
            name: id[..8].iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    /// The keys in force, for one train.
    #[inline]
    pub fn keys(&self) -> Guard<Arc<Keys>> {
        self.keys.load()
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    /// Seals a train into `out`: see [`Sealing::seal`].
    #[inline]
    pub fn seal<'o>(
        &self,
        worker: usize,
        train: Train<'_>,
        out: &'o mut [u8],
        now: Nanos,
    ) -> Result<Train<'o>, SealError> {
        self.sealing.as_ref().ok_or(SealError::NoKey)?.seal(worker, train, out, now)
    }

    /// Opens a datagram into the start of `out`, which should have room for any. Returns what was sealed.
    #[inline]
    pub fn open<'o>(&self, datagram: &[u8], out: &'o mut [u8], now: Nanos) -> Result<&'o [u8], OpenError> {
        let header = Header::parse(datagram).ok_or(OpenError::Malformed)?;
        let opening = self.opening.iter().find(|opening| opening.epoch() == header.epoch);
        let opening = opening.filter(|opening| opening.is_open(now)).ok_or(OpenError::NoKey)?;
        opening.open(header, datagram, out)
    }

    /// What is sealed by.
    #[must_use]
    pub fn sealing(&self) -> Option<&Sealing> {
        self.sealing.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::super::hello::Suite::{Aes256Gcm, ChaCha20Poly1305};
    use super::super::{MOST_PACKETS, OVERHEAD, Role};
    use super::*;

    const START: Nanos = Nanos(1_000 * SECOND);

    fn later(seconds: u64) -> Nanos {
        Nanos(START.0 + seconds * SECOND)
    }

    /// Both ends of a session, and the secrets that they were given.
    struct Pair {
        here: Session,
        there: Session,
        handshakes: u8,
    }

    impl Pair {
        fn new() -> Self {
            let pair = || Session::new(Lifetime::default());
            Self { here: pair(), there: pair(), handshakes: 0 }
        }

        /// A handshake up to the installation.
        fn install(&mut self, suite: Suite, now: Nanos) -> u8 {
            self.handshakes += 1;
            let hello =
                |session: &Session, workers| Hello { aes: suite == Aes256Gcm, ..session.hello(workers) };
            let (ours, theirs) = (hello(&self.here, 2), hello(&self.there, 3));
            let secret = || Secret::new([self.handshakes; 32]);
            let here = Agreement::of(&ours, &theirs, Role::Initiator);
            self.here.install(here, &secret(), now).expect("new");
            let there = Agreement::of(&theirs, &ours, Role::Responder);
            self.there.install(there, &secret(), now).expect("new");
            assert_eq!(here.suite, suite);
            here.epoch
        }

        fn handshake(&mut self, suite: Suite, now: Nanos) -> u8 {
            let epoch = self.install(suite, now);
            self.here.activate(epoch, now);
            self.there.activate(epoch, now);
            epoch
        }
    }

    /// One packet, sealed by a worker.
    fn seal(session: &Session, worker: usize, packet: &[u8], now: Nanos) -> Result<Vec<u8>, SealError> {
        let mut out = vec![0xaa; packet.len() + OVERHEAD];
        session.keys().seal(worker, Train::single(packet), &mut out, now).map(|train| train.bytes.to_vec())
    }

    fn open(session: &Session, datagram: &[u8], now: Nanos) -> Result<Vec<u8>, OpenError> {
        let mut out = [0; 2000];
        session.keys().open(datagram, &mut out, now).map(<[u8]>::to_vec)
    }

    #[test]
    fn what_one_seals_the_other_opens_once() {
        for suite in [Aes256Gcm, ChaCha20Poly1305] {
            let mut pair = Pair::new();
            assert_eq!(seal(&pair.here, 0, b"early", START), Err(SealError::NoKey));
            pair.handshake(suite, START);
            for (from, to, workers) in [(&pair.here, &pair.there, 2), (&pair.there, &pair.here, 3)] {
                for worker in 0..workers {
                    for packet in [&b""[..], b"x", &[7; 1444]] {
                        let datagram = seal(from, worker, packet, START).expect("keys");
                        assert_eq!(datagram.len(), packet.len() + OVERHEAD);
                        assert!(
                            packet.len() < 2 || !datagram.windows(packet.len()).any(|part| part == packet)
                        );
                        assert_eq!(open(to, &datagram, START).as_deref(), Ok(packet));
                        assert_eq!(open(to, &datagram, START), Err(OpenError::Replayed));
                        assert!(open(from, &datagram, START).is_err(), "no way back to its sender");
                    }
                }
                assert_eq!(seal(from, workers, b"x", START), Err(SealError::NoKey), "no such worker");
            }
            let status = pair.here.status(later(9)).expect("keys");
            assert_eq!((status.suite, status.epoch, status.age, status.packets), (suite, 1, 9 * SECOND, 6));
            assert_eq!(status.name, pair.there.status(START).expect("keys").name);
        }
    }

    #[test]
    fn a_train_of_packets_becomes_one_of_datagrams() {
        let mut pair = Pair::new();
        pair.handshake(Aes256Gcm, START);
        let (packet, short) = ([1u8; 100], [2u8; 40]);
        let bytes = [&packet[..], &packet, &short].concat();
        let train = Train { bytes: &bytes, stride: 100 };
        let mut out = vec![0xaa; 240 + 3 * OVERHEAD];
        assert_eq!(
            pair.here.keys().seal(1, train, &mut out[1..], START).map(drop),
            Err(SealError::NoRoom),
            "one byte too few"
        );
        let sealed = pair.here.keys().seal(1, train, &mut out, START).map(|train| train.stride);
        assert_eq!(sealed, Ok(100 + OVERHEAD));
        let opened: Vec<_> = out.chunks(100 + OVERHEAD).map(|one| open(&pair.there, one, START)).collect();
        assert_eq!(opened, [Ok(packet.to_vec()), Ok(packet.to_vec()), Ok(short.to_vec())]);
        let counters = out.chunks(100 + OVERHEAD).map(|one| Header::parse(one).expect("whole").counter);
        assert_eq!(counters.collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed_and_moves_nothing() {
        for suite in [Aes256Gcm, ChaCha20Poly1305] {
            let mut pair = Pair::new();
            pair.handshake(suite, START);
            let datagram = seal(&pair.here, 0, &[9; 60], START).expect("keys");
            for bit in 0..datagram.len() * 8 {
                let mut flipped = datagram.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let expected = match bit / 8 {
                    0 | 3 => &[OpenError::Malformed][..],
                    1 => &[OpenError::NoKey],
                    2 => &[OpenError::NoKey, OpenError::Unauthentic],
                    4..12 => &[OpenError::Unauthentic, OpenError::Replayed],
                    _ => &[OpenError::Unauthentic],
                };
                let refused = open(&pair.there, &flipped, START).expect_err("a bit is wrong");
                assert!(expected.contains(&refused), "bit {bit}: {refused:?}");
            }
            for length in 0..datagram.len() {
                assert!(open(&pair.there, &datagram[..length], START).is_err(), "{length} bytes");
            }
            assert!(open(&pair.there, &[&datagram[..], &[0]].concat(), START).is_err(), "one byte more");
            assert_eq!(open(&pair.there, &datagram, START), Ok(vec![9; 60]), "forgeries moved no window");
        }
    }

    #[test]
    fn replays_of_all_some_reordered_and_after_a_rekey() {
        let mut pair = Pair::new();
        pair.handshake(Aes256Gcm, START);
        let number = |datagram: usize| datagram.to_be_bytes().to_vec();
        let recorded: Vec<_> =
            (0..10_000).map(|n| seal(&pair.here, 0, &number(n), START).expect("keys")).collect();
        // Lost on the way at first: every seventh.
        let first: Vec<_> = (0..10_000).filter(|n| n % 7 != 0).collect();
        for n in &first {
            assert_eq!(open(&pair.there, &recorded[*n], START), Ok(number(*n)));
        }
        for n in (0..10_000).rev() {
            let is_late = n % 7 == 0 && n + 8192 > 9_999;
            let result = open(&pair.there, &recorded[n], START);
            assert_eq!(result, if is_late { Ok(number(n)) } else { Err(OpenError::Replayed) }, "{n}");
        }
        pair.handshake(Aes256Gcm, later(1));
        for seconds in [1, 30] {
            let all = recorded.iter().map(|datagram| open(&pair.there, datagram, later(seconds)));
            assert!(all.into_iter().all(|result| result == Err(OpenError::Replayed)));
        }
        assert_eq!(open(&pair.there, &recorded[0], later(31)), Err(OpenError::NoKey));
        // A receiver that was restarted has other keys under any epoch.
        let mut after = Pair::new();
        after.handshakes = 100;
        after.handshake(Aes256Gcm, later(2));
        assert!(
            recorded
                .iter()
                .all(|datagram| open(&after.there, datagram, later(2)) == Err(OpenError::Unauthentic))
        );
    }

    #[test]
    fn a_rekey_loses_nothing_and_the_old_epoch_ends() {
        let mut pair = Pair::new();
        let first = pair.handshake(Aes256Gcm, START);
        let late = seal(&pair.here, 0, b"late", START).expect("keys");
        let too_late = seal(&pair.here, 0, b"too late", START).expect("keys");

        let second = pair.install(ChaCha20Poly1305, later(10));
        assert_ne!(first, second);
        let between = seal(&pair.here, 0, b"between", later(10)).expect("keys");
        assert_eq!(Header::parse(&between).expect("whole").epoch, first, "not before the peer says so");
        assert_eq!(open(&pair.there, &between, later(10)).as_deref(), Ok(&b"between"[..]));
        pair.here.activate(second, later(10));
        let new = seal(&pair.here, 0, b"new", later(10)).expect("keys");
        assert_eq!(Header::parse(&new).expect("whole"), Header { epoch: second, key: 0, counter: 1 });
        assert_eq!(open(&pair.there, &new, later(10)).as_deref(), Ok(&b"new"[..]));

        // Our word was lost, but what we seal says the same.
        pair.there.tick(later(11));
        let answer = seal(&pair.there, 0, b"answer", later(11)).expect("keys");
        assert_eq!(Header::parse(&answer).expect("whole").epoch, second);
        assert_eq!(open(&pair.there, &late, later(40)).as_deref(), Ok(&b"late"[..]));
        assert_eq!(open(&pair.there, &too_late, later(41)), Err(OpenError::NoKey));
        pair.there.tick(later(41));
        assert_eq!(pair.there.hello(1).epochs, [second]);
        assert_eq!(pair.there.status(later(41)).map(|status| status.rekeys), Some(1));
    }

    #[test]
    fn a_rekey_every_second_holds_few_epochs() {
        let mut pair = Pair::new();
        for second in 0..600 {
            pair.handshakes = u8::try_from(second % 200).expect("small");
            if second >= 200 {
                // The same secrets again: a bug that must not be followed.
                let (ours, theirs) = (pair.here.hello(1), pair.there.hello(1));
                let agreement = Agreement::of(&ours, &theirs, Role::Initiator);
                let secret = Secret::new([pair.handshakes + 1; 32]);
                assert_eq!(pair.here.install(agreement, &secret, later(second)), Err(InstallError::Known));
                continue;
            }
            let datagram = seal(&pair.here, 0, b"before", later(second));
            pair.handshake(Aes256Gcm, later(second));
            if let Ok(datagram) = datagram {
                assert_eq!(open(&pair.there, &datagram, later(second)).as_deref(), Ok(&b"before"[..]));
            }
            assert!(pair.here.hello(1).epochs.len() <= MOST_OPEN);
        }
    }

    #[test]
    fn an_epoch_in_use_is_not_installed_over() {
        let mut pair = Pair::new();
        let epoch = pair.handshake(Aes256Gcm, START);
        let again = Agreement { suite: Aes256Gcm, epoch, role: Role::Initiator, ours: 1, theirs: 1 };
        let refused = pair.here.install(again, &Secret::new([99; 32]), START);
        assert_eq!(refused, Err(InstallError::EpochInUse(epoch)));
        pair.here.activate(epoch.wrapping_add(1), START);
        assert!(
            seal(&pair.here, 0, b"x", START).is_ok(),
            "to activate what is not installed changes nothing"
        );
    }

    #[test]
    fn a_key_ends_by_count_and_by_age() {
        let mut pair = Pair::new();
        assert!(pair.here.rekey_due(START), "there is none yet");
        pair.handshake(Aes256Gcm, START);
        assert!(!pair.here.rekey_due(later(3599)) && pair.here.rekey_due(later(3600)));
        let use_up = |packets| pair.here.keys().sealing().expect("keys").use_up(packets);
        use_up(REKEY_PACKETS);
        assert!(pair.here.rekey_due(START));
        use_up(MOST_PACKETS - 2);
        let mut out = [0; 3 * (OVERHEAD + 1)];
        let train = Train { bytes: b"abc", stride: 1 };
        let sealed = pair.here.keys().seal(0, train, &mut out, START).map(drop);
        assert_eq!(sealed, Err(SealError::Exhausted), "a train does not go half");
        assert!(seal(&pair.here, 0, b"a", START).is_ok());
        let last = seal(&pair.here, 0, b"b", START).expect("the very last");
        assert_eq!(open(&pair.there, &last, START).as_deref(), Ok(&b"b"[..]));
        for _ in 0..3 {
            assert_eq!(seal(&pair.here, 0, b"c", START), Err(SealError::Exhausted));
        }
        use_up(u64::MAX);
        assert_eq!(seal(&pair.here, 0, b"c", START), Err(SealError::Exhausted));
        assert!(seal(&pair.there, 0, b"x", later(7199)).is_ok());
        assert_eq!(seal(&pair.there, 0, b"x", later(7200)), Err(SealError::Exhausted), "too old");
    }

    #[test]
    fn a_key_that_no_handshake_replaces_goes_before_it_must_refuse() {
        let mut pair = Pair::new();
        pair.handshake(Aes256Gcm, START);
        assert!(!pair.here.tick(later(6299)) && pair.here.keys().sealing().is_some());
        assert!(pair.here.tick(later(6300)) && pair.here.keys().sealing().is_none());
        assert!(!pair.here.tick(later(6301)), "told once");
        assert!(pair.here.rekey_due(later(6301)) && pair.here.status(later(6301)).is_none());
        let datagram = seal(&pair.there, 0, b"x", later(6301)).expect("keys");
        assert!(open(&pair.here, &datagram, later(6301)).is_ok(), "what the peer still seals is opened");
        pair.there.keys().sealing().expect("keys").use_up(MOST_PACKETS / 8 * 7 - 1);
        assert!(!pair.there.tick(START));
        seal(&pair.there, 1, b"x", START).expect("keys");
        pair.there.keys().sealing().expect("keys").use_up(MOST_PACKETS / 8 * 7);
        assert!(pair.there.tick(START), "by packets likewise");

        // The next handshake has an epoch of its own, and brings keys back.
        let epoch = pair.handshake(Aes256Gcm, later(6302));
        assert_eq!(pair.here.status(later(6302)).map(|status| status.epoch), Some(epoch));
        assert!(
            open(&pair.there, &seal(&pair.here, 0, b"y", later(6302)).expect("keys"), later(6302)).is_ok()
        );
    }

    #[test]
    fn who_is_forgotten_is_no_peer() {
        let mut pair = Pair::new();
        pair.handshake(Aes256Gcm, START);
        let datagram = seal(&pair.there, 0, b"x", START).expect("keys");
        pair.here.forget();
        assert_eq!(seal(&pair.here, 0, b"x", START), Err(SealError::NoKey));
        assert_eq!(open(&pair.here, &datagram, START), Err(OpenError::NoKey));
        assert!(pair.here.rekey_due(START));
        assert_eq!(pair.here.status(START), None);
        pair.handshake(Aes256Gcm, START);
        assert!(seal(&pair.here, 0, b"x", START).is_ok(), "another handshake brings it back");
    }

    #[test]
    fn no_two_threads_share_a_counter() {
        let mut pair = Pair::new();
        pair.handshake(Aes256Gcm, START);
        let counters = || -> Vec<u64> {
            let one =
                |_| Header::parse(&seal(&pair.here, 0, b"x", START).expect("keys")).expect("whole").counter;
            (0..20_000).map(one).collect()
        };
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(counters)).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
        });
        all.sort_unstable();
        assert!(all.into_iter().eq(1..=80_000));
    }

    /// RustCrypto's AEADs and the vector of src/seal.md.
    #[test]
    fn datagrams_are_those_of_an_independent_aead() {
        use aes_gcm::aead::{Aead, KeyInit, Payload};

        let secret = || Secret::new(std::array::from_fn(|n| u8::try_from(n).expect("small")));
        let hkdf = hkdf::Hkdf::<sha2::Sha256>::new(
            Some(b"hopsack sealed 1"),
            &std::array::from_fn::<u8, 32, _>(|n| u8::try_from(n).expect("small")),
        );
        let packet = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0, 10, 1, 1, 2, 10, 1, 2, 2];
        for suite in [Aes256Gcm, ChaCha20Poly1305] {
            let session = Session::default();
            let agreement = Agreement { suite, epoch: 1, role: Role::Initiator, ours: 2, theirs: 1 };
            session.install(agreement, &secret(), START).expect("new");
            session.activate(1, START);
            for (worker, counter) in [(0u8, 1u64), (0, 2), (1, 1)] {
                let ours = seal(&session, worker.into(), &packet, START).expect("keys");
                let context = [suite as u8, 0, 1, worker];
                let (mut key, mut nonce) = ([0; 32], [0; 12]);
                hkdf.expand(&[b"key", &context[..]].concat(), &mut key).expect("short");
                hkdf.expand(&[b"iv", &context[..]].concat(), &mut nonce).expect("short");
                for (byte, other) in nonce[4..].iter_mut().zip(counter.to_be_bytes()) {
                    *byte ^= other;
                }
                let aad = [&[0x10, 1, worker, 0][..], &counter.to_be_bytes()].concat();
                let payload = Payload { msg: &packet, aad: &aad };
                let theirs = match suite {
                    Aes256Gcm => aes_gcm::Aes256Gcm::new(&key.into()).encrypt(&nonce.into(), payload),
                    ChaCha20Poly1305 => {
                        chacha20poly1305::ChaCha20Poly1305::new(&key.into()).encrypt(&nonce.into(), payload)
                    }
                };
                assert_eq!(ours, [aad, theirs.expect("sealed")].concat(), "{suite:?} {worker} {counter}");
                if (suite, worker, counter) == (Aes256Gcm, 0, 1) {
                    let hex: String = ours.iter().map(|byte| format!("{byte:02x}")).collect();
                    let line = format!("datagram = {hex}");
                    assert!(include_str!("../seal.md").contains(&line), "src/seal.md lacks {line:?}");
                }
            }
        }
    }
}
