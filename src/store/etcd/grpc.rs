//! The real etcd client: the few calls that we make, each with a time limit.
//!
//! Invariant: no call takes longer than [`PATIENCE`], and a watch breaks within
//! `PING + PING_PATIENCE` after its far end is gone.
//!
//! Sources: etcd `api/etcdserverpb/rpc.proto`. An etcd server sends GOAWAY to clients that ping
//! more often than `--grpc-keepalive-min-time` (5 s), or ping without a stream.
#![forbid(unsafe_code)]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions, Identity,
    KeyValue, KvClient, LeaseClient, PutOptions, ResponseHeader, TlsOptions, Txn, TxnOp, TxnOpResponse,
    WatchClient, WatchOptions, WatchResponse, WatchStream,
};

use super::failure::Failure;
use super::guard::{Guard, Written};
use super::random;
use crate::files::{SecretError, secret};
use crate::store::error::{ErrorCode, StoreError};
use crate::store::settings::{EtcdSettings, Tls};
use crate::store::watch::{KeyEvent, Kv, Listing, Message};

/// Time limit of one call. A list of 5,000 leases (1.5 MB) takes 50 ms on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Time limit of a TCP connection with its TLS handshake.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// Interval of HTTP/2 pings while a watch is open. The sources above give the lower bound.
pub(super) const PING: Duration = Duration::from_secs(6);
/// Time limit of the answer to a ping.
pub(super) const PING_PATIENCE: Duration = Duration::from_secs(3);
/// Largest message that is accepted: a list of 100,000 leases. tonic's default of 4 MiB ends at
/// 15,000.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Where etcd is, and how to connect.
#[derive(Debug)]
pub(crate) struct GrpcEndpoints {
    urls: Vec<String>,
    next: usize,
    credentials: Credentials,
}

/// Where certificates and password are. The files are read at each connection, because other
/// programs renew them.
#[derive(Debug)]
struct Credentials {
    tls: Option<Tls>,
    /// User name, and the path of the file with the password.
    user: Option<(String, PathBuf)>,
}

impl GrpcEndpoints {
    /// Checks that certificates and password can be read.
    pub(super) fn new(settings: &EtcdSettings) -> Result<Self, StoreError> {
        let urls = settings.endpoints.clone();
        if urls.is_empty() {
            return Err(StoreError::new(
                ErrorCode::NoEndpoints,
                "store.endpoints is empty: name at least one etcd endpoint",
            ));
        }
        let credentials = Credentials { tls: settings.tls.clone(), user: settings.user.clone() };
        credentials.read().map_err(|text| StoreError::new(ErrorCode::Credentials, text))?;
        let next = usize::try_from(random::below(u64::try_from(urls.len()).unwrap_or(1))).unwrap_or(0);
        Ok(Self { urls, next, credentials })
    }

    pub(super) fn len(&self) -> usize {
        self.urls.len()
    }

    pub(super) async fn connect(&mut self) -> Result<GrpcSession, Failure> {
        let url = self.urls[self.next % self.urls.len()].clone();
        self.next = self.next.wrapping_add(1);
        let options = self.credentials.read().map_err(|text| Failure::unreachable(&url, text))?;
        let connect = Client::connect([url.as_str()], Some(options));
        let client = call(&url, connect).await?;
        Ok(GrpcSession {
            kv: client.kv_client().max_decoding_message_size(MAX_MESSAGE_BYTES),
            watch: client.watch_client().max_decoding_message_size(MAX_MESSAGE_BYTES),
            lease: client.lease_client(),
            endpoint: url,
        })
    }

    pub(super) fn repeat_endpoint(&mut self) {
        self.next = self.next.wrapping_add(self.urls.len() - 1);
    }
}

impl Credentials {
    /// Reads the files.
    fn read(&self) -> Result<ConnectOptions, String> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_PATIENCE)
            .with_keep_alive(PING, PING_PATIENCE)
            .with_keep_alive_while_idle(false)
            .with_tcp_keepalive(PING)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(tls) = &self.tls {
            let mut tls_options =
                TlsOptions::new().ca_certificate(Certificate::from_pem(read("store.ca", &tls.ca)?));
            if let Some((cert, key)) = &tls.client {
                let (cert, key) = (read("store.cert", cert)?, read_secret("store.key", key)?);
                tls_options = tls_options.identity(Identity::from_pem(cert, key));
            }
            options = options.with_tls(tls_options);
        }
        if let Some((user, file)) = &self.user {
            let password = String::from_utf8(read_secret("store.password_file", file)?).map_err(|_| {
                format!("store.password_file = {}: the file is not UTF-8 text", file.display())
            })?;
            options = options.with_user(user, password.trim_end_matches(['\r', '\n']));
        }
        Ok(options)
    }
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{key} = {}: {error}", path.display()))
}

/// Reads a file that no other user may read.
fn read_secret(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    secret(path).map_err(|error| match error {
        SecretError::Unreadable(error) => format!("{key} = {}: {error}", path.display()),
        SecretError::Public(_) => format!("{key} = {0}: {error}: chmod 600 {0}", path.display()),
    })
}

/// One connection.
pub(crate) struct GrpcSession {
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
    endpoint: String,
}

impl std::fmt::Debug for GrpcSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcSession").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl GrpcSession {
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) async fn list(&mut self, prefix: &str, at: Option<i64>) -> Result<Listing, Failure> {
        let options = GetOptions::new().with_prefix().with_revision(at.unwrap_or(0));
        let response = call(&self.endpoint, self.kv.get(prefix, Some(options))).await?;
        // etcd's header holds the newest revision, whichever was asked for.
        let newest = response.header().map_or(0, ResponseHeader::revision);
        let kvs = response.kvs().iter().map(kv_of).collect();
        Ok(Listing { revision: at.unwrap_or(newest), kvs })
    }

    pub(super) async fn get(&mut self, key: &str) -> Result<Option<Kv>, Failure> {
        let response = call(&self.endpoint, self.kv.get(key, None)).await?;
        Ok(response.kvs().first().map(kv_of))
    }

    pub(super) async fn put(
        &mut self,
        key: &str,
        value: &str,
        lease: i64,
        guard: &Guard,
    ) -> Result<Written, Failure> {
        let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
        self.guarded(key, guard, put).await
    }

    pub(super) async fn delete(&mut self, key: &str, guard: &Guard) -> Result<Written, Failure> {
        self.guarded(key, guard, TxnOp::delete(key, None)).await
    }

    async fn guarded(&mut self, key: &str, guard: &Guard, op: TxnOp) -> Result<Written, Failure> {
        let txn =
            Txn::new().when(compares(guard, key)).and_then(vec![op]).or_else(vec![TxnOp::get(key, None)]);
        let response = call(&self.endpoint, self.kv.txn(txn)).await?;
        if response.succeeded() {
            return Ok(Written::At(response.header().map_or(0, ResponseHeader::revision)));
        }
        let found = response.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(get) => get.kvs().first().map(kv_of),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        Ok(Written::Not(found))
    }

    pub(super) async fn grant(&mut self, ttl: Duration) -> Result<(i64, Duration), Failure> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let response = call(&self.endpoint, self.lease.grant(seconds, None)).await?;
        Ok((response.id(), seconds_of(response.ttl())))
    }

    pub(super) async fn revoke(&mut self, lease: i64) -> Result<(), Failure> {
        call(&self.endpoint, self.lease.revoke(lease)).await.map(drop)
    }

    pub(super) async fn keep_alive(&mut self, lease: i64) -> Result<bool, Failure> {
        match tokio::time::timeout(PATIENCE, self.lease.keep_alive(lease)).await {
            Ok(Ok(_stream)) => Ok(true),
            Ok(Err(Error::LeaseKeepAliveError(_))) => Ok(false),
            Ok(Err(error)) => Err(Failure::of(&self.endpoint, &error)),
            Err(_) => Err(no_answer(&self.endpoint)),
        }
    }

    pub(super) async fn time_to_live(&mut self, lease: i64) -> Result<Option<(Duration, Duration)>, Failure> {
        let response = call(&self.endpoint, self.lease.time_to_live(lease, None)).await?;
        let is_alive = response.ttl() > 0;
        Ok(is_alive.then(|| (seconds_of(response.ttl()), seconds_of(response.granted_ttl()))))
    }

    pub(super) async fn watch(&mut self, prefix: &str, from: i64) -> Result<GrpcWatch, Failure> {
        let options = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
        let stream = call(&self.endpoint, self.watch.watch(prefix, Some(options))).await?;
        Ok(GrpcWatch { stream, endpoint: self.endpoint.clone() })
    }
}

/// An open watch.
#[derive(Debug)]
pub(crate) struct GrpcWatch {
    stream: WatchStream,
    endpoint: String,
}

impl GrpcWatch {
    pub(super) async fn message(&mut self) -> Result<Message, Failure> {
        match self.stream.message().await {
            Ok(Some(response)) => Ok(message_of(&response)),
            Ok(None) => Err(Failure::unreachable(&self.endpoint, "the watch ended")),
            Err(error) => Err(Failure::unreachable(&self.endpoint, format!("the watch broke: {error}"))),
        }
    }
}

fn message_of(response: &WatchResponse) -> Message {
    let revision = response.header().map_or(0, ResponseHeader::revision);
    if response.canceled() {
        return match response.compact_revision() {
            0 => Message::Cancelled(response.cancel_reason().to_owned()),
            _ => Message::Compacted,
        };
    }
    if response.created() {
        return Message::Opened(revision);
    }
    let event_of = |event: &etcd_client::Event| {
        let kv = event.kv()?;
        Some(match event.event_type() {
            EventType::Put => KeyEvent::Put(kv_of(kv)),
            EventType::Delete => {
                KeyEvent::Delete(String::from_utf8_lossy(kv.key()).into_owned(), kv.mod_revision())
            }
        })
    };
    Message::Events(response.events().iter().filter_map(event_of).collect(), revision)
}

fn kv_of(kv: &KeyValue) -> Kv {
    Kv {
        key: String::from_utf8_lossy(kv.key()).into_owned(),
        value: kv.value().to_vec(),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
        lease: kv.lease(),
    }
}

fn compares(guard: &Guard, key: &str) -> Vec<Compare> {
    match guard {
        Guard::NoKey(prefix) => vec![Compare::version(prefix.as_str(), CompareOp::Equal, 0).with_prefix()],
        Guard::Unwritten(prefix, revision) => vec![
            Compare::version(key, CompareOp::Equal, 0),
            Compare::mod_revision(prefix.as_str(), CompareOp::Less, revision + 1).with_prefix(),
        ],
        Guard::Version(revision) => vec![Compare::mod_revision(key, CompareOp::Equal, *revision)],
    }
}

fn seconds_of(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

async fn call<T>(endpoint: &str, future: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(result) => result.map_err(|error| Failure::of(endpoint, &error)),
        Err(_) => Err(no_answer(endpoint)),
    }
}

/// The failure of a call that took too long.
pub(super) fn no_answer(endpoint: &str) -> Failure {
    Failure::unreachable(endpoint, format!("no answer in {} s", PATIENCE.as_secs()))
}
