//! The etcd store against a real etcd: joining, keeping, watching, and what befalls an etcd.
//!
//! Each test starts its own etcd (`/usr/bin/etcd`, Debian package etcd-server) on free ports of loopback with its data in
//! a folder of its own, and kills it by its pid. No test asserts a time; waits have a patience, after which they fail.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, PutOptions, Txn, TxnOp};
use hopsack::route::{Dialect, Rib};
use hopsack::store::etcd::EtcdStore;
use hopsack::store::{
    ErrorCode, EtcdSettings, LEASE_TTL, Lost, LostCause, Notice, NoticeCode, Opened, SnapshotError,
    StoreError, Tls, Update, admin,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

const PREFIX: &str = "/coreos.com/network";
const NETWORK: &str = r#"{"Network":"10.1.0.0/16"}"#;
/// For things that take milliseconds on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running etcd.
struct Etcd {
    child: Child,
    port: u16,
    peer_port: u16,
    dir: TempDir,
}

/// Certificates in a folder: a CA, a server's and a client's.
struct Certificates {
    dir: TempDir,
}

impl Certificates {
    fn new() -> Self {
        let key = || rcgen::KeyPair::generate().expect("a key");
        let params = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            rcgen::CertificateParams::new(names).expect("names")
        };
        let (mut ca, ca_key) = (params(&[]), key());
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).expect("signed");
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, pem: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, pem).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("private");
        };
        write("ca.pem", ca_certificate.pem());
        for name in ["server", "client"] {
            let key = key();
            let certificate = params(&["127.0.0.1", name]).signed_by(&key, &issuer).expect("signed");
            write(&format!("{name}.pem"), certificate.pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts an etcd that shows its certificate, and asks for the client's if `mutual`.
    fn etcd(&self, dir: &Path, port: u16, mutual: bool) -> Child {
        let url = format!("https://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{}", free_port());
        let mut etcd = Command::new("etcd");
        etcd.args(["--name", "one", "--log-level", "error", "--logger", "zap", "--data-dir"])
            .arg(dir.join("data"));
        etcd.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        etcd.args(["--initial-cluster", &format!("one={peer}"), "--cert-file"]).arg(self.path("server.pem"));
        etcd.arg("--key-file").arg(self.path("server.key"));
        if mutual {
            etcd.arg("--client-cert-auth").arg("--trusted-ca-file").arg(self.path("ca.pem"));
        }
        etcd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("etcd starts")
    }
}

impl Etcd {
    async fn start() -> Self {
        let (port, peer_port) = (free_port(), free_port());
        let dir = tempfile::tempdir().expect("a folder");
        let child = spawn(dir.path(), port, peer_port);
        let etcd = Self { child, port, peer_port, dir };
        etcd.ready().await;
        etcd
    }

    /// An etcd with a network configuration.
    async fn with(network: &str) -> Self {
        let etcd = Self::start().await;
        etcd.put("config", network).await;
        etcd
    }

    async fn ready(&self) {
        let started = Instant::now();
        loop {
            let mut client = self.client().await;
            let get = client.get("ready?", None);
            if matches!(tokio::time::timeout(Duration::from_secs(1), get).await, Ok(Ok(_))) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "etcd does not answer: is etcd-server installed?");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    async fn client(&self) -> Client {
        Client::connect([self.url()], None).await.expect("a client")
    }

    async fn put(&self, name: &str, value: &str) {
        self.client().await.put(format!("{PREFIX}/{name}"), value, None).await.expect("written");
    }

    async fn delete(&self, name: &str) {
        self.client().await.delete(format!("{PREFIX}/{name}"), None).await.expect("deleted");
    }

    /// A key's value and etcd lease.
    async fn value(&self, name: &str) -> Option<(String, i64)> {
        let response = self.client().await.get(format!("{PREFIX}/{name}"), None).await.expect("read");
        response.kvs().first().map(|kv| (kv.value_str().expect("text").to_owned(), kv.lease()))
    }

    /// Forgets all old revisions.
    async fn compact(&self) {
        let mut client = self.client().await;
        let revision = client.get("x", None).await.expect("read").header().expect("a header").revision();
        client.compact(revision, None).await.expect("compacted");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill").success());
    }

    fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    async fn restart(&mut self) {
        self.child = spawn(self.dir.path(), self.port, self.peer_port);
        self.ready().await;
    }

    /// Restarts where no node looks for it; [`Etcd::come_back`] undoes that.
    async fn restart_elsewhere(&mut self) -> u16 {
        let port = std::mem::replace(&mut self.port, free_port());
        self.restart().await;
        port
    }

    async fn come_back(&mut self, port: u16) {
        self.kill();
        self.port = port;
        self.restart().await;
    }

    /// How many calls of each method etcd has taken.
    fn calls(&self) -> Vec<(&'static str, u64)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("etcd");
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").expect("asked");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answered");
        let methods = ["Range", "Txn", "Put", "LeaseGrant", "LeaseKeepAlive", "LeaseTimeToLive", "Watch"];
        methods.map(|method| (method, calls_of(&text, method))).to_vec()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound").port()
}

fn spawn(dir: &Path, port: u16, peer_port: u16) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("a log");
    Command::new("etcd")
        .args(["--name", "one", "--log-level", "error", "--logger", "zap"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}"), "--data-dir"])
        .arg(dir.join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("etcd starts: apt-get install etcd-server")
}

fn calls_of(metrics: &str, method: &str) -> u64 {
    let name = format!("grpc_method=\"{method}\"");
    let lines = metrics.lines().filter(|line| line.starts_with("grpc_server_started_total"));
    lines
        .filter(|line| line.contains(&name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn grown(before: &[(&'static str, u64)], after: &[(&'static str, u64)]) -> Vec<(&'static str, u64)> {
    let pairs = before.iter().zip(after);
    pairs
        .map(|((method, before), (_, after))| (*method, after - before))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// A host: its state folder and configuration.
struct Host {
    dir: TempDir,
    config: EtcdSettings,
    address: IpAddr,
}

impl Host {
    fn new(etcd: &Etcd, number: u8) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let config = EtcdSettings {
            endpoints: vec![etcd.url()],
            prefix: PREFIX.into(),
            tls: None,
            user: None,
            node_name: Some(format!("host{number}")),
            state_dir: dir.path().join("state"),
            subnet_env: dir.path().join("subnet.env"),
            revoke_on_exit: false,
            announced: None,
            lease_ttl: LEASE_TTL,
        };
        Self { dir, config, address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)) }
    }

    async fn try_open(&self) -> Result<Node, StoreError> {
        let (store, opened) = EtcdStore::open(&self.config, &[self.address]).await?;
        let mut rib = Rib::default();
        rib.apply(opened.snapshot.clone());
        Ok(Node { store, rib, opened, notices: Vec::new(), said: Vec::new() })
    }

    async fn open(&self) -> Node {
        self.try_open().await.expect("a place in the cluster")
    }

    async fn refused(&self) -> StoreError {
        match self.try_open().await {
            Ok(node) => panic!("taken in as {}", node.subnet()),
            Err(error) => error,
        }
    }
}

/// A node: what a daemon makes of its store.
struct Node {
    store: EtcdStore,
    rib: Rib,
    opened: Opened,
    notices: Vec<Notice>,
    /// Trouble and recovery, in order.
    said: Vec<&'static str>,
}

impl Node {
    fn subnet(&self) -> String {
        self.opened.lease.subnets[0].to_string()
    }

    /// Its key, without the prefix.
    fn key(&self) -> String {
        key_of(&self.subnet())
    }

    fn subnets(&self) -> BTreeSet<String> {
        self.rib.leases().map(|lease| lease.subnets[0].to_string()).collect()
    }

    /// Takes updates until `done`; panics if the lease is lost.
    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        assert_eq!(self.drive(what, done).await, None, "waiting for {what}");
    }

    async fn lost(&mut self) -> Lost {
        self.drive("loss of the lease", |_| false).await.expect("lost")
    }

    async fn drive(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Option<Lost> {
        let started = Instant::now();
        while !done(self) {
            let health = self.store.health();
            let (said, notices) = (&self.said, &self.notices);
            assert!(started.elapsed() < PATIENCE, "no {what}: {said:?} {notices:?} {health:#?}");
            // Some wait for a change of health, which no update announces.
            match tokio::time::timeout(Duration::from_millis(50), self.store.next()).await {
                Err(_) => {}
                Ok(Update::Change(change, _)) => drop(self.rib.apply(change)),
                Ok(Update::Recovered) => self.said.push("recovered"),
                Ok(Update::Trouble(_)) => self.said.push("trouble"),
                Ok(Update::Notice(notice)) => self.notices.push(notice),
                Ok(Update::Lost(lost)) => return Some(lost),
            }
        }
        None
    }

    async fn connected(&mut self) {
        self.until("connection", |node| node.store.health().connected).await;
    }

    async fn sees(&mut self, subnet: &str) {
        self.until(subnet, |node| node.subnets().contains(subnet)).await;
    }

    fn has_noticed(&self, code: NoticeCode) -> bool {
        self.notices.iter().any(|notice| notice.code == code)
    }
}

fn key_of(subnet: &str) -> String {
    format!("subnets/{}", subnet.replace('/', "-"))
}

fn flanneld(address: &str) -> String {
    format!(r#"{{"PublicIP":"{address}","PublicIPv6":null}}"#)
}

fn hopsack(id: &str, address: &str) -> String {
    let data = format!(r#"{{"NodeID":"{id}","Name":"{id}","Abilities":["ipv6"]}}"#);
    format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendData":{data}}}"#)
}

#[tokio::test]
async fn fifty_nodes_that_start_at_once_all_get_a_subnet_of_their_own() {
    for network in [
        NETWORK,
        // Room for 63: collisions are the rule.
        r#"{"Network":"10.1.0.0/16","SubnetLen":22}"#,
        r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}"#,
    ] {
        let etcd = Etcd::with(network).await;
        let mut all = JoinSet::new();
        for number in 1..=50 {
            let host = Host::new(&etcd, number);
            all.spawn(async move { (host.open().await, host) });
        }
        let mut nodes = all.join_all().await;
        for family in 0..nodes[0].0.opened.lease.subnets.len() {
            let subnets: BTreeSet<_> =
                nodes.iter().map(|(node, _)| node.opened.lease.subnets[family]).collect();
            assert_eq!(subnets.len(), 50, "{network}");
        }
        for (node, _) in nodes.iter_mut().take(3) {
            node.until("fifty leases", |node| node.subnets().len() == 50).await;
        }
    }
}

#[tokio::test]
async fn five_thousand_leases_cost_one_range_and_one_more_lease_costs_no_call() {
    let etcd = Etcd::with(r#"{"Network":"10.0.0.0/8"}"#).await;
    let mut client = etcd.client().await;
    let lease = client.lease_grant(86_400, None).await.expect("granted").id();
    for chunk in (0u32..5000).collect::<Vec<_>>().chunks(100) {
        let puts: Vec<TxnOp> = chunk
            .iter()
            .map(|n| {
                let key = format!("{PREFIX}/subnets/10.{}.{}.0-24", 1 + n / 256, n % 256);
                let value = flanneld(&format!("172.16.{}.{}", n / 256, n % 256));
                TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
            })
            .collect();
        client.txn(Txn::new().and_then(puts)).await.expect("written");
    }
    let before = etcd.calls();
    let host = Host::new(&etcd, 1);
    let started = Instant::now();
    let mut node = host.open().await;
    println!("5,000 leases: first snapshot after {:?}", started.elapsed());
    assert_eq!(node.subnets().len(), 5001);
    node.connected().await;
    let joined = etcd.calls();
    assert_eq!(grown(&before, &joined), [("Range", 1), ("Txn", 1), ("LeaseGrant", 1), ("Watch", 1)]);

    client.put(format!("{PREFIX}/subnets/10.200.0.0-24"), flanneld("198.51.100.7"), None).await.expect("put");
    node.sees("10.200.0.0/24").await;
    assert_eq!(grown(&joined, &etcd.calls()), [("Put", 1)], "the test's own, and nothing else");
}

#[tokio::test]
async fn etcd_killed_and_restarted_is_followed_from_where_it_was_left() {
    let mut etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    etcd.kill();
    node.until("trouble", |node| node.said == ["trouble"]).await;
    let health = node.store.health();
    assert!(!health.connected && health.stale_since.is_some() && health.trouble.is_some());
    assert_eq!(node.subnets().len(), 1, "the last map stays in force");
    etcd.restart().await;
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.7")).await;
    node.sees("10.1.200.0/24").await;
    node.until("recovery", |node| node.said == ["trouble", "recovered"]).await;
    let health = node.store.health();
    assert!(health.connected && health.stale_since.is_none() && health.trouble.is_none());
    let resyncs = health.resyncs;
    assert_eq!((resyncs.start, resyncs.compacted, resyncs.rewound), (1, 0, 0), "resumed, not listed again");
    assert!(health.renewals.renewed >= 1, "ownership was verified");
}

#[tokio::test]
async fn a_frozen_etcd_is_waited_for_and_noticed_if_it_lasts() {
    let etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    etcd.signal("-STOP");
    tokio::time::sleep(Duration::from_secs(5)).await;
    etcd.signal("-CONT");
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.7")).await;
    node.sees("10.1.200.0/24").await;

    etcd.signal("-STOP");
    node.until("trouble", |node| !node.store.health().connected).await;
    etcd.signal("-CONT");
    etcd.put("subnets/10.1.201.0-24", &flanneld("198.51.100.8")).await;
    node.sees("10.1.201.0/24").await;
    node.connected().await;
}

#[tokio::test]
async fn a_dead_endpoint_among_several_is_passed_over() {
    let etcd = Etcd::with(NETWORK).await;
    for number in 1..=4 {
        let mut host = Host::new(&etcd, number);
        host.config.endpoints = vec![format!("http://127.0.0.1:{}", free_port()), etcd.url()];
        host.open().await.connected().await;
    }
}

#[tokio::test]
async fn a_compaction_behind_the_watcher_means_a_list_and_whole_leases_are_compared() {
    let mut etcd = Etcd::with(NETWORK).await;
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.7")).await;
    etcd.put("subnets/10.1.201.0-24", &flanneld("198.51.100.8")).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    etcd.kill();
    node.until("trouble", |node| !node.store.health().connected).await;
    let port = etcd.restart_elsewhere().await;
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.99")).await;
    etcd.delete("subnets/10.1.201.0-24").await;
    etcd.compact().await;
    etcd.come_back(port).await;
    let moved = |node: &Node| {
        let mut leases = node.rib.leases();
        leases.any(|lease| lease.public.v4 == Some([198, 51, 100, 99].into()))
    };
    node.until("the moved lease", moved).await;
    assert!(!node.subnets().contains("10.1.201.0/24"));
    node.connected().await;
    assert_eq!(node.store.health().resyncs.compacted, 1);
    etcd.put("subnets/10.1.202.0-24", &flanneld("198.51.100.9")).await;
    node.sees("10.1.202.0/24").await;
}

#[tokio::test]
async fn a_store_that_was_set_back_is_followed() {
    let mut etcd = Etcd::with(NETWORK).await;
    for _ in 0..20 {
        etcd.put("x", "1").await;
    }
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.7")).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    etcd.kill();
    std::fs::remove_dir_all(etcd.dir.path().join("data")).expect("removed");
    let port = etcd.restart_elsewhere().await;
    etcd.put("config", NETWORK).await;
    etcd.put("subnets/10.1.201.0-24", &flanneld("198.51.100.8")).await;
    etcd.come_back(port).await;
    let expected: BTreeSet<String> = [node.subnet(), "10.1.201.0/24".into()].into();
    node.until("the new store's map", |node| node.subnets() == expected).await;
    node.connected().await;
    let health = node.store.health();
    assert_eq!((health.resyncs.rewound, health.renewals.recreated), (1, 1));
}

#[tokio::test]
async fn a_hundred_malformed_keys_cost_only_themselves() {
    let etcd = Etcd::with(NETWORK).await;
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.7")).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    let mut client = etcd.client().await;
    for n in 0..100u8 {
        let (name, value): (String, Vec<u8>) = match n % 5 {
            0 => (format!("nonsense{n}"), flanneld("198.51.100.7").into()),
            1 => (format!("10.1.{n}.7-24"), flanneld("198.51.100.7").into()),
            2 => (format!("10.77.{n}.0-24"), flanneld("198.51.100.7").into()),
            3 => (format!("10.1.0.{n}-33"), b"{}".to_vec()),
            _ => (format!("bytes{n}"), vec![0xff, n]),
        };
        client.put(format!("{PREFIX}/subnets/{name}"), value, None).await.expect("written");
    }
    // A good lease that goes bad is gone, as it is for a fresh list.
    etcd.put("subnets/10.1.200.0-24", "garbage").await;
    etcd.put("subnets/10.1.201.0-24", &flanneld("198.51.100.8")).await;
    let expected: BTreeSet<String> = [node.subnet(), "10.1.201.0/24".into()].into();
    node.until("the good leases", |node| node.subnets() == expected).await;
    node.until("the bad keys", |node| node.store.health().bad_keys.len() == 101).await;
    let named = |node: &Node| node.notices.iter().any(|notice| notice.text.contains("/subnets/nonsense0 "));
    node.until("a notice with the key", named).await;

    let mut fresh = Host::new(&etcd, 2).open().await;
    node.until("the other node", |node| node.subnets().len() == 3).await;
    assert_eq!(fresh.subnets(), node.subnets());
    assert_eq!(fresh.store.health().bad_keys, node.store.health().bad_keys);
    fresh.until("one notice for all", |node| node.has_noticed(NoticeCode::InvalidKeys)).await;
    assert_eq!(fresh.notices.len(), 1, "{:?}", fresh.notices);
}

#[tokio::test]
async fn a_stolen_lease_is_given_up_with_both_names() {
    let etcd = Etcd::with(NETWORK).await;
    for (number, thief) in [(1, hopsack("thief-id", "192.0.2.66")), (2, flanneld("192.0.2.66"))] {
        let host = Host::new(&etcd, number);
        let mut node = host.open().await;
        node.connected().await;
        etcd.put(&node.key(), &thief).await;
        let lost = node.lost().await;
        assert!(lost.ours.contains(&format!("host{number}")) && lost.theirs.contains(".66"), "{lost:?}");
        assert_eq!(lost.cause, LostCause::Taken);
        assert!(lost.reason.contains(&lost.ours) && lost.reason.contains(&lost.theirs), "{lost}");
        assert_eq!(etcd.value(&node.key()).await.expect("there").0, thief, "not written over");
        assert!(!node.store.health().connected);
        assert_ne!(host.open().await.subnet(), node.subnet(), "the next start gets another");
    }
}

#[tokio::test]
async fn a_lease_stolen_while_etcd_was_away_is_given_up_too() {
    let mut etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    etcd.kill();
    node.until("trouble", |node| !node.store.health().connected).await;
    let port = etcd.restart_elsewhere().await;
    etcd.put(&node.key(), &hopsack("thief-id", "192.0.2.66")).await;
    etcd.come_back(port).await;
    assert!(node.lost().await.theirs.contains("thief-id"));
}

#[tokio::test]
async fn a_key_that_cannot_be_anothers_is_written_anew() {
    let etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    for (n, (value, code)) in [
        (flanneld("192.0.2.1"), NoticeCode::WrittenByFlanneld),
        ("garbage".to_owned(), NoticeCode::WrittenInvalid),
    ]
    .iter()
    .enumerate()
    {
        etcd.put(&node.key(), value).await;
        let times = u64::try_from(n).expect("small") + 1;
        node.until("a new value", |node| node.store.health().renewals.rewritten == times).await;
        node.until("a notice", |node| node.has_noticed(*code)).await;
        let (value, _) = etcd.value(&node.key()).await.expect("there");
        assert!(value.contains("host1"), "{value}");
    }
    let subnet = node.subnet();
    node.sees(&subnet).await;
}

#[tokio::test]
async fn a_lease_outlives_its_time_and_is_made_anew_if_it_ran_out_and_nobody_took_it() {
    let etcd = Etcd::with(NETWORK).await;
    let mut host = Host::new(&etcd, 1);
    host.config.lease_ttl = Duration::from_secs(3);
    let mut node = host.open().await;
    node.connected().await;
    node.until("renewals", |node| node.store.health().renewals.renewed >= 4).await;
    assert_eq!(node.store.health().renewals.recreated, 0);
    assert!(node.notices.is_empty(), "{:?}", node.notices);

    let lease = etcd.value(&node.key()).await.expect("there").1;
    etcd.client().await.lease_revoke(lease).await.expect("revoked");
    node.until("a new lease", |node| node.store.health().renewals.recreated == 1).await;
    assert!(etcd.value(&node.key()).await.is_some_and(|(_, new)| new != lease && new != 0));
    node.until("a notice", |node| node.has_noticed(NoticeCode::LeaseRecreated)).await;
    let subnet = node.subnet();
    node.sees(&subnet).await;
}

#[tokio::test]
async fn one_address_is_for_one_node() {
    let etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    let mut second = Host::new(&etcd, 2);
    second.address = "192.0.2.1".parse().expect("v4");
    let refusal = second.refused().await;
    assert_eq!(refusal.code, ErrorCode::AddressTaken);
    for name in ["host1", "host2"] {
        assert!(refusal.text.contains(name), "{name}: {refusal}");
    }
    // A flanneld cannot be refused, but it is told of.
    etcd.put("subnets/10.1.250.0-24", &flanneld("192.0.2.1")).await;
    node.until("a notice", |node| node.has_noticed(NoticeCode::AddressShared)).await;
}

#[tokio::test]
async fn of_two_nodes_that_take_one_address_at_once_one_gives_way() {
    let etcd = Etcd::with(NETWORK).await;
    let mut all = JoinSet::new();
    for number in 1..=2 {
        let mut host = Host::new(&etcd, number);
        host.address = "192.0.2.9".parse().expect("v4");
        all.spawn(async move {
            // Refused by the list, or, if both listed before either wrote, told by the watch.
            let mut node = host.try_open().await.ok()?;
            let over = Instant::now() + Duration::from_secs(2);
            let lost = node.drive("end of the wait", |_| Instant::now() > over).await;
            if let Some(lost) = &lost {
                assert_eq!(lost.cause, LostCause::AddressTaken);
            }
            lost.is_none().then_some((node, host))
        });
    }
    let survivors: Vec<_> = all.join_all().await.into_iter().flatten().collect();
    assert_eq!(survivors.len(), 1);
    let table = admin::leases_list(&survivors[0].1.config, false).await.expect("listed");
    assert_eq!(table.leases.len(), 1, "{table:?}");
}

#[tokio::test]
async fn a_copy_of_a_living_node_is_refused_and_one_that_moved_is_not() {
    let etcd = Etcd::with(NETWORK).await;
    let host = Host::new(&etcd, 1);
    let mut node = host.open().await;
    node.connected().await;
    let mut copy = Host::new(&etcd, 2);
    std::fs::create_dir_all(&copy.config.state_dir).expect("a folder");
    let id = std::fs::read(host.config.state_dir.join("node-id")).expect("an id");
    std::fs::write(copy.config.state_dir.join("node-id"), id).expect("copied");
    let refusal = copy.refused().await;
    assert_eq!(refusal.code, ErrorCode::StateCopied);
    for part in ["host1", "host2", &node.subnet()] {
        assert!(refusal.text.contains(part), "{part}: {refusal}");
    }
    node.until("a notice", |node| node.has_noticed(NoticeCode::StateCopied)).await;
    assert_eq!(node.store.health().renewals.rewritten, 0, "the original is left in peace");
    let subnet = node.subnet();
    node.store.close().await.expect("closed");

    copy.config.node_name = Some("host1".into());
    let moved = copy.open().await;
    assert_eq!(moved.subnet(), subnet, "the same host, at another address");
    let options = GetOptions::new().with_prefix();
    let left = etcd.client().await.get(format!("{PREFIX}/overlay"), Some(options)).await.expect("read");
    assert!(left.kvs().is_empty(), "no question is left");
}

#[tokio::test]
async fn whose_the_lease_is_can_be_asked_at_any_time() {
    let etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    let before = node.store.health().renewals.renewed;
    node.store.verify();
    node.until("the answer", |node| node.store.health().renewals.renewed > before).await;
    assert!(node.notices.is_empty() && node.said.is_empty(), "{:?}", node.notices);
}

#[tokio::test]
async fn a_host_keeps_its_subnet_by_id_by_address_and_by_file() {
    let etcd = Etcd::with(NETWORK).await;
    let mut host = Host::new(&etcd, 1);
    let node = host.open().await;
    let (subnet, key) = (node.subnet(), node.key());
    node.store.close().await.expect("closed");

    host.address = "192.0.2.101".parse().expect("v4");
    let mut node = host.open().await;
    assert_eq!(node.subnet(), subnet, "by id, at another address");
    assert!(etcd.value(&key).await.expect("there").0.contains("192.0.2.101"));
    node.connected().await;
    node.store.readdress(&["192.0.2.102".parse().expect("v4")]);
    let moved = |node: &Node| node.rib.leases().any(|lease| lease.public.v4 == Some([192, 0, 2, 102].into()));
    node.until("the new address", moved).await;
    node.store.close().await.expect("closed");

    etcd.delete(&key).await;
    assert_eq!(host.open().await.subnet(), subnet, "from the map on disk");

    etcd.put("subnets/10.1.177.0-24", &flanneld("192.0.2.2")).await;
    let second = Host::new(&etcd, 2);
    assert_eq!(second.open().await.subnet(), "10.1.177.0/24", "of the flanneld before us, by address");

    let third = Host::new(&etcd, 3);
    std::fs::write(third.dir.path().join("subnet.env"), "FLANNEL_SUBNET=10.1.178.1/24\n").expect("written");
    assert_eq!(third.open().await.subnet(), "10.1.178.0/24", "of the flanneld before us, by its file");
}

#[tokio::test]
async fn a_reservation_stays_one() {
    let etcd = Etcd::with(NETWORK).await;
    etcd.put("subnets/10.1.50.0-24", &flanneld("192.0.2.1")).await;
    let mut host = Host::new(&etcd, 1);
    host.config.lease_ttl = Duration::from_secs(3);
    host.config.revoke_on_exit = true;
    let mut node = host.open().await;
    assert_eq!(node.subnet(), "10.1.50.0/24");
    node.connected().await;
    node.until("renewals", |node| node.store.health().renewals.renewed >= 2).await;
    assert_eq!(node.store.health().lease_expires, None);
    node.store.close().await.expect("closed");
    let (value, lease) = etcd.value("subnets/10.1.50.0-24").await.expect("kept, even on the way out");
    assert!(value.contains("host1") && lease == 0, "{value} {lease}");
}

#[tokio::test]
async fn limits_hold_and_a_full_network_says_so_until_somebody_leaves() {
    let network =
        r#"{"Network":"10.1.0.0/16","SubnetLen":26,"SubnetMin":"10.1.4.64","SubnetMax":"10.1.4.192"}"#;
    let etcd = Etcd::with(network).await;
    let mut hosts: Vec<Host> = (1..=4).map(|number| Host::new(&etcd, number)).collect();
    hosts[2].config.revoke_on_exit = true;
    let mut nodes = Vec::new();
    for host in &hosts[..3] {
        nodes.push(host.open().await);
    }
    let held: BTreeSet<String> = nodes.iter().map(Node::subnet).collect();
    assert_eq!(held, ["10.1.4.64/26", "10.1.4.128/26", "10.1.4.192/26"].map(str::to_owned).into());
    assert_eq!(nodes[2].store.health().subnets, [(3, 3)]);
    assert_eq!(hosts[3].refused().await.code, ErrorCode::NetworkFull);

    let leaving = nodes.pop().expect("the third");
    let subnet = leaving.subnet();
    leaving.store.close().await.expect("given back");
    assert_eq!(hosts[3].open().await.subnet(), subnet);
}

#[tokio::test]
async fn a_start_without_etcd_goes_by_the_map_on_disk() {
    let mut etcd = Etcd::with(NETWORK).await;
    etcd.put("subnets/10.1.200.0-24", &flanneld("198.51.100.7")).await;
    let host = Host::new(&etcd, 1);
    let node = host.open().await;
    let subnet = node.subnet();
    node.store.close().await.expect("closed");
    etcd.kill();

    let mut node = host.open().await;
    assert_eq!(node.subnet(), subnet);
    assert_eq!(node.subnets(), [subnet.clone(), "10.1.200.0/24".into()].into());
    assert_eq!(node.opened.cluster.port, Some(8285));
    node.until("trouble", |node| node.said == ["trouble"]).await;
    assert!(node.store.health().stale_since.is_some());

    etcd.restart().await;
    etcd.put("subnets/10.1.201.0-24", &flanneld("198.51.100.8")).await;
    node.sees("10.1.201.0/24").await;
    node.until("recovery", |node| node.said == ["trouble", "recovered"]).await;
    assert_eq!(node.store.health().renewals.renewed, 1, "ownership was verified");
    node.store.close().await.expect("closed");

    // The same, but somebody takes the subnet meanwhile.
    etcd.kill();
    let mut node = host.open().await;
    let port = etcd.restart_elsewhere().await;
    etcd.put(&key_of(&subnet), &hopsack("thief-id", "192.0.2.66")).await;
    etcd.come_back(port).await;
    assert!(node.lost().await.theirs.contains("thief-id"));
}

/// The map file with its checksum (FNV-1a) and length set right after an edit.
fn resealed(text: &str) -> String {
    let (head, body) = text.split_once('\n').expect("two lines");
    let magic = head.split(' ').next().expect("a word");
    let sum = body.bytes().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{magic} {sum:016x} {}\n{body}", body.len())
}

#[tokio::test]
async fn a_map_on_disk_that_is_damaged_or_too_old_is_refused() {
    let mut etcd = Etcd::with(NETWORK).await;
    let mut host = Host::new(&etcd, 1);
    host.config.lease_ttl = Duration::from_secs(3);
    host.open().await.store.close().await.expect("closed");
    etcd.kill();
    let map = host.config.state_dir.join("map");
    let good = std::fs::read(&map).expect("saved");
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&map, &bad).expect("written");
    let refusal = host.refused().await;
    assert_eq!(refusal.code, ErrorCode::Unreachable);
    assert!(matches!(refusal.snapshot, Some(SnapshotError::Damaged { .. })), "{refusal:?}");

    // Once the lease of 3 s has run out the subnet may be another's, but this host was up all the time: it goes on.
    tokio::time::sleep(Duration::from_secs(4)).await;
    std::fs::write(&map, &good).expect("written");
    let mut node = host.open().await;
    node.until("trouble", |node| node.said == ["trouble"]).await;
    let health = node.store.health();
    assert!(health.trouble.is_some());
    drop(node);

    // A host that was started anew waits.
    let text = String::from_utf8(good.clone()).expect("text");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("there");
    let anew = resealed(&text.replace(boot.trim(), "another-boot"));
    std::fs::write(&map, anew).expect("written");
    assert_eq!(host.refused().await.snapshot, Some(SnapshotError::LeaseExpired));

    // With etcd there, a damaged map is no reason to stop.
    std::fs::write(&map, &bad).expect("written");
    etcd.restart().await;
    let mut node = host.open().await;
    node.until("a notice", |node| node.has_noticed(NoticeCode::SnapshotRefused)).await;
}

#[tokio::test]
async fn what_one_host_announces_the_other_reads() {
    let etcd = Etcd::with(NETWORK).await;
    let (one, two) = (Host::new(&etcd, 1).open().await, Host::new(&etcd, 2).open().await);
    let seen = two.rib.leases().find(|lease| lease.name == "host1").expect("by name").clone();
    assert_eq!(seen, one.opened.lease);
    assert!(matches!(seen.dialect, Dialect::Hopsack(abilities) if abilities.ipv6));
    let (value, lease) = etcd.value(&one.key()).await.expect("there");
    let begins = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendData":{"NodeID":""#;
    assert!(value.starts_with(begins) && lease != 0, "{value}");
}

#[tokio::test]
async fn an_ipv6_only_cluster_keeps_out_of_flannelds_sight() {
    let etcd = Etcd::with(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:1::/48"}"#).await;
    let mut host = Host::new(&etcd, 1);
    host.address = "2001:db8::1".parse().expect("v6");
    let node = host.open().await;
    assert!(etcd.value(&format!("overlay/{}", node.key())).await.is_some());
    let options = GetOptions::new().with_prefix();
    let all = etcd.client().await.get(format!("{PREFIX}/subnets"), Some(options)).await.expect("read");
    assert!(all.kvs().is_empty());
}

#[tokio::test]
async fn operators_see_and_change_the_store() {
    let etcd = Etcd::start().await;
    let host = Host::new(&etcd, 1);
    let config = &host.config;
    let missing = admin::network_show(config).await.expect_err("nothing there");
    assert_eq!(missing.code, ErrorCode::NetworkMissing);
    assert_eq!(host.refused().await.code, ErrorCode::NetworkMissing);
    let wrong = admin::network_init(config, "{}").await.expect_err("flanneld refuses it too");
    assert_eq!(wrong.code, ErrorCode::NetworkInvalid);
    let shown = admin::network_init(config, NETWORK).await.expect("written");
    assert_eq!((shown.pools[0].network.to_string(), shown.port), ("10.1.0.0/16".to_owned(), 8285));
    admin::network_init(config, NETWORK).await.expect("the same again is no mistake");
    let other = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":7890}}"#;
    let refusal = admin::network_init(config, other).await.expect_err("there is one");
    assert_eq!(refusal.code, ErrorCode::NetworkExists);

    let mut node = host.open().await;
    node.connected().await;
    etcd.put("subnets/10.1.250.0-24", &flanneld("198.51.100.9")).await;
    etcd.put("subnets/nonsense", "").await;
    let table = admin::leases_list(config, true).await.expect("listed");
    assert_eq!((table.leases.len(), table.bad.len(), table.used[0].1), (2, 1, 2));
    assert!(table.leases.iter().any(|lease| lease.expires_in.is_some_and(|left| left > 86_000)));
    let daemons: BTreeSet<&str> = table.leases.iter().map(|lease| lease.daemon.as_str()).collect();
    assert_eq!(daemons, ["flanneld", "hopsack"].into());
    assert!(table.leases.iter().any(|lease| lease.reserved) && table.bad[0].0.ends_with("/subnets/nonsense"));
    let set = admin::network_set(config, other).await.expect("written");
    assert_eq!((set.before.as_deref(), set.port), (Some(NETWORK), 7890));
    node.until("a notice", |node| node.has_noticed(NoticeCode::NetworkChanged)).await;

    let reserved = "10.1.250.0/24".parse().expect("net");
    let refusal = admin::leases_release(config, reserved, false).await.expect_err("reserved");
    assert_eq!(refusal.code, ErrorCode::Reserved);
    admin::leases_release(config, reserved, true).await.expect("released");
    let refusal = admin::leases_release(config, reserved, true).await.expect_err("no such lease");
    assert_eq!(refusal.code, ErrorCode::NoSuchLease);
    let own = node.opened.lease.subnets[0];
    let released = admin::leases_release(config, own, false).await.expect("released");
    assert_eq!(released.lease.name, "host1");
    node.until("the lease again", |node| node.store.health().renewals.recreated == 1).await;
}

#[tokio::test]
async fn a_dropped_future_loses_nothing_and_a_wish_for_a_list_is_heard() {
    let etcd = Etcd::with(NETWORK).await;
    let mut node = Host::new(&etcd, 1).open().await;
    node.connected().await;
    // From 10.1.120.0 on: our own is one of the first hundred.
    for n in 0..100u8 {
        etcd.put(&format!("subnets/10.1.{}.0-24", 120 + n), &flanneld("198.51.100.7")).await;
        // Dropped while something may be under way.
        let next = tokio::time::timeout(Duration::from_micros(50), node.store.next()).await;
        if let Ok(Update::Change(change, _)) = next {
            node.rib.apply(change);
        }
    }
    node.until("all of them", |node| node.subnets().len() == 101).await;
    node.store.reload();
    node.until("a list", |node| node.store.health().resyncs.asked == 1).await;
    assert_eq!(node.subnets().len(), 101);
}

#[tokio::test]
async fn tls_with_a_ca_alone_and_with_a_client_certificate() {
    let certificates = Certificates::new();
    for mutual in [false, true] {
        let (dir, port) = (tempfile::tempdir().expect("a folder"), free_port());
        let child = certificates.etcd(dir.path(), port, mutual);
        // Held for its end only; it cannot be asked in clear.
        let etcd = Etcd { child, port, peer_port: 0, dir };
        let mut host = Host::new(&etcd, 1);
        host.config.endpoints = vec![format!("https://127.0.0.1:{port}")];
        let client = (certificates.path("client.pem"), certificates.path("client.key"));
        let tls = Tls { ca: certificates.path("ca.pem"), client: mutual.then_some(client) };
        host.config.tls = Some(tls.clone());
        let started = Instant::now();
        while let Err(error) = admin::network_init(&host.config, NETWORK).await {
            assert!(started.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        host.open().await.connected().await;

        let mut stranger = host.config.clone();
        stranger.tls = Some(Tls { ca: certificates.path("server.pem"), client: None });
        assert!(admin::network_show(&stranger).await.is_err(), "not our CA");
        if mutual {
            stranger.tls = Some(Tls { client: None, ..tls });
            assert!(admin::network_show(&stranger).await.is_err(), "no certificate");
        }
    }
}

#[tokio::test]
async fn a_user_with_a_password_from_a_private_file() {
    let etcd = Etcd::with(NETWORK).await;
    let mut client = etcd.client().await;
    for user in ["root", "overlay"] {
        client.user_add(user, "secret", None).await.expect("a user");
    }
    client.role_add("root").await.expect("a role");
    client.role_add("overlay").await.expect("a role");
    let all = etcd_client::Permission::read_write(format!("{PREFIX}/")).with_prefix();
    client.role_grant_permission("overlay", all).await.expect("granted");
    client.user_grant_role("overlay", "overlay").await.expect("granted");
    client.user_grant_role("root", "root").await.expect("granted");
    client.auth_enable().await.expect("enabled");

    let mut host = Host::new(&etcd, 1);
    assert_eq!(host.refused().await.code, ErrorCode::Denied);
    let file = host.dir.path().join("password");
    std::fs::write(&file, "secret\n").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("public");
    host.config.user = Some(("overlay".into(), file.clone()));
    assert_eq!(host.refused().await.code, ErrorCode::Credentials);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("private");
    let mut node = host.open().await;
    node.connected().await;
    assert!(admin::leases_list(&host.config, true).await.expect("listed").leases[0].expires_in.is_some());

    std::fs::write(&file, "wrong").expect("written");
    let mut other = Host::new(&etcd, 2);
    other.config.user = Some(("overlay".into(), file));
    let refusal = other.refused().await;
    assert_eq!(refusal.code, ErrorCode::Denied);
    assert!(!refusal.text.contains("wrong"), "the password is not shown: {refusal}");
}
