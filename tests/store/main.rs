//! The etcd store against a real etcd: joining, renewing, watching, and outages of etcd.
//!
//! Each test starts an etcd of its own (`/usr/bin/etcd`, Debian package etcd-server) on free ports
//! of loopback, with its data in a folder of its own, and kills it by its pid. No test asserts a
//! time; a wait has a time limit, after which the test fails. The same behaviour in virtual time is
//! tested in `src/store/etcd/tests/`.

mod certificates;
mod credentials;
mod etcd;
mod host;
mod joining;
mod leases;
mod operator;
mod outages;
mod snapshot;
mod watching;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, PutOptions, Txn, TxnOp};
use hopsack::route::{Abilities, Dialect, Lease, Rib};
use hopsack::store::etcd::EtcdStore;
use hopsack::store::{
    ErrorCode, EtcdSettings, LEASE_TTL, Lost, LostCause, Notice, NoticeCode, Opened, SnapshotError,
    StoreError, Tls, Update, admin,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use certificates::Certificates;
use etcd::{Etcd, free_port, grown};
use host::{Host, Node, flanneld, hopsack, key_of};

const PREFIX: &str = "/coreos.com/network";
const NETWORK: &str = r#"{"Network":"10.1.0.0/16"}"#;
/// Time limit of things that take milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);
