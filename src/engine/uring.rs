//! The ring engine: offloads and batches through one io_uring a worker.
//!
//! A turn is one io_uring_enter(2): the sends and TUN writes of the turn before, reads of the TUN, receives. While turns
//! bring as much as they ask for there is no other system call; who has emptied its queues sleeps in poll(2). Where the
//! kernel refuses something, [`Link`] mends it by plain system calls, as in the batch engine.
//!
//! A part that is mended goes after those that followed it in the same system call. Trains that a device refuses are the
//! first ones, and for a minute there are no others; where a path became narrow, what is too long is not sent again; and
//! a send queue of megabytes that is full is so for all parts behind. So a flow is out of order at such a moment at most,
//! where it would have lost the packets otherwise.
//!
//! Functions stand in the order in which a packet meets them.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::batch::READ_BUFFER;
use super::budget::Budget;
use super::link::{Link, Replies};
use super::outbox::Outbox;
use super::wait::Spin;
use super::{Account, Op, QueueIo, Rules, Side, WorkerError};
use crate::forward::{Arrival, DropReason, Frame, Gate, ToTun, VerifySource, egress, ingress};
use crate::packet::IpPacket;
use crate::packet::coalesce::{Coalescer, Full, RUNS};
use crate::packet::icmp::Nanos;
use crate::route::Fib;
use crate::sys::block::{Lot, MAX_PARTS, Part};
use crate::sys::ring::{Buffers, MAX_FRAMES, MAX_MESSAGES, Ring};
use crate::sys::udp::{self, Received};
use crate::sys::{Event, now};

const _: () = assert!(RUNS <= MAX_PARTS);

/// A worker before it has a thread.
pub(super) struct Worker {
    number: usize,
    io: QueueIo,
    ring: Ring,
    rules: Rules,
    fib: Arc<ArcSwap<Fib>>,
    account: Arc<Account>,
    spin: Spin,
    stop: Arc<Event>,
    side: Arc<Side>,
}

impl Worker {
    pub(super) fn new(
        number: usize,
        (io, ring): (QueueIo, Ring),
        rules: Rules,
        fib: Arc<ArcSwap<Fib>>,
        account: Arc<Account>,
        spin: Spin,
        (stop, side): (Arc<Event>, Arc<Side>),
    ) -> Self {
        Self { number, io, ring, rules, fib, account, spin, stop, side }
    }

    /// Turns until told to stop.
    pub(super) fn run(self) -> Result<(), WorkerError> {
        let Self { number, io: QueueIo { tun, receive, send }, ring, rules, fib, account, spin, stop, side } =
            self;
        let turning = Turning {
            buffers: Buffers::new(READ_BUFFER),
            budgets: [Budget::new(MAX_FRAMES), Budget::new(MAX_MESSAGES)],
            fib: Cache::new(fib),
            verify: rules.verify,
            side,
            ways: Ways {
                ring,
                link: Link::new(tun, send, account, rules.offload, number),
                outbox: Outbox::new(number, udp::max_segments()),
                coalescer: Coalescer::new(RUNS).with_udp_segments(udp::max_segments()),
                writes: Vec::with_capacity(RUNS),
            },
            gate: Gate::default(),
            receive,
            stop,
            spin,
        };
        turning.run()
    }
}

/// A worker at work.
struct Turning {
    buffers: Buffers,
    /// For frames and for messages.
    budgets: [Budget; 2],
    fib: Cache<Arc<ArcSwap<Fib>>, Arc<Fib>>,
    verify: VerifySource,
    side: Arc<Side>,
    ways: Ways,
    gate: Gate,
    receive: UdpSocket,
    stop: Arc<Event>,
    spin: Spin,
}

impl Turning {
    fn run(mut self) -> Result<(), WorkerError> {
        while !self.stop.is_given() {
            let (asked, start) = (self.budgets.each_ref().map(Budget::next), now());
            self.ways.turn(&mut self.buffers, asked, self.fib.load(), start).map_err(enter_failed)?;
            if asked == [0, 0] {
                self.wait(start)?;
            } else {
                self.forward(now())?;
                self.plan();
            }
        }
        // Nothing is under way in the ring; what has been read is ours to forward.
        self.ways.flush(self.fib.load(), now()).map_err(enter_failed)
    }

    fn wait(&mut self, start: Nanos) -> Result<(), WorkerError> {
        let Self { budgets, ways: Ways { link, .. }, receive, stop, spin, .. } = self;
        let ends = [link.tun.as_fd(), receive.as_fd(), stop.as_fd()];
        let ready = spin.wait(ends, start, &link.account.counters);
        let ready = ready.map_err(|error| WorkerError::System { call: "poll", error })?;
        budgets.iter_mut().zip(ready).filter(|(_, ready)| *ready).for_each(|(budget, _)| budget.is_ready());
        Ok(())
    }

    /// Who goes on without a sleep must ask both ends, or one would starve the other.
    fn plan(&mut self) {
        if self.budgets.iter().any(|budget| budget.next() > 0) {
            self.budgets.iter_mut().for_each(Budget::may_be_ready);
        }
    }

    /// Deals with all that the turn brought.
    fn forward(&mut self, now: Nanos) -> Result<(), WorkerError> {
        let Self { buffers, budgets: [frames, messages], fib, verify, side, ways, gate, spin, .. } = self;
        let fib: &Fib = fib.load();
        gate.at(now);
        let account = ways.link.account.clone();
        let counters = &account.counters;
        counters.turns.add(1);
        let (mut count, mut bytes) = (0, 0);
        for frame in buffers.read() {
            let frame = frame.map_err(WorkerError::of_read)?;
            (count, bytes) = (count + 1, bytes + frame.len());
            counters.tun_reads.add(1);
            if ways.outbox.is_tight() {
                ways.outbox.seal(fib, now, counters);
                ways.flush(fib, now).map_err(enter_failed)?;
            }
            let Link { tun, account, forwarder, .. } = &mut ways.link;
            let mut replies = Replies { tun, account };
            egress(fib, Frame::Virtio(frame), now, forwarder, counters, &mut ways.outbox, &mut replies);
        }
        // By the table that has sent them this way: the next turn may have another.
        ways.outbox.seal(fib, now, counters);
        ways.outbox.hand_over(side, &account);
        frames.brought(count, bytes);
        let mut moved = bytes;
        (count, bytes) = (0, 0);
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
            let mut inbox = Inbox { ways, fib, now, failed: None };
            ingress(fib, arrival, *verify, gate, counters, &mut inbox);
            inbox.failed.map_or(Ok(()), Err).map_err(enter_failed)?;
        }
        messages.brought(count, bytes);
        moved += bytes;
        spin.moved(moved as u64, now);
        Ok(())
    }
}

fn enter_failed(error: io::Error) -> WorkerError {
    WorkerError::System { call: "io_uring_enter", error }
}

/// The ways out, and what waits for the next system call.
struct Ways {
    ring: Ring,
    link: Link,
    outbox: Outbox,
    coalescer: Coalescer,
    /// The coalescer's packets, as parts of its memory.
    writes: Vec<Part>,
}

impl Ways {
    /// Hands the kernel what waits, and takes what has come.
    fn turn(&mut self, buffers: &mut Buffers, asked: [usize; 2], fib: &Fib, now: Nanos) -> io::Result<()> {
        self.prepare(fib, now);
        let writes = Lot { memory: self.coalescer.memory(), parts: &mut self.writes };
        self.ring.turn(self.outbox.lot(), writes, buffers, asked)?;
        self.settle(fib, now);
        Ok(())
    }

    /// Hands the kernel what waits, and nothing else.
    fn flush(&mut self, fib: &Fib, now: Nanos) -> io::Result<()> {
        self.prepare(fib, now);
        let writes = Lot { memory: self.coalescer.memory(), parts: &mut self.writes };
        self.ring.submit(self.outbox.lot(), writes)?;
        self.settle(fib, now);
        Ok(())
    }

    fn prepare(&mut self, fib: &Fib, now: Nanos) {
        for run in self.coalescer.finish() {
            self.writes.push(Part::frame(run.at, run.bytes.len(), run.packets, run.packet_bytes));
        }
        if !self.outbox.is_empty() && !self.link.may_segment(now) {
            self.link.send(self.outbox.block(), fib, now);
            self.outbox.clear();
        }
    }

    /// Counts what the kernel took, and mends what it refused.
    fn settle(&mut self, fib: &Fib, now: Nanos) {
        let Self { ring, link, outbox, coalescer, writes } = self;
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
        outbox.clear();
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
    ways: &'a mut Ways,
    fib: &'a Fib,
    now: Nanos,
    failed: Option<io::Error>,
}

impl Inbox<'_> {
    fn try_push(&mut self, packet: IpPacket<'_>) -> Result<(), Full> {
        match self.ways.link.may_merge(&packet, self.now) {
            true => self.ways.coalescer.push(packet),
            false => self.ways.coalescer.push_alone(packet),
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
