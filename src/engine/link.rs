//! One worker's ends, a TUN queue and a sending socket, and what is done where the kernel refuses.
//!
//! Both fast engines come here: the batch engine with everything, the ring engine with what its ring could not do. A train
//! that a socket refuses is sent as single datagrams, a super packet that the TUN refuses is cut and written packet by
//! packet; the offload stays off for a while, and what could pass has passed.
//!
//! Invariant: each packet of a block is counted once, as forwarded or under one drop reason.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::{Account, Op};
use crate::forward::{DropReason, EgressState, Table, ToTun, Train};
use crate::packet::icmp::Problem;
use crate::packet::split::{SPLIT_BUFFER, split};
use crate::packet::{Family, IpPacket, VnetHeader, bundle, outer_overhead, protocol};
use crate::seal::{OVERHEAD, SealError};
use crate::sys::block::{Block, Part};
use crate::sys::tun::{Offload, Queue};
use crate::sys::{Interest, poll, udp};
use crate::time::Nanos;

/// How long a full send queue may hold up a worker before the packet is given up.
pub(super) const SEND_PATIENCE: Duration = Duration::from_millis(100);
/// As many single datagrams as one system call takes.
const BATCH: usize = 64;
/// How long an offload that was refused stays off, and bundles that were too long are shorter: a route may lead out by
/// another card tomorrow.
pub(super) const RETRY: Nanos = Nanos(60_000_000_000);

/// An offload that can be refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Switch {
    wanted: bool,
    off_until: Option<Nanos>,
}

impl Switch {
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, off_until: None }
    }

    pub(super) fn is_on(&self, now: Nanos) -> bool {
        self.wanted && self.off_until.is_none_or(|until| now >= until)
    }

    /// Says whether it was on.
    fn refuse(&mut self, now: Nanos) -> bool {
        let was_on = self.is_on(now);
        self.off_until = Some(Nanos(now.0 + RETRY.0));
        was_on
    }
}

pub(super) struct Link {
    pub(super) tun: Queue,
    pub(super) socket: UdpSocket,
    pub(super) account: Arc<Account>,
    pub(super) forwarder: EgressState,
    /// UDP_SEGMENT.
    segment: Switch,
    /// Super packets to the TUN.
    merge: Switch,
    /// Whether UDP may be merged.
    merge_udp: bool,
    scratch: Box<[u8]>,
    /// Whose keys seal: the number of the worker.
    pub(super) worker: usize,
    /// What had to be sealed again.
    sealed: Box<[u8]>,
    /// To whom bundles were too long, and what the paths take of inner packets: for the outbox, which makes them.
    pub(super) narrow: Vec<(SocketAddr, usize)>,
}

impl Link {
    pub(super) fn new(
        tun: Queue,
        socket: UdpSocket,
        account: Arc<Account>,
        offload: Offload,
        worker: usize,
    ) -> Self {
        let wanted = offload != Offload::None;
        Self {
            tun,
            socket,
            account,
            forwarder: EgressState::new(crate::sys::now()),
            segment: Switch::new(wanted),
            merge: Switch::new(wanted),
            merge_udp: offload == Offload::TcpAndUdp,
            scratch: vec![0; SPLIT_BUFFER].into(),
            worker,
            sealed: vec![0; SPLIT_BUFFER].into(),
            narrow: Vec::new(),
        }
    }

    /// Whether trains may be handed to the kernel.
    pub(super) fn may_segment(&self, now: Nanos) -> bool {
        self.segment.is_on(now)
    }

    /// Whether a packet may be merged with others on its way to the TUN.
    pub(super) fn may_merge(&self, packet: &IpPacket<'_>, now: Nanos) -> bool {
        self.merge.is_on(now) && (self.merge_udp || packet.protocol() != protocol::UDP)
    }

    /// The kernel took a message.
    pub(super) fn sent(&self, part: &Part) {
        let counters = &self.account.counters;
        counters.egress_sends.add(1);
        counters.egress.forwarded_many(part.packets, part.packet_bytes);
        if part.bundled {
            counters.egress_bundles.add(part.datagrams());
        }
        if part.sealed {
            counters.sealed.add(part.datagrams());
        }
    }

    /// Sends all parts of a block, in their order.
    pub(super) fn send(&mut self, block: &Block, fib: &Table, now: Nanos) {
        let mut rest = block.parts();
        while let Some(first) = rest.first() {
            if first.is_train() && !self.may_segment(now) {
                let (bytes, plain) = block.plain(first);
                self.send_singly(bytes, &plain, fib, now);
                rest = &rest[1..];
                continue;
            }
            let may_segment = self.may_segment(now);
            let run = rest.iter().position(|part| part.is_train() && !may_segment).unwrap_or(rest.len());
            self.account.counters.system_calls.add(1);
            match udp::send_many(&self.socket, block.memory(), &rest[..run]) {
                Ok(taken) => {
                    for part in &rest[..taken] {
                        self.sent(part);
                    }
                    rest = &rest[taken..];
                }
                Err(error) => {
                    let (bytes, plain) = block.plain(first);
                    self.mend_send(bytes, &plain, &error, fib, now);
                    rest = &rest[1..];
                }
            }
        }
    }

    /// The kernel refused a part of a block: what can be sent otherwise is, the rest is dropped and counted. `bytes` and `part`
    /// are those of [`Block::plain`]: what was sealed is sealed again.
    pub(super) fn mend_send(
        &mut self,
        bytes: &[u8],
        part: &Part,
        error: &io::Error,
        fib: &Table,
        now: Nanos,
    ) {
        match error.raw_os_error() {
            // The TUN's own queue is the place where packets should pile up.
            Some(libc::EAGAIN) => {
                self.account.error(Op::UdpSend, error);
                self.wait();
                self.send_singly(bytes, part, fib, now);
            }
            Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE) if part.is_train() => {
                self.account.error(Op::UdpSend, error);
                self.account.counters.send_fallbacks.add(1);
                let all_passed = self.send_singly(bytes, part, fib, now);
                // Where single ones do not pass either, it is not the offload that is wrong.
                if all_passed && self.segment.refuse(now) {
                    tracing::warn!(
                        %error,
                        "the kernel refuses UDP segmentation offload; sending datagram by datagram for a minute"
                    );
                }
            }
            Some(libc::EMSGSIZE) => self.too_big(bytes, part, error, fib, now),
            _ => self.give_up(part.packets, error),
        }
    }

    /// Sends a train as single datagrams. Says whether all passed.
    fn send_singly(&mut self, bytes: &[u8], part: &Part, fib: &Table, now: Nanos) -> bool {
        let single = |at: usize| {
            let len = part.stride.min(bytes.len() - at);
            let (packets, packet_bytes) =
                if part.bundled { bundle::contents(&bytes[at..at + len]) } else { (1, len as u64) };
            Part { at, len, stride: len, packets, packet_bytes, ..*part }
        };
        let (mut at, mut patient) = (0, true);
        while at < bytes.len() {
            let mut singles = [single(at); BATCH];
            let ahead = (at..bytes.len()).step_by(part.stride);
            let count = ahead.clone().count().min(BATCH);
            for (slot, at) in singles.iter_mut().zip(ahead) {
                *slot = single(at);
            }
            match self.transmit(bytes, &singles[..count], fib, now) {
                Ok(taken) => {
                    singles[..taken].iter().for_each(|single| self.sent(single));
                    at += taken * part.stride;
                    patient = true;
                }
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && patient => {
                    patient = false;
                    self.wait();
                }
                Err(error) => {
                    let len = bytes.len() - at;
                    let left = (at..bytes.len()).step_by(part.stride).map(|at| single(at).packets).sum();
                    let rest = Part { packets: left, ..piece(part, at, len, part.stride) };
                    match error.raw_os_error() {
                        Some(libc::EMSGSIZE) => self.too_big(&bytes[at..], &rest, &error, fib, now),
                        _ => self.give_up(rest.packets, &error),
                    }
                    return false;
                }
            }
        }
        true
    }

    /// Sends single datagrams out of `bytes`, sealed if their part was. Says how many the kernel took; an error is that of the
    /// first, `ENOKEY` if no key seals for their peer.
    fn transmit(&mut self, bytes: &[u8], singles: &[Part], fib: &Table, now: Nanos) -> io::Result<usize> {
        self.account.counters.system_calls.add(1);
        let Some(first) = singles.first().filter(|single| single.sealed) else {
            return udp::send_many(&self.socket, bytes, singles);
        };
        let peer = first.to.and_then(|to| fib.peer_by_address(to.ip()));
        let keys = peer.and_then(|peer| peer.session.as_ref()).map(|session| session.keys());
        let no_key = || io::Error::from_raw_os_error(libc::ENOKEY);
        let keys = keys.ok_or_else(no_key)?;
        let (mut sealed, mut used) = ([*first; BATCH], 0);
        let mut count = 0;
        for (single, slot) in singles.iter().zip(&mut sealed) {
            let packet = Train::single(&bytes[single.at..single.at + single.len]);
            match keys.seal(self.worker, packet, &mut self.sealed[used..], now) {
                Ok(datagram) => *slot = piece(single, used, datagram.bytes.len(), datagram.stride),
                // The rest has its turn when these are sent.
                Err(SealError::NoRoom) if count > 0 => break,
                Err(_) => return Err(no_key()),
            }
            (count, used) = (count + 1, used + slot.len);
        }
        udp::send_many(&self.socket, &self.sealed, &sealed[..count])
    }

    /// The path is narrower than we thought: what stands in bundles is sent bare, and others will be shorter; the sender of
    /// anything else is told.
    fn too_big(&mut self, bytes: &[u8], part: &Part, error: &io::Error, fib: &Table, now: Nanos) {
        if !part.bundled {
            return self.refuse(bytes, part, error, fib, now);
        }
        self.account.counters.bundle_fallbacks.add(part.datagrams());
        // A path that would take this one, as far as the kernel knows, is not to be trusted with any.
        let most = self.inner_mtu(part).map(usize::from).filter(|most| *most < part.stride.min(bytes.len()));
        self.narrow.extend(part.to.map(|to| (to, most.unwrap_or(0))));
        for datagram in bytes.chunks(part.stride) {
            for packet in bundle::entries(datagram).into_iter().flatten().flatten() {
                let bare = Part { bundled: false, ..piece(part, 0, packet.len(), packet.len()) };
                self.send_singly(packet, &bare, fib, now);
            }
        }
    }

    /// Asks the kernel what the path of a part takes: bytes of inner packet, before they are sealed.
    fn inner_mtu(&self, part: &Part) -> Option<u16> {
        let to = part.to?;
        let path = self.socket.local_addr().and_then(|from| udp::path_mtu(from.ip(), to)).ok()?;
        let overhead = usize::from(outer_overhead(Family::of(to.ip())));
        let sealing = if part.sealed { OVERHEAD } else { 0 };
        u16::try_from(usize::try_from(path).ok()?.checked_sub(overhead + sealing)?).ok()
    }

    /// Tells the packets' sender what the path takes.
    fn refuse(&mut self, bytes: &[u8], part: &Part, error: &io::Error, fib: &Table, now: Nanos) {
        match self.inner_mtu(part) {
            Some(mtu) => {
                let Self { tun, account, forwarder, .. } = self;
                let refusal = (DropReason::TooBig, Problem::TooBig { mtu });
                let train = Train { bytes, stride: part.stride };
                let mut replies = Replies { tun, account };
                forwarder.refuse(fib, train, refusal, now, &account.counters, &mut replies);
            }
            None => self.give_up(part.packets, error),
        }
    }

    fn give_up(&self, packets: u64, error: &io::Error) {
        self.account.error(Op::UdpSend, error);
        self.account.counters.egress.drop_many(DropReason::SendFailed, packets);
    }

    fn wait(&self) {
        self.account.counters.system_calls.add(1);
        // Whether there is room or the time is up: the next send says.
        let _ = poll([(self.socket.as_fd(), Interest::Write)], Some(SEND_PATIENCE));
    }

    /// The kernel took a write.
    pub(super) fn written(&self, packets: u64, bytes: u64) {
        self.account.counters.ingress_writes.add(1);
        self.account.counters.ingress.forwarded_many(packets, bytes);
    }

    /// Writes a packet or super packet with its header.
    pub(super) fn write(&mut self, frame: &[u8], packets: u64, bytes: u64, now: Nanos) {
        self.account.counters.system_calls.add(1);
        match self.tun.write(frame) {
            Ok(()) => self.written(packets, bytes),
            Err(error) => self.mend_write(frame, packets, &error, now),
        }
    }

    /// The TUN refused a frame: if it was a super packet it is written in pieces, else it is dropped and counted.
    pub(super) fn mend_write(&mut self, frame: &[u8], packets: u64, error: &io::Error, now: Nanos) {
        self.account.error(Op::TunWrite, error);
        let is_refusal = error.raw_os_error() == Some(libc::EINVAL) && packets > 1;
        let Self { tun, account, scratch, .. } = self;
        let cut = is_refusal.then(|| cut(frame, scratch)).flatten();
        let Some(train) = cut else {
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
        if self.merge.refuse(now) {
            tracing::warn!(%error, "the overlay device refuses merged packets; writing them singly for a minute");
        }
    }
}

/// A part of a part: other bytes, and as many packets as datagrams.
fn piece(part: &Part, at: usize, len: usize, stride: usize) -> Part {
    let packets = len.div_ceil(stride.max(1)).max(1) as u64;
    Part { at, len, stride, packets, packet_bytes: len as u64, plain_at: at, errno: 0, ..*part }
}

/// Cuts a frame of ours into the packets that it was merged from.
fn cut<'a>(frame: &[u8], scratch: &'a mut [u8]) -> Option<Train<'a>> {
    let (vnet, packet) = VnetHeader::parse(frame).ok()?;
    split(&vnet, IpPacket::parse(packet).ok()?, scratch).ok()
}

/// The TUN as a place for ICMP errors only.
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use etherparse::PacketBuilder;

    use super::*;
    use crate::packet::coalesce::Coalescer;
    use crate::sys::now;

    /// A link whose TUN is a socket, with the other end of that, and where its datagrams arrive.
    fn link() -> (Link, UnixDatagram, UdpSocket) {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        let (socket, receiver) =
            (udp::bind(any()).expect("bound"), UdpSocket::bind("127.0.0.1:0").expect("bound"));
        for pipe in [&ours, &theirs] {
            pipe.set_nonblocking(true).expect("non-blocking");
        }
        receiver.set_nonblocking(true).expect("non-blocking");
        let queue = Queue::over(ours.into());
        (Link::new(queue, socket, Arc::default(), Offload::TcpAndUdp, 0), theirs, receiver)
    }

    fn any() -> std::net::SocketAddr {
        "127.0.0.1:0".parse().expect("an address")
    }

    fn packets(count: u16) -> Vec<Vec<u8>> {
        (0..count)
            .map(|n| {
                let mut packet = Vec::new();
                let builder = PacketBuilder::ipv4([10, 1, 1, 2], [10, 1, 2, 2], 64).udp(1, 2);
                builder.write(&mut packet, &[n.to_le_bytes()[0]; 100]).expect("fits");
                packet
            })
            .collect()
    }

    #[test]
    fn a_train_that_the_kernel_refuses_is_sent_singly_and_the_offload_rests() {
        let (mut link, _tun, receiver) = link();
        let (packets, fib, start) = (packets(100), Table::default(), now());
        let bytes = packets.concat();
        let part = Part::train(0, bytes.len(), 128, receiver.local_addr().expect("bound"));
        link.mend_send(&bytes, &part, &io::Error::from_raw_os_error(libc::EIO), &fib, start);
        let mut buffer = [0; 2000];
        for packet in &packets {
            let length = receiver.recv(&mut buffer).expect("it was sent");
            assert_eq!(&buffer[..length], &packet[..]);
        }
        let counters = link.account.counters.egress.packets.get();
        assert_eq!((counters, link.account.counters.send_fallbacks.get()), (100, 1));
        assert!(!link.may_segment(start));
        assert!(link.may_segment(Nanos(start.0 + RETRY.0)), "tried again after a while");

        // While it rests, trains in a block leave singly and in their place.
        let mut block = Block::new(bytes.into());
        for (at, count) in [(0, 1), (1, 3), (4, 1)] {
            let to = receiver.local_addr().expect("bound");
            block.push(Part::train(at * 128, count * 128, 128, to));
        }
        link.send(&block, &fib, start);
        for packet in &packets[..5] {
            let length = receiver.recv(&mut buffer).expect("it was sent");
            assert_eq!(&buffer[..length], &packet[..]);
        }
        assert!(receiver.recv(&mut buffer).is_err(), "nothing twice");
    }

    /// The narrow path takes no bundle, but it takes what is in it.
    #[test]
    fn a_bundle_that_is_too_long_leaves_packet_by_packet() {
        let (mut link, _tun, receiver) = link();
        let (packets, mut bytes) = (packets(6), vec![0; 2 * 400]);
        for (datagram, packets) in bytes.chunks_mut(400).zip(packets.chunks(3)) {
            let filled =
                packets.iter().fold(0, |at, packet| bundle::append(datagram, at, packet).expect("it fits"));
            bundle::pad(datagram, filled);
        }
        let to = receiver.local_addr().expect("bound");
        let part = Part { packets: 6, packet_bytes: 6 * 128, bundled: true, ..Part::train(0, 800, 400, to) };
        let single = Part { len: 400, packets: 3, packet_bytes: 3 * 128, ..part };
        let (fib, start, mut buffer) = (Table::default(), now(), [0; 2000]);

        // As a train, the kernel takes them singly in the end: bundles as they are.
        link.mend_send(&bytes, &part, &io::Error::from_raw_os_error(libc::EIO), &fib, start);
        for datagram in bytes.chunks(400) {
            let length = receiver.recv(&mut buffer).expect("it was sent");
            assert_eq!(&buffer[..length], datagram);
        }
        assert_eq!(link.account.counters.egress_bundles.get(), 2);
        assert_eq!((link.account.counters.bundle_fallbacks.get(), link.narrow.len()), (0, 0));

        link.mend_send(&bytes[..400], &single, &io::Error::from_raw_os_error(libc::EMSGSIZE), &fib, start);
        for packet in &packets[..3] {
            let length = receiver.recv(&mut buffer).expect("it was sent");
            assert_eq!(&buffer[..length], &packet[..]);
        }
        assert!(receiver.recv(&mut buffer).is_err(), "nothing twice");
        let egress = &link.account.counters.egress;
        assert_eq!((egress.packets.get(), egress.bytes.get()), (6 + 3, 9 * 128));
        assert_eq!(link.account.counters.bundle_fallbacks.get(), 1);
        assert_eq!(link.narrow, [(to, 0)], "loopback would take it, says the kernel, and refuses it");
    }

    #[test]
    fn an_error_that_is_none_of_the_offload_s_drops_and_counts() {
        let (mut link, _tun, receiver) = link();
        let bytes = packets(3).concat();
        let part = Part::train(0, bytes.len(), 128, receiver.local_addr().expect("bound"));
        let error = io::Error::from_raw_os_error(libc::ENOBUFS);
        link.mend_send(&bytes, &part, &error, &Table::default(), now());
        assert_eq!(link.account.counters.egress.dropped(DropReason::SendFailed), 3);
        assert_eq!(link.account.errors(), [(Op::UdpSend, libc::ENOBUFS, 1)]);
        assert!(link.may_segment(now()));
    }

    #[test]
    fn a_super_packet_that_the_tun_refuses_is_written_in_pieces() {
        let (mut link, tun, _receiver) = link();
        let (packets, mut coalescer) = (packets(20), Coalescer::new(4));
        let views: Vec<IpPacket<'_>> =
            packets.iter().map(|packet| IpPacket::parse(packet).expect("well formed")).collect();
        assert!(link.may_merge(&views[0], now()));
        for view in &views {
            coalescer.push(*view).expect("room");
        }
        let merged: Vec<(Vec<u8>, u64)> =
            coalescer.finish().map(|run| (run.bytes.to_vec(), run.packets)).collect();
        assert!(merged.len() < 20, "they were merged");
        let start = now();
        for (frame, count) in &merged {
            link.mend_write(frame, *count, &io::Error::from_raw_os_error(libc::EINVAL), start);
        }
        let mut buffer = [0; 2000];
        for packet in &packets {
            let length = tun.recv(&mut buffer).expect("it was written");
            assert_eq!(buffer[..10], [0; 10]);
            // With DF set the identification, and the sum over it, mean nothing.
            assert_eq!(&buffer[10 + 12..length], &packet[12..]);
        }
        assert_eq!(link.account.counters.ingress.packets.get(), 20);
        assert!(!link.may_merge(&views[0], start), "nothing is merged for a while");
        assert!(link.may_merge(&views[0], Nanos(start.0 + RETRY.0)));
    }
}
