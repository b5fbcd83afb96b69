//! [`Io`]: the descriptors that an engine moves packets between.
//!
//! It opens nothing and moves nothing. Invariant: the number of workers is the number of queues.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use crate::sys::ring::Ring;
use crate::sys::tun::{Queue, SimpleTun};

/// The kind of an engine, and the descriptors of its workers.
#[derive(Debug)]
pub enum Io {
    /// One worker that moves one packet in each system call.
    Simple(SimpleIo),
    /// A worker for each queue, with plain system calls.
    Batch(Vec<QueueIo>),
    /// A worker for each queue, each with a ring that [`QueueIo::ring`] made.
    Uring(Vec<(QueueIo, Ring)>),
}

/// The descriptors of the worker of the simple engine.
#[derive(Debug)]
pub struct SimpleIo {
    /// The overlay device.
    pub tun: SimpleTun,
    /// The underlay socket, non-blocking.
    pub socket: UdpSocket,
}

/// The descriptors of a worker of the batch engine or the ring engine.
#[derive(Debug)]
pub struct QueueIo {
    /// The queue of the overlay device.
    pub tun: Queue,
    /// The receiving socket on the cluster's port, non-blocking, with UDP_GRO if offloads are on.
    pub receive: UdpSocket,
    /// The sending socket: the receiving socket once more, or a socket with its own port.
    pub send: UdpSocket,
}

impl QueueIo {
    /// Makes a ring over these descriptors.
    pub fn ring(&self) -> io::Result<Ring> {
        Ring::new([self.tun.as_fd(), self.receive.as_fd(), self.send.as_fd()])
    }
}

impl Io {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Simple(_) => "simple",
            Self::Batch(_) => "batch",
            Self::Uring(_) => "uring",
        }
    }

    pub(super) fn workers(&self) -> usize {
        match self {
            Self::Simple(_) => 1,
            Self::Batch(queues) => queues.len(),
            Self::Uring(queues) => queues.len(),
        }
    }

    /// Duplicates the receiving sockets.
    pub(super) fn receiving(&self) -> io::Result<Vec<UdpSocket>> {
        match self {
            Self::Simple(io) => Ok(vec![io.socket.try_clone()?]),
            Self::Batch(queues) => queues.iter().map(|io| io.receive.try_clone()).collect(),
            Self::Uring(queues) => queues.iter().map(|(io, _)| io.receive.try_clone()).collect(),
        }
    }
}
