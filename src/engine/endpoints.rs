//! [`Endpoints`]: the TUN queue and the sending socket of one worker, and what is done when the
//! kernel refuses a message.
//!
//! The batch engine sends everything by this file, and the ring engine sends what its ring could
//! not. If a socket refuses a train, its datagrams are sent singly, and the offload stays off for a
//! while. Packets for the TUN are written by [`TunWriter`].
//!
//! It makes no routing decision. Invariant: each packet of a block is counted once, as forwarded or
//! under one drop reason.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::account::{Account, Op};
use super::offload_switch::OffloadSwitch;
use super::tun_writer::TunWriter;
use super::tx_block::{Record, TxBlock, TxMessage};
use crate::forward::{DropReason, EgressState, Table, Train};
use crate::packet::bundle;
use crate::packet::split::SPLIT_BUFFER;
use crate::seal::SealError;
use crate::sys::batch::Message;
use crate::sys::tun::{Offload, Queue};
use crate::sys::{Interest, poll, udp};
use crate::time::Nanos;

#[cfg(test)]
mod tests;

/// How long a worker waits for room in a full send queue before it drops the packet.
pub(super) const SEND_TIMEOUT: Duration = Duration::from_millis(100);
/// Single datagrams that one system call sends.
const BATCH: usize = 64;

/// The TUN queue and the sending socket of one worker.
pub(super) struct Endpoints {
    pub(super) writer: TunWriter,
    socket: UdpSocket,
    pub(super) account: Arc<Account>,
    pub(super) egress_state: EgressState,
    /// Whether the socket takes trains (UDP_SEGMENT).
    segmentation: OffloadSwitch,
    /// The number of the worker: each worker seals with its own keys.
    pub(super) worker: usize,
    /// Memory for datagrams that are sealed once more.
    sealed: Box<[u8]>,
    /// Peers to which a bundle was longer than our interface takes, and half its length: the
    /// transmit batch makes shorter bundles for them.
    pub(super) narrow_paths: Vec<(SocketAddr, usize)>,
}

impl Endpoints {
    pub(super) fn new(
        tun: Queue,
        socket: UdpSocket,
        account: Arc<Account>,
        offload: Offload,
        worker: usize,
    ) -> Self {
        let wanted = offload != Offload::None;
        Self {
            writer: TunWriter::new(tun, account.clone(), offload),
            socket,
            account,
            egress_state: EgressState::new(crate::sys::now()),
            segmentation: OffloadSwitch::new(wanted),
            worker,
            sealed: vec![0; SPLIT_BUFFER].into(),
            narrow_paths: Vec::new(),
        }
    }

    /// Whether the kernel takes trains.
    #[inline]
    pub(super) fn may_segment(&self, now: Nanos) -> bool {
        self.segmentation.is_on(now)
    }

    /// Counts a message that the kernel took.
    #[inline]
    pub(super) fn sent(&self, sent: &TxMessage) {
        let (counters, record) = (&self.account.counters, &sent.record);
        counters.egress_sends.add(1);
        counters.egress.forwarded_many(record.packets, record.packet_bytes);
        if record.bundled {
            counters.egress_bundles.add(sent.datagrams());
        }
        if record.sealed {
            counters.sealed.add(sent.datagrams());
        }
    }

    /// Sends all messages of a block, in their order.
    pub(super) fn send(&mut self, block: &TxBlock, table: &Table, now: Nanos) {
        let (messages, mut next) = (block.messages(), 0);
        while next < messages.len() {
            let may_segment = self.may_segment(now);
            if messages[next].is_train() && !may_segment {
                let (bytes, plain) = block.plain(&block.get(next));
                self.send_singly(bytes, &plain, table, now);
                next += 1;
                continue;
            }
            let rest = &messages[next..];
            let count =
                rest.iter().position(|message| message.is_train() && !may_segment).unwrap_or(rest.len());
            self.account.counters.system_calls.add(1);
            match udp::send_many(&self.socket, block.memory(), &rest[..count]) {
                Ok(taken) => {
                    (next..next + taken).for_each(|index| self.sent(&block.get(index)));
                    next += taken;
                }
                Err(error) => {
                    let (bytes, plain) = block.plain(&block.get(next));
                    self.recover_send(bytes, &plain, &error, table, now);
                    next += 1;
                }
            }
        }
    }

    /// Handles a message that the kernel refused: sends it in another way, or drops and counts its
    /// packets. `bytes` and `refused` come from [`TxBlock::plain`]: sealed datagrams are sealed
    /// once more.
    pub(super) fn recover_send(
        &mut self,
        bytes: &[u8],
        refused: &TxMessage,
        error: &io::Error,
        table: &Table,
        now: Nanos,
    ) {
        match error.raw_os_error() {
            // The send queue is full. The worker waits, because packets should pile up in the TUN's
            // own queue.
            Some(libc::EAGAIN) => {
                self.account.error(Op::UdpSend, error);
                self.wait_for_room();
                self.send_singly(bytes, refused, table, now);
            }
            Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE) if refused.message.is_train() => {
                self.account.error(Op::UdpSend, error);
                self.account.counters.send_fallbacks.add(1);
                let all_passed = self.send_singly(bytes, refused, table, now);
                // If single datagrams do not pass either, the offload is not the cause. Nor is it
                // if they are too long for a train, but may be fragmented.
                let is_offload = all_passed && error.raw_os_error() != Some(libc::EMSGSIZE);
                if is_offload && self.segmentation.refuse(now) {
                    tracing::warn!(%error, "UDP segmentation offload refused by the kernel: off for a minute");
                }
            }
            Some(libc::EMSGSIZE) => self.too_big(bytes, refused, error, table, now),
            _ => self.drop_failed(refused.record.packets, error),
        }
    }

    /// Sends a train as single datagrams. Returns whether the kernel took all of them.
    fn send_singly(&mut self, bytes: &[u8], train: &TxMessage, table: &Table, now: Nanos) -> bool {
        let stride = train.message.segment_size;
        let single = |start: usize| {
            let len = stride.min(bytes.len() - start);
            let single = train.part(start, len, len);
            if !train.record.bundled {
                return single;
            }
            let (packets, packet_bytes) = bundle::contents(&bytes[start..start + len]);
            TxMessage { record: Record { packets, packet_bytes, ..single.record }, ..single }
        };
        let (mut start, mut may_wait) = (0, true);
        while start < bytes.len() {
            let mut singles = [train.message; BATCH];
            let starts = (start..bytes.len()).step_by(stride);
            let count = starts.clone().count().min(BATCH);
            for (slot, start) in singles.iter_mut().zip(starts) {
                *slot = single(start).message;
            }
            match self.transmit(bytes, &singles[..count], train.record.sealed, table, now) {
                Ok(taken) => {
                    singles[..taken].iter().for_each(|message| self.sent(&single(message.start)));
                    start += taken * stride;
                    may_wait = true;
                }
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && may_wait => {
                    may_wait = false;
                    self.wait_for_room();
                }
                Err(error) => {
                    let starts = (start..bytes.len()).step_by(stride);
                    let packets = starts.map(|start| single(start).record.packets).sum();
                    let mut rest = train.part(start, bytes.len() - start, stride);
                    rest.record.packets = packets;
                    match error.raw_os_error() {
                        Some(libc::EMSGSIZE) => self.too_big(&bytes[start..], &rest, &error, table, now),
                        _ => self.drop_failed(packets, &error),
                    }
                    return false;
                }
            }
        }
        true
    }

    /// Sends single datagrams out of `bytes`, sealed if their train was. Returns how many the
    /// kernel took. An error is that of the first datagram, `ENOKEY` if no key can seal for the
    /// peer.
    fn transmit(
        &mut self,
        bytes: &[u8],
        singles: &[Message],
        is_sealed: bool,
        table: &Table,
        now: Nanos,
    ) -> io::Result<usize> {
        self.account.counters.system_calls.add(1);
        let Some(first) = singles.first().filter(|_| is_sealed) else {
            return udp::send_many(&self.socket, bytes, singles);
        };
        let peer = first.destination.and_then(|destination| table.peer_by_address(destination.ip()));
        let keys = peer.and_then(|peer| peer.session.as_ref()).map(|session| session.keys());
        let no_key = || io::Error::from_raw_os_error(libc::ENOKEY);
        let keys = keys.ok_or_else(no_key)?;
        let (mut sealed, mut used, mut count) = ([*first; BATCH], 0, 0);
        for (single, slot) in singles.iter().zip(&mut sealed) {
            let packet = Train::single(&bytes[single.contents()]);
            match keys.seal(self.worker, packet, &mut self.sealed[used..], now) {
                Ok(Train { bytes, stride }) => {
                    *slot = Message { start: used, len: bytes.len(), segment_size: stride, ..*single };
                }
                // The caller sends the others after these.
                Err(SealError::NoRoom) if count > 0 => break,
                Err(_) => return Err(no_key()),
            }
            (count, used) = (count + 1, used + slot.len);
        }
        udp::send_many(&self.socket, &self.sealed, &sealed[..count])
    }

    /// Handles a message that is longer than our interface takes. The packets of bundles are sent
    /// bare, and later bundles are shorter for a while. Any other packets are dropped: the backend
    /// soon finds the MTU of the interface, and then their sender gets ICMP errors.
    fn too_big(&mut self, bytes: &[u8], refused: &TxMessage, error: &io::Error, table: &Table, now: Nanos) {
        if !refused.record.bundled {
            return self.drop_failed(refused.record.packets, error);
        }
        self.account.counters.bundle_fallbacks.add(refused.datagrams());
        let stride = refused.message.segment_size;
        let shorter = stride.min(bytes.len()) / 2;
        self.narrow_paths.extend(refused.message.destination.map(|destination| (destination, shorter)));
        for datagram in bytes.chunks(stride) {
            for packet in bundle::entries(datagram).into_iter().flatten().flatten() {
                let mut bare = refused.part(0, packet.len(), packet.len());
                bare.record.bundled = false;
                self.send_singly(packet, &bare, table, now);
            }
        }
    }

    fn drop_failed(&self, packets: u64, error: &io::Error) {
        self.account.error(Op::UdpSend, error);
        self.account.counters.egress.drop_many(DropReason::SendFailed, packets);
    }

    fn wait_for_room(&self) {
        self.account.counters.system_calls.add(1);
        // The next send shows whether there is room.
        let _ = poll([(self.socket.as_fd(), Interest::Write)], Some(SEND_TIMEOUT));
    }
}
