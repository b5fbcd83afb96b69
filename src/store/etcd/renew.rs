//! Keeps our own lease: looks whether it is still ours, and gives it its time again.
//!
//! Renewal is the keep-alive call on the etcd lease that the key has, after a look at the key; no write, so that the
//! watchers of the other nodes are left in peace (flanneld writes, and wakes all of them), nothing half-done can be left
//! behind, and flanneld, which asks etcd for the time to live, sees the whole of it. What must be written is written by
//! compare-and-swap on the revision that was looked at.
//!
//! Invariant: a key that names another node is never written over. [`judge`] is the only place that decides whose it is.
#![forbid(unsafe_code)]

use super::acquire::{Holdings, Node, Own, guard, name};
use super::client::{Failure, FailureKind, Guard, Kv, Session, Written};
use crate::store::flannel::Attributes;
use crate::store::update::{Lost, LostCause, Notice, NoticeCode};

/// Whose our key is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It says what we say.
    Ours,
    /// It is ours, and says something else; what the operator should know about that, if anything.
    Rewrite(Option<Notice>),
    /// It is somebody else's.
    Stolen(Lost),
    /// There is no such key.
    Gone,
}

/// Decides whose `found`, the key of our lease, is.
pub(crate) fn judge(node: &Node, own: &Own, found: Option<&Kv>) -> Verdict {
    let Some(kv) = found else { return Verdict::Gone };
    if kv.value == own.value.as_bytes() {
        return Verdict::Ours;
    }
    let Ok(attributes) = Attributes::parse(&kv.value) else {
        let notice =
            format!("somebody wrote what is no lease into {}, the key of this node: written anew", kv.key);
        return Verdict::Rewrite(Some(Notice::new(NoticeCode::WrittenInvalid, notice)));
    };
    let theirs = attributes.writer();
    let our_address = attributes.public.iter().any(|address| node.public.iter().any(|ours| ours == address));
    match &attributes.identity {
        Some(identity) if identity.id == node.identity.id => match kv.mod_revision == own.mod_revision {
            // What we wrote ourselves, before our address or version changed.
            true => Verdict::Rewrite(None),
            false if our_address => Verdict::Rewrite(Some(Notice::new(
                NoticeCode::WrittenByTwin,
                format!(
                    "another hopsack with the id and an address of this node wrote {}: stop one of the two",
                    kv.key
                ),
            ))),
            false => {
                let mend =
                    "node.state_dir was copied: delete node-id in it on one of the two, and restart that";
                Verdict::Stolen(lost(node, LostCause::StateCopied, &own.name(), &theirs, mend))
            }
        },
        Some(_) => {
            let mend = "restart hopsack on this node to get another subnet";
            Verdict::Stolen(lost(node, LostCause::Taken, &own.name(), &theirs, mend))
        }
        None if our_address => Verdict::Rewrite(Some(Notice::new(
            NoticeCode::WrittenByFlanneld,
            format!(
                "a flanneld with an address of this node wrote {}: stop one of the two; the key is written anew",
                kv.key
            ),
        ))),
        None => {
            let mend = "restart hopsack on this node to get another subnet";
            Verdict::Stolen(lost(node, LostCause::Taken, &own.name(), &theirs, mend))
        }
    }
}

pub(crate) fn lost(node: &Node, cause: LostCause, subnet: &str, theirs: &str, mend: &str) -> Lost {
    let ours = node.describe();
    let reason = format!("the subnet {subnet} of this node, {ours}, is held by {theirs} now: {mend}");
    Lost { cause, ours, theirs: theirs.to_owned(), reason }
}

/// What keeping brought.
#[derive(Debug)]
pub(crate) enum Kept {
    /// It is ours and has its whole time; maybe with something that the operator should know.
    Yes(How, Option<Notice>),
    /// It is somebody else's.
    Lost(Lost),
}

/// What had to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Renewed,
    Rewritten,
    Recreated,
}

/// Looks at our key, sets it right, and gives it its whole time.
pub(crate) async fn keep(session: &mut Session, node: &Node, own: &mut Own) -> Result<Kept, Failure> {
    let mut notice = None;
    // Each turn ends it, unless somebody wrote meanwhile; who writes that often is not to be outrun.
    for _ in 0..10 {
        let (found, _) = session.get(&own.key).await?;
        let guard = match judge(node, own, found.as_ref()) {
            Verdict::Stolen(lost) => return Ok(Kept::Lost(lost)),
            Verdict::Ours => {
                let Some(kv) = found else { continue };
                if extend(session, own, &kv).await? {
                    return Ok(Kept::Yes(How::Renewed, notice));
                }
                // Between our look and now it ran out.
                continue;
            }
            Verdict::Rewrite(why) => {
                let Some(kv) = found else { continue };
                notice = why.or(notice);
                (Guard::Version(kv.mod_revision), kv.lease == 0, How::Rewritten)
            }
            Verdict::Gone => {
                let listing = session.list(&node.keys.root(), None).await?;
                if let Some(lost) = taken(node, own, &Holdings::of(&node.keys, &listing.kvs)) {
                    return Ok(Kept::Lost(lost));
                }
                let text = format!("the lease of {} had run out or been deleted: made anew", own.name());
                notice = Some(Notice::new(NoticeCode::LeaseRecreated, text));
                (guard(node, &own.key, &own.subnets, listing.revision), false, How::Recreated)
            }
        };
        let (guard, reserved, how) = guard;
        let (lease, granted) = if reserved { (0, own.granted) } else { session.grant(node.ttl).await? };
        if let Written::At(revision) = session.put(&own.key, &own.value, lease, &guard).await? {
            (own.mod_revision, own.lease, own.granted) = (revision, lease, granted);
            own.renewed();
            return Ok(Kept::Yes(how, notice));
        }
    }
    let what = format!("{} is written all the time by somebody else", own.key);
    Err(Failure::new(session.endpoint(), what, FailureKind::Unreachable))
}

/// Gives the key's etcd lease its whole time; `false`: it ran out. An operator may have given it another, or none.
async fn extend(session: &mut Session, own: &mut Own, kv: &Kv) -> Result<bool, Failure> {
    own.mod_revision = kv.mod_revision;
    if kv.lease != own.lease && kv.lease != 0 {
        let Some((_, granted)) = session.time_to_live(kv.lease).await? else { return Ok(false) };
        own.granted = granted;
    }
    own.lease = kv.lease;
    let alive = own.lease == 0 || session.keep_alive(own.lease).await?;
    if alive {
        own.renewed();
    }
    Ok(alive)
}

/// Who took a part of our subnet while our key was gone.
fn taken(node: &Node, own: &Own, holdings: &Holdings) -> Option<Lost> {
    let overlaps =
        |net: &ipnet::IpNet| own.subnets.iter().any(|ours| ours.contains(net) || net.contains(ours));
    let thief = holdings.records.iter().find(|record| record.subnets.iter().any(overlaps))?;
    let theirs = format!("{} ({})", thief.attributes.writer(), name(&thief.subnets));
    Some(lost(
        node,
        LostCause::Taken,
        &own.name(),
        &theirs,
        "restart hopsack on this node to get another subnet",
    ))
}

#[cfg(test)]
#[path = "renew_tests.rs"]
mod tests;
