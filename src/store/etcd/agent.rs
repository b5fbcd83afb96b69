//! The task behind an [`super::EtcdStore`]: connects, watches, keeps our lease, and tries again for ever.
//!
//! It is one straight loop over one connection; what it learns leaves by a channel, so that the node may drop
//! [`super::EtcdStore::next`] at any await. It never decides what a change means for packets.
//!
//! Invariant: what went through the channel, folded by a RIB, is etcd's state at `Health::revision`. A break resumes the
//! watch where it ended; only a start, a compaction, and a store that lost its history read the whole list.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::acquire::{Node, Own};
use super::backoff::{self, Backoff};
use super::client::{Endpoints, Failure, FailureKind, Guard, Session};
use super::health::Health;
use super::map::Map;
use super::renew::{self, How, Kept};
use super::snapshot::Snapshot;
use crate::route::{Announced, Public};
use crate::store::flannel::Network;
use crate::store::update::{Lost, Update};

/// Between lists that look for drift, give or take a quarter. One range read a node: 5,000 nodes make 17 a second.
const RELIST: Duration = Duration::from_secs(300);
/// The map on disk may be this much older than the map.
const SAVE: Duration = Duration::from_secs(2);

/// What the node asks of the agent.
#[derive(Debug)]
pub(crate) enum Command {
    Relist,
    Readdress(Public),
    Verify,
    Announce(Announced),
    Close(oneshot::Sender<Result<(), String>>),
}

/// Why the loop over a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    Failed(Failure),
    Lost(Lost),
    /// Our address is another: the connection may hang on the old one, which would take seconds to notice.
    Moved,
    Closed,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) endpoints: Endpoints,
    pub(crate) node: Node,
    pub(crate) network: Network,
    /// The network configuration as it is in etcd.
    pub(crate) config: String,
    pub(crate) own: Own,
    pub(crate) map: Map,
    /// Whether this process has seen etcd: a map from disk may be wrong in any way.
    pub(crate) seen: bool,
    pub(crate) state_dir: PathBuf,
    pub(crate) revoke_on_exit: bool,
    pub(crate) updates: mpsc::Sender<Update>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) health: watch::Sender<Health>,
    /// Keys of nodes at our address that were reported.
    pub(crate) clashes: BTreeSet<String>,
    pub(crate) in_trouble: bool,
    /// Our lease in etcd has an older address than we.
    pub(crate) moved: bool,
}

/// What is due when.
struct Timers {
    renew: Instant,
    relist: Instant,
    save: Option<Instant>,
}

impl Agent {
    /// Runs until the store is dropped or closed, or the lease is lost. `session`: the connection that made the map.
    pub(crate) async fn run(mut self, mut session: Option<Session>) {
        let mut backoff = Backoff::default();
        loop {
            let end = match session.take() {
                Some(session) => self.serve(session, &mut backoff).await,
                None => match self.endpoints.connect().await {
                    Ok(session) => self.serve(session, &mut backoff).await,
                    Err(failure) => End::Failed(failure),
                },
            };
            match end {
                End::Closed => return,
                End::Moved => self.endpoints.same_again(),
                End::Lost(lost) => {
                    self.health.send_modify(|health| {
                        health.connected = false;
                        health.trouble = Some(lost.reason.clone());
                    });
                    self.say(Update::Lost(lost)).await;
                    return;
                }
                End::Failed(failure) => {
                    self.trouble(&failure).await;
                    if self.wait(backoff.next()).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    async fn trouble(&mut self, failure: &Failure) {
        let sentence = format!("etcd: {failure}; the last map stays in force");
        self.health.send_modify(|health| {
            health.connected = false;
            health.stale_since.get_or_insert_with(SystemTime::now);
            health.trouble = Some(sentence.clone());
        });
        if !std::mem::replace(&mut self.in_trouble, true) {
            self.say(Update::Trouble(sentence)).await;
        }
    }

    /// Waits before the next attempt; `None`: the store was closed meanwhile.
    async fn wait(&mut self, wait: Duration) -> Option<()> {
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Some(()),
                command = self.commands.recv() => match command? {
                    Command::Relist | Command::Verify => return Some(()),
                    Command::Readdress(public) => self.set_public(public),
                    Command::Announce(announced) => self.set_announced(announced),
                    Command::Close(done) => {
                        self.save();
                        let away = "etcd is away: the lease could not be given back, it runs out by itself";
                        let _ = done.send(if self.revoke_on_exit { Err(away.into()) } else { Ok(()) });
                        return None;
                    }
                },
            }
        }
    }

    /// One connection, from its first call to its end.
    async fn serve(&mut self, mut session: Session, backoff: &mut Backoff) -> End {
        match self.follow(&mut session, backoff).await {
            Err(end) => end,
            Ok(never) => match never {},
        }
    }

    async fn follow(
        &mut self,
        session: &mut Session,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, End> {
        self.health.send_modify(|health| session.endpoint().clone_into(&mut health.endpoint));
        let fresh = self.seen && !self.in_trouble && !self.moved;
        if !fresh {
            self.keep(session).await?;
        }
        if std::mem::take(&mut self.moved) {
            self.report_clashes().await;
        }
        if !self.seen {
            self.resync(session, |health| health.resyncs.start += 1).await?;
            self.seen = true;
        }
        let mut stream = session.watch(&self.node.keys.root(), self.map.revision() + 1).await?;
        let now = Instant::now();
        let mut timers = Timers {
            renew: now + self.own.granted / 3,
            relist: now + backoff::around(RELIST, 4),
            save: Some(now),
        };
        loop {
            let save = timers.save.unwrap_or(timers.relist);
            tokio::select! {
                response = stream.message() => match response {
                    Ok(Some(response)) if response.canceled() => {
                        self.cancelled(session, &response).await?;
                        stream = session.watch(&self.node.keys.root(), self.map.revision() + 1).await?;
                    }
                    Ok(Some(response)) => {
                        if self.heard(session, &response, &mut stream).await? {
                            timers.save.get_or_insert(Instant::now() + SAVE);
                        }
                        *backoff = Backoff::default();
                    }
                    Ok(None) => return Err(unreachable_end(session, "the watch ended")),
                    Err(error) => return Err(unreachable_end(session, &format!("the watch broke: {error}"))),
                },
                () = tokio::time::sleep_until(timers.renew) => {
                    // A renewal that fails ends the connection, and the next one begins with a renewal.
                    self.keep(session).await?;
                    timers.renew = Instant::now() + self.own.granted / 3;
                    timers.save.get_or_insert(Instant::now() + SAVE);
                }
                () = tokio::time::sleep_until(timers.relist) => {
                    self.compare(session, |health| health.resyncs.periodic += 1).await?;
                    timers.relist = Instant::now() + backoff::around(RELIST, 4);
                }
                () = tokio::time::sleep_until(save), if timers.save.is_some() => {
                    timers.save = None;
                    self.note_all();
                    self.save();
                }
                command = self.commands.recv() => match command {
                    None => return Err(End::Closed),
                    Some(Command::Relist) => {
                        self.compare(session, |health| health.resyncs.asked += 1).await?;
                    }
                    Some(Command::Verify) => self.keep(session).await?,
                    Some(Command::Readdress(public)) => {
                        self.set_public(public);
                        return Err(End::Moved);
                    }
                    Some(Command::Announce(announced)) => {
                        self.set_announced(announced);
                        self.keep(session).await?;
                    }
                    Some(Command::Close(done)) => {
                        let _ = done.send(self.leave(session).await);
                        return Err(End::Closed);
                    }
                },
            }
        }
    }

    /// Sees to our lease.
    pub(crate) async fn keep(&mut self, session: &mut Session) -> Result<(), End> {
        match renew::keep(session, &self.node, &mut self.own).await {
            Ok(Kept::Lost(lost)) => Err(End::Lost(lost)),
            Ok(Kept::Yes(how, notice)) => {
                self.health.send_modify(|health| match how {
                    How::Renewed => health.renewals.renewed += 1,
                    How::Rewritten => health.renewals.rewritten += 1,
                    How::Recreated => health.renewals.recreated += 1,
                });
                if let Some(notice) = notice {
                    self.say(Update::Notice(notice)).await;
                }
                self.note();
                Ok(())
            }
            Err(failure) => {
                self.health.send_modify(|health| health.renewals.failed += 1);
                Err(failure.into())
            }
        }
    }

    fn set_announced(&mut self, announced: Announced) {
        self.node.identity.abilities.secure = Some(announced);
        self.own.value = self.node.value();
    }

    fn set_public(&mut self, public: Public) {
        self.moved = true;
        self.node.public = public;
        self.own.value = self.node.value();
    }

    pub(crate) async fn connected(&mut self) {
        self.health.send_modify(|health| {
            health.connected = true;
            health.stale_since = None;
            health.trouble = None;
        });
        if std::mem::take(&mut self.in_trouble) {
            self.say(Update::Recovered).await;
        }
        self.note();
    }

    /// Puts what is known into `health`: what may change a thousand times a second.
    pub(crate) fn note(&self) {
        self.health.send_modify(|health| {
            health.revision = self.map.revision();
            health.leases = self.map.len();
            health.lease_expires = self.own.expires;
        });
    }

    /// The same, with what takes a look at every lease.
    pub(crate) fn note_all(&self) {
        let taken: Vec<_> = self.map.records().flat_map(|record| &record.subnets).copied().collect();
        self.health.send_modify(|health| {
            health.bad_keys.clone_from(self.map.bad());
            health.subnets = self.network.pools().map(|pool| (pool.used(&taken), pool.capacity())).collect();
        });
        self.note();
    }

    /// Writes the map to disk. That takes milliseconds and happens at most every [`SAVE`]; packets have other threads.
    fn save(&self) {
        let leases = self.map.records().map(|record| &record.kv);
        let (prefix, id) = (self.node.keys.root(), &self.node.identity.id);
        let known = self.health.borrow().stale_since.unwrap_or_else(SystemTime::now);
        let map = (self.map.revision(), known);
        let saved = Snapshot::new(&prefix, id, &self.config, &self.own, map, leases);
        if let Err(problem) = saved.store(&self.state_dir) {
            tracing::warn!("the map could not be saved for a start without etcd: {problem}");
        }
    }

    /// A clean stop.
    async fn leave(&mut self, session: &mut Session) -> Result<(), String> {
        self.save();
        if !self.revoke_on_exit || self.own.lease == 0 {
            return Ok(());
        }
        let back = async {
            session.delete(&self.own.key, &Guard::Version(self.own.mod_revision)).await?;
            session.revoke(self.own.lease).await
        };
        back.await.map_err(|failure: Failure| {
            format!(
                "the lease of {} could not be given back ({failure}): it runs out by itself",
                self.own.name()
            )
        })
    }

    /// Nobody listens any more: then nothing needs to be said.
    pub(crate) async fn say(&self, update: Update) {
        let _ = self.updates.send(update).await;
    }
}

pub(crate) fn unreachable_end(session: &Session, what: &str) -> End {
    End::Failed(Failure::new(session.endpoint(), what, FailureKind::Unreachable))
}
