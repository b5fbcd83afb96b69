//! One connection to one etcd endpoint: the few calls that we make, each with an end to its patience.
//!
//! Endpoints are used one at a time, in turn, the first by backoff: with a balanced channel a dead member would swallow
//! its share of calls for ever, while here the next [`Endpoints::connect`] goes elsewhere. Nothing here tries again;
//! that is the agent's part.
//!
//! Invariant: no call outlives [`PATIENCE`], and a connection whose far end is gone breaks a watch within
//! `PING + PING_PATIENCE`.
//!
//! Sources: etcd `api/etcdserverpb/rpc.proto`; its server sends GOAWAY to clients that ping more often than
//! `--grpc-keepalive-min-time` (5 s), or ping without a stream.
#![forbid(unsafe_code)]

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, Identity, KeyValue, KvClient,
    LeaseClient, PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchClient, WatchOptions, WatchStream,
};

use super::backoff;
use crate::store::error::{ErrorCode, StoreError};
use crate::store::settings::EtcdSettings;

/// For one call. A list of 5,000 leases (1.5 MB) takes 50 ms on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// For a TCP connection and its TLS handshake.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// HTTP/2 pings while a watch is open; see the sources above for the lower bound.
const PING: Duration = Duration::from_secs(6);
/// For the answer to a ping.
const PING_PATIENCE: Duration = Duration::from_secs(3);
/// Room for a range of 100,000 leases; tonic's default of 4 MiB ends at 15,000.
const MAX_MESSAGE: usize = 64 << 20;

/// Why a call brought nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{endpoint}: {what}")]
pub(crate) struct Failure {
    endpoint: String,
    what: String,
    pub(crate) kind: FailureKind,
}

/// What can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Try again, elsewhere.
    Unreachable,
    /// We are not let in.
    Denied,
    /// etcd does not have the revision: it was compacted, or etcd was restored from a backup that is older.
    RevisionGone,
}

impl Failure {
    pub(crate) fn new(endpoint: &str, what: impl Into<String>, kind: FailureKind) -> Self {
        Self { endpoint: endpoint.to_owned(), what: what.into(), kind }
    }

    fn of(endpoint: &str, error: &Error) -> Self {
        Self::new(endpoint, sentence(error), FailureKind::of(error))
    }

    /// The error that ends a start or an operator command.
    pub(crate) fn into_error(self) -> StoreError {
        match self.kind {
            FailureKind::Denied => StoreError::new(
                ErrorCode::Denied,
                format!(
                    "etcd refuses access: {self}; check store.username, store.password_file and store.cert"
                ),
            ),
            FailureKind::Unreachable | FailureKind::RevisionGone => StoreError::new(
                ErrorCode::Unreachable,
                format!(
                    "cannot read the map from etcd: {self}; check that etcd runs and that store.endpoints is right"
                ),
            ),
        }
    }
}

/// Numbers of gRPC status codes (`doc/statuscodes.md` in grpc/grpc).
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const OUT_OF_RANGE: i32 = 11;
const UNAUTHENTICATED: i32 = 16;

impl FailureKind {
    /// By gRPC code, as etcd assigns them in `api/v3rpc/rpctypes/error.go`. `OutOfRange` is a revision that was
    /// compacted, or one that is above etcd's own. A wrong password and a missing user name share `InvalidArgument` with
    /// unrelated errors, so only there the message decides.
    fn of(error: &Error) -> Self {
        let Error::GRpcStatus(status) = error else { return Self::Unreachable };
        let text_says = |text: &str| status.message().contains(text);
        match i32::from(status.code()) {
            OUT_OF_RANGE => Self::RevisionGone,
            PERMISSION_DENIED | UNAUTHENTICATED => Self::Denied,
            INVALID_ARGUMENT if text_says("authentication failed") || text_says("user name is empty") => {
                Self::Denied
            }
            _ => Self::Unreachable,
        }
    }
}

/// The innermost cause: the outer ones say only that there was one.
fn sentence(error: &Error) -> String {
    let (mut last, mut cause) = (error.to_string(), None);
    if let Error::GRpcStatus(status) = error {
        (last, cause) = (status.message().to_owned(), std::error::Error::source(status));
    } else if let Error::TransportError(error) = error {
        cause = std::error::Error::source(error);
    }
    while let Some(inner) = cause {
        last = inner.to_string();
        cause = inner.source();
    }
    last.trim_start_matches("etcdserver: ").replace('\n', ", ")
}

/// A key as etcd holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kv {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) mod_revision: i64,
    /// 0: none.
    pub(crate) lease: i64,
}

impl Kv {
    pub(crate) fn of(kv: &KeyValue) -> Self {
        Self {
            key: String::from_utf8_lossy(kv.key()).into_owned(),
            value: kv.value().to_vec(),
            mod_revision: kv.mod_revision(),
            lease: kv.lease(),
        }
    }
}

/// Everything under the prefix at one revision.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listing {
    pub(crate) revision: i64,
    pub(crate) kvs: Vec<Kv>,
}

/// What must still hold for a write to happen.
#[derive(Debug, Clone)]
pub(crate) enum Guard {
    /// No key begins so: neither this lease, nor one of the same IPv4 subnet with some IPv6 subnet.
    NoKey(String),
    /// No key that begins so was written after this revision.
    Unwritten(String, i64),
    /// The key is as we know it.
    Version(i64),
}

impl Guard {
    fn compares(&self, key: &str) -> Vec<Compare> {
        match self {
            Self::NoKey(prefix) => {
                vec![Compare::version(prefix.as_str(), CompareOp::Equal, 0).with_prefix()]
            }
            Self::Unwritten(prefix, revision) => vec![
                Compare::version(key, CompareOp::Equal, 0),
                Compare::mod_revision(prefix.as_str(), CompareOp::Less, revision + 1).with_prefix(),
            ],
            Self::Version(revision) => vec![Compare::mod_revision(key, CompareOp::Equal, *revision)],
        }
    }
}

/// What a guarded write brought.
#[derive(Debug)]
pub(crate) enum Written {
    /// It happened at this revision.
    At(i64),
    /// It didn't: this is what is there.
    Not(Option<Kv>),
}

/// Where etcd is, and how it is spoken to.
#[derive(Debug)]
pub(crate) struct Endpoints {
    urls: Vec<String>,
    next: usize,
    options: ConnectOptions,
}

impl Endpoints {
    /// Reads certificates and password. The error is a sentence with the mend.
    pub(crate) fn new(config: &EtcdSettings) -> Result<Self, String> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_PATIENCE)
            .with_keep_alive(PING, PING_PATIENCE)
            .with_keep_alive_while_idle(false)
            .with_tcp_keepalive(PING)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(tls) = &config.tls {
            let mut tls_options =
                TlsOptions::new().ca_certificate(Certificate::from_pem(read("store.ca", &tls.ca)?));
            if let Some((cert, key)) = &tls.client {
                tls_options = tls_options
                    .identity(Identity::from_pem(read("store.cert", cert)?, secret("store.key", key)?));
            }
            options = options.with_tls(tls_options);
        }
        if let Some((user, file)) = &config.user {
            let password = String::from_utf8(secret("store.password_file", file)?)
                .map_err(|_| format!("store.password_file = {}: it is no text", file.display()))?;
            options = options.with_user(user, password.trim_end_matches(['\r', '\n']));
        }
        let count = config.endpoints.len();
        let next = usize::try_from(backoff::below(u64::try_from(count).unwrap_or(1))).unwrap_or(0);
        Ok(Self { urls: config.endpoints.clone(), next, options })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.urls.len()
    }

    /// Turns to the next endpoint.
    pub(crate) async fn connect(&mut self) -> Result<Session, Failure> {
        let url = self.urls[self.next % self.urls.len()].clone();
        self.next = self.next.wrapping_add(1);
        let connect = Client::connect([url.as_str()], Some(self.options.clone()));
        let client = match tokio::time::timeout(PATIENCE, connect).await {
            Ok(client) => client.map_err(|error| Failure::of(&url, &error))?,
            Err(_) => return Err(silent(&url)),
        };
        Ok(Session {
            kv: client.kv_client().max_decoding_message_size(MAX_MESSAGE),
            watch: client.watch_client().max_decoding_message_size(MAX_MESSAGE),
            lease: client.lease_client(),
            endpoint: url,
        })
    }

    /// The next connection goes where the last one went.
    pub(crate) fn same_again(&mut self) {
        self.next = self.next.wrapping_add(self.urls.len() - 1);
    }
}

fn silent(endpoint: &str) -> Failure {
    Failure::new(endpoint, format!("no answer in {} s", PATIENCE.as_secs()), FailureKind::Unreachable)
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{key} = {}: {error}", path.display()))
}

/// A file that others can read holds no secret.
fn secret(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    let bytes = read(key, path)?;
    let mode = std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode());
    if mode & 0o007 != 0 {
        let path = path.display();
        return Err(format!("{key} = {path}: everybody on this host can use it: chmod 600 {path}"));
    }
    Ok(bytes)
}

/// One connection.
pub(crate) struct Session {
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
    endpoint: String,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// One range read of everything under `root`, now or as it was at a revision.
    pub(crate) async fn list(&mut self, root: &str, at: Option<i64>) -> Result<Listing, Failure> {
        let options = GetOptions::new().with_prefix().with_revision(at.unwrap_or(0));
        let response = call(&self.endpoint, self.kv.get(root, Some(options))).await?;
        // etcd's header says the newest revision, whichever was asked for.
        let newest = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        let kvs = response.kvs().iter().map(Kv::of).collect();
        Ok(Listing { revision: at.unwrap_or(newest), kvs })
    }

    /// One key, and etcd's revision.
    pub(crate) async fn get(&mut self, key: &str) -> Result<(Option<Kv>, i64), Failure> {
        let response = call(&self.endpoint, self.kv.get(key, None)).await?;
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok((response.kvs().first().map(Kv::of), revision))
    }

    /// Writes `key` if the guard holds.
    pub(crate) async fn put(
        &mut self,
        key: &str,
        value: &str,
        lease: i64,
        guard: &Guard,
    ) -> Result<Written, Failure> {
        let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
        self.guarded(key, guard, put).await
    }

    /// Deletes `key` if the guard holds.
    pub(crate) async fn delete(&mut self, key: &str, guard: &Guard) -> Result<Written, Failure> {
        self.guarded(key, guard, TxnOp::delete(key, None)).await
    }

    async fn guarded(&mut self, key: &str, guard: &Guard, op: TxnOp) -> Result<Written, Failure> {
        let txn =
            Txn::new().when(guard.compares(key)).and_then(vec![op]).or_else(vec![TxnOp::get(key, None)]);
        let response = call(&self.endpoint, self.kv.txn(txn)).await?;
        if response.succeeded() {
            return Ok(Written::At(response.header().map_or(0, etcd_client::ResponseHeader::revision)));
        }
        let there = response.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(get) => get.kvs().first().map(Kv::of),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        Ok(Written::Not(there))
    }

    /// A new etcd lease: its id, and the time to live that etcd made of ours.
    pub(crate) async fn grant(&mut self, ttl: Duration) -> Result<(i64, Duration), Failure> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let response = call(&self.endpoint, self.lease.grant(seconds, None)).await?;
        Ok((response.id(), seconds_of(response.ttl())))
    }

    pub(crate) async fn revoke(&mut self, lease: i64) -> Result<(), Failure> {
        call(&self.endpoint, self.lease.revoke(lease)).await.map(drop)
    }

    /// Gives an etcd lease its whole time again; `false`: it ran out.
    pub(crate) async fn keep_alive(&mut self, lease: i64) -> Result<bool, Failure> {
        match tokio::time::timeout(PATIENCE, self.lease.keep_alive(lease)).await {
            Ok(Ok(_keeper)) => Ok(true),
            Ok(Err(Error::LeaseKeepAliveError(_))) => Ok(false),
            Ok(Err(error)) => Err(Failure::of(&self.endpoint, &error)),
            Err(_) => Err(silent(&self.endpoint)),
        }
    }

    /// What is left of an etcd lease, and what it had; `None`: it ran out.
    pub(crate) async fn time_to_live(&mut self, lease: i64) -> Result<Option<(Duration, Duration)>, Failure> {
        let response = call(&self.endpoint, self.lease.time_to_live(lease, None)).await?;
        let alive = response.ttl() > 0;
        Ok(alive.then(|| (seconds_of(response.ttl()), seconds_of(response.granted_ttl()))))
    }

    /// All changes under `root` from a revision on.
    pub(crate) async fn watch(&mut self, root: &str, from: i64) -> Result<WatchStream, Failure> {
        let options = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
        call(&self.endpoint, self.watch.watch(root, Some(options))).await
    }
}

fn seconds_of(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

async fn call<T>(endpoint: &str, future: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(result) => result.map_err(|error| Failure::of(endpoint, &error)),
        Err(_) => Err(silent(endpoint)),
    }
}
