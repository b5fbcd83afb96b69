//! The kernel as the reconciler sees it, behind one interface: tests put a host in memory in its
//! place.

use super::error::ReconcileError;
use super::linux::Linux;
use super::reader::Reader;
#[cfg(test)]
use super::recording::Recording;
use crate::desired::{Actual, Desired, Step};
use crate::netlink::Notice;

/// A host's kernel.
#[derive(Debug)]
pub enum Kernel {
    /// The kernel of this host.
    Linux(Linux),
    /// A host in memory, which remembers each step.
    #[cfg(test)]
    Recording(Recording),
}

impl Kernel {
    /// Reads everything that `desired` must be compared with.
    pub async fn read(&mut self, desired: &Desired) -> Result<Actual, ReconcileError> {
        match self {
            Self::Linux(linux) => linux.read(desired).await,
            #[cfg(test)]
            Self::Recording(recording) => Ok(recording.host().actual.clone()),
        }
    }

    /// Takes one step.
    pub async fn apply(&mut self, step: &Step) -> Result<(), ReconcileError> {
        match self {
            Self::Linux(linux) => linux.apply(step).await,
            #[cfg(test)]
            Self::Recording(recording) => recording.apply(step),
        }
    }

    /// Waits until the kernel tells of a change. Cancel safe.
    pub async fn changed(&mut self) -> Notice {
        match self {
            Self::Linux(linux) => linux.changed().await,
            #[cfg(test)]
            Self::Recording(recording) => recording.changed().await,
        }
    }

    /// The index of the device `name`, as last read.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<u32> {
        match self {
            Self::Linux(linux) => linux.known_index(name),
            #[cfg(test)]
            Self::Recording(_) => None,
        }
    }

    /// Read access for other parts.
    #[must_use]
    pub fn reader(&self) -> Reader {
        match self {
            Self::Linux(linux) => Reader::Linux(linux.netlink().clone()),
            #[cfg(test)]
            Self::Recording(recording) => Reader::Recording(recording.clone()),
        }
    }
}
