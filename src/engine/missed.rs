//! [`MissedReceiver`]: takes the datagrams that a peer sent by its kernel fast path, and that the
//! fast path of this host did not take, because it is detached or has just been.
//!
//! Such a datagram has the UDP checksum 0, and the kernel gives it to a socket of its own. The
//! packet in it may be half-summed or a super packet, so it goes to the device with a virtio
//! header; the kernel sums and cuts. All checks are those of [`ingress`].
//!
//! It merges nothing: few packets come this way. Invariant: each datagram is counted as missed, and
//! each packet in it as forwarded or under one drop reason.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use super::account::{Account, Op};
use super::slow_path::DeviceHandle;
use crate::forward::{Arrival, DropReason, IngressState, Table, ToTun, VerifySource, ingress};
use crate::packet::half_summed::tun_header;
use crate::packet::{IpPacket, VnetHeader};
use crate::sys::now;
use crate::sys::tun::Queue;
use crate::sys::udp::{RECEIVE_BATCH, Received, Receiver};

/// Receive calls of one [`MissedReceiver::drain`] at most, so that it does not starve its thread.
const ROUNDS: usize = 16;
/// Buffers for messages.
const MESSAGES: usize = 8;
const _: () = assert!(MESSAGES <= RECEIVE_BATCH);

/// Receives half-summed datagrams.
pub struct MissedReceiver {
    tun: Queue,
    receiver: Receiver,
    state: IngressState,
    verify: VerifySource,
    account: Arc<Account>,
    /// A virtio header, and a packet of any length.
    frame: Box<[u8]>,
}

impl std::fmt::Debug for MissedReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MissedReceiver").finish_non_exhaustive()
    }
}

impl MissedReceiver {
    /// `None` if the device takes no virtio header.
    pub(super) fn new(device: DeviceHandle, verify: VerifySource, account: Arc<Account>) -> Option<Self> {
        let DeviceHandle::Queue(tun, _) = device else { return None };
        Some(Self {
            tun,
            receiver: Receiver::new(MESSAGES),
            state: IngressState::default(),
            verify,
            account,
            frame: vec![0; VnetHeader::LEN + 65_535].into(),
        })
    }

    /// Brings what waits at `socket` to the device, and adds the peers that have sent it to
    /// `senders`. Returns how many datagrams that were.
    pub fn drain(&mut self, socket: &UdpSocket, table: &Table, senders: &mut BTreeSet<IpAddr>) -> u64 {
        let Self { tun, receiver, state, verify, account, frame } = self;
        let (counters, mut count) = (&account.counters, 0);
        state.set_time(now());
        for _ in 0..ROUNDS {
            counters.system_calls.add(1);
            let messages = match receiver.receive(socket, MESSAGES) {
                Ok(messages) => messages,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    account.error(Op::UdpReceive, &error);
                    break;
                }
            };
            for Received { from, ecn, train } in (0..messages).map(|message| receiver.get(message)) {
                count += train.count();
                counters.udp_receives.add(1);
                counters.udp_datagrams.add(train.count());
                counters.fast_missed.add(train.count());
                let peer = from.and_then(|from| table.peer_by_address(from.ip()));
                let Some((from, peer)) = from.zip(peer) else {
                    counters.ingress.drop_many(DropReason::UnknownPeer, train.count());
                    continue;
                };
                senders.insert(from.ip());
                let mut to_tun = HalfSummed { tun, account, frame, mtu: peer.own_mtu };
                let arrival = Arrival { from: from.ip(), ecn, train };
                ingress(table, arrival, *verify, state, counters, &mut to_tun);
            }
        }
        count
    }
}

/// Writes packets that may be half-summed.
struct HalfSummed<'a> {
    tun: &'a Queue,
    account: &'a Account,
    frame: &'a mut [u8],
    mtu: u16,
}

impl ToTun for HalfSummed<'_> {
    fn push(&mut self, packet: IpPacket<'_>) {
        let counters = &self.account.counters;
        let length = VnetHeader::LEN + packet.bytes().len();
        let header = tun_header(&packet, self.mtu).ok().zip(self.frame.get_mut(..length));
        let Some((header, frame)) = header else {
            return counters.ingress.drop(DropReason::Malformed);
        };
        let (head, body) = frame.split_at_mut(VnetHeader::LEN);
        head.copy_from_slice(&header.to_bytes());
        body.copy_from_slice(packet.bytes());
        counters.system_calls.add(1);
        match self.tun.write(frame) {
            Ok(()) => {
                counters.ingress_writes.add(1);
                counters.ingress.forwarded(packet.bytes().len());
            }
            Err(error) => {
                self.account.error(Op::TunWrite, &error);
                counters.ingress.drop(DropReason::WriteFailed);
            }
        }
    }

    /// Ingress makes no ICMP errors.
    fn reply(&mut self, _error: &[u8]) {}
}
