//! Two hosts of a lab without daemons: a TUN device each, and the program as their only data path.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hopsack::fastpath::{Counters, FastPath, Interfaces, Reach, Routes, Settings, routes_of};
use hopsack::forward::Table;
use hopsack::lab::{Host, Lab, Options};
use hopsack::route::{Abilities, Change, Dialect, Lease, Local, Networks, Origin, Policy, Public, Rib};
use hopsack::sys::bpf::interface_index;
use hopsack::sys::netns::in_netns;
use hopsack::sys::tun::{Offload, Queue};
use ipnet::IpNet;

use crate::support::{HOPSACK, run};

const NEEDS: &str = "these tests need root, /dev/net/tun, ip, ping and a Linux from 6.6 on: run scripts/test";
const VALID: Duration = Duration::from_secs(600);

/// One host.
pub struct Side {
    pub netns: String,
    /// A queue of the overlay device, which gets what the program leaves to the daemon.
    pub queue: Queue,
    pub fast: Option<FastPath>,
    /// A bpffs of its own.
    pub directory: PathBuf,
    pub interfaces: Interfaces,
    pub settings: Settings,
    pub routes: Routes,
}

/// Two hosts. The lab and the mounts are removed when this is dropped.
pub struct Pair {
    pub sides: Vec<Side>,
    pub lab: Lab,
    _directory: tempfile::TempDir,
}

/// How the underlay delivers the segments of a super packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    /// As one super packet.
    Whole,
    /// One by one; the veth pair merges them.
    Segments,
}

impl Pair {
    pub fn new(label: &str, underlay: Underlay) -> Self {
        let lab = Lab::create(Options { hosts: 2, ..Options::unique(label, HOPSACK) }).expect(NEEDS);
        let directory = tempfile::tempdir().expect("a directory");
        let sides = (1..=2).map(|n| {
            let side = Side::new(&lab, n, directory.path().join(format!("h{n}")), underlay);
            side.expect(NEEDS)
        });
        let sides = sides.collect();
        let mut pair = Self { sides, lab, _directory: directory };
        pair.sides.iter_mut().for_each(Side::start);
        pair
    }

    pub fn counters(&self) -> [Counters; 2] {
        [0, 1].map(|side: usize| self.sides[side].counters())
    }
}

impl Side {
    fn new(lab: &Lab, n: usize, directory: PathBuf, underlay: Underlay) -> std::io::Result<Self> {
        let netns = lab.host(n).netns.clone();
        let ip = |line: &str| run(&netns, &line.split(' ').collect::<Vec<_>>());
        ip("ip tuntap add dev hopsack0 mode tun vnet_hdr multi_queue");
        let queue = in_netns(&netns, || Queue::open("hopsack0"))??;
        queue.set_offload(Offload::TcpAndUdp)?;
        ip(&format!("ip link set hopsack0 mtu {} up", lab.overlay_mtu()));
        ip(&format!("ip addr add 10.244.{n}.0/32 dev hopsack0"));
        ip("ip route add 10.244.0.0/16 dev hopsack0");
        ip("ip -6 route add fd00:244::/48 dev hopsack0");
        let mut gro = None;
        if underlay == Underlay::Segments {
            ip("ip link add hsgro0 mtu 65535 type veth peer name hsgro1 mtu 65535");
            for end in ["hsgro0", "hsgro1"] {
                ip(&format!("ip link set {end} addrgenmode none"));
                ip(&format!("ip link set {end} arp off up"));
            }
            ip("ethtool -K hsgro0 tso off");
            ip("ethtool -K hsgro1 gro on");
            // The sender cuts what it sends to the underlay.
            ip("ethtool -K eth0 tso off gso off");
            gro = Some("hsgro1".to_owned());
        }
        let index = |name: &'static str| in_netns(&netns, move || interface_index(name))?;
        let hosts = lab.hosts();
        let eth0 = index("eth0")?;
        let local = local(&hosts[n - 1], lab.overlay_mtu());
        let IpAddr::V4(address) = local.public else { panic!("the underlay is IPv4") };
        let settings = Settings {
            address,
            port: local.port,
            verify_source: true,
            overlay: index("hopsack0")?,
            gro: gro.as_ref().map(|_| index("hsgro0")).transpose()?,
            ports: Settings::spread(&[local.port]),
            public_v4: Some(address),
            public_v6: None,
        };
        let table = table(hosts, &local);
        let routes = routes_of(&table, &local.subnets, |_| Reach { underlay: eth0, may_send: true });
        let interfaces = Interfaces { overlay: "hopsack0".into(), underlays: vec!["eth0".into()], gro };
        Ok(Self { netns, queue, fast: None, directory, interfaces, settings, routes })
    }

    /// Loads and attaches the program, as the start of a daemon does.
    pub fn start(&mut self) {
        let Self { netns, directory, interfaces, settings, routes, fast, .. } = self;
        let started = in_netns(netns, || {
            let mut fast = FastPath::open(directory)?;
            assert_eq!(*fast.routes(), if fast.is_adopted() { routes.clone() } else { Routes::new() });
            fast.set(settings)?;
            fast.apply(routes)?;
            fast.renew(VALID)?;
            fast.attach(interfaces)?;
            Ok(fast)
        });
        let started = started.expect("netns").unwrap_or_else(|error: hopsack::fastpath::FastPathError| {
            panic!("{error}: {NEEDS}");
        });
        *fast = Some(started);
    }

    /// Lets go of the program, as the end of a process does.
    pub fn let_go(&mut self) {
        self.fast = None;
    }

    pub fn fast(&mut self) -> &mut FastPath {
        self.fast.as_mut().expect("it was started")
    }

    pub fn is_used(&self, prefix: IpNet) -> bool {
        self.fast.as_ref().expect("it was started").is_used(prefix).expect("a lookup")
    }

    pub fn counters(&self) -> Counters {
        self.fast.as_ref().expect("it was started").counters().expect("counters")
    }

    /// What the daemon would have got since the last call.
    pub fn left_to_daemon(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        let read = || self.queue.read(&mut buffer).ok().map(|length| buffer[..length].to_vec());
        std::iter::from_fn(read).collect()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.fast = None;
        // An unmount removes all pins.
        let _ = Command::new("umount").arg(&self.directory).status();
    }
}

fn local(host: &Host, mtu: u16) -> Local {
    Local {
        subnets: vec![host.subnet_v4.into(), host.subnet_v6.into()],
        nets: Vec::new(),
        public: host.public,
        port: 8285,
        mtu,
        policy: Policy::default(),
    }
}

fn table(hosts: &[Host], local: &Local) -> Table {
    let lease = |host: &Host| {
        let IpAddr::V4(public) = host.public else { panic!("the underlay is IPv4") };
        Lease {
            name: host.name.clone(),
            subnets: vec![host.subnet_v4.into(), host.subnet_v6.into()],
            public: Public { v4: Some(public), v6: None },
            dialect: Dialect::Hopsack(Abilities::OURS),
            revision: 1,
            origin: Origin::default(),
        }
    };
    let mut rib = Rib::default();
    rib.apply(Change::Snapshot { leases: hosts.iter().map(lease).collect(), revision: 1 });
    let networks = Networks {
        v4: Some(("10.244.0.0/16".parse().expect("a prefix"), 24)),
        v6: Some(("fd00:244::/48".parse().expect("a prefix"), 64)),
    };
    Table::compile(1, &rib, &networks, local)
}
