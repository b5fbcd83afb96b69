//! [`PlainIo`], the I/O of the batch engine: offloads and many messages in one call, with plain
//! system calls. It is for kernels and containers that forbid io_uring, and the engine that the
//! ring engine is compared with.
//!
//! A turn reads the TUN, sends with sendmmsg and UDP_SEGMENT, receives with recvmmsg and UDP_GRO,
//! and writes each merged packet with one call, because a TUN has no call for several packets. It
//! decides nothing about packets.
//!
//! Invariant: when [`PlainIo::flush`] returns, the kernel has taken or refused all pending packets.

use std::io;
use std::net::UdpSocket;

use super::account::{Account, Op};
use super::budget::Budget;
use super::endpoints::Endpoints;
use super::error::WorkerError;
use super::worker::{PacketIo, Pending, READ_BUFFER};
use crate::forward::Table;
use crate::sys::udp::{self, Received};
use crate::time::Nanos;

/// Reads of the TUN in a turn at most.
const MAX_READS: usize = 64;

/// Plain system calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlainIo;

/// The memory of a thread for plain system calls.
pub(super) struct PlainBuffers {
    frame: Box<[u8]>,
    /// Reads that the turn may still make.
    reads_left: usize,
    receiver: udp::Receiver,
    /// Messages that the turn has received.
    received: usize,
}

impl PacketIo for PlainIo {
    const SENDS_BEFORE_RECEIVING: bool = true;
    type Buffers = PlainBuffers;

    fn buffers() -> PlainBuffers {
        PlainBuffers {
            frame: vec![0; READ_BUFFER].into(),
            reads_left: 0,
            receiver: udp::Receiver::new(udp::RECEIVE_BATCH),
            received: 0,
        }
    }

    fn budgets() -> [Budget; 2] {
        [Budget::new(MAX_READS), Budget::new(udp::RECEIVE_BATCH)]
    }

    fn begin(&mut self, buffers: &mut PlainBuffers, [frames, _]: [usize; 2]) -> Result<(), WorkerError> {
        (buffers.reads_left, buffers.received) = (frames, 0);
        Ok(())
    }

    #[inline]
    fn next_frame<'b>(
        &mut self,
        buffers: &'b mut PlainBuffers,
        endpoints: &Endpoints,
    ) -> Option<io::Result<&'b [u8]>> {
        buffers.reads_left = buffers.reads_left.checked_sub(1)?;
        endpoints.account.counters.system_calls.add(1);
        match endpoints.writer.tun.read(&mut buffers.frame) {
            Ok(length) => Some(Ok(&buffers.frame[..length])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                buffers.reads_left = 0;
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn receive(
        &mut self,
        PlainBuffers { receiver, received, .. }: &mut PlainBuffers,
        socket: &UdpSocket,
        budget: &mut Budget,
        account: &Account,
    ) {
        account.counters.system_calls.add(1);
        *received = receiver.receive(socket, budget.ask_for_all()).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::WouldBlock {
                account.error(Op::UdpReceive, &error);
            }
            0
        });
    }

    fn messages(
        PlainBuffers { receiver, received, .. }: &PlainBuffers,
    ) -> impl Iterator<Item = io::Result<Received<'_>>> {
        (0..*received).map(|index| Ok(receiver.get(index)))
    }

    fn flush(
        &mut self,
        endpoints: &mut Endpoints,
        Pending { tx_batch, coalescer }: &mut Pending,
        table: &Table,
        now: Nanos,
    ) -> Result<(), WorkerError> {
        if !tx_batch.is_empty() {
            endpoints.send(tx_batch.block(), table, now);
            tx_batch.clear(&mut endpoints.narrow_paths, now);
        }
        if !coalescer.is_empty() {
            endpoints.writer.write_merged(coalescer, now);
        }
        Ok(())
    }
}
