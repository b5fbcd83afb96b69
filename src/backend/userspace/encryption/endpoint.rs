//! The QUIC endpoint with the credentials that it was started with.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use tokio::sync::mpsc;

use super::credentials::{Credentials, Loaded};
use super::ends::Ends;
use super::error::EncryptionError;
use super::schedule::Schedule;
use crate::config::Config;
use crate::engine::Engine;
use crate::observe::Part;
use crate::pki::reset_key;
use crate::quic::{Quic, QuicEvent, QuicOptions, QuicPart, QuicStatus};
use crate::route::{Announced, Policy};

/// A running endpoint.
#[derive(Debug)]
pub(in crate::backend::userspace) struct Endpoint {
    quic: Quic,
    reports: mpsc::UnboundedReceiver<QuicEvent>,
    /// What our lease announces. Mode and port stay as they were at the start.
    announced: Announced,
    name: String,
    subnets: Vec<IpNet>,
    port: u16,
    policy: Policy,
    schedule: Schedule,
}

impl Endpoint {
    pub(super) fn start(
        config: &Config,
        loaded: Loaded,
        ends: &Ends<'_>,
        engine: &mut Engine,
    ) -> Result<Self, EncryptionError> {
        let writer = engine.slow_path_writer().map_err(EncryptionError::SlowPath)?;
        let view = engine.view();
        let Loaded { identity, trust, announced } = loaded;
        let reset_key = reset_key(&config.node.state_dir)?;
        let address = SocketAddr::new(ends.address.ip(), announced.port);
        let schedule = Schedule::of(&identity);
        let (sender, reports) = mpsc::unbounded_channel();
        let options = QuicOptions {
            address,
            max_payload_bytes: ends.payload,
            identity,
            trust,
            reset_key,
            idle_timeout: config.security.idle,
            revoke_after: config.security.revoke_after,
            view,
            writer,
        };
        let quic = Quic::start(options, sender)?;
        tracing::info!(
            mode = announced.mode.word(), quic = %address, fingerprint = %announced.fingerprint,
            "encryption started: packets to hosts that encrypt too are encrypted"
        );
        let (name, subnets) = (ends.name.to_owned(), ends.subnets.to_vec());
        let port = ends.address.port();
        Ok(Self { quic, reports, announced, name, subnets, port, policy: ends.policy, schedule })
    }

    pub(super) fn part(&self) -> Arc<dyn Part> {
        Arc::new(QuicPart::new(self.quic.status().clone(), self.policy))
    }

    pub(super) fn connections(&self) -> Arc<QuicStatus> {
        self.quic.status().clone()
    }

    pub(super) fn refresh(&self) {
        self.quic.refresh();
    }

    pub(super) fn relocate(&self, public: IpAddr) {
        self.quic.relocate(public);
    }

    pub(super) async fn report(&mut self) -> QuicEvent {
        self.reports.recv().await.unwrap_or(QuicEvent::Failed)
    }

    pub(super) fn should_renew(&mut self) -> bool {
        self.schedule.is_due()
    }

    /// Loads certificate, key and CA again, and makes a new certificate if ours expires soon. What
    /// cannot be used is refused and changes nothing. Unless `reconnect`, connections stay as they
    /// are while the certificate is the same. A configuration without encryption changes nothing
    /// before the next start.
    pub(super) fn renew(
        &mut self,
        config: &Config,
        reconnect: bool,
    ) -> Result<Option<Announced>, EncryptionError> {
        let Credentials::Loaded(loaded) = Credentials::load(config)? else { return Ok(None) };
        loaded.check((&self.name, &self.subnets), self.port)?;
        let Loaded { identity, trust, .. } = *loaded;
        let announced = Announced { fingerprint: identity.fingerprint(), ..self.announced };
        self.schedule = Schedule::of(&identity);
        if identity.is_due(SystemTime::now()) {
            let left = self.schedule.not_after.duration_since(SystemTime::now()).unwrap_or_default();
            let hours = left.as_secs() / 3600;
            tracing::warn!(hours, "certificate of this host expires soon: replace it");
        }
        if reconnect || announced != self.announced {
            self.quic.renew(identity, trust);
        }
        let before = std::mem::replace(&mut self.announced, announced);
        Ok((before != announced).then_some(announced))
    }

    pub(super) fn stop(self) {
        self.quic.stop();
    }
}
