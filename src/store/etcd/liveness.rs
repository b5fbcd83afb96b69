//! Whether the node that bears our id at another address is alive: a question left in etcd, which only a living node takes
//! away.
//!
//! A host that comes back at another address finds its own lease, with the old one in it, and takes it up. So would a copy
//! of its disk, and put the original out of its subnet. etcd's lease does not tell the two apart: it lives for a day. The
//! node that watches does.
//!
//! Invariant: a question is gone after [`TTL`], answered or not; flanneld never sees one.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::acquire::{Node, name};
use super::client::{Failure, Guard, Kv, Session, Written};
use super::map::Record;
use crate::store::update::{Notice, NoticeCode};

/// A question outlives whoever asked it by no more.
const TTL: Duration = Duration::from_secs(10);
/// A living node answers in milliseconds; one whose connection has just broken may take longer, and notices us later.
const PATIENCE: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(100);

/// Asks. `true`: somebody answered for our id.
pub(crate) async fn is_alive(session: &mut Session, node: &Node) -> Result<bool, Failure> {
    let key = node.keys.question(&node.identity.id);
    let (lease, _) = session.grant(TTL).await?;
    let answered = match session.put(&key, &node.describe(), lease, &Guard::NoKey(key.clone())).await? {
        // Another copy asks at the same moment, so there is one.
        Written::Not(_) => true,
        Written::At(_) => wait(session, &key).await?,
    };
    session.revoke(lease).await?;
    Ok(answered)
}

async fn wait(session: &mut Session, key: &str) -> Result<bool, Failure> {
    for _ in 0..PATIENCE.as_millis() / INTERVAL.as_millis() {
        tokio::time::sleep(INTERVAL).await;
        if session.get(key).await?.0.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Somebody asks for our id. Returns what the operator should know.
pub(crate) async fn answer(session: &mut Session, node: &Node, question: &Kv) -> Result<Notice, Failure> {
    session.delete(&question.key, &Guard::Version(question.mod_revision)).await?;
    let who = String::from_utf8_lossy(&question.value);
    Ok(Notice::new(
        NoticeCode::StateCopied,
        format!(
            "{who} has a copy of node.state_dir of this node, {}, and wanted its subnet: refused; delete node-id and map in \
         that directory there",
            node.describe()
        ),
    ))
}

/// Why a copy may not join.
pub(crate) fn refusal(node: &Node, record: &Record) -> String {
    format!(
        "a living node with the id of this one, {}, holds {} as {}: node.state_dir was copied: delete node-id and map in it \
         here, and this node gets a subnet of its own",
        node.describe(),
        name(&record.subnets),
        record.attributes.writer(),
    )
}
