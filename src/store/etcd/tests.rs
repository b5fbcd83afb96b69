//! The etcd store in virtual time, with an etcd in memory: what takes hours here passes in
//! milliseconds.
//!
//! The same behaviour against a real etcd is tested in `tests/store/`.

mod joining;
mod leases;
mod outages;
mod races;
mod watching;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, timeout, timeout_at};

use super::handle::EtcdStore;
use super::memory::{Link, MemoryEtcd};
use crate::route::Rib;
use crate::store::error::StoreError;
use crate::store::settings::EtcdSettings;
use crate::store::update::{Lost, LostCause, Notice, NoticeCode, Opened, Update};

const PREFIX: &str = "/coreos.com/network";
const NETWORK: &str = r#"{"Network":"10.1.0.0/16"}"#;
/// Longest virtual time for something that happens at once or after a backoff.
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn etcd_with(network: &str) -> MemoryEtcd {
    let etcd = MemoryEtcd::new();
    etcd.put(&key("config"), network);
    etcd
}

fn key(name: &str) -> String {
    format!("{PREFIX}/{name}")
}

fn lease_key(subnet: &str) -> String {
    key(&format!("subnets/{}", subnet.replace('/', "-")))
}

fn flanneld(address: &str) -> String {
    format!(r#"{{"PublicIP":"{address}","PublicIPv6":null}}"#)
}

fn hopsack(id: &str, address: &str) -> String {
    let data = format!(r#"{{"NodeID":"{id}","Name":"{id}","Abilities":["ipv6"]}}"#);
    format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendData":{data}}}"#)
}

/// A host: its folder, settings and address.
struct Host {
    etcd: MemoryEtcd,
    dir: TempDir,
    settings: EtcdSettings,
    address: IpAddr,
}

impl Host {
    /// A host that is named `host<number>` and has the address 192.0.2.`number`.
    fn new(etcd: &MemoryEtcd, number: u8) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let settings = etcd.settings(&format!("host{number}"), dir.path());
        Self { etcd: etcd.clone(), dir, settings, address: [192, 0, 2, number].into() }
    }

    fn name(&self) -> &str {
        self.settings.node_name.as_deref().expect("named")
    }

    fn set_link(&self, link: Link) {
        self.etcd.set_link(self.name(), link);
    }

    async fn try_open(&self) -> Result<Node, StoreError> {
        let (store, opened) = EtcdStore::open_memory(&self.etcd, &self.settings, &[self.address]).await?;
        let mut rib = Rib::default();
        rib.apply(opened.snapshot.clone());
        let (notices, outages) = (Vec::new(), Vec::new());
        Ok(Node { store, rib, opened, notices, outages, lost: None })
    }

    async fn open(&self) -> Node {
        self.try_open().await.expect("a lease")
    }

    async fn refused(&self) -> StoreError {
        self.try_open().await.map(|node| node.subnet()).expect_err("refused")
    }

    /// Opens, and waits until the watch is open.
    async fn join(&self) -> Node {
        let mut node = self.open().await;
        node.connected().await;
        node
    }
}

/// What a daemon makes of its store.
struct Node {
    store: EtcdStore,
    rib: Rib,
    opened: Opened,
    notices: Vec<Notice>,
    /// Begin (`true`) and end (`false`) of each outage that was reported.
    outages: Vec<bool>,
    lost: Option<Lost>,
}

impl Node {
    fn subnet(&self) -> String {
        self.opened.lease.subnets[0].to_string()
    }

    fn key(&self) -> String {
        lease_key(&self.subnet())
    }

    fn subnets(&self) -> BTreeSet<String> {
        self.rib.leases().map(|lease| lease.subnets[0].to_string()).collect()
    }

    /// Address that the map has for a subnet.
    fn address_of(&self, subnet: &str) -> Option<IpAddr> {
        let lease = self.rib.leases().find(|lease| lease.subnets[0].to_string() == subnet)?;
        lease.public.iter().next()
    }

    fn notice_codes(&self) -> Vec<NoticeCode> {
        self.notices.iter().map(|notice| notice.code).collect()
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::Change(change, _) => drop(self.rib.apply(change)),
            Update::Recovered => self.outages.push(false),
            // The cause of an outage may change while it lasts.
            Update::Trouble(_) if self.outages.last() == Some(&true) => {}
            Update::Trouble(_) => self.outages.push(true),
            Update::Notice(notice) => self.notices.push(notice),
            Update::Lost(lost) => self.lost = Some(lost),
        }
    }

    /// Takes updates for so long, in virtual time.
    async fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(update) = timeout_at(end, self.store.next()).await {
            self.take(update);
        }
    }

    /// Takes updates until `done`.
    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < end, "no {what}: {:?} {:#?}", self.notices, self.store.health());
            // Some wait for a change of health, which no update announces.
            if let Ok(update) = timeout(Duration::from_millis(10), self.store.next()).await {
                self.take(update);
            }
        }
    }

    async fn connected(&mut self) {
        self.until("connection", |node| node.store.health().connected).await;
    }

    async fn disconnected(&mut self) {
        self.until("outage", |node| !node.store.health().connected).await;
    }

    async fn sees(&mut self, subnet: &str) {
        self.until(subnet, |node| node.subnets().contains(subnet)).await;
    }

    async fn lost(&mut self) -> LostCause {
        self.until("loss of the lease", |node| node.lost.is_some()).await;
        self.lost.as_ref().expect("lost").cause
    }
}
