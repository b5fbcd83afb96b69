//! Whole nodes in virtual time: an etcd in memory, a kernel in memory, no packets. Hours pass in
//! milliseconds.

use std::net::IpAddr;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::store_source::StoreSource;
use super::{Node, NodeError};
use crate::api::ProblemCode;
use crate::config::{BackendChoice, Config, Sources};
use crate::desired::Object;
use crate::netlink::{Address, Detection, Link};
use crate::reconcile::{Kernel, Recording};
use crate::store::etcd::memory::{self, MemoryEtcd};
use crate::sys::Capabilities;

const HOUR: Duration = Duration::from_secs(3600);
/// Longest virtual time for what happens at once or after a backoff.
const PATIENCE: Duration = Duration::from_secs(120);
const ETH0: u32 = 2;

/// A host: its folder, its kernel and its etcd.
struct Host {
    dir: TempDir,
    name: String,
    kernel: Recording,
    etcd: MemoryEtcd,
}

impl Host {
    /// A host with the name `host<number>`, and `192.0.2.<number>` on eth0.
    fn new(etcd: &MemoryEtcd, number: u8) -> Self {
        let kernel = Recording::default();
        let link =
            Link { index: ETH0, name: "eth0".into(), mtu: 1500, up: true, carrier: true, ..Link::default() };
        kernel.host().links.push(link);
        let dir = tempfile::tempdir().expect("a folder");
        let host = Self { dir, name: format!("host{number}"), kernel, etcd: etcd.clone() };
        host.set_address([192, 0, 2, number].into());
        host
    }

    /// Replaces the addresses of eth0.
    fn set_address(&self, ip: IpAddr) {
        let net = format!("{ip}/24").parse().expect("a prefix");
        self.kernel.host().addresses =
            vec![Address { index: ETH0, net, is_lasting: true, detection: Detection::Done }];
        self.kernel.notify();
    }

    fn set_mtu(&self, mtu: u32) {
        self.kernel.host().links[0].mtu = mtu;
        self.kernel.notify();
    }

    fn config(&self) -> Config {
        let path = |name: &str| self.dir.path().join(name).to_string_lossy().into_owned();
        let options = vec![
            ("node", "name", self.name.clone()),
            ("node", "state_dir", path("state")),
            ("node", "run_dir", path("run")),
            ("node", "subnet_env", path("subnet.env")),
            ("metrics", "listen", String::new()),
        ];
        let file = self.dir.path().join("hopsack.toml");
        std::fs::write(&file, "").expect("written");
        let mut config =
            Sources { file: Some(file), environment: Vec::new(), options }.load().expect("valid");
        config.overlay.backend = BackendChoice::Null;
        config
    }

    async fn start(&self) -> Node {
        let ends = (Kernel::Recording(self.kernel.clone()), StoreSource::Memory(self.etcd.clone()));
        let node = Node::start_on(self.config(), &Capabilities::probe(), ends).await;
        node.expect("it starts").expect("no signal")
    }

    /// The content of subnet.env.
    fn subnet_env(&self) -> String {
        let host = self.kernel.host();
        let file = host.actual.files.get(&self.dir.path().join("subnet.env"));
        file.map(|file| String::from_utf8_lossy(&file.content).into_owned()).unwrap_or_default()
    }
}

fn etcd() -> MemoryEtcd {
    let etcd = MemoryEtcd::new();
    etcd.put("/coreos.com/network/config", r#"{"Network":"10.1.0.0/16"}"#);
    etcd
}

/// Lets a node run for a time.
async fn run(node: &mut Node, time: Duration) {
    let ended = timeout(time, node.serve(&Sources::default(), |_| {})).await;
    assert!(ended.is_err(), "the node ended: {ended:?}");
}

/// Lets two nodes run for a time.
async fn run_both(one: &mut Node, two: &mut Node, time: Duration) {
    tokio::join!(run(one, time), run(two, time));
}

/// Lets a node run until it ends.
async fn end(node: &mut Node) -> NodeError {
    let ended = timeout(PATIENCE, node.serve(&Sources::default(), |_| {})).await;
    ended.expect("it ends").expect_err("with an error")
}

/// Lets a node run until something is true.
async fn until(what: &str, node: &mut Node, is_true: impl Fn(&Node) -> bool) {
    let start = Instant::now();
    while !is_true(node) {
        assert!(start.elapsed() < PATIENCE, "{what}");
        run(node, Duration::from_millis(100)).await;
    }
}

fn has(node: &Node, code: ProblemCode) -> bool {
    node.reports.problems().has(code)
}

#[tokio::test(start_paused = true)]
async fn two_nodes_find_each_other() {
    let etcd = etcd();
    let (host1, host2) = (Host::new(&etcd, 1), Host::new(&etcd, 2));
    let (mut one, mut two) = (host1.start().await, host2.start().await);
    run_both(&mut one, &mut two, Duration::from_secs(5)).await;
    assert_eq!((one.backend.peers(), two.backend.peers()), (1, 1));
    assert_ne!(one.local.subnets, two.local.subnets);
    assert!(host1.subnet_env().contains("FLANNEL_MTU=1500"));
}

#[tokio::test(start_paused = true)]
async fn leases_are_renewed_for_three_days() {
    let etcd = etcd();
    let (host1, host2) = (Host::new(&etcd, 1), Host::new(&etcd, 2));
    let (mut one, mut two) = (host1.start().await, host2.start().await);
    run_both(&mut one, &mut two, 72 * HOUR).await;
    assert_eq!((one.backend.peers(), two.backend.peers()), (1, 1));
    assert!(one.reports.problems().list().is_empty());
}

#[tokio::test(start_paused = true)]
async fn lease_of_a_host_that_is_gone_expires() {
    let etcd = etcd();
    let (host1, host2) = (Host::new(&etcd, 1), Host::new(&etcd, 2));
    let (mut one, two) = (host1.start().await, host2.start().await);
    run(&mut one, Duration::from_secs(5)).await;
    assert_eq!(one.backend.peers(), 1);
    drop(two);
    run(&mut one, 23 * HOUR).await;
    assert_eq!(one.backend.peers(), 1, "the lease lives for a day");
    run(&mut one, 2 * HOUR).await;
    assert_eq!(one.backend.peers(), 0);
}

#[tokio::test(start_paused = true)]
async fn outage_of_etcd_is_a_problem_and_keeps_the_map() {
    let etcd = etcd();
    let (host1, host2) = (Host::new(&etcd, 1), Host::new(&etcd, 2));
    let (mut one, _two) = (host1.start().await, host2.start().await);
    run(&mut one, Duration::from_secs(5)).await;
    etcd.set_link("host1", memory::Link::Refused);
    until("the outage is a problem", &mut one, |node| has(node, ProblemCode::StoreUnavailable)).await;
    run(&mut one, HOUR).await;
    assert_eq!(one.backend.peers(), 1, "the last map stays in use");
    etcd.set_link("host1", memory::Link::Up);
    until("the outage is over", &mut one, |node| !has(node, ProblemCode::StoreUnavailable)).await;
}

#[tokio::test(start_paused = true)]
async fn start_waits_for_etcd() {
    let etcd = etcd();
    let host = Host::new(&etcd, 1);
    etcd.set_link("host1", memory::Link::Refused);
    let mend = async {
        sleep(HOUR).await;
        etcd.set_link("host1", memory::Link::Up);
        Instant::now()
    };
    let (node, mended) = tokio::join!(host.start(), mend);
    assert_eq!(node.backend.peers(), 0);
    assert!(mended.elapsed() <= Duration::from_secs(30), "it tries again within the longest backoff");
}

#[tokio::test(start_paused = true)]
async fn new_address_is_published_and_followed() {
    let etcd = etcd();
    let (host1, host2) = (Host::new(&etcd, 1), Host::new(&etcd, 2));
    let (mut one, _two) = (host1.start().await, host2.start().await);
    run(&mut one, Duration::from_secs(5)).await;
    host1.set_address([192, 0, 2, 99].into());
    until("the address is taken into use", &mut one, |node| {
        node.local.public == IpAddr::from([192, 0, 2, 99])
    })
    .await;
    run(&mut one, Duration::from_secs(5)).await;
    let key = format!("/coreos.com/network/subnets/{}", one.local.subnets[0].to_string().replace('/', "-"));
    let (lease, _) = etcd.value(&key).expect("the lease");
    assert!(lease.contains("192.0.2.99"), "{lease}");
    assert!(!has(&one, ProblemCode::UnderlayAddress));
}

#[tokio::test(start_paused = true)]
async fn missing_address_is_a_problem_until_it_returns() {
    let etcd = etcd();
    let host = Host::new(&etcd, 1);
    let mut node = host.start().await;
    host.kernel.host().addresses.clear();
    host.kernel.notify();
    until("the address is missing", &mut node, |node| has(node, ProblemCode::UnderlayAddress)).await;
    run(&mut node, HOUR).await;
    host.set_address([192, 0, 2, 1].into());
    until("the address is back", &mut node, |node| !has(node, ProblemCode::UnderlayAddress)).await;
    assert_eq!(node.local.public, IpAddr::from([192, 0, 2, 1]));
}

#[tokio::test(start_paused = true)]
async fn mtu_of_the_underlay_reaches_subnet_env() {
    let etcd = etcd();
    let host = Host::new(&etcd, 1);
    let mut node = host.start().await;
    host.set_mtu(1400);
    until("the MTU is followed", &mut node, |node| node.local.mtu == 1400).await;
    assert!(host.subnet_env().contains("FLANNEL_MTU=1400"), "{}", host.subnet_env());
    assert_eq!(node.reconciler.repairs().get(Object::File), 0, "our own change is no repair");
}

#[tokio::test(start_paused = true)]
async fn lease_announces_the_mtu_of_the_underlay() {
    let etcd = etcd();
    let host = Host::new(&etcd, 1);
    host.set_mtu(9000);
    let mut node = host.start().await;
    let key = format!("/coreos.com/network/subnets/{}", node.local.subnets[0].to_string().replace('/', "-"));
    let announces = |mtu: u32| {
        let (lease, _) = etcd.value(&key).expect("the lease");
        lease.contains(&format!("\"LinkMTU\":{mtu}"))
    };
    assert!(announces(9000));
    host.set_mtu(1500);
    until("the lease is written again", &mut node, |_| announces(1500)).await;
    // An outage does not lose a change.
    etcd.set_link("host1", memory::Link::Refused);
    run(&mut node, Duration::from_secs(1)).await;
    host.set_mtu(1400);
    run(&mut node, HOUR).await;
    assert!(announces(1500));
    etcd.set_link("host1", memory::Link::Up);
    until("the lease is written after the outage", &mut node, |_| announces(1400)).await;
}

#[tokio::test(start_paused = true)]
async fn refused_mtu_is_a_problem_until_it_is_in_place() {
    let etcd = etcd();
    let host = Host::new(&etcd, 1);
    let mut node = host.start().await;
    host.kernel.host().refuse = Some(|step| step.object() == Object::File);
    host.set_mtu(1400);
    until("the MTU is refused", &mut node, |node| has(node, ProblemCode::RepairFailed)).await;
    run(&mut node, Duration::from_secs(30)).await;
    assert!(has(&node, ProblemCode::RepairFailed), "the problem stays");
    assert!(host.subnet_env().contains("FLANNEL_MTU=1500"), "{}", host.subnet_env());
    host.kernel.host().refuse = None;
    until("the MTU is in place", &mut node, |node| !has(node, ProblemCode::RepairFailed)).await;
    assert!(host.subnet_env().contains("FLANNEL_MTU=1400"), "{}", host.subnet_env());
}

#[tokio::test(start_paused = true)]
async fn deleted_subnet_env_is_written_again_within_ten_seconds() {
    let etcd = etcd();
    let host = Host::new(&etcd, 1);
    let mut node = host.start().await;
    host.kernel.host().actual.files.clear();
    run(&mut node, Duration::from_secs(11)).await;
    assert!(host.subnet_env().contains("FLANNEL_MTU=1500"));
    assert_eq!(node.reconciler.repairs().get(Object::File), 2, "the file and its copy");
}

#[tokio::test(start_paused = true)]
async fn failed_repair_is_a_problem_until_it_succeeds() {
    let etcd = etcd();
    let host = Host::new(&etcd, 1);
    let mut node = host.start().await;
    host.kernel.host().actual.files.clear();
    host.kernel.host().refuse = Some(|step| step.object() == Object::File);
    until("the repair fails", &mut node, |node| has(node, ProblemCode::RepairFailed)).await;
    host.kernel.host().refuse = None;
    until("the repair succeeds", &mut node, |node| !has(node, ProblemCode::RepairFailed)).await;
}

#[tokio::test(start_paused = true)]
async fn node_ends_when_another_host_takes_its_lease() {
    let etcd = etcd();
    let host = Host::new(&etcd, 1);
    let mut node = host.start().await;
    run(&mut node, Duration::from_secs(5)).await;
    let key = format!("/coreos.com/network/subnets/{}", node.local.subnets[0].to_string().replace('/', "-"));
    etcd.put(&key, r#"{"PublicIP":"192.0.2.66","PublicIPv6":null}"#);
    let error = end(&mut node).await;
    assert!(matches!(error, NodeError::Lost(_)), "{error}");
    assert_eq!(error.exit_code(), 1);
}
