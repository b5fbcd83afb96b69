//! The overlay device, opened in the way that an engine needs.

use std::io;

use super::choice::{Choice, EngineKind};
use super::sockets::Sockets;
use crate::engine::{Io, QueueIo, SimpleIo};
use crate::sys::ring::Ring;
use crate::sys::tun::{Offload, Persistence, Queue, SimpleTun};

/// Descriptors of the overlay device.
#[derive(Debug)]
pub(super) enum Tun {
    /// The device of the simple engine.
    Simple(SimpleTun),
    /// One queue for each worker of the other engines, and the offloads that the device has
    /// accepted.
    Queues(Vec<Queue>, Offload),
}

impl Tun {
    pub(super) fn open(name: &str, choice: &Choice) -> io::Result<Self> {
        if choice.engine == EngineKind::Simple {
            return SimpleTun::open(name).map(Self::Simple);
        }
        let queues: Vec<Queue> = (0..choice.workers).map(|_| Queue::open(name)).collect::<io::Result<_>>()?;
        let offload = queues[0].set_offload(choice.wanted())?;
        Ok(Self::Queues(queues, offload))
    }

    /// Decides what happens to the device when its last descriptor is closed.
    pub(super) fn persistence(&self) -> io::Result<Persistence> {
        match self {
            Self::Simple(tun) => Persistence::of(tun),
            Self::Queues(queues, _) => Persistence::of(&queues[0]),
        }
    }

    pub(super) fn offload(&self) -> Offload {
        match self {
            Self::Simple(_) => Offload::None,
            Self::Queues(_, offload) => *offload,
        }
    }

    /// Duplicates the descriptors, so that the same queues can be joined with other sockets later.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Simple(tun) => Ok(Self::Simple(tun.share())),
            Self::Queues(queues, offload) => {
                let queues = queues.iter().map(Queue::try_clone).collect::<io::Result<_>>()?;
                Ok(Self::Queues(queues, *offload))
            }
        }
    }

    /// Joins queues and sockets to what an engine needs. If a ring cannot be made, `choice` becomes
    /// the batch engine.
    pub(super) fn join(self, choice: &mut Choice, mut sockets: Vec<Sockets>) -> Io {
        let queues = match self {
            Self::Simple(tun) => {
                let socket = sockets.remove(0).receive;
                return Io::Simple(SimpleIo { tun, socket });
            }
            Self::Queues(queues, _) => queues,
        };
        let queues: Vec<QueueIo> = queues
            .into_iter()
            .zip(sockets)
            .map(|(tun, Sockets { receive, send })| QueueIo { tun, receive, send })
            .collect();
        if choice.engine != EngineKind::Uring {
            return Io::Batch(queues);
        }
        match queues.iter().map(QueueIo::ring).collect::<io::Result<Vec<Ring>>>() {
            Ok(rings) => Io::Uring(queues.into_iter().zip(rings).collect()),
            Err(error) => {
                choice.fall_back(&error);
                Io::Batch(queues)
            }
        }
    }
}
