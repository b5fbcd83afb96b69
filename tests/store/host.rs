//! Hosts: each with a state folder, settings, and what a daemon makes of its store.

use super::*;

/// A host: its state folder and settings.
pub(super) struct Host {
    pub(super) dir: TempDir,
    pub(super) settings: EtcdSettings,
    pub(super) address: IpAddr,
}

impl Host {
    pub(super) fn new(etcd: &Etcd, number: u8) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let settings = EtcdSettings {
            endpoints: vec![etcd.url()],
            prefix: PREFIX.into(),
            tls: None,
            user: None,
            node_name: Some(format!("host{number}")),
            state_dir: dir.path().join("state"),
            subnet_env: dir.path().join("subnet.env"),
            revoke_on_exit: false,
            abilities: Abilities::OURS,
            subnets: None,
            lease_ttl: LEASE_TTL,
        };
        Self { dir, settings, address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)) }
    }

    pub(super) async fn try_open(&self) -> Result<Node, StoreError> {
        let (store, opened) = EtcdStore::open(&self.settings, &[self.address]).await?;
        let mut rib = Rib::default();
        rib.apply(opened.snapshot.clone());
        Ok(Node { store, rib, opened, notices: Vec::new(), outages: Vec::new(), causes: Vec::new() })
    }

    pub(super) async fn open(&self) -> Node {
        self.try_open().await.expect("a lease")
    }

    pub(super) async fn refused(&self) -> StoreError {
        match self.try_open().await {
            Ok(node) => panic!("not refused: it has {}", node.subnet()),
            Err(error) => error,
        }
    }
}

/// A node: what a daemon makes of its store.
pub(super) struct Node {
    pub(super) store: EtcdStore,
    pub(super) rib: Rib,
    pub(super) opened: Opened,
    pub(super) notices: Vec<Notice>,
    /// Begin and end of each outage that was reported.
    pub(super) outages: Vec<&'static str>,
    /// Each cause of an outage that was reported.
    pub(super) causes: Vec<String>,
}

impl Node {
    pub(super) fn subnet(&self) -> String {
        self.opened.lease.subnets[0].to_string()
    }

    /// Key of its lease, without the prefix.
    pub(super) fn key(&self) -> String {
        key_of(&self.subnet())
    }

    pub(super) fn subnets(&self) -> BTreeSet<String> {
        self.rib.leases().map(|lease| lease.subnets[0].to_string()).collect()
    }

    /// Takes updates until `done`; panics if the lease is lost.
    pub(super) async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        assert_eq!(self.drive(what, done).await, None, "waiting for {what}");
    }

    pub(super) async fn lost(&mut self) -> Lost {
        self.drive("loss of the lease", |_| false).await.expect("lost")
    }

    pub(super) async fn drive(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Option<Lost> {
        let started = Instant::now();
        while !done(self) {
            let health = self.store.health();
            let (outages, notices) = (&self.outages, &self.notices);
            assert!(started.elapsed() < PATIENCE, "no {what}: {outages:?} {notices:?} {health:#?}");
            // Some callers wait for a change of health, which no update announces.
            match tokio::time::timeout(Duration::from_millis(50), self.store.next()).await {
                Err(_) => {}
                Ok(Update::Change(change, _)) => drop(self.rib.apply(change)),
                Ok(Update::Recovered) => self.outages.push("end"),
                Ok(Update::Trouble(cause)) => {
                    // The cause of an outage may change while it lasts.
                    if self.outages.last() != Some(&"begin") {
                        self.outages.push("begin");
                    }
                    self.causes.push(cause);
                }
                Ok(Update::Notice(notice)) => self.notices.push(notice),
                Ok(Update::Lost(lost)) => return Some(lost),
            }
        }
        None
    }

    pub(super) async fn connected(&mut self) {
        self.until("connection", |node| node.store.health().connected).await;
    }

    pub(super) async fn sees(&mut self, subnet: &str) {
        self.until(subnet, |node| node.subnets().contains(subnet)).await;
    }

    pub(super) fn has_noticed(&self, code: NoticeCode) -> bool {
        self.notices.iter().any(|notice| notice.code == code)
    }
}

pub(super) fn key_of(subnet: &str) -> String {
    format!("subnets/{}", subnet.replace('/', "-"))
}

pub(super) fn flanneld(address: &str) -> String {
    format!(r#"{{"PublicIP":"{address}","PublicIPv6":null}}"#)
}

pub(super) fn hopsack(id: &str, address: &str) -> String {
    let data = format!(r#"{{"NodeID":"{id}","Name":"{id}","Abilities":["ipv6"]}}"#);
    format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendData":{data}}}"#)
}
