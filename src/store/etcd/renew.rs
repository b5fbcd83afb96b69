//! Renews our lease: checks that it is still ours, and gives it its whole time to live again.
//!
//! A renewal reads our key and then sends a keep-alive for the etcd lease that the key is attached
//! to. It writes nothing, so that the watches of the other nodes stay silent (flanneld writes, and
//! wakes all of them), no step can be left half done, and flanneld, which asks etcd for the time to
//! live, sees the whole time. If the key must be written, the write is guarded by the revision that
//! was read.
//!
//! Invariant: a key that names another node is never overwritten. [`judge`] is the only place that
//! decides which node owns the key.
#![forbid(unsafe_code)]

use super::connection::Session;
use super::failure::Failure;
use super::guard::{Guard, Written};
use super::holdings::Holdings;
use super::identity::NodeIdentity;
use super::own_lease::{OwnLease, creation_guard, subnets_text};
use crate::store::clock::Clock;
use crate::store::flannel::Attributes;
use crate::store::update::{Lost, LostCause, Notice, NoticeCode};
use crate::store::watch::Kv;

/// Attempts of one renewal. Each fails only if another writer changed the key at the same moment.
const ATTEMPTS: usize = 10;
/// How to fix a lease that another node has.
const RESTART: &str = "restart hopsack on this node to get another subnet";

/// Which node owns a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The key has our value.
    Ours,
    /// The key is ours and has another value; perhaps with a notice for the operator.
    Rewrite(Option<Notice>),
    /// The key belongs to another node.
    Stolen(Lost),
    /// The key does not exist.
    Gone,
}

/// Decides which node owns `found`, the key of our lease.
pub(crate) fn judge(node: &NodeIdentity, own: &OwnLease, found: Option<&Kv>) -> Verdict {
    let Some(kv) = found else { return Verdict::Gone };
    if kv.value == own.value.as_bytes() {
        return Verdict::Ours;
    }
    let rewrite = |code, text: String| Verdict::Rewrite(Some(Notice::new(code, text)));
    let Ok(attributes) = Attributes::parse(&kv.value) else {
        let text = format!(
            "another writer put a value that is not a lease into {}, the key of this node: the key was rewritten",
            kv.key
        );
        return rewrite(NoticeCode::WrittenInvalid, text);
    };
    let theirs = attributes.writer();
    let stolen = |cause, fix| Verdict::Stolen(lost(node, cause, &own.name(), &theirs, fix));
    let has_our_address =
        attributes.public.iter().any(|address| node.public.iter().any(|ours| ours == address));
    match &attributes.identity {
        // We wrote this ourselves, before our address or version changed.
        Some(identity) if identity.id == node.identity.id && kv.mod_revision == own.mod_revision => {
            Verdict::Rewrite(None)
        }
        Some(identity) if identity.id == node.identity.id && has_our_address => {
            let text = format!(
                "another hopsack with the id and an address of this node wrote {}: stop one of the two; the key was \
                 rewritten",
                kv.key
            );
            rewrite(NoticeCode::WrittenByTwin, text)
        }
        Some(identity) if identity.id == node.identity.id => stolen(
            LostCause::StateCopied,
            "node.state_dir was copied: delete node-id in it on one of the two nodes, and restart that node",
        ),
        None if has_our_address => {
            let text = format!(
                "a flanneld with an address of this node wrote {}: stop one of the two; the key was rewritten",
                kv.key
            );
            rewrite(NoticeCode::WrittenByFlanneld, text)
        }
        Some(_) | None => stolen(LostCause::Taken, RESTART),
    }
}

/// A lost lease, with its sentence.
pub(crate) fn lost(node: &NodeIdentity, cause: LostCause, subnet: &str, theirs: &str, fix: &str) -> Lost {
    let ours = node.describe();
    let reason = format!("the subnet {subnet} of this node, {ours}, is now held by {theirs}: {fix}");
    Lost { cause, ours, theirs: theirs.to_owned(), reason }
}

/// Result of a renewal.
#[derive(Debug)]
pub(crate) enum Renewal {
    /// The lease is ours and has its whole time to live; perhaps with a notice for the operator.
    Done(Outcome, Option<Notice>),
    /// The lease belongs to another node.
    Lost(Lost),
}

/// What a renewal had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A keep-alive was enough.
    Renewed,
    /// The key had another value and was rewritten.
    Rewritten,
    /// The key was gone and was created again.
    Recreated,
}

/// Checks our key, corrects it, and gives it its whole time to live.
pub(crate) async fn renew(
    session: &mut Session,
    node: &NodeIdentity,
    clock: Clock,
    own: &mut OwnLease,
) -> Result<Renewal, Failure> {
    let mut notice = None;
    for _ in 0..ATTEMPTS {
        let found = session.get(&own.key).await?;
        let created = found.as_ref().map(|kv| kv.create_revision);
        let (guard, is_reserved, outcome) = match (judge(node, own, found.as_ref()), found) {
            (Verdict::Stolen(lost), _) => return Ok(Renewal::Lost(lost)),
            (Verdict::Ours, Some(kv)) => {
                if extend(session, clock, own, &kv).await? {
                    return Ok(Renewal::Done(Outcome::Renewed, notice));
                }
                // The lease expired between the read and the keep-alive.
                continue;
            }
            (Verdict::Rewrite(reason), Some(kv)) => {
                notice = reason.or(notice);
                (Guard::Version(kv.mod_revision), kv.lease == 0, Outcome::Rewritten)
            }
            (Verdict::Gone | Verdict::Ours | Verdict::Rewrite(_), _) => {
                let listing = session.list(&node.keys.root(), None).await?;
                if let Some(lost) = taken(node, own, &Holdings::of(&node.keys, &listing.kvs)) {
                    return Ok(Renewal::Lost(lost));
                }
                let text =
                    format!("the lease of {} had expired or was deleted: it was created again", own.name());
                notice = Some(Notice::new(NoticeCode::LeaseRecreated, text));
                let guard = creation_guard(&node.keys, &own.key, &own.subnets, listing.revision);
                (guard, false, Outcome::Recreated)
            }
        };
        let (lease, granted) = if is_reserved { (0, own.granted) } else { session.grant(node.ttl).await? };
        if let Written::At(revision) = session.put(&own.key, &own.value, lease, &guard).await? {
            let is_new = outcome == Outcome::Recreated;
            own.created = created.filter(|_| !is_new).unwrap_or(revision);
            (own.mod_revision, own.lease, own.granted) = (revision, lease, granted);
            own.renewed(clock);
            return Ok(Renewal::Done(outcome, notice));
        }
    }
    Err(Failure::unreachable(session.endpoint(), format!("another writer keeps changing {}", own.key)))
}

/// Sends a keep-alive for the etcd lease that the key is attached to. An operator may have attached
/// another one, or none. Returns `false` if the lease has expired.
async fn extend(session: &mut Session, clock: Clock, own: &mut OwnLease, kv: &Kv) -> Result<bool, Failure> {
    (own.created, own.mod_revision) = (kv.create_revision, kv.mod_revision);
    if kv.lease != own.lease && kv.lease != 0 {
        let Some((_, granted)) = session.time_to_live(kv.lease).await? else { return Ok(false) };
        own.granted = granted;
    }
    own.lease = kv.lease;
    let is_alive = own.lease == 0 || session.keep_alive(own.lease).await?;
    if is_alive {
        own.renewed(clock);
    }
    Ok(is_alive)
}

/// The node that took a part of our subnet while our key was gone.
fn taken(node: &NodeIdentity, own: &OwnLease, holdings: &Holdings) -> Option<Lost> {
    let overlaps =
        |net: &ipnet::IpNet| own.subnets.iter().any(|ours| ours.contains(net) || net.contains(ours));
    let other = holdings.records.iter().find(|record| record.subnets.iter().any(overlaps))?;
    let theirs = format!("{} ({})", other.attributes.writer(), subnets_text(&other.subnets));
    Some(lost(node, LostCause::Taken, &own.name(), &theirs, RESTART))
}

#[cfg(test)]
mod tests;
