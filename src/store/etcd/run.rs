//! The agent's loop: connects, watches, renews our lease, and tries again for ever.
//!
//! Invariant: a break resumes the watch where it ended. Only a start, a compaction and a store that
//! was restored from a backup make the agent read the whole list.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::agent::{Agent, Command, End};
use super::backoff::Backoff;
use super::connection::Session;
use super::failure::Failure;
use super::guard::Guard;
use super::random;
use super::state::State;
use crate::store::update::Update;

/// Time between the lists that look for drift, plus or minus a quarter. Each costs one range read:
/// 5,000 nodes make 17 a second.
pub(crate) const RELIST_INTERVAL: Duration = Duration::from_secs(300);
/// How much older the map on disk may be than the map, if that is quick to write.
const SAVE_DELAY: Duration = Duration::from_secs(2);
/// How many times the duration of the last write must pass before the next one: the map is written
/// as a whole, and a key that is written all the time must not keep the daemon busy.
const SAVE_REST: u32 = 50;
/// How much older the map on disk may be at most.
const MAX_SAVE_DELAY: Duration = Duration::from_secs(60);

/// What is due when.
struct Timers {
    renew: Instant,
    relist: Instant,
    save: Option<Instant>,
    /// How long after a change the map is saved.
    save_delay: Duration,
}

impl Timers {
    fn save_soon(&mut self) {
        self.save.get_or_insert(Instant::now() + self.save_delay);
    }

    /// The map was saved, which took this long.
    fn saved(&mut self, took: Duration) {
        self.save = None;
        self.save_delay = took.saturating_mul(SAVE_REST).clamp(SAVE_DELAY, MAX_SAVE_DELAY);
    }
}

impl Agent {
    /// Runs until the store is dropped or closed, or the lease is lost. `session` is the connection
    /// that read the map.
    pub(crate) async fn run(mut self, mut session: Option<Session>) {
        let mut backoff = Backoff::default();
        loop {
            let connected = match session.take() {
                Some(session) => Ok(session),
                None => self.endpoints.connect().await,
            };
            let end = match connected {
                Ok(session) => self.use_session(session, &mut backoff).await,
                Err(failure) => End::Failed(failure),
            };
            match end {
                End::Closed => return,
                End::Moved => self.endpoints.repeat_endpoint(),
                End::Lost(lost) => {
                    self.health.send_modify(|health| {
                        health.connected = false;
                        health.trouble = Some(lost.reason.clone());
                    });
                    self.send(Update::Lost(lost)).await;
                    return;
                }
                End::Failed(failure) => {
                    self.report_outage(&failure).await;
                    if self.wait(backoff.next()).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Waits before the next attempt. Returns `None` if the store was closed meanwhile.
    async fn wait(&mut self, wait: Duration) -> Option<()> {
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = sleep_until(until) => return Some(()),
                command = self.commands.recv() => match command? {
                    Command::Relist | Command::Verify => return Some(()),
                    Command::Readdress(public) => self.set_public(public),
                    Command::Announce(abilities) => self.set_abilities(abilities),
                    Command::Close(done) => {
                        self.save();
                        let text = "etcd does not answer, so the lease could not be given back: it expires by itself";
                        let _ = done.send(if self.revoke_on_exit { Err(text.into()) } else { Ok(()) });
                        return None;
                    }
                },
            }
        }
    }

    /// Works on one connection until it ends.
    async fn use_session(&mut self, mut session: Session, backoff: &mut Backoff) -> End {
        let ended = match self.begin(&mut session).await {
            Ok(()) => self.follow(&mut session, backoff).await,
            Err(end) => Err(end),
        };
        match ended {
            Err(end) => end,
            Ok(never) => match never {},
        }
    }

    /// Brings lease and map up to date, and opens the watch.
    async fn begin(&mut self, session: &mut Session) -> Result<(), End> {
        self.health.send_modify(|health| session.endpoint().clone_into(&mut health.endpoint));
        if self.state != State::Current {
            self.renew(session).await?;
        }
        if self.state.has_moved() {
            self.state = self.state.lease_written();
            self.report_conflicts().await;
        }
        if self.state.needs_list() {
            self.resync(session, |resyncs| resyncs.start += 1).await?;
            self.state = self.state.listed();
        }
        Ok(self.leases.open(session).await?)
    }

    /// Watches and renews, until something ends it.
    async fn follow(&mut self, session: &mut Session, backoff: &mut Backoff) -> Result<Infallible, End> {
        let now = Instant::now();
        let mut timers = Timers {
            renew: now + self.own.granted / 3,
            relist: now + random::around(RELIST_INTERVAL, 4),
            save: Some(now),
            save_delay: SAVE_DELAY,
        };
        loop {
            let save = timers.save.unwrap_or(timers.relist);
            tokio::select! {
                message = self.leases.message() => {
                    if self.take_message(session, message?).await? {
                        timers.save_soon();
                    }
                    *backoff = Backoff::default();
                }
                () = sleep_until(timers.renew) => {
                    // A renewal that fails ends the connection, and the next one begins with a
                    // renewal.
                    self.renew(session).await?;
                    timers.renew = Instant::now() + self.own.granted / 3;
                    timers.save_soon();
                }
                () = sleep_until(timers.relist) => {
                    self.compare(session, |resyncs| resyncs.periodic += 1).await?;
                    timers.relist = Instant::now() + random::around(RELIST_INTERVAL, 4);
                }
                () = sleep_until(save), if timers.save.is_some() => {
                    let start = std::time::Instant::now();
                    self.update_all_health();
                    self.save();
                    timers.saved(start.elapsed());
                }
                command = self.commands.recv() => self.obey(session, command).await?,
            }
        }
    }

    async fn obey(&mut self, session: &mut Session, command: Option<Command>) -> Result<(), End> {
        match command {
            None => Err(End::Closed),
            Some(Command::Relist) => self.compare(session, |resyncs| resyncs.asked += 1).await,
            Some(Command::Verify) => self.renew(session).await,
            Some(Command::Readdress(public)) => {
                self.set_public(public);
                Err(End::Moved)
            }
            Some(Command::Announce(abilities)) => {
                self.set_abilities(abilities);
                self.renew(session).await
            }
            Some(Command::Close(done)) => {
                let _ = done.send(self.leave(session).await);
                Err(End::Closed)
            }
        }
    }

    /// Saves the map, and gives the lease back if that is configured.
    async fn leave(&mut self, session: &mut Session) -> Result<(), String> {
        self.save();
        if !self.revoke_on_exit || self.own.lease == 0 {
            return Ok(());
        }
        let give_back = async {
            session.delete(&self.own.key, &Guard::Version(self.own.mod_revision)).await?;
            session.revoke(self.own.lease).await
        };
        give_back.await.map_err(|failure: Failure| {
            format!(
                "the lease of {} could not be given back ({failure}): it expires by itself",
                self.own.name()
            )
        })
    }
}
