//! The simple engine: tun-tap and one UDP socket, one packet in each system call, one thread that
//! sleeps in poll(2).
//!
//! It has the design of Flannel on purpose: it is the reference that the fast engines are compared
//! with, packet by packet, and the fallback where no other engine runs. It uses no offloads.
//! Functions are in the order in which a packet passes through them.
//!
//! Invariant: each read is one packet, and each train is one datagram.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::account::{Account, Op};
use super::control_inbox::{ControlArrival, ControlInbox};
use super::endpoints::SEND_TIMEOUT;
use super::error::WorkerError;
use super::io::SimpleIo;
use super::slow_path::{SlowPathPackets, SlowPathQueue};
use super::worker::Shared;
use crate::forward::{
    Arrival, DropReason, EgressState, Exit, Frame, IngressState, Peer, Reservation, Table, ToNet, ToTun,
    Train, TrainMeta, VerifySource, egress, ingress,
};
use crate::packet::IpPacket;
use crate::packet::control::Control;
use crate::packet::ecn::Ecn;
use crate::seal::OVERHEAD;
use crate::sys::batch::Message;
use crate::sys::tun::SimpleTun;
use crate::sys::{Event, Interest, now, poll, udp};
use crate::time::Nanos;

/// Packets that one direction moves before it is the turn of the other: so many that the poll is a
/// small part of the work, and so few that no direction starves.
const BURST: usize = 64;
/// The number of the only worker.
const WORKER: usize = 0;
/// Bytes that a read needs for any IP packet.
const BUFFER: usize = 65536;

pub(super) struct Worker {
    tun: SimpleTun,
    socket: UdpSocket,
    table: Cache<Arc<ArcSwap<Table>>, Arc<Table>>,
    egress_state: EgressState,
    verify: VerifySource,
    account: Arc<Account>,
    stop: Arc<Event>,
    slow_path: Arc<SlowPathQueue>,
    control_inbox: Arc<ControlInbox>,
    receiver: udp::Receiver,
    ingress_state: IngressState,
    buffer: Box<[u8]>,
    outgoing: Box<[u8]>,
    sealed: Box<[u8]>,
}

impl Worker {
    pub(super) fn new(
        io: SimpleIo,
        verify: VerifySource,
        (account, table, slow_path, control_inbox): Shared,
        stop: Arc<Event>,
    ) -> Self {
        let mut egress_state = EgressState::new(now());
        egress_state.verify(verify);
        Self {
            tun: io.tun,
            socket: io.socket,
            table: Cache::new(table),
            egress_state,
            verify,
            account,
            stop,
            slow_path,
            control_inbox,
            receiver: udp::Receiver::new(1),
            ingress_state: IngressState::default(),
            buffer: vec![0; BUFFER].into(),
            outgoing: vec![0; BUFFER].into(),
            sealed: vec![0; BUFFER + OVERHEAD].into(),
        }
    }

    /// Takes turns until the stop event.
    pub(super) fn run(mut self) -> Result<(), WorkerError> {
        loop {
            let waiting = [
                (self.tun.as_fd(), Interest::Read),
                (self.socket.as_fd(), Interest::Read),
                (self.stop.as_fd(), Interest::Read),
            ];
            let [tun, socket, stop] =
                poll(waiting, None).map_err(|error| WorkerError::System { call: "poll", error })?;
            if stop {
                return Ok(());
            }
            self.account.counters.turns.add(1);
            self.account.counters.system_calls.add(1);
            if tun {
                self.egress()?;
            }
            if socket {
                self.ingress();
            }
        }
    }

    /// Forwards packets from the TUN to the network, until there are no more or it is the turn of
    /// the other direction.
    fn egress(&mut self) -> Result<(), WorkerError> {
        let Self { tun, socket, table, egress_state, account, buffer, outgoing, slow_path, sealed, .. } =
            self;
        let control_inbox = &self.control_inbox;
        let (table, now, counters) = (table.load(), now(), &account.counters);
        for _ in 0..BURST {
            counters.system_calls.add(1);
            let length = match tun.read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(WorkerError::of_read(error)),
            };
            counters.tun_reads.add(1);
            let packet = &buffer[..length];
            let mut net = Net { socket, account, outgoing, sealed, now, slow_path };
            let mut device = Device { tun, account, control_inbox, now, from_port: 0 };
            egress(table, Frame::Bare(packet), now, egress_state, counters, &mut net, &mut device);
        }
        Ok(())
    }

    /// Forwards packets from the network to the TUN, until there are no more or it is the turn of
    /// the other direction.
    fn ingress(&mut self) {
        let Self { tun, socket, table, verify, account, receiver, ingress_state, control_inbox, .. } = self;
        let (table, counters, now) = (table.load(), &account.counters, now());
        ingress_state.set_time(now);
        let mut device = Device { tun, account, control_inbox, now, from_port: 0 };
        for _ in 0..BURST {
            counters.system_calls.add(1);
            match receiver.receive(socket, 1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return account.error(Op::UdpReceive, &error),
            }
            counters.udp_receives.add(1);
            counters.udp_datagrams.add(1);
            let received = receiver.get(0);
            let Some(from) = received.from else {
                counters.ingress.drop(DropReason::UnknownPeer);
                continue;
            };
            device.from_port = from.port();
            let arrival = Arrival { from: from.ip(), ecn: received.ecn, train: received.train };
            ingress(table, arrival, *verify, ingress_state, counters, &mut device);
        }
    }
}

/// Sends packets by the underlay socket, or puts them into the slow path.
struct Net<'a> {
    socket: &'a UdpSocket,
    account: &'a Account,
    outgoing: &'a mut [u8],
    slow_path: &'a SlowPathQueue,
    sealed: &'a mut [u8],
    now: Nanos,
}

/// Room for one packet: this engine asks for no offloads, so each train is a train of one.
struct Reserved<'a, 'n> {
    net: &'a mut Net<'n>,
    exit: Exit<'a>,
    train: TrainMeta,
}

impl<'n> ToNet for Net<'n> {
    type Reservation<'a>
        = Reserved<'a, 'n>
    where
        Self: 'a;

    fn reserve<'a>(&'a mut self, exit: Exit<'a>, train: TrainMeta) -> Reserved<'a, 'n> {
        Reserved { net: self, exit, train }
    }
}

impl Reservation for Reserved<'_, '_> {
    fn buffer(&mut self) -> &mut [u8] {
        let length = self.net.outgoing.len().min(self.train.bytes);
        &mut self.net.outgoing[..length]
    }

    fn commit(self, bytes: usize) {
        match self.exit {
            Exit::Socket(peer) => self.net.send(peer, TrainMeta { bytes, ..self.train }),
            Exit::SlowPath(peer) => self.net.divert(peer, TrainMeta { bytes, ..self.train }),
            Exit::Refused => debug_assert!(false, "a refused train is not committed"),
        }
    }
}

impl Net<'_> {
    fn send(&mut self, peer: &Peer, train: TrainMeta) {
        let counters = &self.account.counters;
        let packet = &self.outgoing[..train.bytes];
        let datagram = match &peer.session {
            None => packet,
            Some(session) => {
                match session.keys().seal(WORKER, Train::single(packet), self.sealed, self.now) {
                    Ok(sealed) => sealed.bytes,
                    Err(_) => return counters.egress.drop(DropReason::NoKey),
                }
            }
        };
        match send(self.socket, self.account, peer, datagram, train.outer_ecn(peer)) {
            Ok(()) => {
                counters.egress_sends.add(1);
                counters.egress.forwarded(train.bytes);
                counters.sealed.add(u64::from(peer.session.is_some()));
            }
            Err(error) => {
                self.account.error(Op::UdpSend, &error);
                counters.egress.drop(DropReason::SendFailed);
            }
        }
    }

    fn divert(&mut self, peer: &Peer, TrainMeta { bytes, stride, .. }: TrainMeta) {
        let mut trains = vec![SlowPathPackets::new(peer, &self.outgoing[..bytes], stride)];
        let (reason, packets) = self.slow_path.put(&mut trains);
        self.account.counters.egress.drop_many(reason, packets);
    }
}

/// Sends one datagram. If the send queue is full it waits, because packets should pile up in the
/// TUN's own queue.
fn send(socket: &UdpSocket, account: &Account, peer: &Peer, datagram: &[u8], ecn: Ecn) -> io::Result<()> {
    account.counters.system_calls.add(1);
    let message = Message { ecn, ..Message::train(0, datagram.len(), datagram.len(), peer.endpoint) };
    let send = || match ecn {
        Ecn::NotEct => socket.send_to(datagram, peer.endpoint),
        Ecn::Ect0 | Ecn::Ect1 | Ecn::Ce => udp::send_many(socket, datagram, &[message]),
    };
    match send() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            poll([(socket.as_fd(), Interest::Write)], Some(SEND_TIMEOUT))?;
            send().map(drop)
        }
        result => result.map(drop),
    }
}

/// Writes packets to the overlay device.
struct Device<'a> {
    tun: &'a SimpleTun,
    account: &'a Account,
    control_inbox: &'a ControlInbox,
    now: Nanos,
    /// The source port of the datagram that is being taken.
    from_port: u16,
}

impl ToTun for Device<'_> {
    fn push(&mut self, packet: IpPacket<'_>) {
        self.account.counters.system_calls.add(1);
        match self.tun.write(packet.bytes()) {
            Ok(()) => {
                self.account.counters.ingress_writes.add(1);
                self.account.counters.ingress.forwarded(packet.bytes().len());
            }
            Err(error) => {
                self.account.error(Op::TunWrite, &error);
                self.account.counters.ingress.drop(DropReason::WriteFailed);
            }
        }
    }

    fn reply(&mut self, error: &[u8]) {
        match self.tun.write(error) {
            Ok(()) => self.account.counters.ingress_writes.add(1),
            Err(error) => self.account.error(Op::TunWrite, &error),
        }
    }

    fn control(&mut self, from: IpAddr, message: Control) {
        self.control_inbox.put(ControlArrival { from, port: self.from_port, message, at: self.now });
    }
}
