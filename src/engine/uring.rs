//! [`RingIo`], the I/O of the ring engine: offloads and batches through one io_uring for each
//! worker.
//!
//! A turn is two calls of io_uring_enter(2): one for all reads of the TUN and all receives, and one
//! for all sends and TUN writes that follow from them. While turns bring as much as they ask for,
//! there is no other system call. One or two requests are plain system calls instead. If the kernel
//! refuses a request, [`Endpoints`] recovers it by plain calls, as in the batch engine.
//!
//! A recovered message is sent after the messages that followed it in the same system call. This
//! reorders a flow only when the flow would otherwise have lost packets:
//!
//! - A device refuses a train. This happens to the first trains only: none is sent for the next
//!   minute.
//! - The path has become narrower. A message that is too long is not sent again.
//! - A send queue of megabytes is full. It is full for all later messages as well.
//!
//! Invariant: no request is under way between two turns.

use std::io;
use std::net::UdpSocket;

use super::account::Account;
use super::budget::Budget;
use super::endpoints::Endpoints;
use super::error::WorkerError;
use super::worker::{PacketIo, Pending, READ_BUFFER};
use crate::forward::Table;
use crate::packet::coalesce::RUNS;
use crate::sys::batch::{Batch, MAX_BATCH, Message};
use crate::sys::ring::{Buffers, MAX_FRAMES, MAX_MESSAGES, Ring};
use crate::sys::udp::Received;
use crate::time::Nanos;

const _: () = assert!(RUNS <= MAX_BATCH);

/// One ring.
pub(super) struct RingIo {
    ring: Ring,
    /// The packets of the coalescer, as frames in its memory.
    writes: Vec<Message>,
    /// The inner packets of each frame, and their bytes.
    write_counts: Vec<(u64, u64)>,
}

/// The memory of a thread for rings.
pub(super) struct RingBuffers {
    buffers: Buffers,
    /// The number of the next read.
    next_read: usize,
}

impl RingIo {
    pub(super) fn new(ring: Ring) -> Self {
        Self { ring, writes: Vec::with_capacity(RUNS), write_counts: Vec::with_capacity(RUNS) }
    }

    /// Counts the messages that the kernel took, and recovers those that it refused.
    fn settle(&mut self, endpoints: &mut Endpoints, pending: &mut Pending, table: &Table, now: Nanos) {
        let (Self { ring, writes, write_counts }, Pending { tx_batch, coalescer }) = (self, pending);
        endpoints.account.counters.system_calls.add(ring.take_calls());
        let block = tx_batch.block();
        for sent in block.iter() {
            match sent.message.errno {
                0 => endpoints.sent(&sent),
                errno => {
                    let (bytes, plain) = block.plain(&sent);
                    let error = io::Error::from_raw_os_error(errno);
                    endpoints.recover_send(bytes, &plain, &error, table, now);
                }
            }
        }
        tx_batch.clear(&mut endpoints.narrow_paths, now);
        for (frame, (packets, bytes)) in writes.drain(..).zip(write_counts.drain(..)) {
            match frame.errno {
                0 => endpoints.writer.written(packets, bytes),
                errno => {
                    let error = io::Error::from_raw_os_error(errno);
                    endpoints.writer.recover_write(
                        &coalescer.memory()[frame.contents()],
                        packets,
                        &error,
                        now,
                    );
                }
            }
        }
        coalescer.clear();
    }
}

impl PacketIo for RingIo {
    const SENDS_BEFORE_RECEIVING: bool = false;
    type Buffers = RingBuffers;

    fn buffers() -> RingBuffers {
        RingBuffers { buffers: Buffers::new(READ_BUFFER), next_read: 0 }
    }

    fn budgets() -> [Budget; 2] {
        [Budget::new(MAX_FRAMES), Budget::new(MAX_MESSAGES)]
    }

    fn begin(&mut self, memory: &mut RingBuffers, requested: [usize; 2]) -> Result<(), WorkerError> {
        memory.next_read = 0;
        self.ring.receive(&mut memory.buffers, requested).map_err(enter_failed)
    }

    #[inline]
    fn next_frame<'b>(
        &mut self,
        RingBuffers { buffers, next_read }: &'b mut RingBuffers,
        _endpoints: &Endpoints,
    ) -> Option<io::Result<&'b [u8]>> {
        let buffers: &'b Buffers = buffers;
        while *next_read < buffers.reads() {
            *next_read += 1;
            let frame = buffers.frame(*next_read - 1);
            if frame.is_some() {
                return frame;
            }
        }
        None
    }

    /// [`PacketIo::begin`] has received all messages of the turn.
    fn receive(&mut self, _: &mut RingBuffers, _: &UdpSocket, _: &mut Budget, _: &Account) {}

    fn messages(memory: &RingBuffers) -> impl Iterator<Item = io::Result<Received<'_>>> {
        memory.buffers.messages_received()
    }

    fn flush(
        &mut self,
        endpoints: &mut Endpoints,
        pending: &mut Pending,
        table: &Table,
        now: Nanos,
    ) -> Result<(), WorkerError> {
        let Pending { tx_batch, coalescer } = &mut *pending;
        for run in coalescer.finish() {
            self.writes.push(Message::frame(run.at, run.bytes.len()));
            self.write_counts.push((run.packets, run.packet_bytes));
        }
        if !tx_batch.is_empty() && !endpoints.may_segment(now) {
            endpoints.send(tx_batch.block(), table, now);
            tx_batch.clear(&mut endpoints.narrow_paths, now);
        }
        let writes = Batch { memory: coalescer.memory(), messages: &mut self.writes };
        self.ring.submit(tx_batch.batch(), writes).map_err(enter_failed)?;
        self.settle(endpoints, pending, table, now);
        Ok(())
    }
}

fn enter_failed(error: io::Error) -> WorkerError {
    WorkerError::System { call: "io_uring_enter", error }
}
