//! A real etcd in a process of its own.

use super::*;

/// A running etcd.
pub(super) struct Etcd {
    pub(super) child: Child,
    pub(super) port: u16,
    pub(super) peer_port: u16,
    pub(super) dir: TempDir,
}

impl Etcd {
    pub(super) async fn start() -> Self {
        let (port, peer_port) = (free_port(), free_port());
        let dir = tempfile::tempdir().expect("a folder");
        let child = spawn(dir.path(), port, peer_port);
        let etcd = Self { child, port, peer_port, dir };
        etcd.ready().await;
        etcd
    }

    /// An etcd with a network configuration.
    pub(super) async fn with(network: &str) -> Self {
        let etcd = Self::start().await;
        etcd.put("config", network).await;
        etcd
    }

    pub(super) async fn ready(&self) {
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

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) async fn client(&self) -> Client {
        Client::connect([self.url()], None).await.expect("a client")
    }

    pub(super) async fn put(&self, name: &str, value: &str) {
        self.client().await.put(format!("{PREFIX}/{name}"), value, None).await.expect("written");
    }

    pub(super) async fn delete(&self, name: &str) {
        self.client().await.delete(format!("{PREFIX}/{name}"), None).await.expect("deleted");
    }

    /// A key's value and etcd lease.
    pub(super) async fn value(&self, name: &str) -> Option<(String, i64)> {
        let response = self.client().await.get(format!("{PREFIX}/{name}"), None).await.expect("read");
        response.kvs().first().map(|kv| (kv.value_str().expect("text").to_owned(), kv.lease()))
    }

    /// Forgets all old revisions.
    pub(super) async fn compact(&self) {
        let mut client = self.client().await;
        let revision = client.get("x", None).await.expect("read").header().expect("a header").revision();
        client.compact(revision, None).await.expect("compacted");
    }

    pub(super) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill").success());
    }

    pub(super) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    pub(super) async fn restart(&mut self) {
        self.child = spawn(self.dir.path(), self.port, self.peer_port);
        self.ready().await;
    }

    /// Restarts at a port that no node knows. [`Etcd::come_back`] undoes that.
    pub(super) async fn restart_elsewhere(&mut self) -> u16 {
        let port = std::mem::replace(&mut self.port, free_port());
        self.restart().await;
        port
    }

    pub(super) async fn come_back(&mut self, port: u16) {
        self.kill();
        self.port = port;
        self.restart().await;
    }

    /// Number of calls of each method that etcd has received.
    pub(super) fn calls(&self) -> Vec<(&'static str, u64)> {
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

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound").port()
}

pub(super) fn spawn(dir: &Path, port: u16, peer_port: u16) -> Child {
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

pub(super) fn calls_of(metrics: &str, method: &str) -> u64 {
    let name = format!("grpc_method=\"{method}\"");
    let lines = metrics.lines().filter(|line| line.starts_with("grpc_server_started_total"));
    lines
        .filter(|line| line.contains(&name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

pub(super) fn grown(
    before: &[(&'static str, u64)],
    after: &[(&'static str, u64)],
) -> Vec<(&'static str, u64)> {
    let pairs = before.iter().zip(after);
    pairs
        .map(|((method, before), (_, after))| (*method, after - before))
        .filter(|(_, count)| *count > 0)
        .collect()
}
