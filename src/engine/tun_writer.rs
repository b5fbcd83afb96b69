//! [`TunWriter`]: writes packets to one queue of the overlay device, and what is done when the
//! kernel refuses a frame.
//!
//! If the TUN refuses a super packet, its packets are written singly, and packets are not merged
//! for a while. It has no socket: a thread that only writes to the device keeps no port in use.
//!
//! Invariant: each packet of a frame is counted once, as forwarded or under one drop reason.

use std::io;
use std::sync::Arc;

use super::account::{Account, Op};
use super::offload_switch::OffloadSwitch;
use crate::forward::{DropReason, ToTun, Train};
use crate::packet::coalesce::{Coalescer, Full};
use crate::packet::split::{SPLIT_BUFFER, split};
use crate::packet::{IpPacket, VnetHeader, protocol};
use crate::sys::tun::{Offload, Queue};
use crate::time::Nanos;

/// One queue of the overlay device.
pub(super) struct TunWriter {
    pub(super) tun: Queue,
    account: Arc<Account>,
    /// Whether the TUN takes super packets.
    merging: OffloadSwitch,
    /// Whether UDP packets may be merged.
    may_merge_udp: bool,
    /// Memory for the packets of a super packet that the TUN refused.
    split_buffer: Box<[u8]>,
}

impl TunWriter {
    pub(super) fn new(tun: Queue, account: Arc<Account>, offload: Offload) -> Self {
        Self {
            tun,
            account,
            merging: OffloadSwitch::new(offload != Offload::None),
            may_merge_udp: offload == Offload::TcpAndUdp,
            split_buffer: vec![0; SPLIT_BUFFER].into(),
        }
    }

    /// Whether a packet for the TUN may be merged with others.
    #[inline]
    pub(super) fn may_merge(&self, packet: &IpPacket<'_>, now: Nanos) -> bool {
        self.merging.is_on(now) && (self.may_merge_udp || packet.protocol() != protocol::UDP)
    }

    /// Adds a packet for the TUN to `coalescer`, merged with others if that is allowed.
    #[inline]
    pub(super) fn merge(
        &self,
        coalescer: &mut Coalescer,
        packet: IpPacket<'_>,
        now: Nanos,
    ) -> Result<(), Full> {
        if self.may_merge(&packet, now) { coalescer.push(packet) } else { coalescer.push_alone(packet) }
    }

    /// Counts a write that the kernel took.
    #[inline]
    pub(super) fn written(&self, packets: u64, bytes: u64) {
        self.account.counters.ingress_writes.add(1);
        self.account.counters.ingress.forwarded_many(packets, bytes);
    }

    /// Writes all packets of `coalescer` to the TUN.
    pub(super) fn write_merged(&mut self, coalescer: &mut Coalescer, now: Nanos) {
        for run in coalescer.finish() {
            self.write(run.bytes, run.packets, run.packet_bytes, now);
        }
        coalescer.clear();
    }

    /// Writes a packet or super packet with its header.
    fn write(&mut self, frame: &[u8], packets: u64, bytes: u64, now: Nanos) {
        self.account.counters.system_calls.add(1);
        match self.tun.write(frame) {
            Ok(()) => self.written(packets, bytes),
            Err(error) => self.recover_write(frame, packets, &error, now),
        }
    }

    /// Handles a frame that the TUN refused: writes the packets of a super packet singly, and drops
    /// and counts any other frame.
    pub(super) fn recover_write(&mut self, frame: &[u8], packets: u64, error: &io::Error, now: Nanos) {
        self.account.error(Op::TunWrite, error);
        let is_refusal = error.raw_os_error() == Some(libc::EINVAL) && packets > 1;
        let Self { tun, account, split_buffer, .. } = self;
        let train = is_refusal.then(|| split_frame(frame, split_buffer)).flatten();
        let Some(train) = train else {
            return account.counters.ingress.drop_many(DropReason::WriteFailed, packets);
        };
        account.counters.write_fallbacks.add(1);
        for packet in train.datagrams() {
            account.counters.system_calls.add(1);
            match tun.write_packet(packet) {
                Ok(()) => {
                    account.counters.ingress_writes.add(1);
                    account.counters.ingress.forwarded(packet.len());
                }
                Err(error) => {
                    account.error(Op::TunWrite, &error);
                    account.counters.ingress.drop(DropReason::WriteFailed);
                }
            }
        }
        if self.merging.refuse(now) {
            tracing::warn!(%error, "merged packets refused by the overlay device: written singly for a minute");
        }
    }
}

/// Splits a frame that was merged here into its packets.
fn split_frame<'a>(frame: &[u8], buffer: &'a mut [u8]) -> Option<Train<'a>> {
    let (vnet, packet) = VnetHeader::parse(frame).ok()?;
    split(&vnet, IpPacket::parse(packet).ok()?, buffer).ok()
}

/// Writes ICMP errors to the TUN. Egress has no other packets for it.
pub(super) struct Replies<'a> {
    pub(super) tun: &'a Queue,
    pub(super) account: &'a Account,
}

impl ToTun for Replies<'_> {
    /// Egress has no packets for the TUN.
    fn push(&mut self, _packet: IpPacket<'_>) {}

    fn reply(&mut self, error: &[u8]) {
        self.account.counters.system_calls.add(1);
        match self.tun.write_packet(error) {
            Ok(()) => self.account.counters.ingress_writes.add(1),
            Err(error) => self.account.error(Op::TunWrite, &error),
        }
    }
}
