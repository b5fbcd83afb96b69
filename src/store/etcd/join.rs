//! Joining: by etcd, or by the snapshot on disk while etcd does not answer.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

use super::acquire::{Acquired, NoLease, acquire};
use super::backoff::Backoff;
use super::connection::{Endpoints, Session};
use super::failure::{Failure, FailureKind};
use super::host_files;
use super::identity::{NodeIdentity, published};
use super::snapshot::Snapshot;
use crate::api::{LONGEST_NAME, is_name};
use crate::route::Public;
use crate::store::error::{ErrorCode, SnapshotError, StoreError};
use crate::store::flannel::{Identity, Keys, Network};
use crate::store::settings::EtcdSettings;

/// How long a start without snapshot waits for etcd. After that it fails, and the caller tries
/// again.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// How this node joined.
pub(super) enum Joined {
    /// etcd answered. If the snapshot on disk was refused, the reason is here.
    ByEtcd(Box<Session>, Box<Acquired>, Option<SnapshotError>),
    /// etcd did not answer, and the map is that of the last run.
    BySnapshot(Box<Snapshot>, Box<Network>, Failure),
}

/// Identity of this node, by its settings and its files.
pub(super) fn identity(settings: &EtcdSettings, addresses: &[IpAddr]) -> Result<NodeIdentity, StoreError> {
    let id =
        host_files::node_id(&settings.state_dir).map_err(|text| StoreError::new(ErrorCode::NodeId, text))?;
    if let Some(name) = settings.node_name.as_ref().filter(|name| !is_name(name)) {
        let text = format!(
            "node.name = {name:?} is no name of a host: write at most {LONGEST_NAME} letters, digits and -_.:@"
        );
        return Err(StoreError::new(ErrorCode::NodeName, text));
    }
    let node = NodeIdentity {
        keys: Keys::new(&settings.prefix),
        identity: Identity {
            id,
            name: settings.node_name.clone().unwrap_or_else(|| host_files::host_name(addresses)),
            abilities: settings.abilities,
        },
        public: published(addresses),
        subnets: settings.subnets.clone(),
        ttl: settings.lease_ttl,
    };
    if node.public == Public::default() {
        return Err(StoreError::new(
            ErrorCode::NoAddress,
            "this host has no address at which other hosts reach it: set node.public_ip",
        ));
    }
    Ok(node)
}

/// Joins the cluster.
pub(super) async fn join(
    endpoints: &mut Endpoints,
    node: &NodeIdentity,
    settings: &EtcdSettings,
) -> Result<Joined, StoreError> {
    let loaded = Snapshot::load(&settings.state_dir);
    let (snapshot, refused) = match loaded {
        Ok(snapshot) => (snapshot, None),
        Err(error) => (None, Some(error)),
    };
    let usable = snapshot
        .as_ref()
        .map(|snapshot| snapshot.usable(node, &host_files::boot_id(), endpoints.clock().now()));
    let mut previous: Vec<Vec<IpNet>> = Vec::new();
    previous.extend(snapshot.as_ref().map(|snapshot| snapshot.own().subnets));
    previous.extend(host_files::subnet_env(&settings.subnet_env));
    let has_substitute = matches!(usable, Some(Ok(_)));
    let patience = if has_substitute { Duration::ZERO } else { START_PATIENCE };
    let failure = match ask_all(endpoints, node, &previous, patience).await {
        Ok((session, acquired)) => {
            return Ok(Joined::ByEtcd(Box::new(session), Box::new(acquired), refused));
        }
        Err(NoLease::Refused(error)) => return Err(error),
        Err(NoLease::Failed(failure)) => failure,
    };
    match (snapshot, usable) {
        (Some(snapshot), Some(Ok(network))) => {
            let snapshot = snapshot.taken_into_use(&settings.state_dir);
            Ok(Joined::BySnapshot(Box::new(snapshot), Box::new(network), failure))
        }
        (_, unusable) => {
            let refused = refused.or_else(|| unusable.and_then(Result::err));
            Err(failure.into_error().with_snapshot(refused))
        }
    }
}

/// Asks each endpoint once, and then again and again until `patience` is over.
async fn ask_all(
    endpoints: &mut Endpoints,
    node: &NodeIdentity,
    previous: &[Vec<IpNet>],
    patience: Duration,
) -> Result<(Session, Acquired), NoLease> {
    let (started, mut backoff, mut asked) = (Instant::now(), Backoff::default(), 0);
    loop {
        let failure = match ask(endpoints, node, previous).await {
            Err(NoLease::Failed(failure)) => failure,
            joined => return joined,
        };
        asked += 1;
        let is_hopeless = failure.kind == FailureKind::Denied || started.elapsed() >= patience;
        if asked >= endpoints.len() && is_hopeless {
            return Err(NoLease::Failed(failure));
        }
        if asked % endpoints.len() == 0 {
            tokio::time::sleep(backoff.next()).await;
        }
    }
}

async fn ask(
    endpoints: &mut Endpoints,
    node: &NodeIdentity,
    previous: &[Vec<IpNet>],
) -> Result<(Session, Acquired), NoLease> {
    let mut session = endpoints.connect().await?;
    let acquired = acquire(&mut session, node, endpoints.clock(), previous).await?;
    Ok((session, acquired))
}
