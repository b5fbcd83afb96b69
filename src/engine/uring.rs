//! The ring engine: offloads and batches through one io_uring a worker.
//!
//! A turn is one io_uring_enter(2): it submits the sends and TUN writes of the turn before, which the kernel does there
//! and then, and brings what was read and received meanwhile. Where the kernel refuses something, [`Link`] mends it by
//! plain system calls, as in the batch engine.
//!
//! Functions stand in the order in which a packet meets them.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::batch::READ_BUFFER;
use super::link::{Link, Replies};
use super::outbox::{BLOCK, Outbox};
use super::{Account, Op, QueueIo, Rules, Side, WorkerError};
use crate::forward::{Arrival, DropReason, Frame, ToTun, VerifySource, egress, ingress};
use crate::packet::IpPacket;
use crate::packet::coalesce::{Coalescer, Full, RUNS};
use crate::packet::ecn::Marker;
use crate::packet::icmp::Nanos;
use crate::route::Fib;
use crate::sys::block::{Block, Part};
use crate::sys::ring::{Buffers, Completion, Returned, Ring, SLOTS};
use crate::sys::{Event, now, udp};

/// Blocks of each direction: one that is filled, one with the kernel, and two for a turn that brings more than one holds.
const BLOCKS: usize = 4;
const _: () = assert!(2 * BLOCKS <= SLOTS);

/// A worker before it has a thread: a ring belongs to the thread that makes it.
pub(super) struct Worker {
    io: QueueIo,
    rules: Rules,
    fib: Arc<ArcSwap<Fib>>,
    account: Arc<Account>,
    stop: Arc<Event>,
    side: Arc<Side>,
}

impl Worker {
    pub(super) fn new(
        io: QueueIo,
        rules: Rules,
        fib: Arc<ArcSwap<Fib>>,
        account: Arc<Account>,
        (stop, side): (Arc<Event>, Arc<Side>),
    ) -> Self {
        Self { io, rules, fib, account, stop, side }
    }

    /// Turns until told to stop.
    pub(super) fn run(self) -> Result<(), WorkerError> {
        let Self { io: QueueIo { tun, receive, send }, rules, fib, account, stop, side } = self;
        let failed = |error| WorkerError::System { call: "io_uring_setup", error };
        let fds = [tun.as_fd(), receive.as_fd(), send.as_fd(), stop.as_fd()];
        let (ring, frames, messages) = Ring::new(fds, READ_BUFFER).map_err(failed)?;
        let outgoing = (1..BLOCKS).map(|_| Block::new(vec![0; BLOCK].into())).collect();
        let incoming = (1..BLOCKS).map(|_| Block::new(vec![0; Coalescer::memory_len(RUNS)].into())).collect();
        let turning = Turning {
            frames,
            messages,
            fib: Cache::new(fib),
            verify: rules.verify,
            side,
            outbox: Outbox::new(udp::max_segments()),
            coalescer: Coalescer::new(RUNS).with_udp_segments(udp::max_segments()),
            marker: Marker::default(),
            lender: Lender { ring, link: Link::new(tun, send, account, rules.offload), outgoing, incoming },
            _receive: receive,
        };
        turning.run()
    }
}

/// A worker at work.
struct Turning {
    frames: Buffers,
    messages: Buffers,
    fib: Cache<Arc<ArcSwap<Fib>>, Arc<Fib>>,
    verify: VerifySource,
    side: Arc<Side>,
    outbox: Outbox,
    coalescer: Coalescer,
    marker: Marker,
    lender: Lender,
    /// The ring reads it.
    _receive: UdpSocket,
}

impl Turning {
    fn run(mut self) -> Result<(), WorkerError> {
        loop {
            self.lender.ring.turn().map_err(enter_failed)?;
            self.lender.link.account.counters.turns.add(1);
            if self.turn(now())? {
                return Ok(());
            }
            self.lender.link.account.counters.system_calls.add(self.lender.ring.take_calls());
        }
    }

    /// Deals with all that has happened. Says whether somebody asked us to stop.
    fn turn(&mut self, now: Nanos) -> Result<bool, WorkerError> {
        let Self { frames, messages, fib, verify, side, outbox, coalescer, marker, lender, .. } = self;
        let fib: &Fib = fib.load();
        lender.settle(fib, now);
        let account = lender.link.account.clone();
        let counters = &account.counters;
        while let Some(completion) = lender.ring.completion() {
            match completion {
                Completion::TunRead(filled) => {
                    counters.tun_reads.add(1);
                    if outbox.is_tight() {
                        lender.send(outbox, fib, now).map_err(enter_failed)?;
                    }
                    let Link { tun, account, forwarder, .. } = &mut lender.link;
                    let (frame, mut replies) =
                        (Frame::Virtio(frames.bytes(&filled)), Replies { tun, account });
                    egress(fib, frame, now, forwarder, counters, outbox, &mut replies);
                    frames.recycle(filled);
                }
                Completion::UdpReceived(filled) => {
                    counters.udp_receives.add(1);
                    if let Some((from, ecn, train)) = lender.ring.message(messages, &filled) {
                        counters.udp_datagrams.add(train.count());
                        let mut inbox = Inbox { coalescer, lender, fib, now, failed: None };
                        let arrival = Arrival { from: from.ip(), ecn, train };
                        ingress(fib, arrival, *verify, marker, counters, &mut inbox);
                        inbox.failed.map_or(Ok(()), Err).map_err(enter_failed)?;
                    } else {
                        // Without a sender it cannot even be told how many there were.
                        counters.udp_datagrams.add(1);
                        counters.ingress.drop(DropReason::UnknownPeer);
                    }
                    messages.recycle(filled);
                }
                Completion::Exhausted => counters.buffers_exhausted.add(1),
                Completion::ReceiveFailed(error) => account.error(Op::UdpReceive, &error),
                Completion::TunFailed(error) => return Err(WorkerError::of_read(error)),
                Completion::Stop => return Ok(true),
            }
        }
        lender.send(outbox, fib, now).map_err(enter_failed)?;
        outbox.hand_over(side, &account);
        lender.write(coalescer, fib, now).map_err(enter_failed)?;
        Ok(false)
    }
}

fn enter_failed(error: std::io::Error) -> WorkerError {
    WorkerError::System { call: "io_uring_enter", error }
}

/// Lends blocks to the ring, and sees to it that what comes back refused is mended.
struct Lender {
    ring: Ring,
    link: Link,
    /// Empty blocks for the outbox.
    outgoing: Vec<Block>,
    /// Empty blocks for the coalescer.
    incoming: Vec<Block>,
}

impl Lender {
    /// Hands the outbox's packets to the ring.
    fn send(&mut self, outbox: &mut Outbox, fib: &Fib, now: Nanos) -> std::io::Result<()> {
        if outbox.is_empty() {
            return Ok(());
        }
        if !self.link.may_segment(now) {
            // What the ring holds already goes first.
            self.ring.submit()?;
            self.link.send(outbox.block(), fib, now);
            outbox.clear();
            return Ok(());
        }
        while self.outgoing.is_empty() {
            self.reclaim(fib, now)?;
        }
        match self.outgoing.pop() {
            Some(fresh) => self.ring.send(outbox.exchange(fresh)),
            None => Ok(()),
        }
    }

    /// Hands the coalescer's packets to the ring.
    fn write(&mut self, coalescer: &mut Coalescer, fib: &Fib, now: Nanos) -> std::io::Result<()> {
        if coalescer.is_empty() {
            return Ok(());
        }
        while self.incoming.is_empty() {
            self.reclaim(fib, now)?;
        }
        let Some(mut block) = self.incoming.pop() else { return Ok(()) };
        block.clear();
        for run in coalescer.finish() {
            block.push(Part::frame(run.at, run.bytes.len(), run.packets, run.packet_bytes));
        }
        let fresh = block.exchange(Box::default());
        let filled = coalescer.exchange(fresh);
        let _ = block.exchange(filled);
        self.ring.write(block)
    }

    fn reclaim(&mut self, fib: &Fib, now: Nanos) -> std::io::Result<()> {
        self.ring.reclaim()?;
        self.settle(fib, now);
        Ok(())
    }

    /// Counts and mends what came back.
    fn settle(&mut self, fib: &Fib, now: Nanos) {
        let error = |part: &Part| std::io::Error::from_raw_os_error(part.errno);
        while let Some(returned) = self.ring.returned() {
            match returned {
                Returned::Sent(block) => {
                    for part in block.parts() {
                        match part.errno {
                            0 => self.link.sent(part),
                            _ => self.link.mend_send(block.bytes(part), part, &error(part), fib, now),
                        }
                    }
                    self.outgoing.push(block);
                }
                Returned::Written(block) => {
                    for part in block.parts() {
                        match part.errno {
                            0 => self.link.written(part.packets, part.packet_bytes),
                            _ => self.link.mend_write(block.bytes(part), part.packets, &error(part), now),
                        }
                    }
                    self.incoming.push(block);
                }
            }
        }
    }
}

/// The way to the TUN: merges; what is full goes to the ring.
struct Inbox<'a> {
    coalescer: &'a mut Coalescer,
    lender: &'a mut Lender,
    fib: &'a Fib,
    now: Nanos,
    failed: Option<std::io::Error>,
}

impl Inbox<'_> {
    fn try_push(&mut self, packet: IpPacket<'_>) -> Result<(), Full> {
        match self.lender.link.may_merge(&packet, self.now) {
            true => self.coalescer.push(packet),
            false => self.coalescer.push_alone(packet),
        }
    }
}

impl ToTun for Inbox<'_> {
    #[inline]
    fn push(&mut self, packet: IpPacket<'_>) {
        if self.try_push(packet) == Err(Full) {
            if let Err(error) = self.lender.write(self.coalescer, self.fib, self.now) {
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
