//! Shows that the data path does not allocate, with a counting allocator around 100,000 packets in
//! each direction. This test is alone in its binary, because the allocator counts for the whole
//! process.

#[path = "support/counting.rs"]
mod counting;

use counting::allocations;
use etherparse::PacketBuilder;
use hopsack::forward::{
    Arrival, Counters, EgressState, Exit, Frame, IngressState, Reservation, Sessions, Table, ToNet, ToTun,
    Train, TrainMeta, VerifySource, egress, ingress,
};
use hopsack::packet::coalesce::{Coalescer, RUNS};
use hopsack::packet::ecn::Ecn;
use hopsack::packet::split::SPLIT_BUFFER;
use hopsack::packet::{IpPacket, VnetHeader, bundle};
use hopsack::route::{
    Abilities, Announced, Change, Dialect, Fingerprint, Lease, Local, Mode, Networks, Origin, Policy, Public,
    Rib,
};
use hopsack::seal::{Agreement, OVERHEAD, Role, Secret, Session, Suite};
use hopsack::time::Nanos;

struct Net {
    room: Vec<u8>,
    packets: u64,
}

struct Room<'a> {
    net: &'a mut Net,
    train: TrainMeta,
}

impl ToNet for Net {
    type Reservation<'a> = Room<'a>;
    fn reserve<'a>(&'a mut self, _exit: Exit<'a>, train: TrainMeta) -> Room<'a> {
        Room { net: self, train }
    }
}

impl Reservation for Room<'_> {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.net.room[..self.train.bytes]
    }
    fn commit(self, bytes: usize) {
        let Self { net, train } = self;
        net.packets += Train { bytes: &net.room[..bytes], stride: train.stride }.count();
    }
}

/// Merges the packets that it gets, and counts packets and writes.
struct Tun {
    coalescer: Coalescer,
    packets: u64,
    writes: u64,
}

impl ToTun for Tun {
    fn push(&mut self, packet: IpPacket<'_>) {
        self.coalescer.push(packet).expect("there is room after each flush");
    }
    fn reply(&mut self, _error: &[u8]) {
        self.writes += 1;
    }
}

impl Tun {
    fn flush(&mut self) {
        for run in self.coalescer.finish() {
            self.packets += run.packets;
            self.writes += 1;
        }
        self.coalescer.clear();
    }
}

#[test]
fn the_data_path_does_not_allocate() {
    /// Number of the host with sealed packets.
    const SEALED: u8 = 79;
    let announced = Announced { mode: Mode::Sealed, port: 8286, fingerprint: Fingerprint([0; 32]) };
    let lease = |n: u8| Lease {
        name: format!("h{n}"),
        subnets: vec![format!("10.1.{n}.0/24").parse().expect("a prefix")],
        public: Public { v4: Some([192, 0, 2, n].into()), v6: None },
        dialect: Dialect::Hopsack(Abilities {
            secure: (n == SEALED).then_some(announced),
            ..Abilities::OURS
        }),
        revision: 1,
        origin: Origin::default(),
    };
    let mut rib = Rib::default();
    rib.apply(Change::Snapshot { leases: (1..200).map(lease).collect(), revision: 1 });
    let local = Local {
        subnets: lease(1).subnets,
        nets: Vec::new(),
        public: [192, 0, 2, 1].into(),
        port: 8285,
        mtu: 1472,
        policy: Policy { mode: Mode::Sealed, require: false },
    };
    let networks = Networks { v4: Some(("10.1.0.0/16".parse().expect("a prefix"), 24)), v6: None };
    let mut table = Table::compile(1, &rib, &networks, &local);
    table.equip(&mut Sessions::default());

    let here = table.peer_by_address([192, 0, 2, SEALED].into()).and_then(|peer| peer.session.clone());
    let (here, there) = (here.expect("sealed"), Session::default());
    for (session, role) in [(&*here, Role::Initiator), (&there, Role::Responder)] {
        let agreement = Agreement { suite: Suite::Aes256Gcm, epoch: 1, role, ours: 1, theirs: 1 };
        session.install(agreement, &Secret::new([7; 32], [0; 32]), Nanos(0)).expect("new");
        session.activate(1, Nanos(0));
    }

    let udp = |src, dst| {
        let mut out = Vec::new();
        PacketBuilder::ipv4(src, dst, 64).udp(1, 2).write(&mut out, &[7; 1000]).expect("fits");
        out
    };
    let (out, lost) = (udp([10, 1, 1, 2], [10, 1, 77, 9]), udp([10, 1, 1, 2], [10, 1, 250, 9]));
    let (back, spoofed) = (udp([10, 1, 77, 9], [10, 1, 1, 2]), udp([10, 1, 78, 9], [10, 1, 1, 2]));
    let (counters, mut egress_state) = (Counters::default(), EgressState::new(Nanos(0)));
    let mut net = Net { room: vec![0; SPLIT_BUFFER], packets: 0 };
    let mut tun = Tun { coalescer: Coalescer::new(RUNS), packets: 0, writes: 0 };
    // A super packet of 44 segments, and a train of 44 packets from the peer.
    let vnet = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_UDP_L4,
        hdr_len: 0,
        gso_size: 1000,
        csum_start: 20,
        csum_offset: 6,
    };
    let mut large = vnet.to_bytes().to_vec();
    let builder = PacketBuilder::ipv4([10, 1, 1, 2], [10, 1, 77, 9], 64).udp(1, 2);
    builder.write(&mut large, &[7; 44_000]).expect("fits");
    let train = back.repeat(44);
    let train = Train { bytes: &train, stride: back.len() };
    // Small packets in a bundle, which a router has marked on the way.
    let (mut bundled, mut filled) = (vec![0; 1472], 0);
    let mut small = Vec::new();
    let builder = PacketBuilder::ipv4([10, 1, 77, 9], [10, 1, 1, 2], 64).udp(1, 2);
    builder.write(&mut small, &[7; 64]).expect("fits");
    small[1] = Ecn::Ect0 as u8;
    while let Some(longer) = bundle::append(&mut bundled, filled, &small) {
        filled = longer;
    }
    let bundled = &bundled[..filled];
    let (verify, mut state) = (VerifySource::Subnet, IngressState::default());
    let arrival = |train| Arrival { from: [192, 0, 2, 77].into(), ecn: Ecn::Ce, train };
    let unmarked = |train| Arrival { ecn: Ecn::NotEct, ..arrival(train) };
    // A train of 44 packets from the host with sealed packets.
    let secret = udp([10, 1, SEALED, 9], [10, 1, 1, 2]).repeat(44);
    let secret = Train { bytes: &secret, stride: back.len() };
    let mut datagrams = vec![0; secret.bytes.len() + 44 * OVERHEAD];
    let mut sealed_state = IngressState::default();
    let mut sealed_turn = |now, tun: &mut Tun| {
        let _ = here.keys().seal(0, secret, &mut datagrams, now).expect("keys");
        let train = there.keys().seal(0, secret, &mut datagrams, now).expect("keys");
        sealed_state.set_time(now);
        let arrival = Arrival { from: [192, 0, 2, SEALED].into(), ecn: Ecn::NotEct, train };
        ingress(&table, arrival, verify, &mut sealed_state, &counters, tun);
    };
    // The first access of a thread to a session allocates an entry in arc-swap's list.
    sealed_turn(Nanos(0), &mut tun);
    tun.flush();

    let before = allocations();
    for turn in 0..50_000u64 {
        let now = Nanos(turn * 1_000_000);
        for bytes in [&out, &lost] {
            egress(&table, Frame::Bare(bytes), now, &mut egress_state, &counters, &mut net, &mut tun);
        }
        if turn % 50 == 0 {
            egress(&table, Frame::Virtio(&large), now, &mut egress_state, &counters, &mut net, &mut tun);
            ingress(&table, unmarked(train), verify, &mut state, &counters, &mut tun);
            let bundled = arrival(Train::single(bundled));
            ingress(&table, bundled, verify, &mut state, &counters, &mut tun);
            sealed_turn(now, &mut tun);
        }
        for bytes in [&back, &spoofed] {
            let arrival = unmarked(Train::single(bytes));
            ingress(&table, arrival, verify, &mut state, &counters, &mut tun);
        }
        tun.flush();
    }
    let allocated = allocations() - before;
    assert_eq!(allocated, 0);
    assert_eq!(net.packets, 50_000 + 1000 * 44, "all packets were sent");
    assert_eq!(tun.packets, 50_000 + 1000 * (44 + 15) + 1001 * 44);
    assert!((51_001..80_000).contains(&tun.writes), "there are a few ICMP errors too: {} writes", tun.writes);
}
