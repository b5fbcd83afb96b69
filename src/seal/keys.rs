//! The keys in use: the snapshot of a session that a worker takes for one train.
//!
//! It never changes: the session publishes a new snapshot when a key comes or goes.
//!
//! Invariant: opening keys stand newest first, and at most four of them.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::envelope::{OpeningKeys, SealingKeys};
use super::error::{OpenError, SealError};
use super::header::Header;
use crate::packet::Train;
use crate::time::Nanos;

/// The keys of a session that are in use.
#[derive(Debug, Default)]
pub struct Keys {
    pub(super) sealing: Option<Arc<SealingKeys>>,
    /// The keys of each epoch that opens, newest first.
    pub(super) opening: Vec<Arc<OpeningKeys>>,
}

impl Keys {
    /// Seals a train into `out`: see [`SealingKeys::seal`].
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

    /// Opens a datagram into the start of `out`, which should have room for any datagram. Returns
    /// the packet or bundle that was sealed.
    #[inline]
    pub fn open<'o>(&self, datagram: &[u8], out: &'o mut [u8], now: Nanos) -> Result<&'o [u8], OpenError> {
        let header = Header::parse(datagram).ok_or(OpenError::Malformed)?;
        let opening = self.opening.iter().find(|opening| opening.epoch() == header.epoch);
        let opening = opening.filter(|opening| opening.is_open(now)).ok_or(OpenError::NoKey)?;
        opening.open(header, datagram, out)
    }

    /// The keys that seal; `None` before the first handshake, and after the keys have worn out.
    #[must_use]
    #[inline]
    pub fn sealing(&self) -> Option<&SealingKeys> {
        self.sealing.as_deref()
    }
}
