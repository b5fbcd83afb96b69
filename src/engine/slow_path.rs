//! The slow path: packets that the workers' own sockets do not carry leave a worker here, and
//! return to the device here.
//!
//! A worker puts whole trains into a [`SlowPathQueue`], and the QUIC thread takes them out. Packets
//! that QUIC received go to the overlay device through a [`SlowPathWriter`], which verifies, merges
//! and writes them as a worker does.
//!
//! It knows no connection. A worker takes the lock once in a turn, and only if the turn had packets
//! for such peers.
//!
//! Invariant: at most [`MAX_BYTES`] bytes wait. If there is no room, the oldest trains are dropped
//! and counted, and so are those that are left when no thread takes them any more.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::account::{Account, Op};
use super::io::Io;
use super::tun_writer::{self, TunWriter};
use crate::forward::{DropReason, EgressState, Peer, Table, ToTun, Train, admit_authenticated};
use crate::packet::IpPacket;
use crate::packet::coalesce::{Coalescer, Full, RUNS};
use crate::packet::icmp::Problem;
use crate::sys::now;
use crate::sys::tun::{Offload, Queue};

/// Bytes that may wait: 3 ms of the rate of QUIC. More would add delay, but no throughput.
const MAX_BYTES: usize = 1 << 20;

/// A train for one peer.
#[derive(Debug)]
pub struct SlowPathPackets {
    /// The peer's address on the underlay.
    pub to: IpAddr,
    /// The packets, one after the other.
    pub bytes: Bytes,
    /// Bytes from one packet to the next; only the last packet may be shorter.
    pub stride: usize,
}

impl SlowPathPackets {
    /// Copies packets out of the memory of a worker.
    #[must_use]
    pub fn new(peer: &Peer, bytes: &[u8], stride: usize) -> Self {
        Self { to: peer.endpoint.ip(), bytes: Bytes::copy_from_slice(bytes), stride }
    }

    /// How many packets there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        Train { bytes: &self.bytes, stride: self.stride }.count()
    }

    /// Takes out the first packet.
    pub fn take_next(&mut self) -> Option<Bytes> {
        let length = self.bytes.len().min(self.stride);
        (length > 0).then(|| self.bytes.split_to(length))
    }
}

/// The queue from the workers to the thread that carries the packets.
#[derive(Debug, Default)]
pub struct SlowPathQueue {
    waiting: Mutex<Waiting>,
    not_empty: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    trains: VecDeque<SlowPathPackets>,
    bytes: usize,
    /// Whether the thread that takes trains has ended.
    closed: bool,
}

impl SlowPathQueue {
    /// Takes all of `trains`. Returns how many packets are dropped for lack of room, and the
    /// reason.
    pub fn put(&self, trains: &mut Vec<SlowPathPackets>) -> (DropReason, u64) {
        let mut dropped = 0;
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.closed {
                let refused = trains.drain(..).map(|train| train.count()).sum();
                return (DropReason::Unconnected, refused);
            }
            for train in trains.drain(..) {
                waiting.bytes += train.bytes.len();
                waiting.trains.push_back(train);
            }
            while waiting.bytes > MAX_BYTES {
                let Some(oldest) = waiting.trains.pop_front() else { break };
                waiting.bytes -= oldest.bytes.len();
                dropped += oldest.count();
            }
        }
        self.not_empty.notify_one();
        (DropReason::Congested, dropped)
    }

    /// Waits until the queue is not empty, and takes all trains. Cancel safe.
    pub async fn take(&self) -> VecDeque<SlowPathPackets> {
        loop {
            {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if !waiting.trains.is_empty() {
                    waiting.bytes = 0;
                    return std::mem::take(&mut waiting.trains);
                }
            }
            self.not_empty.notified().await;
        }
    }

    /// Takes all trains, and refuses later ones. The thread that takes trains calls this when it
    /// ends.
    pub fn close(&self) -> VecDeque<SlowPathPackets> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        (waiting.closed, waiting.bytes) = (true, 0);
        std::mem::take(&mut waiting.trains)
    }
}

/// A duplicate of the device's first descriptor, to make [`SlowPathWriter`]s of. It includes no
/// socket: the workers' sockets are closed when the address of this host changes.
#[derive(Debug)]
pub(super) enum DeviceHandle {
    /// The device of the simple engine: each write is one packet.
    Simple(OwnedFd),
    /// A queue.
    Queue(Queue, Offload),
}

impl DeviceHandle {
    pub(super) fn of(io: &Io, offload: Offload) -> io::Result<Self> {
        let first = match io {
            Io::Simple(io) => return io.tun.as_fd().try_clone_to_owned().map(Self::Simple),
            Io::Batch(queues) => queues.first(),
            Io::Uring(queues) => queues.first().map(|(queue, _)| queue),
        };
        let first = first.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self::Queue(first.tun.try_clone()?, offload))
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Simple(device) => device.try_clone().map(Self::Simple),
            Self::Queue(tun, offload) => Ok(Self::Queue(tun.try_clone()?, *offload)),
        }
    }
}

/// The overlay device, as a [`SlowPathWriter`] writes to it.
enum Device {
    Simple(File),
    /// A queue, written to as a worker does.
    Queue(Box<TunWriter>),
}

/// Brings packets of authenticated connections to the overlay device. [`SlowPathWriter::flush`]
/// writes the packets that were merged.
pub struct SlowPathWriter {
    device: Device,
    coalescer: Coalescer,
    egress_state: EgressState,
    account: Arc<Account>,
}

impl std::fmt::Debug for SlowPathWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlowPathWriter").finish_non_exhaustive()
    }
}

impl SlowPathWriter {
    pub(super) fn new(device: DeviceHandle, account: Arc<Account>) -> Self {
        let device = match device {
            DeviceHandle::Simple(device) => Device::Simple(File::from(device)),
            DeviceHandle::Queue(tun, offload) => {
                Device::Queue(Box::new(TunWriter::new(tun, account.clone(), offload)))
            }
        };
        Self { device, coalescer: Coalescer::new(RUNS), egress_state: EgressState::new(now()), account }
    }

    /// The account of the slow path, in both directions.
    #[must_use]
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Takes a packet that came by the connection of the peer at `from`.
    ///
    /// # Errors
    /// The packet was dropped for this reason, and counted.
    pub fn admit(&mut self, table: &Table, from: IpAddr, packet: &[u8]) -> Result<(), DropReason> {
        let account = self.account.clone();
        self.push(admit_authenticated(table, from, packet, &account.counters)?);
        Ok(())
    }

    fn push(&mut self, packet: IpPacket<'_>) {
        let Self { device, coalescer, account, .. } = self;
        match device {
            Device::Simple(file) => write(file, packet.bytes(), account, true),
            Device::Queue(writer) => {
                let now = now();
                if writer.merge(coalescer, packet, now) == Err(Full) {
                    writer.write_merged(coalescer, now);
                    // An empty coalescer takes any packet.
                    let _ = writer.merge(coalescer, packet, now);
                }
            }
        }
    }

    /// Writes the packets that were merged.
    pub fn flush(&mut self) {
        if let Device::Queue(writer) = &mut self.device {
            writer.write_merged(&mut self.coalescer, now());
        }
    }

    /// Drops a packet that came from the device and is longer than the path to its peer allows, and
    /// tells its sender.
    pub fn too_big(&mut self, table: &Table, packet: &[u8], mtu: u16) {
        let account = self.account.clone();
        let refusal = (DropReason::TooBig, Problem::TooBig { mtu });
        let mut replies = Replies { device: &mut self.device, account: &account };
        self.egress_state.refuse(
            table,
            Train::single(packet),
            refusal,
            now(),
            &account.counters,
            &mut replies,
        );
    }
}

fn write(file: &mut File, packet: &[u8], account: &Account, is_packet: bool) {
    account.counters.system_calls.add(1);
    // A TUN takes a packet whole or not at all.
    match file.write_all(packet) {
        Ok(()) => {
            account.counters.ingress_writes.add(1);
            if is_packet {
                account.counters.ingress.forwarded(packet.len());
            }
        }
        Err(error) => {
            account.error(Op::TunWrite, &error);
            if is_packet {
                account.counters.ingress.drop(DropReason::WriteFailed);
            }
        }
    }
}

/// Writes ICMP errors to the device.
struct Replies<'a> {
    device: &'a mut Device,
    account: &'a Account,
}

impl ToTun for Replies<'_> {
    /// A refused packet is not written.
    fn push(&mut self, _packet: IpPacket<'_>) {}

    fn reply(&mut self, error: &[u8]) {
        match self.device {
            Device::Simple(file) => write(file, error, self.account, false),
            Device::Queue(writer) => {
                tun_writer::Replies { tun: &writer.tun, account: self.account }.reply(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(packets: usize, stride: usize) -> SlowPathPackets {
        SlowPathPackets { to: [192, 0, 2, 2].into(), bytes: vec![7; packets * stride].into(), stride }
    }

    #[test]
    fn train_is_taken_packet_by_packet() {
        let mut train =
            SlowPathPackets { to: [192, 0, 2, 2].into(), bytes: vec![7; 250].into(), stride: 100 };
        assert_eq!(train.count(), 3);
        let lengths: Vec<usize> =
            std::iter::from_fn(|| train.take_next()).map(|packet| packet.len()).collect();
        assert_eq!(lengths, [100, 100, 50]);
    }

    #[tokio::test]
    async fn oldest_train_is_dropped_and_counted() {
        let slow_path = SlowPathQueue::default();
        let none = (DropReason::Congested, 0);
        assert_eq!(slow_path.put(&mut vec![train(10, 1000), train(1, 60)]), none);
        let full = MAX_BYTES / 1000;
        let dropped = (DropReason::Congested, 10);
        assert_eq!(slow_path.put(&mut vec![train(full, 1000)]), dropped, "the oldest train has ten packets");
        let left = slow_path.take().await;
        assert_eq!(left.len(), 2);
        assert_eq!(slow_path.put(&mut vec![train(1, 60)]), none, "there is room again");
    }

    #[test]
    fn closed_queue_refuses_and_counts() {
        let slow_path = SlowPathQueue::default();
        slow_path.put(&mut vec![train(3, 100)]);
        assert_eq!(slow_path.close().iter().map(SlowPathPackets::count).sum::<u64>(), 3);
        assert_eq!(slow_path.put(&mut vec![train(2, 100), train(1, 60)]), (DropReason::Unconnected, 3));
        assert!(slow_path.close().is_empty());
    }
}
