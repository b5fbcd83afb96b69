//! [`Worker`]: one queue of the overlay device with its sockets, as the batch and the ring engine
//! serve it.
//!
//! How the worker reads, receives, sends and writes is its [`PacketIo`]; all else is the same in
//! both engines. It has no thread: the scheduler gives it turns. Functions are in the order in
//! which a packet passes through them.
//!
//! Invariant: when a turn ends, no packet is held: each was sent, written or counted as dropped.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::account::{Account, Op};
use super::budget::Budget;
use super::control_inbox::{ControlArrival, ControlInbox};
use super::endpoints::Endpoints;
use super::error::WorkerError;
use super::io::QueueIo;
use super::options::WorkerOptions;
use super::scheduler::ScheduledWorker;
use super::slow_path::SlowPathQueue;
use super::tun_writer::Replies;
use super::tx_batch::TxBatch;
use crate::forward::{Arrival, DropReason, Frame, IngressState, Table, ToTun, VerifySource, egress, ingress};
use crate::packet::coalesce::{Coalescer, Full, RUNS};
use crate::packet::control::Control;
use crate::packet::{IpPacket, VnetHeader};
use crate::sys::now;
use crate::sys::udp::{self, Received};
use crate::time::Nanos;

/// Bytes that one read needs: a super packet of any length and its header.
pub(super) const READ_BUFFER: usize = (VnetHeader::LEN + 40 + 65_535).next_multiple_of(64);

/// How a worker does its I/O.
pub(super) trait PacketIo: Send + 'static {
    /// Whether the packets of a turn's reads are sent before the turn receives. Otherwise they are
    /// sent at the end of the turn.
    const SENDS_BEFORE_RECEIVING: bool;
    /// Memory to read and receive into. All workers of a thread share it.
    type Buffers: Send;

    /// Makes such memory.
    fn buffers() -> Self::Buffers;
    /// Makes the budgets for frames and for messages.
    fn budgets() -> [Budget; 2];
    /// Begins a turn that may read and receive as much as `requested`.
    fn begin(&mut self, buffers: &mut Self::Buffers, requested: [usize; 2]) -> Result<(), WorkerError>;
    /// Returns the next frame of the turn; `None` if there are no more.
    fn next_frame<'b>(
        &mut self,
        buffers: &'b mut Self::Buffers,
        endpoints: &Endpoints,
    ) -> Option<io::Result<&'b [u8]>>;
    /// Receives the messages of a turn that asks for some, unless [`PacketIo::begin`] has.
    fn receive(
        &mut self,
        buffers: &mut Self::Buffers,
        socket: &UdpSocket,
        budget: &mut Budget,
        account: &Account,
    );
    /// The messages of the turn.
    fn messages(buffers: &Self::Buffers) -> impl Iterator<Item = io::Result<Received<'_>>>;
    /// Sends and writes all that is pending, and counts the results. Often nothing is pending for
    /// one of both, and that one must then cost nothing.
    fn flush(
        &mut self,
        endpoints: &mut Endpoints,
        pending: &mut Pending,
        table: &Table,
        now: Nanos,
    ) -> Result<(), WorkerError>;
}

/// Packets that a turn has not yet handed to the kernel.
pub(super) struct Pending {
    /// Packets for peers.
    pub(super) tx_batch: TxBatch,
    /// Packets for the TUN.
    pub(super) coalescer: Coalescer,
}

/// The memory that all workers of a thread share, so that it stays in the cache from one worker to
/// the next.
pub(super) struct Scratch<I: PacketIo> {
    buffers: I::Buffers,
    pending: Pending,
    ingress_state: IngressState,
}

/// A worker of the batch engine or the ring engine.
pub(super) struct Worker<I> {
    table: Cache<Arc<ArcSwap<Table>>, Arc<Table>>,
    parts: Parts<I>,
}

/// All of a worker except for the route table, which is loaded once for each turn.
struct Parts<I> {
    io: I,
    endpoints: Endpoints,
    /// The account of `endpoints`, to count while they are borrowed.
    account: Arc<Account>,
    receive: UdpSocket,
    /// The budgets for frames and for messages.
    budgets: [Budget; 2],
    verify: VerifySource,
    slow_path: Arc<SlowPathQueue>,
    control_inbox: Arc<ControlInbox>,
}

/// What a worker shares with other threads: its account, the route table, the queue to the slow
/// path, and the inbox for control messages.
pub(super) type Shared = (Arc<Account>, Arc<ArcSwap<Table>>, Arc<SlowPathQueue>, Arc<ControlInbox>);

impl<I: PacketIo> Worker<I> {
    pub(super) fn new(
        number: usize,
        queue: QueueIo,
        io: I,
        options: WorkerOptions,
        (account, table, slow_path, control_inbox): Shared,
    ) -> Self {
        let mut endpoints = Endpoints::new(queue.tun, queue.send, account.clone(), options.offload, number);
        endpoints.egress_state.verify(options.verify);
        let parts = Parts {
            io,
            endpoints,
            account,
            receive: queue.receive,
            budgets: I::budgets(),
            verify: options.verify,
            slow_path,
            control_inbox,
        };
        Self { table: Cache::new(table), parts }
    }
}

impl<I: PacketIo> Parts<I> {
    /// Forwards the frames of the turn to the network. Returns how many there were and their bytes.
    fn egress(
        &mut self,
        scratch: &mut Scratch<I>,
        table: &Table,
        now: Nanos,
    ) -> Result<(usize, usize), WorkerError> {
        let Self { io, endpoints, budgets, slow_path, .. } = self;
        let Scratch { buffers, pending, .. } = scratch;
        let (worker, mut count, mut bytes) = (endpoints.worker, 0, 0);
        endpoints.egress_state.mark_next_bulk(budgets[0].warns());
        while let Some(frame) = io.next_frame(buffers, endpoints) {
            let frame = frame.map_err(WorkerError::of_read)?;
            (count, bytes) = (count + 1, bytes + frame.len());
            endpoints.account.counters.tun_reads.add(1);
            if pending.tx_batch.is_tight() {
                pending.tx_batch.seal(worker, table, now, &endpoints.account.counters);
                io.flush(endpoints, pending, table, now)?;
            }
            let Endpoints { writer, account, egress_state, .. } = &mut *endpoints;
            let (frame, mut replies) = (Frame::Virtio(frame), Replies { tun: &writer.tun, account });
            let tx_batch = &mut pending.tx_batch;
            egress(table, frame, now, egress_state, &account.counters, tx_batch, &mut replies);
        }
        // Sealing uses the route table that has routed the packets: the next turn may have another
        // one.
        pending.tx_batch.seal(worker, table, now, &endpoints.account.counters);
        if I::SENDS_BEFORE_RECEIVING {
            io.flush(endpoints, pending, table, now)?;
        }
        pending.tx_batch.divert(slow_path, &endpoints.account);
        Ok((count, bytes))
    }

    /// Forwards the messages of the turn to the TUN. Returns how many there were and their bytes.
    fn ingress(
        &mut self,
        scratch: &mut Scratch<I>,
        table: &Table,
        now: Nanos,
    ) -> Result<(usize, usize), WorkerError> {
        let Self { io, endpoints, account, receive, budgets, verify, control_inbox, .. } = self;
        let Scratch { buffers, pending, ingress_state } = scratch;
        let counters = &account.counters;
        io.receive(buffers, receive, &mut budgets[1], account);
        ingress_state.set_time(now);
        ingress_state.mark_next_bulk(budgets[1].warns());
        let (mut count, mut bytes) = (0, 0);
        let mut to_tun =
            MergeForTun { io, endpoints, pending, control_inbox, table, now, from_port: 0, failed: None };
        for message in I::messages(buffers) {
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
            to_tun.from_port = from.port();
            let arrival = Arrival { from: from.ip(), ecn, train };
            ingress(table, arrival, *verify, ingress_state, counters, &mut to_tun);
        }
        to_tun.failed.map_or(Ok((count, bytes)), Err)
    }
}

impl<I: PacketIo> ScheduledWorker for Worker<I> {
    type Scratch = Scratch<I>;

    fn scratch() -> Scratch<I> {
        let segments = udp::max_segments();
        let pending = Pending {
            tx_batch: TxBatch::new(segments),
            coalescer: Coalescer::new(RUNS).with_udp_segments(segments),
        };
        Scratch { buffers: I::buffers(), pending, ingress_state: IngressState::default() }
    }

    fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.parts.endpoints.writer.tun.as_fd(), self.parts.receive.as_fd()]
    }

    fn budgets(&self) -> &[Budget; 2] {
        &self.parts.budgets
    }

    fn budgets_mut(&mut self) -> &mut [Budget; 2] {
        &mut self.parts.budgets
    }

    fn account(&self) -> &Account {
        &self.parts.account
    }

    fn turn(&mut self, scratch: &mut Scratch<I>) -> Result<usize, WorkerError> {
        let Self { table, parts } = self;
        let requested = parts.budgets.each_ref().map(Budget::next);
        parts.io.begin(&mut scratch.buffers, requested)?;
        parts.account.counters.turns.add(1);
        let (table, now): (&Table, _) = (table.load(), now());
        let mut moved = [(0, 0); 2];
        if requested[0] > 0 {
            moved[0] = parts.egress(scratch, table, now)?;
        }
        if requested[1] > 0 {
            moved[1] = parts.ingress(scratch, table, now)?;
        }
        parts.io.flush(&mut parts.endpoints, &mut scratch.pending, table, now)?;
        // A direction that was not asked brought nothing: the last turn found its queue empty.
        for (budget, (count, bytes)) in parts.budgets.iter_mut().zip(moved) {
            budget.brought(count, bytes, now);
        }
        Ok(moved.iter().map(|(_, bytes)| bytes).sum())
    }
}

/// Merges packets for the TUN, and flushes when there is no room for more.
struct MergeForTun<'a, I> {
    io: &'a mut I,
    endpoints: &'a mut Endpoints,
    pending: &'a mut Pending,
    control_inbox: &'a ControlInbox,
    table: &'a Table,
    now: Nanos,
    /// The source port of the datagrams that are being taken.
    from_port: u16,
    /// The error of a flush. The worker ends with it.
    failed: Option<WorkerError>,
}

impl<I: PacketIo> ToTun for MergeForTun<'_, I> {
    #[inline]
    fn push(&mut self, packet: IpPacket<'_>) {
        let Self { io, endpoints, pending, table, now, failed, .. } = self;
        if endpoints.writer.merge(&mut pending.coalescer, packet, *now) == Err(Full) {
            if let Err(error) = io.flush(endpoints, pending, table, *now) {
                *failed = Some(error);
                return;
            }
            // An empty coalescer takes any packet.
            let _ = endpoints.writer.merge(&mut pending.coalescer, packet, *now);
        }
    }

    /// Ingress makes no ICMP errors.
    fn reply(&mut self, _error: &[u8]) {}

    fn control(&mut self, from: IpAddr, message: Control) {
        self.control_inbox.put(ControlArrival { from, port: self.from_port, message, at: self.now });
    }
}
