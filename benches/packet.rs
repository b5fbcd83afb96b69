//! Measures the pure modules: nanoseconds and allocations per operation, without the kernel. It
//! does not need root.
//!
//! Throughput counts bytes of IP packets (checksum, split, coalesce) or packets (all others). All
//! inputs are in the cache, which they are not behind a real kernel. So the results are lower
//! bounds, which can be compared with each other.

#[path = "../tests/support/counting.rs"]
mod counting;

use std::cell::Cell;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use counting::allocations;
use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use etherparse::PacketBuilder;

use hopsack::forward::{
    self, Arrival, Counters, EgressState, Exit, Frame, IngressState, Reservation, Table, ToNet, ToTun, Train,
    TrainMeta, VerifySource,
};
use hopsack::packet::checksum::{Sum, checksum};
use hopsack::packet::coalesce::{Coalescer, RUNS};
use hopsack::packet::ecn::Ecn;
use hopsack::packet::split::{SPLIT_BUFFER, split};
use hopsack::packet::{IpPacket, VnetHeader, bundle, protocol};
use hopsack::route::{Abilities, Change, Dialect, Lease, Local, Networks, Origin, Policy, Public, Rib};
use hopsack::seal::{Agreement, OVERHEAD, Role, Secret, Session, Suite};
use hopsack::time::Nanos;

/// The inner MTU of an underlay of 1500 bytes.
const MTU: usize = 1472;
/// Bytes of an IPv4 header and a TCP header with timestamps.
const TCP_HEADERS: usize = 52;
const OURS: [u8; 4] = [10, 0, 0, 2];
const THEIRS: [u8; 4] = [10, 0, 1, 2];
const LEASES: u32 = 10_000;

criterion_group!(benches, checksums, parse, lookup, splits, coalesces, bundling, seals, forwarding);
criterion_main!(benches);

/// Number of operations for which allocations are counted, after one that warms up.
const COUNTED: u64 = 100;

/// Measures an operation, and counts its allocations.
fn measure<O>(group: &mut BenchmarkGroup<'_, WallTime>, name: BenchmarkId, mut operation: impl FnMut() -> O) {
    measure_with(group, name, || (), |()| operation());
}

/// Measures an operation that needs a new input each time. Making the input is not measured.
fn measure_with<I, O>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: BenchmarkId,
    input: impl Fn() -> I,
    mut operation: impl FnMut(&mut I) -> O,
) {
    // A benchmark that the filter excludes is not counted either.
    let counted = Cell::new(None);
    group.bench_function(name, |b| {
        if counted.get().is_none() {
            black_box(operation(&mut input()));
            let count = |_| {
                let mut input = input();
                let before = allocations();
                black_box(operation(&mut input));
                allocations() - before
            };
            counted.set(Some((0..COUNTED).map(count).sum::<u64>()));
        }
        if size_of::<I>() == 0 {
            b.iter(|| operation(&mut input()));
        } else {
            b.iter_batched_ref(&input, &mut operation, BatchSize::PerIteration);
        }
    });
    if let Some(counted) = counted.get() {
        println!("                        allocs: {} an operation", counted as f64 / COUNTED as f64);
    }
}

fn named(name: &str) -> BenchmarkId {
    BenchmarkId::from_parameter(name)
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for length in [64, 1400, 65_536] {
        let bytes = vec![0x5a_u8; length];
        let mut copy = vec![0_u8; length];
        group.throughput(Throughput::Bytes(length as u64));
        let name = |what: &str| BenchmarkId::new(what, length);
        measure(&mut group, name("hopsack"), || checksum(black_box(&bytes)));
        measure(&mut group, name("etherparse"), || {
            etherparse::checksum::Sum16BitWords::new().add_slice(black_box(&bytes)).ones_complement()
        });
        measure(&mut group, name("copied"), || {
            Sum::default().add_copied(black_box(&bytes), black_box(&mut copy))
        });
        measure(&mut group, name("memcpy"), || black_box(&mut copy).copy_from_slice(black_box(&bytes)));
    }
    group.finish();
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(1));
    for (name, bytes) in [("v4", udp(OURS, THEIRS, 64)), ("v6", udp_v6(64))] {
        measure(&mut group, named(name), || IpPacket::parse(black_box(&bytes)).map(|packet| packet.dst()));
    }
    group.finish();
}

fn lookup(c: &mut Criterion) {
    let table = table();
    // The stride visits subnets all over the table, so that neither the cache nor the branch
    // predictor can guess the next.
    let addresses: Vec<IpAddr> = (0..LEASES).map(|n| subnet_of(n * 7919 % LEASES, 9).into()).collect();
    let mut group = c.benchmark_group("fib");
    group.throughput(Throughput::Elements(u64::from(LEASES)));
    measure(&mut group, BenchmarkId::new("lookup", LEASES), || {
        addresses.iter().filter(|dst| table.lookup(**dst).is_some()).count()
    });
    group.finish();
}

fn splits(c: &mut Criterion) {
    let mut group = c.benchmark_group("split");
    let mut out = vec![0; SPLIT_BUFFER];
    // 64 KiB, as a pod without `gso_max_size` sends them.
    let payload = 65_535 - TCP_HEADERS;
    let (vnet, bytes) = super_packet(payload);
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    measure(&mut group, named("tcp 64 KiB"), || {
        let packet = IpPacket::parse(black_box(&bytes)).expect("well formed");
        split(&vnet, packet, &mut out).map(|train| train.stride)
    });
    let (vnet, bytes) = super_packet(MTU - TCP_HEADERS);
    let vnet = VnetHeader { gso_type: VnetHeader::GSO_NONE, gso_size: 0, ..vnet };
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    measure(&mut group, named("one partial checksum"), || {
        let packet = IpPacket::parse(black_box(&bytes)).expect("well formed");
        split(&vnet, packet, &mut out).map(|train| train.stride)
    });
    group.finish();
}

fn coalesces(c: &mut Criterion) {
    let mut group = c.benchmark_group("coalesce");
    let (vnet, bytes) = super_packet(44 * (MTU - TCP_HEADERS));
    let mut out = vec![0; SPLIT_BUFFER];
    let train =
        split(&vnet, IpPacket::parse(&bytes).expect("well formed"), &mut out).expect("it can be split");
    let bulk: Vec<Vec<u8>> = train.datagrams().map(<[u8]>::to_vec).collect();
    let small =
        |flows: u8| -> Vec<Vec<u8>> { (0..64).map(|n| udp([10, 0, 1, n % flows], OURS, 64)).collect() };
    for (name, packets) in
        [("44 x 1472, TCP", bulk), ("64 x 92, UDP, 1 flow", small(1)), ("64 x 92, UDP, 32 flows", small(32))]
    {
        let mut coalescer = Coalescer::new(RUNS);
        group.throughput(Throughput::Bytes(packets.iter().map(|packet| packet.len() as u64).sum()));
        measure(&mut group, named(name), || {
            for packet in &packets {
                let packet = IpPacket::parse(black_box(packet)).expect("well formed");
                coalescer.push(packet).expect("room");
            }
            let written: usize = coalescer.finish().map(|run| black_box(run.bytes).len()).sum();
            coalescer.clear();
            written
        });
    }
    group.finish();
}

/// Packets in a train, as a super packet makes them.
const TRAIN: usize = 44;

fn seals(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal");
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let [here, there] = [Role::Initiator, Role::Responder].map(|role| session(suite, role));
        for length in [64, MTU - OVERHEAD] {
            let stride = length + OVERHEAD;
            let packets = vec![7_u8; TRAIN * length];
            let train = Train { bytes: &packets, stride: length };
            let (mut datagrams, mut out) = (vec![0; TRAIN * stride], vec![0; length]);
            group.throughput(Throughput::Elements(TRAIN as u64));
            let name = |what: &str| BenchmarkId::new(format!("{what}, {}", suite.name()), length);
            measure(&mut group, name("seal"), || {
                here.keys().seal(0, black_box(train), &mut datagrams, Nanos(0)).is_ok()
            });
            let sealed = || {
                let mut datagrams = vec![0; TRAIN * stride];
                here.keys().seal(0, train, &mut datagrams, Nanos(0)).expect("keys");
                datagrams
            };
            measure_with(&mut group, name("open"), sealed, |train: &mut Vec<u8>| {
                for datagram in train.chunks(stride) {
                    let opened = there.keys().open(black_box(datagram), &mut out, Nanos(0));
                    black_box(opened).expect("the datagram is authentic and new");
                }
            });
        }
    }
    group.finish();
}

fn session(suite: Suite, role: Role) -> Session {
    let session = Session::default();
    let agreement = Agreement { suite, epoch: 1, role, ours: 1, theirs: 1 };
    session.install(agreement, &Secret::new([7; 32], [0; 32]), Nanos(0)).expect("new");
    session.activate(1, Nanos(0));
    session
}

fn bundling(c: &mut Criterion) {
    let mut group = c.benchmark_group("bundle");
    let packet = udp(OURS, THEIRS, 64);
    let (made, stride) = bundles(&packet, 44);
    let mut out = vec![0; made.len().next_multiple_of(stride)];
    group.throughput(Throughput::Elements(44));
    measure(&mut group, named("44 x 92 written"), || {
        let (mut at, mut filled) = (0, 0);
        for _ in 0..44 {
            let packet = black_box(&packet[..]);
            filled = bundle::append(&mut out[at..][..stride], filled, packet).unwrap_or_else(|| {
                bundle::pad(&mut out[at..][..stride], filled);
                at += stride;
                bundle::append(&mut out[at..][..stride], 0, packet).expect("it fits into an empty bundle")
            });
        }
        at + filled
    });
    let train = Train { bytes: &made, stride };
    measure(&mut group, named("44 x 92 read"), || {
        let bundles = black_box(train).datagrams().filter_map(|datagram| bundle::entries(datagram).ok());
        bundles.flatten().flatten().map(|packet| black_box(packet).len()).sum::<usize>()
    });
    group.finish();
}

/// Bundles `count` copies of a packet. All bundles but the last are padded to the MTU. Returns the
/// bytes, and the length of one bundle.
fn bundles(packet: &[u8], count: usize) -> (Vec<u8>, usize) {
    let (mut bytes, mut at, mut filled) = (vec![0; count * MTU], 0, 0);
    for _ in 0..count {
        filled = bundle::append(&mut bytes[at..at + MTU], filled, packet).unwrap_or_else(|| {
            bundle::pad(&mut bytes[at..at + MTU], filled);
            at += MTU;
            bundle::append(&mut bytes[at..at + MTU], 0, packet).expect("it fits into an empty bundle")
        });
    }
    bytes.truncate(at + filled);
    (bytes, MTU)
}

fn forwarding(c: &mut Criterion) {
    let (table, counters) = (table(), Counters::default());
    let mut sink = Sink;
    let mut group = c.benchmark_group("forward");
    let out = udp(OURS, THEIRS, 64);
    let (mut state, mut net) = (EgressState::new(Nanos(0)), Net(vec![0; SPLIT_BUFFER]));
    group.throughput(Throughput::Elements(1));
    measure(&mut group, named("egress"), || {
        let frame = Frame::Bare(black_box(&out));
        forward::egress(&table, frame, Nanos(0), &mut state, &counters, &mut net, &mut sink);
    });
    let packet = udp(THEIRS, OURS, 64);
    let train: Vec<u8> = packet.iter().copied().cycle().take(44 * packet.len()).collect();
    let train = Train { bytes: &train, stride: packet.len() };
    let (verify, mut ingress_state) = (VerifySource::Subnet, IngressState::default());
    let arrival = |ecn, train| Arrival { from: public_of(1).into(), ecn, train };
    group.throughput(Throughput::Elements(train.count()));
    measure(&mut group, named("ingress, a train of 44"), || {
        let arrival = arrival(Ecn::NotEct, black_box(train));
        forward::ingress(&table, arrival, verify, &mut ingress_state, &counters, &mut sink);
    });
    // ECN-capable packets that a router has marked.
    let ecn_capable: Vec<u8> = {
        let mut packet = packet.clone();
        packet[1] = Ecn::Ect0 as u8;
        packet.iter().copied().cycle().take(44 * packet.len()).collect()
    };
    let ecn_capable = Train { bytes: &ecn_capable, stride: packet.len() };
    measure(&mut group, named("ingress, a train of 44, marked"), || {
        let arrival = arrival(Ecn::Ce, black_box(ecn_capable));
        forward::ingress(&table, arrival, verify, &mut ingress_state, &counters, &mut sink);
    });
    // The same 44 packets in three bundles.
    let (bundles, stride) = bundles(&packet, 44);
    let bundles = Train { bytes: &bundles, stride };
    measure(&mut group, named("ingress, 44 in bundles"), || {
        let arrival = arrival(Ecn::NotEct, black_box(bundles));
        forward::ingress(&table, arrival, verify, &mut ingress_state, &counters, &mut sink);
    });
    let mut merging = Merging(Coalescer::new(RUNS));
    measure(&mut group, named("ingress, a train of 44, coalesced"), || {
        let arrival = arrival(Ecn::NotEct, black_box(train));
        forward::ingress(&table, arrival, verify, &mut ingress_state, &counters, &mut merging);
        let written: usize = merging.0.finish().map(|run| black_box(run.bytes).len()).sum();
        merging.0.clear();
        written
    });
    group.finish();
}

/// An overlay device that discards all packets.
struct Sink;

/// A network that discards all datagrams.
struct Net(Vec<u8>);

/// Room for one train in a [`Net`].
struct Room<'a> {
    net: &'a mut Net,
    exit: Exit<'a>,
    train: TrainMeta,
}

impl ToNet for Net {
    type Reservation<'a> = Room<'a>;
    fn reserve<'a>(&'a mut self, exit: Exit<'a>, train: TrainMeta) -> Room<'a> {
        Room { net: self, exit, train }
    }
}

impl Reservation for Room<'_> {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.net.0[..self.train.bytes]
    }
    fn commit(self, bytes: usize) {
        black_box((self.exit, &self.net.0[..bytes], self.train.stride));
    }
}

impl ToTun for Sink {
    fn push(&mut self, packet: IpPacket<'_>) {
        black_box(packet);
    }
    fn reply(&mut self, error: &[u8]) {
        black_box(error);
    }
}

/// An overlay device that merges the packets that it gets.
struct Merging(Coalescer);

impl ToTun for Merging {
    fn push(&mut self, packet: IpPacket<'_>) {
        self.0.push(packet).expect("room");
    }
    fn reply(&mut self, error: &[u8]) {
        black_box(error);
    }
}

fn udp(src: [u8; 4], dst: [u8; 4], payload: usize) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ipv4(src, dst, 63).udp(7, 9).write(&mut out, &vec![0x5a; payload]).expect("fits");
    out
}

fn udp_v6(payload: usize) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 63)
        .udp(7, 9)
        .write(&mut out, &vec![0x5a; payload])
        .expect("fits");
    out
}

/// A TCP super packet with timestamps, as a TUN read delivers it.
fn super_packet(payload: usize) -> (VnetHeader, Vec<u8>) {
    let mut bytes = Vec::new();
    let payload: Vec<u8> = (0..payload).map(|n| n.to_le_bytes()[0]).collect();
    PacketBuilder::ipv4(THEIRS, OURS, 63)
        .tcp(40_000, 5201, 1, 501)
        .ack(7)
        .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
        .expect("twelve bytes")
        .write(&mut bytes, &payload)
        .expect("fits");
    let partial = Sum::default()
        .add_pseudo_header(THEIRS.into(), OURS.into(), protocol::TCP, bytes.len() - 20)
        .partial();
    bytes[36..38].copy_from_slice(&partial);
    let gso_size = u16::try_from(MTU - TCP_HEADERS).expect("short");
    let vnet = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        hdr_len: 52,
        gso_size,
        csum_start: 20,
        csum_offset: 16,
    };
    (vnet, bytes)
}

/// An address in the subnet of host `n`.
fn subnet_of(n: u32, host: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, host).to_bits() + (n << 8))
}

fn public_of(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() + n)
}

/// A table of [`LEASES`] hosts, of which host 0 is our own.
fn table() -> Table {
    let lease = |n: u32| Lease {
        name: format!("h{n}"),
        subnets: vec![format!("{}/24", subnet_of(n, 0)).parse().expect("a prefix")],
        public: Public { v4: Some(public_of(n)), v6: None },
        dialect: Dialect::Hopsack(Abilities::OURS),
        revision: 1,
        origin: Origin::default(),
    };
    let mut rib = Rib::default();
    rib.apply(Change::Snapshot { leases: (0..LEASES).map(lease).collect(), revision: 1 });
    let ours = lease(0);
    let mtu = u16::try_from(MTU).expect("short");
    let local = Local {
        subnets: ours.subnets,
        nets: Vec::new(),
        public: public_of(0).into(),
        port: 8285,
        mtu,
        policy: Policy::default(),
    };
    let networks = Networks { v4: Some(("10.0.0.0/8".parse().expect("a prefix"), 24)), v6: None };
    Table::compile(1, &rib, &networks, &local)
}
