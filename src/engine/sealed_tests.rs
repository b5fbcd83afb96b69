//! Engines with encryption. Sockets replace the TUN queues, and the test acts as the peer: all
//! datagrams that leave are sealed, and all that enter must be.

use std::io as std_io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use etherparse::PacketBuilder;

use super::endpoints::Endpoints;
use super::tx_block::{Record, TxMessage};
use super::*;
use crate::forward::{Counters, DropReason, Sessions, Table, Train, VerifySource};
use crate::packet::{VnetHeader, bundle};
use crate::route::{
    Abilities, Announced, Change, Dialect, Fingerprint, Lease, Local, Mode, Networks, Origin, Policy, Public,
    Rib,
};
use crate::seal::{Agreement, Lifetime, NIBBLE, OVERHEAD, Role, Secret, Session};
use crate::sys::tun::{Offload, Queue};
use crate::sys::{now, udp};

const MTU: u16 = 1444;
const WORKERS: usize = 2;
/// Plain text that must not appear on the wire.
const MARK: &[u8] = b"this is the inner payload";

/// An engine, the other ends of its descriptors, and the peer that the test plays.
struct Harness {
    engine: Option<Engine>,
    view: EngineView,
    /// The other ends of the engine's TUN queues.
    tuns: Vec<UnixDatagram>,
    /// The address that each worker receives on.
    addresses: Vec<SocketAddr>,
    peer: UdpSocket,
    /// The peer's side of the session.
    there: Session,
    sessions: Sessions,
    handshakes: u8,
}

impl Harness {
    /// Starts an engine of this `kind` on loopback: the engine has 127.0.0.1 and the peer
    /// 127.0.0.2.
    fn new(kind: fn(Vec<QueueIo>) -> Io, lifetime: Lifetime) -> Self {
        let (mut tuns, mut addresses, mut queues) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..WORKERS {
            let (ours, theirs) = UnixDatagram::pair().expect("a pair");
            ours.set_nonblocking(true).expect("non-blocking");
            theirs.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            let bound = || udp::bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
            let (receive, send) = (bound(), bound());
            udp::receive_trains(&receive).expect("UDP_GRO");
            addresses.push(receive.local_addr().expect("bound"));
            tuns.push(theirs);
            queues.push(QueueIo { tun: Queue::over(ours.into()), receive, send });
        }
        let peer = UdpSocket::bind("127.0.0.2:0").expect("bound");
        peer.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut sessions = Sessions::new(lifetime);
        let table = table(1, &peer, &mut sessions);
        let options = WorkerOptions {
            verify: VerifySource::Subnet,
            offload: Offload::TcpAndUdp,
            busy_poll_us: 0,
            realtime: false,
        };
        let engine = Engine::start(kind(queues), options, table, |error| panic!("{error}")).expect("started");
        let (view, there) = (engine.view(), Session::default());
        Self { engine: Some(engine), view, tuns, addresses, peer, there, sessions, handshakes: 0 }
    }

    fn here(&self) -> Arc<Session> {
        self.view.table().peers()[0].session.clone().expect("sealed")
    }

    fn handshake(&mut self) {
        self.handshakes += 1;
        let (ours, theirs) = (self.here().hello(2), self.there.hello(3));
        let secret = || Secret::new([self.handshakes; 32], [0; 32]);
        let epoch = Agreement::of(&ours, &theirs, Role::Initiator).epoch;
        let install = |session: &Session, ours, theirs, role| {
            session.install(Agreement::of(ours, theirs, role), &secret(), now()).expect("new");
        };
        install(&self.here(), &ours, &theirs, Role::Initiator);
        install(&self.there, &theirs, &ours, Role::Responder);
        self.here().activate(epoch, now());
        self.there.activate(epoch, now());
    }

    /// Writes a packet or a super packet to the TUN of a worker.
    fn write(&self, worker: usize, vnet: VnetHeader, packet: &[u8]) {
        self.tuns[worker].send(&[&vnet.to_bytes()[..], packet].concat()).expect("written");
    }

    /// The packets in the next datagram that the peer receives.
    fn receive(&self) -> Vec<Vec<u8>> {
        let (mut buffer, mut out) = ([0; 2000], [0; 2000]);
        let length = self.peer.recv(&mut buffer).expect("it arrives");
        let datagram = &buffer[..length];
        assert!(length <= usize::from(MTU) + OVERHEAD, "{length} bytes");
        assert_eq!(datagram[0] >> 4, NIBBLE);
        assert!(!datagram.windows(MARK.len()).any(|window| window == MARK), "in clear");
        let packet = self.there.keys().open(datagram, &mut out, now()).expect("sealed for us").to_vec();
        match bundle::entries(&packet) {
            Ok(entries) => entries.map(|entry| entry.expect("whole").to_vec()).collect(),
            Err(_) => vec![packet],
        }
    }

    /// Seals a packet on one of the peer's workers.
    fn seal(&self, worker: usize, packet: &[u8]) -> Vec<u8> {
        let mut out = vec![0; packet.len() + OVERHEAD];
        let train = Train::single(packet);
        self.there.keys().seal(worker, train, &mut out, now()).expect("keys").bytes.to_vec()
    }

    fn send(&self, worker: usize, datagram: &[u8]) {
        self.peer.send_to(datagram, self.addresses[worker]).expect("sent");
    }

    /// Reads the packet that a worker has written to its TUN.
    fn read(&self, worker: usize) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        let length = self.tuns[worker].recv(&mut buffer).expect("it arrives");
        buffer[VnetHeader::LEN..length].to_vec()
    }

    fn sum(&self, count: impl Fn(&Counters) -> u64) -> u64 {
        self.view.accounts().iter().map(|account| count(&account.counters)).sum()
    }

    fn wait_for(&self, reason: DropReason, wanted: u64) {
        self.wait_until(
            |counters| counters.ingress.dropped(reason) + counters.egress.dropped(reason),
            wanted,
        );
    }

    /// Waits, because workers count after they have sent.
    fn wait_until(&self, count: impl Fn(&Counters) -> u64, wanted: u64) {
        for _ in 0..1000 {
            if self.sum(&count) >= wanted {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.sum(&count), wanted);
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
    }
}

/// The route table of host 1, which has the engine; host 2 is the peer.
fn table(generation: u64, peer: &UdpSocket, sessions: &mut Sessions) -> Table {
    let port = peer.local_addr().expect("bound").port();
    let announced = Announced { mode: Mode::Sealed, port: 1, fingerprint: Fingerprint([0; 32]) };
    let lease = |n: u8| Lease {
        name: format!("h{n}"),
        subnets: vec![format!("10.1.{n}.0/24").parse().expect("a prefix")],
        public: Public { v4: Some([127, 0, 0, n].into()), v6: None },
        dialect: Dialect::Hopsack(Abilities { secure: Some(announced), ..Abilities::OURS }),
        revision: 1,
        origin: Origin::default(),
    };
    let mut rib = Rib::default();
    rib.apply(Change::Snapshot { leases: vec![lease(1), lease(2)], revision: 1 });
    let local = Local {
        subnets: lease(1).subnets,
        nets: Vec::new(),
        public: [127, 0, 0, 1].into(),
        port,
        mtu: MTU,
        policy: Policy { mode: Mode::Sealed, require: false },
    };
    let networks = Networks { v4: Some(("10.1.0.0/16".parse().expect("a prefix"), 24)), v6: None };
    let mut table = Table::compile(generation, &rib, &networks, &local);
    table.equip(sessions);
    table
}

/// A datagram from host `from` to host `to`, with the plain text and a number.
fn udp_packet(from: u8, to: u8, number: u32, length: usize) -> Vec<u8> {
    let mut payload = [MARK, &number.to_be_bytes()].concat();
    payload.resize(length.max(payload.len()), 7);
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4([10, 1, from, 2], [10, 1, to, 2], 64).udp(7, 8);
    builder.write(&mut packet, &payload).expect("fits");
    packet
}

const ENGINES: [fn(Vec<QueueIo>) -> Io; 2] = [Io::Batch, |queues| {
    let ring = |io: QueueIo| {
        let ring = io.ring().expect("io_uring");
        (io, ring)
    };
    Io::Uring(queues.into_iter().map(ring).collect())
}];

#[test]
fn packets_leave_sealed_or_not_at_all() {
    for kind in ENGINES {
        let mut harness = Harness::new(kind, Lifetime::default());
        // Without a key the packet goes to the slow path.
        harness.write(0, VnetHeader::default(), &udp_packet(1, 2, 0, 100));
        harness.wait_until(|counters| counters.tun_reads.get(), 1);
        harness.handshake();
        let mut sent = 0;
        for (number, length) in [(1, 30), (2, 60), (3, 1000), (4, usize::from(MTU) - 28)] {
            for worker in 0..WORKERS {
                let packet = udp_packet(1, 2, number, length);
                harness.write(worker, VnetHeader::default(), &packet);
                assert_eq!(harness.receive(), [packet]);
                sent += 1;
            }
        }
        harness.write(0, VnetHeader::default(), &udp_packet(1, 2, 5, usize::from(MTU) - 27));
        harness.wait_for(DropReason::TooBig, 1);
        harness.wait_until(|counters| counters.sealed.get(), sent);
        harness.wait_until(|counters| counters.egress.packets.get(), sent);
        let bytes = WORKERS as u64 * (30 + 60 + 1000 + u64::from(MTU) - 28 + 4 * 28);
        assert_eq!(harness.sum(|counters| counters.egress.bytes.get()), bytes, "of inner packets");
    }
}

#[test]
fn super_packets_and_bundles_are_sealed() {
    for kind in ENGINES {
        let mut harness = Harness::new(kind, Lifetime::default());
        harness.handshake();
        for (stride, count) in [(40u16, 30), (1000, 30), (MTU - 28, 45)] {
            let payload: Vec<u8> =
                MARK.iter().copied().cycle().take(count * usize::from(stride) + 11).collect();
            let mut packet = Vec::new();
            let builder = PacketBuilder::ipv4([10, 1, 1, 2], [10, 1, 2, 2], 64).udp(7, 8);
            builder.write(&mut packet, &payload).expect("fits");
            let vnet = VnetHeader {
                flags: VnetHeader::NEEDS_CSUM,
                gso_type: VnetHeader::GSO_UDP_L4,
                hdr_len: 0,
                gso_size: stride,
                csum_start: 20,
                csum_offset: 6,
            };
            harness.write(1, vnet, &packet);
            let mut received = Vec::new();
            while received.len() < payload.len() {
                received.extend(harness.receive().iter().flat_map(|packet| packet[28..].to_vec()));
            }
            assert_eq!(received, payload, "{stride}");
        }
        harness.wait_until(|counters| counters.egress.packets.get(), 31 + 31 + 46);
        // One send takes 44 sealed datagrams of full size.
        assert_eq!(harness.sum(|counters| counters.egress_sends.get()), 1 + 1 + 2, "trains");
    }
}

#[test]
fn expired_key_seals_nothing() {
    for kind in ENGINES {
        let mut harness = Harness::new(kind, Lifetime { seal_for: Duration::ZERO, ..Lifetime::default() });
        harness.handshake();
        harness.write(0, VnetHeader::default(), &udp_packet(1, 2, 0, 100));
        harness.wait_for(DropReason::NoKey, 1);
        assert_eq!(harness.sum(|counters| counters.egress_sends.get()), 0);
    }
}

#[test]
fn datagrams_must_be_sealed_whole_and_new() {
    for kind in ENGINES {
        let mut harness = Harness::new(kind, Lifetime::default());
        harness.handshake();
        let packet = |number| udp_packet(2, 1, number, 200);
        let recorded: Vec<Vec<u8>> =
            (0..50).zip(0..).map(|(number, worker)| harness.seal(worker % 3, &packet(number))).collect();
        for (number, datagram) in recorded.iter().enumerate() {
            harness.send(number % WORKERS, datagram);
            assert_eq!(harness.read(number % WORKERS), packet(u32::try_from(number).expect("few")));
        }
        // The same datagrams again, to the same worker and to the other one.
        for (number, datagram) in recorded.iter().enumerate().rev() {
            harness.send(number % WORKERS, datagram);
            harness.send((number + 1) % WORKERS, datagram);
        }
        harness.wait_for(DropReason::Replayed, 100);
        for at in [13, 100, 227, recorded[0].len() - 1] {
            let mut flipped = harness.seal(0, &packet(1));
            flipped[at] ^= 0x10;
            harness.send(0, &flipped);
        }
        harness.wait_for(DropReason::Unauthentic, 4);
        let mut small = vec![0; 300];
        let filled = bundle::append(&mut small, 0, &packet(0)).expect("fits");
        for clear in [&packet(0)[..], &small[..filled]] {
            harness.send(1, clear);
        }
        harness.wait_for(DropReason::Cleartext, 2);
        harness.send(0, &harness.seal(0, &harness.seal(0, &packet(0))));
        harness.wait_for(DropReason::UnknownType, 1);
        let mut foreign = harness.seal(0, &packet(0));
        foreign[1] ^= 0x80;
        harness.send(0, &foreign);
        harness.wait_for(DropReason::NoKey, 1);
        harness.send(0, &harness.seal(0, &udp_packet(3, 1, 0, 100)));
        harness.wait_for(DropReason::SpoofedSource, 1);
        harness.send(0, &harness.seal(0, &small[..filled]));
        assert_eq!(harness.read(0), packet(0), "a sealed bundle");
        harness.wait_until(|counters| counters.ingress.packets.get(), 51);
        assert_eq!(harness.sum(|counters| counters.opened.get()), 50 + 1 + 1 + 1);
    }
}

#[test]
fn new_keys_and_tables_lose_no_packet() {
    for kind in ENGINES {
        let mut harness = Harness::new(kind, Lifetime::default());
        harness.handshake();
        let mut generation = 1;
        for number in 0..400u32 {
            let packet = udp_packet(1, 2, number, 100);
            harness.write(0, VnetHeader::default(), &packet);
            if number % 3 == 0 {
                generation += 1;
                let table = table(generation, &harness.peer, &mut harness.sessions);
                drop(harness.view.publish(table));
            }
            if number % 20 == 0 {
                harness.handshake();
            }
            // The peer's replay window would refuse a repeated counter.
            assert_eq!(harness.receive(), [packet]);
            let back = udp_packet(2, 1, number, 100);
            harness.send(0, &harness.seal(0, &back));
            assert_eq!(harness.read(0), back);
        }
        harness.wait_until(|counters| counters.sealed.get(), 400);
        assert_eq!(harness.here().status(now()).map(|status| status.rekeys), Some(20));
    }
}

/// The kernel refuses a message that is sealed already: it is sealed once more, or its sender
/// learns the MTU.
#[test]
fn refused_message_is_never_sent_in_clear() {
    let (ours, _tun) = UnixDatagram::pair().expect("a pair");
    let socket = udp::bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let peer = UdpSocket::bind("127.0.0.2:0").expect("bound");
    peer.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let (table, to) = (table(1, &peer, &mut Sessions::default()), peer.local_addr().expect("bound"));
    let (here, there) = (table.peers()[0].session.clone().expect("sealed"), Session::default());
    for (session, role) in [(&*here, Role::Initiator), (&there, Role::Responder)] {
        let agreement = Agreement::of(&here.hello(1), &there.hello(1), role);
        session
            .install(Agreement { epoch: 1, ..agreement }, &Secret::new([1; 32], [0; 32]), now())
            .expect("new");
        session.activate(1, now());
    }
    let account = Arc::<Account>::default();
    let mut endpoints =
        Endpoints::new(Queue::over(ours.into()), socket, account.clone(), Offload::TcpAndUdp, 0);
    let receive = || {
        let (mut buffer, mut out) = ([0; 2000], [0; 2000]);
        let length = peer.recv(&mut buffer).expect("it arrives");
        there.keys().open(&buffer[..length], &mut out, now()).expect("sealed for us").to_vec()
    };
    let error = std_io::Error::from_raw_os_error;
    let packets: Vec<Vec<u8>> = (0..100).map(|number| udp_packet(1, 2, number, 100)).collect();
    let bytes = packets.concat();

    let sealed = |len, stride| {
        let train = TxMessage::train(0, len, stride, to);
        TxMessage { record: Record { sealed: true, ..train.record }, ..train }
    };
    let train = sealed(bytes.len(), 128);
    endpoints.recover_send(&bytes, &train, &error(libc::EIO), &table, now());
    assert!(packets.iter().all(|packet| receive() == *packet));
    let counters = &account.counters;
    assert_eq!((counters.sealed.get(), counters.egress.bytes.get()), (100, 12_800));
    assert!(!endpoints.may_segment(now()), "as without sealing");

    let mut bundled = vec![0; 600];
    let filled = packets[..3]
        .iter()
        .fold(0, |filled, packet| bundle::append(&mut bundled, filled, packet).expect("it fits"));
    let mut message = sealed(filled, filled);
    (message.record.bundled, message.record.packets) = (true, 3);
    endpoints.recover_send(&bundled[..filled], &message, &error(libc::EMSGSIZE), &table, now());
    assert!(packets[..3].iter().all(|packet| receive() == *packet), "one by one");

    endpoints.recover_send(&packets[0], &sealed(128, 128), &error(libc::EMSGSIZE), &table, now());
    assert_eq!(counters.egress.dropped(DropReason::SendFailed), 1, "it is longer than the interface takes");

    here.forget();
    endpoints.recover_send(&bytes, &train, &error(libc::EIO), &table, now());
    assert_eq!(counters.egress.dropped(DropReason::SendFailed), 101, "no key, no packet");
    assert_eq!(counters.sealed.get(), 103);
}
