//! The side way: packets that travel otherwise than by the workers' own sockets leave a worker here, and enter from here.
//!
//! A worker gives whole trains to a [`SlowPathQueue`]; whoever carries them (QUIC) takes them out, on a thread of its own. What came
//! back that way goes to the overlay device through an [`SlowPathWriter`], which admits, merges and writes as a worker does.
//!
//! It knows no connection. A worker takes the lock once a turn, and only if packets for such peers were in it.
//!
//! Invariant: at most [`ROOM`] bytes wait; who comes when there is no room pushes the oldest out, which is counted, and so is
//! what is left when nobody carries it any more.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::batch::Inbox;
use super::link::Link;
use super::{Account, Io, Op};
use crate::forward::{DropReason, EgressState, Peer, Table, ToTun, Train, admit_authenticated};
use crate::packet::IpPacket;
use crate::packet::coalesce::{Coalescer, RUNS};
use crate::packet::icmp::Problem;
use crate::sys::now;
use crate::sys::tun::{Offload, Queue};

/// An entrance sends nothing, and so has no keys.
const NO_WORKER: usize = usize::MAX;
/// 3 ms of what QUIC can carry: more would be delay, not throughput.
const ROOM: usize = 1 << 20;

/// A train for one peer.
#[derive(Debug)]
pub struct SlowPathPackets {
    /// The peer's address on the underlay.
    pub to: IpAddr,
    /// The packets, back to back.
    pub bytes: Bytes,
    /// Bytes from one to the next; only the last may be shorter.
    pub stride: usize,
}

impl SlowPathPackets {
    /// Of packets that stand in a worker's memory.
    #[must_use]
    pub fn new(peer: &Peer, bytes: &[u8], stride: usize) -> Self {
        Self { to: peer.endpoint.ip(), bytes: Bytes::copy_from_slice(bytes), stride }
    }

    /// How many packets there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        Train { bytes: &self.bytes, stride: self.stride }.count()
    }

    /// The first packet that is left, which is taken out.
    pub fn take_next(&mut self) -> Option<Bytes> {
        let length = self.bytes.len().min(self.stride);
        (length > 0).then(|| self.bytes.split_to(length))
    }
}

/// Where workers put parcels and somebody takes them.
#[derive(Debug, Default)]
pub struct SlowPathQueue {
    waiting: Mutex<Waiting>,
    come: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    parcels: VecDeque<SlowPathPackets>,
    bytes: usize,
    /// Nobody takes any more.
    closed: bool,
}

impl SlowPathQueue {
    /// Takes all of `parcels`. Returns how many packets are dropped for them, and why.
    pub fn put(&self, parcels: &mut Vec<SlowPathPackets>) -> (DropReason, u64) {
        let mut pushed_out = 0;
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.closed {
                let refused = parcels.drain(..).map(|parcel| parcel.count()).sum();
                return (DropReason::Unconnected, refused);
            }
            for parcel in parcels.drain(..) {
                waiting.bytes += parcel.bytes.len();
                waiting.parcels.push_back(parcel);
            }
            while waiting.bytes > ROOM {
                let Some(oldest) = waiting.parcels.pop_front() else { break };
                waiting.bytes -= oldest.bytes.len();
                pushed_out += oldest.count();
            }
        }
        self.come.notify_one();
        (DropReason::Congested, pushed_out)
    }

    /// Waits until there is something, and takes it all. Cancel safe.
    pub async fn take(&self) -> VecDeque<SlowPathPackets> {
        loop {
            {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if !waiting.parcels.is_empty() {
                    waiting.bytes = 0;
                    return std::mem::take(&mut waiting.parcels);
                }
            }
            self.come.notified().await;
        }
    }

    /// Takes what is left, and no more from here on: whoever took it has ended.
    pub fn close(&self) -> VecDeque<SlowPathPackets> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        (waiting.closed, waiting.bytes) = (true, 0);
        std::mem::take(&mut waiting.parcels)
    }
}

/// What an [`SlowPathWriter`] is made of: once more the first worker's ends.
#[derive(Debug)]
pub(super) enum Door {
    /// The simple engine's device: one packet a write.
    Simple(OwnedFd),
    /// A queue, and a socket to ask for path MTUs.
    Queue(Queue, UdpSocket, Offload),
}

impl Door {
    pub(super) fn of(io: &Io, offload: Offload) -> io::Result<Self> {
        let first = match io {
            Io::Simple(io) => return io.tun.as_fd().try_clone_to_owned().map(Self::Simple),
            Io::Batch(queues) => queues.first(),
            Io::Uring(queues) => queues.first().map(|(queue, _)| queue),
        };
        let first = first.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self::Queue(first.tun.try_clone()?, first.send.try_clone()?, offload))
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Simple(device) => device.try_clone().map(Self::Simple),
            Self::Queue(tun, socket, offload) => {
                Ok(Self::Queue(tun.try_clone()?, socket.try_clone()?, *offload))
            }
        }
    }
}

/// The overlay device, as an [`SlowPathWriter`] writes to it.
enum Writer {
    Simple(File),
    /// With all that a worker has around it.
    Queue(Box<Link>),
}

/// The way to the overlay device for packets that came by an authenticated connection. Whatever was pushed is written by
/// [`SlowPathWriter::flush`].
pub struct SlowPathWriter {
    writer: Writer,
    coalescer: Coalescer,
    forwarder: EgressState,
    account: Arc<Account>,
}

impl std::fmt::Debug for SlowPathWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlowPathWriter").finish_non_exhaustive()
    }
}

impl SlowPathWriter {
    pub(super) fn new(door: Door, account: Arc<Account>) -> Self {
        let writer = match door {
            Door::Simple(device) => Writer::Simple(File::from(device)),
            Door::Queue(tun, socket, offload) => {
                Writer::Queue(Box::new(Link::new(tun, socket, account.clone(), offload, NO_WORKER)))
            }
        };
        Self { writer, coalescer: Coalescer::new(RUNS), forwarder: EgressState::new(now()), account }
    }

    /// What passed here, both ways.
    #[must_use]
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Takes a packet from the peer at `from`, whose connection it came by.
    ///
    /// # Errors
    /// It was dropped for this reason, and counted.
    pub fn admit(&mut self, fib: &Table, from: IpAddr, packet: &[u8]) -> Result<(), DropReason> {
        let account = self.account.clone();
        self.push(admit_authenticated(fib, from, packet, &account.counters)?);
        Ok(())
    }

    fn push(&mut self, packet: IpPacket<'_>) {
        match &mut self.writer {
            Writer::Simple(file) => write(file, packet.bytes(), &self.account, true),
            Writer::Queue(link) => Inbox { coalescer: &mut self.coalescer, link, now: now() }.push(packet),
        }
    }

    /// Writes what was merged.
    pub fn flush(&mut self) {
        if let Writer::Queue(link) = &mut self.writer {
            Inbox { coalescer: &mut self.coalescer, link, now: now() }.flush();
        }
    }

    /// A packet that came from the device is longer than the way to its peer takes: drops it, and tells its sender.
    pub fn too_big(&mut self, fib: &Table, packet: &[u8], mtu: u16) {
        let account = self.account.clone();
        let refusal = (DropReason::TooBig, Problem::TooBig { mtu });
        let mut replies = Replies { writer: &mut self.writer, account: &account };
        self.forwarder.refuse(fib, Train::single(packet), refusal, now(), &account.counters, &mut replies);
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

/// The device as a place for ICMP errors only.
struct Replies<'a> {
    writer: &'a mut Writer,
    account: &'a Account,
}

impl ToTun for Replies<'_> {
    /// Nothing is pushed on the way out.
    fn push(&mut self, _packet: IpPacket<'_>) {}

    fn reply(&mut self, error: &[u8]) {
        match self.writer {
            Writer::Simple(file) => write(file, error, self.account, false),
            Writer::Queue(link) => {
                let Link { tun, account, .. } = &mut **link;
                super::link::Replies { tun, account }.reply(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(packets: usize, stride: usize) -> SlowPathPackets {
        SlowPathPackets { to: [192, 0, 2, 2].into(), bytes: vec![7; packets * stride].into(), stride }
    }

    #[test]
    fn a_parcel_comes_apart_into_its_packets() {
        let mut train =
            SlowPathPackets { to: [192, 0, 2, 2].into(), bytes: vec![7; 250].into(), stride: 100 };
        assert_eq!(train.count(), 3);
        let lengths: Vec<usize> =
            std::iter::from_fn(|| train.take_next()).map(|packet| packet.len()).collect();
        assert_eq!(lengths, [100, 100, 50]);
    }

    #[tokio::test]
    async fn the_oldest_gives_way_and_is_counted() {
        let slow_path = SlowPathQueue::default();
        let none = (DropReason::Congested, 0);
        assert_eq!(slow_path.put(&mut vec![parcel(10, 1000), parcel(1, 60)]), none);
        let full = ROOM / 1000;
        let pushed_out = (DropReason::Congested, 10);
        assert_eq!(slow_path.put(&mut vec![parcel(full, 1000)]), pushed_out, "the longest that was there");
        let left = slow_path.take().await;
        assert_eq!(left.len(), 2);
        assert_eq!(slow_path.put(&mut vec![parcel(1, 60)]), none, "there is room again");
    }

    #[test]
    fn what_nobody_carries_any_more_is_counted() {
        let slow_path = SlowPathQueue::default();
        slow_path.put(&mut vec![parcel(3, 100)]);
        assert_eq!(slow_path.close().iter().map(SlowPathPackets::count).sum::<u64>(), 3);
        assert_eq!(slow_path.put(&mut vec![parcel(2, 100), parcel(1, 60)]), (DropReason::Unconnected, 3));
        assert!(slow_path.close().is_empty());
    }
}
