//! Keys at work: [`Sealing`] turns trains of packets into trains of sealed datagrams, [`Opening`] turns a datagram back into
//! its packet. Both read one buffer and write another: the pass that encrypts is the pass that copies, to where packets are
//! sent from, or from the cold receive buffer to one that stays in the cache.
//!
//! ```text
//!  0        1        2        3        4                            12                      n-16       n
//!  | 0x10   | epoch  | key    | 0      | counter, big-endian        | packet, encrypted     | tag      |
//!  |<---------------- authenticated (AAD) ------------------------>|<------ sealed ------->|
//!  nonce = iv XOR (four zero bytes, counter)
//! ```
//!
//! Invariant: a counter is reserved before it is used, by an exchange that only ever goes up, so that even two threads with one
//! key would never seal under one nonce.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};

use super::schedule::{Direction, KeyAndIv, Schedule};
use super::window::Window;
use super::{HEADER, Header, MOST_PACKETS, OVERHEAD, OpenError, SealError, TAG};
use crate::packet::Train;
use crate::time::Nanos;

/// No time limit.
const EVER: u64 = u64::MAX;

/// The keys by which one host seals for one peer in one epoch: one a worker.
#[derive(Debug)]
pub struct Sealing {
    epoch: u8,
    since: Nanos,
    until: Nanos,
    workers: Box<[Sender]>,
}

/// One worker's key. Two cache lines apart from the next worker's, since the counter is written for each train.
#[repr(align(128))]
struct Sender {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// The last counter that is in use.
    used: AtomicU64,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("used", &self.used).finish_non_exhaustive()
    }
}

fn nonce(iv: &[u8; NONCE_LEN], counter: u64) -> Nonce {
    let mut nonce = *iv;
    for (byte, other) in nonce[NONCE_LEN - 8..].iter_mut().zip(counter.to_be_bytes()) {
        *byte ^= other;
    }
    Nonce::assume_unique_for_key(nonce)
}

impl Sealing {
    /// Derives the keys of `workers` workers. They seal from `since` until `until`.
    pub(super) fn new(
        schedule: &Schedule,
        direction: Direction,
        epoch: u8,
        workers: u8,
        (since, until): (Nanos, Nanos),
    ) -> Self {
        let sender = |worker| {
            let KeyAndIv { key, iv } = schedule.key(direction, worker);
            Sender { key, iv, used: AtomicU64::new(0) }
        };
        Self { epoch, since, until, workers: (0..workers).map(sender).collect() }
    }

    /// Seals a train: its packets become the datagrams that stand in the first bytes of `out`, [`OVERHEAD`] longer each. On an
    /// error nothing of `out` may be sent.
    #[inline]
    pub fn seal<'o>(
        &self,
        worker: usize,
        train: Train<'_>,
        out: &'o mut [u8],
        now: Nanos,
    ) -> Result<Train<'o>, SealError> {
        let sender = self.workers.get(worker).ok_or(SealError::NoKey)?;
        if now >= self.until {
            return Err(SealError::Exhausted);
        }
        let key = u8::try_from(worker).map_err(|_| SealError::NoKey)?;
        let (count, stride) = (train.count(), train.stride + OVERHEAD);
        let length = train.bytes.len() + usize::try_from(count).map_or(usize::MAX, |count| count * OVERHEAD);
        let out = out.get_mut(..length).ok_or(SealError::NoRoom)?;
        let first = sender.reserve(count).ok_or(SealError::Exhausted)?;
        for ((counter, packet), datagram) in (first..).zip(train.datagrams()).zip(out.chunks_mut(stride)) {
            sender.seal(Header { epoch: self.epoch, key, counter }, packet, datagram)?;
        }
        Ok(Train { bytes: out, stride })
    }

    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> u8 {
        self.epoch
    }

    /// Since when it exists.
    #[must_use]
    pub fn since(&self) -> Nanos {
        self.since
    }

    /// Whether it has had most of what it may: seven eighths of its time or of its packets. What is left is more than a
    /// worker can use before it is taken away.
    pub(super) fn is_worn(&self, now: Nanos) -> bool {
        let most = |limit: u64| limit - limit / 8;
        let (age, life) = (now.0.saturating_sub(self.since.0), self.until.0.saturating_sub(self.since.0));
        age >= most(life) || self.packets().any(|packets| packets >= most(MOST_PACKETS))
    }

    /// Packets sealed by each worker.
    pub fn packets(&self) -> impl Iterator<Item = u64> {
        self.workers.iter().map(|sender| sender.used.load(Relaxed))
    }

    /// As if each worker had sealed so many packets.
    #[cfg(test)]
    pub(super) fn use_up(&self, packets: u64) {
        for sender in &self.workers {
            sender.used.store(packets, Relaxed);
        }
    }
}

impl Sender {
    /// The first of `count` counters that nobody else will use.
    fn reserve(&self, count: u64) -> Option<u64> {
        let up = |used: u64| used.checked_add(count).filter(|last| *last <= MOST_PACKETS);
        self.used.fetch_update(Relaxed, Relaxed, up).ok().map(|used| used + 1)
    }

    #[inline]
    fn seal(&self, header: Header, packet: &[u8], datagram: &mut [u8]) -> Result<(), SealError> {
        let (head, rest) = datagram.split_first_chunk_mut::<HEADER>().ok_or(SealError::NoRoom)?;
        let (sealed, tag) = rest.split_at_mut_checked(packet.len()).ok_or(SealError::NoRoom)?;
        *head = header.to_bytes();
        let (nonce, aad) = (nonce(&self.iv, header.counter), Aad::from(&*head));
        // It fails for a tag of another length, and for packets of 64 GiB.
        self.key
            .seal_out_of_place_scatter(nonce, aad, packet, sealed, &[], tag)
            .map_err(|_| SealError::NoRoom)
    }
}

/// The keys by which one peer's datagrams of one epoch are opened: one for each worker that seals there.
#[derive(Debug)]
pub struct Opening {
    epoch: u8,
    /// Nanoseconds; [`EVER`] while no newer epoch is in use.
    until: AtomicU64,
    workers: Box<[Receiver]>,
}

struct Receiver {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    window: Window,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("newest", &self.window.newest()).finish_non_exhaustive()
    }
}

impl Opening {
    pub(super) fn new(schedule: &Schedule, direction: Direction, epoch: u8, workers: u8) -> Self {
        let receiver = |worker| {
            let KeyAndIv { key, iv } = schedule.key(direction, worker);
            Receiver { key, iv, window: Window::default() }
        };
        Self { epoch, until: AtomicU64::new(EVER), workers: (0..workers).map(receiver).collect() }
    }

    /// Opens a datagram whose header is `header` into the start of `out`, which must have room for it.
    #[inline]
    pub(super) fn open<'o>(
        &self,
        header: Header,
        datagram: &[u8],
        out: &'o mut [u8],
    ) -> Result<&'o [u8], OpenError> {
        let receiver = self.workers.get(usize::from(header.key)).ok_or(OpenError::NoKey)?;
        if receiver.window.is_spent(header.counter) {
            return Err(OpenError::Replayed);
        }
        let packet = receiver.open(header, datagram, out).ok_or(OpenError::Unauthentic)?;
        // Only what is authentic moves the window, and of two workers with one datagram the first wins.
        if !receiver.window.accept(header.counter) {
            return Err(OpenError::Replayed);
        }
        Ok(packet)
    }

    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> u8 {
        self.epoch
    }

    /// Whether it still opens.
    #[must_use]
    #[inline]
    pub fn is_open(&self, now: Nanos) -> bool {
        now.0 < self.until.load(Relaxed)
    }

    /// Whether the peer has sealed by it.
    pub(super) fn is_used(&self) -> bool {
        self.workers.iter().any(|receiver| receiver.window.newest() > 0)
    }

    /// A newer epoch is in use: opens until `until`, if it is not to end earlier.
    pub(super) fn end(&self, until: Nanos) {
        self.until.fetch_min(until.0, Relaxed);
    }
}

impl Receiver {
    #[inline]
    fn open<'o>(&self, header: Header, datagram: &[u8], out: &'o mut [u8]) -> Option<&'o [u8]> {
        let (aad, rest) = datagram.split_at_checked(HEADER)?;
        let (sealed, tag) = rest.split_at_checked(rest.len().checked_sub(TAG)?)?;
        let out = out.get_mut(..sealed.len())?;
        let nonce = nonce(&self.iv, header.counter);
        self.key.open_separate_gather(nonce, Aad::from(aad), sealed, tag, out).ok()?;
        Some(out)
    }
}
