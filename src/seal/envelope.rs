//! The keys of one epoch: [`SealingKeys`] turns trains of packets into trains of sealed datagrams,
//! [`OpeningKeys`] turns a datagram back into its packet.
//!
//! Both read one buffer and write another, so the pass that encrypts also copies: to the buffer
//! from which packets are sent, or from the cold receive buffer to one that stays in the cache.
//! Neither chooses the epoch.
//!
//! ```text
//!  0        1        2        3        4                     12                  n-16       n
//!  | 0x10   | epoch  | key    | 0      | counter, big-endian | packet, encrypted | tag      |
//!  |<---------------- authenticated (AAD) ----------------->|<---- sealed ----->|
//!  nonce = iv XOR (four zero bytes, counter)
//! ```
//!
//! Invariant: a counter is reserved before it is used, by an atomic exchange that only goes up. So
//! even two threads with one key would never seal with the same nonce.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};

use super::error::{OpenError, SealError};
use super::header::{HEADER, Header, OVERHEAD, TAG};
use super::limits::MOST_PACKETS;
use super::role::Direction;
use super::schedule::{KeyAndIv, Schedule};
use super::window::Window;
use crate::packet::Train;
use crate::time::Nanos;

/// The keys with which this host seals for one peer in one epoch, one for each worker.
#[derive(Debug)]
pub struct SealingKeys {
    epoch: u8,
    since: Nanos,
    until: Nanos,
    workers: Box<[Sender]>,
}

/// One worker's key. It is aligned to two cache lines, since its counter is written for each train.
#[repr(align(128))]
struct Sender {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// The last counter that is reserved.
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

impl SealingKeys {
    /// Derives the keys of `workers` workers. The keys seal from `since` until `until`.
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

    /// Seals each packet of a train. The datagrams are in the first bytes of `out`, each
    /// [`OVERHEAD`] longer than its packet. On an error nothing of `out` may be sent.
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

    /// The epoch of these keys.
    #[must_use]
    pub fn epoch(&self) -> u8 {
        self.epoch
    }

    /// The time from which the keys seal.
    #[must_use]
    pub fn since(&self) -> Nanos {
        self.since
    }

    /// Whether the keys have used up seven eighths of their time or of their packets. The rest is
    /// more than a worker can use before the keys are removed.
    pub(super) fn is_worn(&self, now: Nanos) -> bool {
        const WORN_PACKETS: u64 = MOST_PACKETS - MOST_PACKETS / 8;
        let (age, life) = (now.since(self.since), self.until.since(self.since));
        age >= life - life / 8 || self.packets().any(|packets| packets >= WORN_PACKETS)
    }

    /// Number of packets that each worker has sealed.
    pub fn packets(&self) -> impl Iterator<Item = u64> {
        self.workers.iter().map(|sender| sender.used.load(Relaxed))
    }

    /// Sets the number of packets that each worker has sealed.
    #[cfg(test)]
    pub(super) fn use_up(&self, packets: u64) {
        for sender in &self.workers {
            sender.used.store(packets, Relaxed);
        }
    }
}

impl Sender {
    /// Reserves `count` counters and returns the first.
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
        // This fails only for a tag of another length, and for packets of 64 GiB.
        self.key
            .seal_out_of_place_scatter(nonce, aad, packet, sealed, &[], tag)
            .map_err(|_| SealError::NoRoom)
    }
}

/// The keys with which one peer's datagrams of one epoch are opened, one for each worker of the
/// peer.
#[derive(Debug)]
pub struct OpeningKeys {
    epoch: u8,
    /// The time until which the keys open, as [`Nanos`]; [`Nanos::MAX`] while no newer epoch is in
    /// use.
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

impl OpeningKeys {
    pub(super) fn new(schedule: &Schedule, direction: Direction, epoch: u8, workers: u8) -> Self {
        let receiver = |worker| {
            let KeyAndIv { key, iv } = schedule.key(direction, worker);
            Receiver { key, iv, window: Window::default() }
        };
        Self { epoch, until: AtomicU64::new(Nanos::MAX.0), workers: (0..workers).map(receiver).collect() }
    }

    /// Opens a datagram with the header `header` into the start of `out`, which must have room for
    /// it.
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
        // Only an authentic datagram moves the window. Of two workers with the same datagram, the
        // first wins.
        if !receiver.window.accept(header.counter) {
            return Err(OpenError::Replayed);
        }
        Ok(packet)
    }

    /// The epoch of these keys.
    #[must_use]
    pub fn epoch(&self) -> u8 {
        self.epoch
    }

    /// Whether the keys still open datagrams.
    #[must_use]
    #[inline]
    pub fn is_open(&self, now: Nanos) -> bool {
        now < Nanos(self.until.load(Relaxed))
    }

    /// Whether the peer has sealed with these keys.
    pub(super) fn is_used(&self) -> bool {
        self.workers.iter().any(|receiver| receiver.window.newest() > 0)
    }

    /// Makes the keys stop opening at `until`, unless they stop earlier. It is called when a newer
    /// epoch is in use.
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
