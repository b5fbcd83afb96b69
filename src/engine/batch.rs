//! The batch engine: offloads and many messages a call, on plain system calls. For kernels and containers that forbid
//! io_uring, and the yardstick for it.
//!
//! A worker sleeps in poll(2); a turn reads the TUN until it is empty or the outbox is full, sends by sendmmsg with
//! UDP_SEGMENT, receives by recvmmsg with UDP_GRO, and writes merged packets one write each (a TUN has no call for many).
//!
//! Functions stand in the order in which a packet meets them.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::link::{Link, Replies};
use super::outbox::Outbox;
use super::wait::Spin;
use super::{Account, Op, QueueIo, Rules, Side, WorkerError};
use crate::forward::{Arrival, DropReason, Frame, Gate, ToTun, VerifySource, egress, ingress};
use crate::packet::coalesce::{Coalescer, Full, RUNS};
use crate::packet::icmp::Nanos;
use crate::packet::{IpPacket, VnetHeader};
use crate::route::Fib;
use crate::sys::{Event, now, udp};

/// Reads of the TUN, or receives, before the other direction gets its turn.
const BURST: usize = 64;
/// One read takes a super packet of any length and its header.
pub(super) const READ_BUFFER: usize = (VnetHeader::LEN + 40 + 65_535).next_multiple_of(64);

pub(super) struct Worker {
    link: Link,
    receive: UdpSocket,
    fib: Cache<Arc<ArcSwap<Fib>>, Arc<Fib>>,
    verify: VerifySource,
    spin: Spin,
    stop: Arc<Event>,
    side: Arc<Side>,
    outbox: Outbox,
    coalescer: Coalescer,
    receiver: udp::Receiver,
    gate: Gate,
    buffer: Box<[u8]>,
}

impl Worker {
    pub(super) fn new(
        number: usize,
        io: QueueIo,
        rules: Rules,
        fib: Arc<ArcSwap<Fib>>,
        account: Arc<Account>,
        spin: Spin,
        (stop, side): (Arc<Event>, Arc<Side>),
    ) -> Self {
        Self {
            link: Link::new(io.tun, io.send, account, rules.offload, number),
            receive: io.receive,
            fib: Cache::new(fib),
            verify: rules.verify,
            spin,
            stop,
            side,
            outbox: Outbox::new(number, udp::max_segments()),
            coalescer: Coalescer::new(RUNS).with_udp_segments(udp::max_segments()),
            receiver: udp::Receiver::new(udp::RECEIVE_BATCH),
            gate: Gate::default(),
            buffer: vec![0; READ_BUFFER].into(),
        }
    }

    /// Turns until told to stop.
    pub(super) fn run(mut self) -> Result<(), WorkerError> {
        loop {
            let Self { link, receive, stop, spin, .. } = &mut self;
            let ends = [link.tun.as_fd(), receive.as_fd(), stop.as_fd()];
            let [tun, socket, stop] = spin
                .wait(ends, now(), &link.account.counters)
                .map_err(|error| WorkerError::System { call: "poll", error })?;
            if stop {
                return Ok(());
            }
            link.account.counters.turns.add(1);
            let now = now();
            if tun {
                self.outbound(now)?;
            }
            if socket {
                self.inbound(now);
            }
        }
    }

    /// From the TUN to the network, until it has nothing more or the other side is due.
    fn outbound(&mut self, now: Nanos) -> Result<(), WorkerError> {
        let Self { link, fib, spin, outbox, buffer, side, .. } = self;
        let (fib, mut bytes) = (fib.load(), 0);
        for _ in 0..BURST {
            if outbox.is_tight() {
                break;
            }
            link.account.counters.system_calls.add(1);
            let length = match link.tun.read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(WorkerError::of_read(error)),
            };
            bytes += length as u64;
            let Link { tun, account, forwarder, .. } = &mut *link;
            account.counters.tun_reads.add(1);
            let (frame, mut replies) = (Frame::Virtio(&buffer[..length]), Replies { tun, account });
            egress(fib, frame, now, forwarder, &account.counters, outbox, &mut replies);
        }
        spin.moved(bytes, now);
        outbox.seal(fib, now, &link.account.counters);
        link.send(outbox.block(), fib, now);
        outbox.clear();
        outbox.hand_over(side, &link.account);
        Ok(())
    }

    /// From the network to the TUN, likewise.
    fn inbound(&mut self, now: Nanos) {
        let Self { link, receive, fib, verify, spin, coalescer, receiver, gate, .. } = self;
        let (fib, account) = (fib.load(), link.account.clone());
        let counters = &account.counters;
        counters.system_calls.add(1);
        let count = match receiver.receive(receive) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => return account.error(Op::UdpReceive, &error),
        };
        gate.at(now);
        let (mut inbox, mut bytes) = (Inbox { coalescer, link, now }, 0);
        for index in 0..count {
            let received = receiver.get(index);
            bytes += received.train.bytes.len() as u64;
            counters.udp_receives.add(1);
            counters.udp_datagrams.add(received.train.count());
            let Some(from) = received.from else {
                counters.ingress.drop_many(DropReason::UnknownPeer, received.train.count());
                continue;
            };
            let arrival = Arrival { from: from.ip(), ecn: received.ecn, train: received.train };
            ingress(fib, arrival, *verify, gate, counters, &mut inbox);
        }
        inbox.flush();
        spin.moved(bytes, now);
    }
}

/// The way to the TUN: merges, and writes at the end of a batch.
pub(super) struct Inbox<'a> {
    pub(super) coalescer: &'a mut Coalescer,
    pub(super) link: &'a mut Link,
    pub(super) now: Nanos,
}

impl Inbox<'_> {
    fn try_push(&mut self, packet: IpPacket<'_>) -> Result<(), Full> {
        match self.link.may_merge(&packet, self.now) {
            true => self.coalescer.push(packet),
            false => self.coalescer.push_alone(packet),
        }
    }

    pub(super) fn flush(&mut self) {
        for run in self.coalescer.finish() {
            self.link.write(run.bytes, run.packets, run.packet_bytes, self.now);
        }
        self.coalescer.clear();
    }
}

impl ToTun for Inbox<'_> {
    #[inline]
    fn push(&mut self, packet: IpPacket<'_>) {
        if self.try_push(packet) == Err(Full) {
            self.flush();
            // An empty coalescer takes any packet.
            let _ = self.try_push(packet);
        }
    }

    /// Ingress answers nothing.
    fn reply(&mut self, _error: &[u8]) {}
}
