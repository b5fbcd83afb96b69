//! A host without a daemon: a TUN queue, sockets on the loopback interface, and a table with one
//! peer.
//!
//! A test can start an engine between them in its own process.

use std::net::{SocketAddr, UdpSocket};

use hopsack::engine::{QueueIo, WorkerOptions};
use hopsack::forward::{Table, VerifySource};
use hopsack::lab::{Lab, Options};
use hopsack::route::{Abilities, Change, Dialect, Lease, Local, Networks, Origin, Policy, Public, Rib};
use hopsack::sys::netns::in_netns;
use hopsack::sys::tun::{Offload, Queue};
use hopsack::sys::udp;

use crate::support::{HOPSACK, run};

pub const OPTIONS: WorkerOptions = WorkerOptions {
    verify: VerifySource::Subnet,
    offload: Offload::TcpAndUdp,
    busy_poll_us: 0,
    realtime: false,
};

/// The host 127.0.0.1 with the subnet 10.1.1.0/24. Its peer is 127.0.0.2 with the subnet
/// 10.1.2.0/24.
pub struct Host {
    /// Socket of a pod at 10.1.1.1:7000.
    pub pods: UdpSocket,
    /// Socket of the peer's daemon.
    pub peer: UdpSocket,
    /// Descriptors for the engine.
    pub queue_io: QueueIo,
    pub netns: String,
    _lab: Lab,
}

pub fn host(label: &str) -> Host {
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
    let queue_io = QueueIo { tun, receive, send };
    Host { pods: at("10.1.1.1:7000"), peer: at("127.0.0.2:8285"), queue_io, netns, _lab: lab }
}

/// A table with this host and its peer.
pub fn table() -> Table {
    let lease = |n: u8| Lease {
        name: format!("h{n}"),
        subnets: vec![format!("10.1.{n}.0/24").parse().expect("a prefix")],
        public: Public { v4: Some([127, 0, 0, n].into()), v6: None },
        dialect: Dialect::Hopsack(Abilities::OURS),
        revision: 1,
        origin: Origin::default(),
    };
    let mut rib = Rib::default();
    rib.apply(Change::Snapshot { leases: (1..3).map(lease).collect(), revision: 1 });
    let local = Local {
        subnets: lease(1).subnets,
        nets: Vec::new(),
        public: [127, 0, 0, 1].into(),
        port: 8285,
        mtu: 1472,
        policy: Policy::default(),
    };
    let networks = Networks { v4: Some(("10.1.0.0/16".parse().expect("a prefix"), 24)), v6: None };
    Table::compile(1, &rib, &networks, &local)
}

impl Host {
    /// Copies of the descriptors for the engine.
    pub fn queue_io(&self) -> QueueIo {
        let QueueIo { tun, receive, send } = &self.queue_io;
        QueueIo {
            tun: tun.try_clone().expect("a descriptor"),
            receive: receive.try_clone().expect("a descriptor"),
            send: send.try_clone().expect("a descriptor"),
        }
    }
}
