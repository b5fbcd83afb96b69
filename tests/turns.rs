//! What the fast engines promise of a turn, counted with an engine in this process: few system calls for many packets, no
//! allocation, and an end that is told when its ring breaks. Alone in its binary, because the counting allocator counts for
//! the whole process.

#[path = "support/counting.rs"]
mod counting;
mod support;

use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::time::Duration;

use counting::allocations;
use etherparse::PacketBuilder;
use hopsack::engine::{Engine, Io, QueueIo, Rules, View, WorkerError};
use hopsack::forward::VerifySource;
use hopsack::lab::{Lab, Options};
use hopsack::route::{Abilities, Change, Dialect, Fib, Lease, Local, Networks, Policy, Public, Rib};
use hopsack::sys::netns::in_netns;
use hopsack::sys::tun::{Offload, Queue};
use hopsack::sys::udp;
use support::{HOPSACK, eventually, run};

/// Packets that stand in a queue at once: a TUN holds 500.
const BACKLOG: u64 = 480;
const RULES: Rules = Rules { verify: VerifySource::Subnet, offload: Offload::TcpAndUdp, busy_poll_us: 0 };

/// A host of which this process is the daemon: `pods` send, and `peer` is the other host.
struct Host {
    pods: UdpSocket,
    peer: UdpSocket,
    ends: QueueIo,
    _lab: Lab,
}

fn host(label: &str) -> Host {
    let lab = Lab::create(Options { hosts: 1, ..Options::unique(label, HOPSACK) })
        .expect("these tests need root (or a user namespace), /dev/net/tun, ip and ping: run scripts/test");
    let netns = lab.host(1).netns.clone();
    let tun = in_netns(&netns, || Queue::open("t0")).expect("netns").expect("a queue");
    assert_eq!(tun.set_offload(Offload::TcpAndUdp).expect("Linux 6.2"), Offload::TcpAndUdp);
    for command in [
        "ip link set lo up",
        "ip addr add 10.1.1.1/24 dev t0",
        "ip link set t0 up",
        "ip route add 10.1.0.0/16 dev t0",
    ] {
        run(&netns, &command.split(' ').collect::<Vec<_>>());
    }
    let at = |address: &str| -> UdpSocket {
        let address: SocketAddr = address.parse().expect("an address");
        in_netns(&netns, move || udp::bind(address)).expect("netns").expect("bound")
    };
    let receive = at("127.0.0.1:8285");
    let send = receive.try_clone().expect("a descriptor");
    let ends = QueueIo { tun, receive, send };
    Host { pods: at("10.1.1.1:7000"), peer: at("127.0.0.2:8285"), ends, _lab: lab }
}

/// What knows this host, 127.0.0.1 with 10.1.1.0/24, and one peer, 127.0.0.2 with 10.1.2.0/24.
fn fib() -> Fib {
    let lease = |n: u8| Lease {
        name: format!("h{n}"),
        subnets: vec![format!("10.1.{n}.0/24").parse().expect("a prefix")],
        public: Public { v4: Some([127, 0, 0, n].into()), v6: None },
        dialect: Dialect::Hopsack(Abilities::OURS),
        revision: 1,
    };
    let mut rib = Rib::default();
    rib.apply(Change::Snapshot { leases: (1..3).map(lease).collect(), revision: 1 });
    let local = Local {
        subnets: lease(1).subnets,
        public: [127, 0, 0, 1].into(),
        port: 8285,
        mtu: 1472,
        policy: Policy::default(),
    };
    let networks = Networks { v4: Some(("10.1.0.0/16".parse().expect("a prefix"), 24)), v6: None };
    Fib::compile(1, &rib, &networks, &local)
}

impl Host {
    /// The host's ends once more.
    fn ends(&self) -> QueueIo {
        let QueueIo { tun, receive, send } = &self.ends;
        QueueIo {
            tun: tun.try_clone().expect("a descriptor"),
            receive: receive.try_clone().expect("a descriptor"),
            send: send.try_clone().expect("a descriptor"),
        }
    }

    /// As many packets each way as queues hold.
    fn fill(&self, inner: &[u8]) {
        let (pod, host) = (SocketAddr::from(([10, 1, 2, 9], 7)), SocketAddr::from(([127, 0, 0, 1], 8285)));
        for _ in 0..BACKLOG {
            self.pods.send_to(&[7; 64], pod).expect("sent");
            self.peer.send_to(inner, host).expect("sent");
        }
    }
}

/// Packets each way, and system calls.
fn counts(view: &View) -> [u64; 3] {
    let counters = &view.accounts()[0].counters;
    [counters.egress.packets.get(), counters.ingress.packets.get(), counters.system_calls.get()]
}

#[test]
fn turns_are_few_allocate_nothing_and_end_with_their_ring() {
    let mut inner = Vec::new();
    let builder = PacketBuilder::ipv4([10, 1, 2, 9], [10, 1, 1, 1], 64).udp(7, 7000);
    builder.write(&mut inner, &[7; 64]).expect("fits");
    let host = host("turns");

    // What stood in the queues before the engine came, of 64 bytes each: many by one system call.
    host.fill(&inner);
    let (ends, ring) = (host.ends(), host.ends.ring().expect("io_uring"));
    let ring_descriptor = ring.as_raw_fd();
    let (failure, failed) = mpsc::channel();
    let engine = Engine::start(Io::Uring(vec![(ends, ring)]), RULES, fib(), move |error| {
        let _ = failure.send(error);
    });
    let engine = engine.expect("started");
    let view = engine.view();
    let has_moved = |count| {
        let [egress, ingress, _] = counts(&view);
        egress >= count && ingress >= count
    };
    eventually("the backlog has been moved", || has_moved(BACKLOG));
    let [egress, ingress, calls] = counts(&view);
    let allowed = (egress + ingress) * 11 / 160 + 8;
    assert!(calls <= allowed, "{calls} system calls for {egress} and {ingress} packets");

    // The same again, with the engine at work and warm.
    let before = allocations();
    for round in 2..50 {
        host.fill(&inner);
        while !has_moved(round * BACKLOG) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(allocations() - before, 0, "allocations in 46,000 packets");

    // The ring's descriptor becomes something else.
    let null = File::open("/dev/null").expect("it is there");
    // SAFETY: both descriptors are open; the engine goes on to own the second number.
    assert!(unsafe { libc::dup2(null.as_raw_fd(), ring_descriptor) } >= 0);
    host.fill(&inner);
    let error = failed.recv_timeout(Duration::from_secs(10)).expect("it says so");
    assert!(matches!(error, WorkerError::System { call: "io_uring_enter", .. }), "{error}");
    engine.stop();
}
