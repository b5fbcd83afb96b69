//! The select loop of a running node, and what it does about each event.

use std::collections::BTreeMap;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, sleep_until};

use super::Node;
use super::error::NodeError;
use super::service_manager::{SignalName, notify};
use crate::api::ProblemCode;
use crate::backend::{BackendError, DuplicateSubnet, Event, Renewal, Stop};
use crate::config::{Config, Sources};
use crate::netlink::Notice;
use crate::route::{Change, Remark, RemarkKind};
use crate::store::Update;

/// Often enough for `status` and any watchdog.
const TICK: Duration = Duration::from_secs(1);

impl Node {
    /// Serves until a signal comes, the backend cannot go on, or our lease belongs to another host.
    /// On SIGHUP, `reconfigure` gets the new configuration for what can change while running (the
    /// log filter).
    ///
    /// Device, routes and kernel fast path stay for the next start, unless `remove_on_exit` is set
    /// or this host has no subnet any more.
    pub async fn run(
        mut self,
        sources: &Sources,
        reconfigure: impl Fn(&Config),
        remove_on_exit: bool,
    ) -> Result<(), NodeError> {
        self.reports.store.set_health(self.store.health());
        self.report(false);
        let result = self.serve(sources, reconfigure).await;
        let is_lost = matches!(result, Err(NodeError::Lost(_)));
        let removes = remove_on_exit || is_lost || self.config.store.revokes_on_exit();
        self.stop(if removes { Stop::Remove } else { Stop::Leave }).await;
        result
    }

    pub(super) async fn serve(
        &mut self,
        sources: &Sources,
        reconfigure: impl Fn(&Config),
    ) -> Result<(), NodeError> {
        let mut tick = tokio::time::interval(TICK);
        loop {
            let repair_due = self.reconciler.due();
            tokio::select! {
                update = self.store.next() => self.updates(update).await?,
                () = sleep_until(self.map.due()), if self.map.is_pending() => self.publish(),
                notice = self.reconciler.changed() => {
                    self.reconciler.note(&notice);
                    if let Notice::Link { name, .. } = &notice {
                        self.backend.link_changed(name);
                    }
                    if self.public_address.concerns(&notice) {
                        self.follow_underlay().await?;
                    }
                }
                () = sleep_until(repair_due) => {
                    self.reconciler.repair().await;
                    self.report(false);
                }
                event = self.backend.event() => self.backend_event(event).await?,
                signal = self.signals.next() => {
                    if signal == SignalName::Hangup {
                        self.reload(sources, &reconfigure);
                        continue;
                    }
                    tracing::info!("{}: stopping", signal.name());
                    return Ok(());
                }
                _ = tick.tick() => self.tick().await?,
            }
        }
    }

    /// Does the work of each second.
    async fn tick(&mut self) -> Result<(), NodeError> {
        self.reports.store.set_health(self.store.health());
        self.check_sources();
        self.announcement.publish(&mut self.store);
        self.check_peers();
        self.retry_underlay().await?;
        notify(&[NotifyState::Watchdog]);
        let renewal = self.backend.renew_if_due(&self.config);
        self.renewed(renewal);
        Ok(())
    }

    async fn backend_event(&mut self, event: Event) -> Result<(), NodeError> {
        match event {
            Event::Failed(error) => Err(error.into()),
            Event::Problem { code, object, cause } => {
                let problems = self.reports.problems();
                match cause {
                    Some(cause) => problems.raise(code, &object, cause),
                    None => problems.end(code, &object),
                }
                self.report(false);
                Ok(())
            }
            Event::Desired => {
                self.change_desired().await;
                Ok(())
            }
            Event::PathMtu { peer, mtu } => {
                tracing::info!(%peer, mtu, "path MTU to peer changed");
                self.map.mark_stale();
                Ok(())
            }
        }
    }

    /// Takes all updates that are waiting, and puts them into effect together.
    async fn updates(&mut self, first: Update) -> Result<(), NodeError> {
        let (mut next, mut listed) = (Some(first), false);
        while let Some(update) = next {
            listed |= matches!(update, Update::Change(Change::Snapshot { .. }, _));
            self.update(update)?;
            next = self.store.try_next();
        }
        self.reports.store.set_health(self.store.health());
        if self.map.is_pending() && Instant::now() >= self.map.due() {
            self.publish();
        }
        // The file store lists the addresses that this host may have.
        if listed {
            self.follow_underlay().await?;
        }
        self.report(false);
        Ok(())
    }

    fn update(&mut self, update: Update) -> Result<(), NodeError> {
        match update {
            Update::Change(change, changed_at) => {
                self.map.take(change, changed_at.into());
                self.reports.store.available();
            }
            Update::Recovered => self.reports.store.available(),
            Update::Trouble(problem) => self.reports.store.unavailable(problem),
            Update::Notice(text) => tracing::warn!("{text}"),
            Update::Lost(lost) => return Err(NodeError::Lost(lost)),
        }
        Ok(())
    }

    /// Puts the map into effect.
    pub(super) fn publish(&mut self) {
        self.map.publish(&mut self.backend);
        self.report_remarks();
    }

    /// Makes problems of what the map in effect says about single leases.
    pub(super) fn report_remarks(&self) {
        let mut found: BTreeMap<ProblemCode, BTreeMap<String, String>> = BTreeMap::new();
        for Remark { key, kind } in self.backend.remarks() {
            let code = match kind {
                RemarkKind::Overlap { .. }
                | RemarkKind::TwoCertificates { .. }
                | RemarkKind::Unencrypted { .. }
                | RemarkKind::Unreadable
                | RemarkKind::OwnAddress { .. }
                | RemarkKind::Broadcast { .. } => ProblemCode::LeaseConflict,
                RemarkKind::Length { .. } | RemarkKind::Name => ProblemCode::LeaseUnusual,
            };
            found.entry(code).or_default().entry(key).or_insert_with(|| kind.to_string());
        }
        for code in [ProblemCode::LeaseConflict, ProblemCode::LeaseUnusual] {
            let causes = found.remove(&code).unwrap_or_default();
            self.reports.problems().replace(code, causes.into_iter().collect());
        }
    }

    /// Looks whether another host uses this host's subnet.
    fn check_sources(&mut self) {
        let subnets: Vec<String> = self.local.subnets.iter().map(ToString::to_string).collect();
        let (subnets, problems) = (subnets.join(" "), self.reports.problems());
        match self.backend.check_sources() {
            DuplicateSubnet::Unchanged => return,
            DuplicateSubnet::Over => problems.end(ProblemCode::DuplicateSubnet, &subnets),
            DuplicateSubnet::Seen { cause, log, verify, .. } => {
                if log {
                    problems.raise(ProblemCode::DuplicateSubnet, &subnets, cause);
                } else {
                    problems.refresh(ProblemCode::DuplicateSubnet, &subnets, cause);
                }
                if verify {
                    self.store.verify();
                }
            }
        }
        self.report(false);
    }

    /// Looks which peers have problems, and whether the kernel refuses our datagrams: both have the
    /// code `send_refused`.
    fn check_peers(&mut self) {
        let refused = self.refused_sends();
        for (code, mut found) in self.backend.peer_problems() {
            if code == ProblemCode::SendRefused {
                found.splice(0..0, refused.clone());
            }
            // Without a link, nothing else can be said of the way.
            if code == ProblemCode::PeerSilent && self.reports.problems().has(ProblemCode::UnderlayLink) {
                found.clear();
            }
            self.reports.problems().replace(code, found);
        }
        self.report(false);
    }

    /// The problem that the kernel refuses our datagrams, if it does.
    fn refused_sends(&mut self) -> Option<(String, String)> {
        let port = self.local.port;
        let is_refused = self.refused_sends.check(self.backend.refused_sends(), Instant::now());
        is_refused.then(|| {
            let cause = format!(
                "the kernel refuses to send from port {port}: a packet filter forbids it; allow UDP from and to this \
                 port (nft list ruleset, iptables -S OUTPUT)"
            );
            (format!("UDP {port}"), cause)
        })
    }

    fn reload(&mut self, sources: &Sources, reconfigure: &impl Fn(&Config)) {
        notify(&[NotifyState::Reloading]);
        self.store.reload();
        match sources.load() {
            Ok(config) => {
                // What SIGHUP loads again.
                let is_followed = |section: &str, key: &str| {
                    section == "log" || (section == "security" && ["cert", "key", "ca"].contains(&key))
                };
                for (new, old) in config.values.iter().zip(&self.config.values) {
                    if new.value != old.value && !is_followed(new.section, new.key) {
                        let key = format!("{}.{}", new.section, new.key);
                        tracing::warn!(key, old = %old.value, new = %new.value, "change needs a restart");
                    }
                }
                reconfigure(&config);
                let renewal = self.backend.renew(&config);
                if renewal.is_ok() {
                    // Later renewals look for the same files.
                    let security = &mut self.config.security;
                    security.own.clone_from(&config.security.own);
                    security.ca.clone_from(&config.security.ca);
                }
                self.renewed(renewal);
                tracing::info!("SIGHUP: configuration and map loaded again");
            }
            Err(error) => tracing::error!("SIGHUP: {error}; the configuration stays as it was"),
        }
        self.report(true);
    }

    /// Acts on the result of looking for a new certificate.
    fn renewed(&mut self, renewal: Result<Renewal, BackendError>) {
        let problems = self.reports.problems();
        match renewal {
            Ok(Renewal::NotDue) => return,
            Ok(Renewal::Same) => problems.end_all(ProblemCode::Certificate),
            Ok(Renewal::Announce(announced)) => {
                problems.end_all(ProblemCode::Certificate);
                tracing::info!(fingerprint = %announced.fingerprint, "certificate of this host changed");
                self.announcement.encryption(announced, &mut self.store);
            }
            Err(error) => problems.raise(
                ProblemCode::Certificate,
                "credentials",
                format!(
                    "{error}; the certificate that was loaded before stays in use: fix this and send SIGHUP"
                ),
            ),
        }
        self.report(false);
    }

    /// Reports the state to systemd, if it has changed or `force` is set.
    pub(super) fn report(&mut self, force: bool) {
        self.service_manager.report(self.backend.peers(), self.reports.problems(), force);
    }
}
