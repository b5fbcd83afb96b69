//! Wall-clock time of a store: the system's, or in tests one that follows tokio's paused time.
//!
//! Leases expire at wall-clock times, because these are saved on disk and must survive a restart.
//! All other waits use tokio's clock directly.
#![forbid(unsafe_code)]

use std::time::SystemTime;

/// Source of wall-clock time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Clock {
    /// The system's clock.
    System,
    /// A time that was read once, plus the tokio time that has passed since.
    #[cfg(test)]
    Virtual { wall: SystemTime, read: tokio::time::Instant },
}

impl Clock {
    /// A clock that follows tokio's time, beginning now.
    #[cfg(test)]
    pub(crate) fn virtual_now() -> Self {
        Self::Virtual { wall: SystemTime::now(), read: tokio::time::Instant::now() }
    }

    pub(crate) fn now(self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            #[cfg(test)]
            Self::Virtual { wall, read } => wall + read.elapsed(),
        }
    }
}
