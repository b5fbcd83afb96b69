//! The batch engine: offloads and many messages a call, on plain system calls. For kernels and containers that forbid
//! io_uring, and the yardstick for it.
//!
//! A turn reads the TUN, sends by sendmmsg with UDP_SEGMENT, receives by recvmmsg with UDP_GRO, and writes merged packets one
//! write each (a TUN has no call for many).
//!
//! Functions stand in the order in which a packet meets them.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::budget::Budget;
use super::link::{Link, Replies};
use super::tx_batch::TxBatch;
use super::{Account, Op, QueueIo, Rules, SlowPathQueue, WorkerError, scheduler};
use crate::forward::{Arrival, DropReason, Frame, IngressState, Table, ToTun, VerifySource, egress, ingress};
use crate::packet::coalesce::{Coalescer, Full, RUNS};
use crate::packet::{IpPacket, VnetHeader};
use crate::sys::{now, udp};
use crate::time::Nanos;

/// Reads of the TUN in a turn at most.
const MAX_READS: usize = 64;
/// One read takes a super packet of any length and its header.
pub(super) const READ_BUFFER: usize = (VnetHeader::LEN + 40 + 65_535).next_multiple_of(64);

/// What the batch engine's threads serve.
pub(super) struct Worker {
    link: Link,
    receive: UdpSocket,
    /// For frames and for messages.
    budgets: [Budget; 2],
    fib: Cache<Arc<ArcSwap<Table>>, Arc<Table>>,
    verify: VerifySource,
    slow_path: Arc<SlowPathQueue>,
}

/// What a thread has for all its workers.
pub(super) struct Tools {
    outbox: TxBatch,
    coalescer: Coalescer,
    receiver: udp::Receiver,
    gate: IngressState,
    buffer: Box<[u8]>,
}

impl Worker {
    pub(super) fn new(
        number: usize,
        io: QueueIo,
        rules: Rules,
        fib: Arc<ArcSwap<Table>>,
        account: Arc<Account>,
        slow_path: Arc<SlowPathQueue>,
    ) -> Self {
        Self {
            link: Link::new(io.tun, io.send, account, rules.offload, number),
            receive: io.receive,
            budgets: [Budget::new(MAX_READS), Budget::new(udp::RECEIVE_BATCH)],
            fib: Cache::new(fib),
            verify: rules.verify,
            slow_path,
        }
    }
}

impl scheduler::Worker for Worker {
    type Tools = Tools;

    fn tools() -> Tools {
        Tools {
            outbox: TxBatch::new(udp::max_segments()),
            coalescer: Coalescer::new(RUNS).with_udp_segments(udp::max_segments()),
            receiver: udp::Receiver::new(udp::RECEIVE_BATCH),
            gate: IngressState::default(),
            buffer: vec![0; READ_BUFFER].into(),
        }
    }

    fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.link.tun.as_fd(), self.receive.as_fd()]
    }

    fn budgets(&self) -> &[Budget; 2] {
        &self.budgets
    }

    fn budgets_mut(&mut self) -> &mut [Budget; 2] {
        &mut self.budgets
    }

    fn account(&self) -> &Account {
        &self.link.account
    }

    fn turn(&mut self, tools: &mut Tools) -> Result<usize, WorkerError> {
        let (now, mut bytes) = (now(), 0);
        self.link.account.counters.turns.add(1);
        let [frames, messages] = self.budgets.each_ref().map(Budget::next);
        if frames > 0 {
            bytes += self.outbound(tools, frames, now)?;
        }
        if messages > 0 {
            bytes += self.inbound(tools, now);
        }
        Ok(bytes)
    }
}

impl Worker {
    /// From the TUN to the network, so many reads at most. Returns how many bytes they brought.
    fn outbound(&mut self, tools: &mut Tools, most: usize, now: Nanos) -> Result<usize, WorkerError> {
        let Self { link, budgets: [budget, _], fib, slow_path, .. } = self;
        let Tools { outbox, buffer, .. } = tools;
        let (fib, mut count, mut bytes) = (fib.load(), 0, 0);
        let send = |link: &mut Link, outbox: &mut TxBatch| {
            outbox.seal(link.worker, fib, now, &link.account.counters);
            link.send(outbox.block(), fib, now);
            outbox.clear(&mut link.narrow, now);
        };
        link.forwarder.warn(budget.warns());
        while count < most {
            link.account.counters.system_calls.add(1);
            let length = match link.tun.read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(WorkerError::of_read(error)),
            };
            (count, bytes) = (count + 1, bytes + length);
            if outbox.is_tight() {
                send(link, outbox);
            }
            let Link { tun, account, forwarder, .. } = &mut *link;
            account.counters.tun_reads.add(1);
            let (frame, mut replies) = (Frame::Virtio(&buffer[..length]), Replies { tun, account });
            egress(fib, frame, now, forwarder, &account.counters, outbox, &mut replies);
        }
        send(link, outbox);
        outbox.hand_over(slow_path, &link.account);
        budget.brought(count, bytes, now);
        Ok(bytes)
    }

    /// From the network to the TUN, as much as there is: what comes together is merged. Likewise.
    fn inbound(&mut self, tools: &mut Tools, now: Nanos) -> usize {
        let Self { link, receive, budgets: [_, budget], fib, verify, .. } = self;
        let Tools { coalescer, receiver, gate, .. } = tools;
        let (fib, account) = (fib.load(), link.account.clone());
        let counters = &account.counters;
        counters.system_calls.add(1);
        let count = receiver.receive(receive, budget.ask_for_all()).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::WouldBlock {
                account.error(Op::UdpReceive, &error);
            }
            0
        });
        gate.at(now);
        gate.warn(budget.warns());
        let (mut inbox, mut bytes) = (Inbox { coalescer, link, now }, 0);
        for index in 0..count {
            let received = receiver.get(index);
            bytes += received.train.bytes.len();
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
        budget.brought(count, bytes, now);
        bytes
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
