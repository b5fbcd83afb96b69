//! The ring engine: offloads and batches through one io_uring a worker.
//!
//! A turn is two calls of io_uring_enter(2): one for all reads of the TUN and receives, one for all sends and TUN writes that
//! come of them; while turns bring as much as they ask for, there is no other system call. One or two requests are plain
//! system calls instead. Where the kernel refuses something, [`Link`] mends it by such calls, as in the batch engine.
//!
//! A part that is mended goes after those that followed it in the same system call. Trains that a device refuses are the
//! first ones, and for a minute there are no others; where a path became narrow, what is too long is not sent again; and
//! a send queue of megabytes that is full is so for all parts behind. So a flow is out of order at such a moment at most,
//! where it would have lost the packets otherwise.
//!
//! Functions stand in the order in which a packet meets them.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::batch::READ_BUFFER;
use super::budget::Budget;
use super::link::{Link, Replies};
use super::tx_batch::TxBatch;
use super::{Account, Op, QueueIo, Rules, SlowPathQueue, WorkerError, scheduler};
use crate::forward::{Arrival, DropReason, Frame, IngressState, Table, ToTun, VerifySource, egress, ingress};
use crate::packet::IpPacket;
use crate::packet::coalesce::{Coalescer, Full, RUNS};
use crate::sys::block::{Lot, MAX_PARTS, Part};
use crate::sys::now;
use crate::sys::ring::{Buffers, MAX_FRAMES, MAX_MESSAGES, Ring};
use crate::sys::udp::{self, Received};
use crate::time::Nanos;

const _: () = assert!(RUNS <= MAX_PARTS);

/// What the ring engine's threads serve.
pub(super) struct Worker {
    ring: Ring,
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
    buffers: Buffers,
    held: Held,
    gate: IngressState,
}

/// What a turn has to hand to the kernel. Nothing is held between turns.
struct Held {
    outbox: TxBatch,
    coalescer: Coalescer,
    /// The coalescer's packets, as parts of its memory.
    writes: Vec<Part>,
}

impl Worker {
    pub(super) fn new(
        number: usize,
        (QueueIo { tun, receive, send }, ring): (QueueIo, Ring),
        rules: Rules,
        fib: Arc<ArcSwap<Table>>,
        account: Arc<Account>,
        slow_path: Arc<SlowPathQueue>,
    ) -> Self {
        Self {
            ring,
            link: Link::new(tun, send, account, rules.offload, number),
            receive,
            budgets: [Budget::new(MAX_FRAMES), Budget::new(MAX_MESSAGES)],
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
            buffers: Buffers::new(READ_BUFFER),
            held: Held {
                outbox: TxBatch::new(udp::max_segments()),
                coalescer: Coalescer::new(RUNS).with_udp_segments(udp::max_segments()),
                writes: Vec::with_capacity(RUNS),
            },
            gate: IngressState::default(),
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
        let asked = self.budgets.each_ref().map(Budget::next);
        self.ring.receive(&mut tools.buffers, asked).map_err(enter_failed)?;
        self.link.account.counters.turns.add(1);
        let now = now();
        let moved = [self.outbound(tools, now)?, self.inbound(tools, now)?];
        let Self { ring, link, fib, .. } = self;
        Ways { ring, link, held: &mut tools.held }.flush(fib.load(), now).map_err(enter_failed)?;
        for (budget, (count, bytes)) in self.budgets.iter_mut().zip(moved) {
            budget.brought(count, bytes, now);
        }
        Ok(moved.iter().map(|(_, bytes)| bytes).sum())
    }
}

impl Worker {
    /// Deals with the frames that the turn brought. Says how many, and how many bytes.
    fn outbound(&mut self, tools: &mut Tools, now: Nanos) -> Result<(usize, usize), WorkerError> {
        let (Self { ring, link, budgets, fib, slow_path, .. }, Tools { buffers, held, .. }) = (self, tools);
        let (fib, worker): (&Table, usize) = (fib.load(), link.worker);
        link.forwarder.warn(budgets[0].warns());
        let (mut count, mut bytes) = (0, 0);
        for frame in buffers.read() {
            let frame = frame.map_err(WorkerError::of_read)?;
            (count, bytes) = (count + 1, bytes + frame.len());
            link.account.counters.tun_reads.add(1);
            if held.outbox.is_tight() {
                held.outbox.seal(worker, fib, now, &link.account.counters);
                Ways { ring, link, held }.flush(fib, now).map_err(enter_failed)?;
            }
            let Link { tun, account, forwarder, .. } = &mut *link;
            let mut replies = Replies { tun, account };
            let frame = Frame::Virtio(frame);
            egress(fib, frame, now, forwarder, &account.counters, &mut held.outbox, &mut replies);
        }
        // By the table that has sent them this way: the next turn may have another.
        held.outbox.seal(worker, fib, now, &link.account.counters);
        held.outbox.hand_over(slow_path, &link.account);
        Ok((count, bytes))
    }

    /// Deals with the messages, likewise.
    fn inbound(&mut self, tools: &mut Tools, now: Nanos) -> Result<(usize, usize), WorkerError> {
        let (Self { ring, link, budgets, fib, verify, .. }, Tools { buffers, held, gate }) = (self, tools);
        let fib: &Table = fib.load();
        gate.at(now);
        gate.warn(budgets[1].warns());
        let account = link.account.clone();
        let counters = &account.counters;
        let (mut count, mut bytes) = (0, 0);
        let mut inbox = Inbox { ways: Ways { ring, link, held }, fib, now, failed: None };
        for message in buffers.received() {
            let Received { from, ecn, train } = match message {
                Ok(message) => message,
                Err(error) => {
                    account.error(Op::UdpReceive, &error);
                    continue;
                }
            };
            (count, bytes) = (count + 1, bytes + train.bytes.len());
            counters.udp_receives.add(1);
            counters.udp_datagrams.add(train.count());
            let Some(from) = from else {
                counters.ingress.drop_many(DropReason::UnknownPeer, train.count());
                continue;
            };
            let arrival = Arrival { from: from.ip(), ecn, train };
            ingress(fib, arrival, *verify, gate, counters, &mut inbox);
        }
        inbox.failed.map_or(Ok((count, bytes)), |error| Err(enter_failed(error)))
    }
}

fn enter_failed(error: io::Error) -> WorkerError {
    WorkerError::System { call: "io_uring_enter", error }
}

/// The ways out of a worker, and what is to take them.
struct Ways<'a> {
    ring: &'a mut Ring,
    link: &'a mut Link,
    held: &'a mut Held,
}

impl Ways<'_> {
    /// Hands the kernel what is held.
    fn flush(&mut self, fib: &Table, now: Nanos) -> io::Result<()> {
        self.prepare(fib, now);
        let Held { outbox, coalescer, writes } = &mut *self.held;
        let writes = Lot { memory: coalescer.memory(), parts: writes };
        self.ring.submit(outbox.lot(), writes)?;
        self.settle(fib, now);
        Ok(())
    }

    fn prepare(&mut self, fib: &Table, now: Nanos) {
        let Held { outbox, coalescer, writes } = &mut *self.held;
        for run in coalescer.finish() {
            writes.push(Part::frame(run.at, run.bytes.len(), run.packets, run.packet_bytes));
        }
        if !outbox.is_empty() && !self.link.may_segment(now) {
            self.link.send(outbox.block(), fib, now);
            outbox.clear(&mut self.link.narrow, now);
        }
    }

    /// Counts what the kernel took, and mends what it refused.
    fn settle(&mut self, fib: &Table, now: Nanos) {
        let Self { ring, link, held: Held { outbox, coalescer, writes } } = self;
        link.account.counters.system_calls.add(ring.take_calls());
        let error = |part: &Part| io::Error::from_raw_os_error(part.errno);
        let block = outbox.block();
        for part in block.parts() {
            match part.errno {
                0 => link.sent(part),
                _ => {
                    let (bytes, plain) = block.plain(part);
                    link.mend_send(bytes, &plain, &error(part), fib, now);
                }
            }
        }
        outbox.clear(&mut link.narrow, now);
        for part in writes.drain(..) {
            match part.errno {
                0 => link.written(part.packets, part.packet_bytes),
                _ => {
                    let frame = &coalescer.memory()[part.at..part.at + part.len];
                    link.mend_write(frame, part.packets, &error(&part), now);
                }
            }
        }
        coalescer.clear();
    }
}

/// The way to the TUN: merges; what is full goes to the ring.
struct Inbox<'a> {
    ways: Ways<'a>,
    fib: &'a Table,
    now: Nanos,
    failed: Option<io::Error>,
}

impl Inbox<'_> {
    fn try_push(&mut self, packet: IpPacket<'_>) -> Result<(), Full> {
        match self.ways.link.may_merge(&packet, self.now) {
            true => self.ways.held.coalescer.push(packet),
            false => self.ways.held.coalescer.push_alone(packet),
        }
    }
}

impl ToTun for Inbox<'_> {
    #[inline]
    fn push(&mut self, packet: IpPacket<'_>) {
        if self.try_push(packet) == Err(Full) {
            if let Err(error) = self.ways.flush(self.fib, self.now) {
                // The worker ends by this.
                self.failed = Some(error);
                return;
            }
            // An empty coalescer takes any packet.
            let _ = self.try_push(packet);
        }
    }

    /// Ingress answers nothing.
    fn reply(&mut self, _error: &[u8]) {}
}
