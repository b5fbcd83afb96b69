//! Liveness probe: finds out whether another living node has our node id.
//!
//! A host that comes back with another address finds its own lease with the old address and adopts
//! it. A copy of its disk would do the same and take the subnet from the original. The etcd lease
//! does not tell the two apart, because it lives for a day. The watching node does: the joining
//! node writes a question into etcd, and only a living node deletes it.
//!
//! Invariant: a question is gone after [`TTL`], answered or not. flanneld never sees one.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::connection::Session;
use super::failure::Failure;
use super::guard::{Guard, Written};
use super::identity::NodeIdentity;
use super::own_lease::subnets_text;
use super::record::Record;
use crate::api::shown;
use crate::store::update::{Notice, NoticeCode};
use crate::store::watch::Kv;

/// Time to live of a question, in case the node that asked dies.
const TTL: Duration = Duration::from_secs(10);
/// How long to wait for an answer. A living node answers in milliseconds. A node that has just lost
/// its connection may take longer, and detects the copy later.
const PATIENCE: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(100);

/// Asks. Returns `true` if a living node answered for our id.
pub(crate) async fn is_alive(session: &mut Session, node: &NodeIdentity) -> Result<bool, Failure> {
    let key = node.keys.question(&node.identity.id);
    let (lease, _) = session.grant(TTL).await?;
    let answered = match session.put(&key, &node.describe(), lease, &Guard::NoKey(key.clone())).await? {
        // Another copy asks at the same moment, so there is one.
        Written::Not(_) => true,
        Written::At(_) => wait_for_answer(session, &key).await?,
    };
    session.revoke(lease).await?;
    Ok(answered)
}

async fn wait_for_answer(session: &mut Session, key: &str) -> Result<bool, Failure> {
    for _ in 0..PATIENCE.as_millis() / INTERVAL.as_millis() {
        tokio::time::sleep(INTERVAL).await;
        if session.get(key).await?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Answers a question about our id. Returns what the operator should know.
pub(crate) async fn answer(
    session: &mut Session,
    node: &NodeIdentity,
    question: &Kv,
) -> Result<Notice, Failure> {
    session.delete(&question.key, &Guard::Version(question.mod_revision)).await?;
    let copy = String::from_utf8_lossy(&question.value);
    let copy = shown(&copy);
    let text = format!(
        "{copy} has a copy of node.state_dir of this node, {}, and asked for its subnet: it was refused; delete node-id and \
         map in that directory on the other host",
        node.describe()
    );
    Ok(Notice::new(NoticeCode::StateCopied, text))
}

/// The sentence about why a copy may not join.
pub(crate) fn refusal(node: &NodeIdentity, record: &Record) -> String {
    format!(
        "a living node with the id of this node, {}, holds {} as {}, so node.state_dir was copied: delete node-id and map in \
         it on this host, and this node gets a subnet of its own",
        node.describe(),
        subnets_text(&record.subnets),
        record.attributes.writer(),
    )
}
