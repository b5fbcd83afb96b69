//! Encryption from the node's side: who we are and whom we believe, the endpoint that says so to
//! others, and new certificates for old ones.
//!
//! It decides nothing about packets: the FIB's peers carry what both ends announce.
//!
//! Invariant: what our lease announces is what the endpoint shows, from the first moment on; a
//! certificate that cannot be used never takes the place of one that can.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use super::underlay::Underlay;
use super::{Node, NodeError, no_worker};
use crate::api::ProblemCode;
use crate::config::{self, Config};
use crate::engine::Engine;
use crate::forward::Sessions;
use crate::packet::{Family, outer_overhead};
use crate::pki::{Identity, Trust, check_own, reset_key};
use crate::quic::{OVERHEAD_BYTES, Quic, QuicEvent, QuicOptions, QuicStatus};
use crate::route::{Announced, Mode, Policy};
use crate::seal::Lifetime;

/// Who we are and whom we believe.
#[derive(Debug)]
pub(super) struct Material {
    identity: Identity,
    trust: Trust,
    pub(super) announced: Announced,
}

impl Material {
    /// By the configuration, from files; `None`: this host does not encrypt.
    pub(super) fn load(config: &Config) -> Result<Option<Self>, NodeError> {
        let security = &config.security;
        if security.mode == Mode::None {
            return Ok(None);
        }
        let invalid = |error: crate::pki::PkiError| NodeError::Invalid(error.to_string());
        let identity = match &security.own {
            Some((certificate, key)) => Identity::load(certificate, key),
            None => Identity::load_or_make(&config.node.state_dir, &name(config)),
        };
        let identity = identity.map_err(invalid)?;
        let trust = match &security.ca {
            Some(ca) => Trust::load(ca).map_err(invalid)?,
            None => Trust::Store,
        };
        let Some(port) = security.port.or(config.overlay.port.checked_add(1)) else {
            return Err(NodeError::Invalid("overlay.port is the last there is: set security.port".into()));
        };
        let announced = Announced { mode: security.mode, port, fingerprint: identity.fingerprint() };
        Ok(Some(Self { identity, trust, announced }))
    }

    /// The same, and what our lease will tell of it.
    pub(super) fn announce(config: &mut Config) -> Result<Option<Self>, NodeError> {
        let material = Self::load(config)?;
        if let config::StoreConfig::Etcd(etcd) = &mut config.store {
            etcd.announced = material.as_ref().map(|material| material.announced);
        }
        Ok(material)
    }

    /// Whether the others will believe us, as the host that the store calls `name` and that has
    /// `port` for packets.
    pub(super) fn check(&self, name: &str, port: u16) -> Result<(), NodeError> {
        if self.announced.port == port {
            let text =
                format!("the cluster's port for packets is {port}, which QUIC would have: set security.port");
            return Err(NodeError::Invalid(text));
        }
        check_own(&self.trust, &self.identity, name).map_err(|error| NodeError::Invalid(error.to_string()))
    }
}

fn name(config: &Config) -> String {
    let named = match &config.store {
        config::StoreConfig::Etcd(etcd) => etcd.node_name.clone(),
        config::StoreConfig::File { .. } => None,
    };
    named.unwrap_or_else(|| {
        std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map_or("hopsack".into(), |name| name.trim().into())
    })
}

/// What we want of others.
pub(super) fn policy(config: &Config) -> Policy {
    Policy { mode: config.security.mode, require: config.security.require }
}

/// Bytes of each underlay packet that encryption takes.
pub(super) fn overhead(config: &Config) -> u16 {
    // Sealed packets take less, but they may have to go by QUIC while there is no key.
    if config.security.mode == Mode::None { 0 } else { OVERHEAD_BYTES }
}

/// The longest UDP payload that the underlay takes.
pub(super) fn payload(underlay: &Underlay, public: IpAddr) -> u16 {
    let overhead = outer_overhead(Family::of(public));
    u16::try_from(underlay.mtu.saturating_sub(overhead.into())).unwrap_or(u16::MAX).min(65507)
}

/// Sessions whose keys live as long as the configuration says.
pub(super) fn sessions(config: &Config) -> Sessions {
    let rekey_after = config.security.rekey;
    let seal_for = rekey_after.saturating_mul(2);
    Sessions::new(Lifetime { rekey_after, seal_for, ..Lifetime::default() })
}

/// The endpoint, with what it was started from.
#[derive(Debug)]
pub(super) struct Encryption {
    quic: Quic,
    reports: mpsc::UnboundedReceiver<QuicEvent>,
    fingerprint: crate::pki::Fingerprint,
    name: String,
    port: u16,
    schedule: Schedule,
}

/// When our certificate is looked at again, because it will run out.
#[derive(Debug)]
struct Schedule {
    not_after: SystemTime,
    due: SystemTime,
    looked: Instant,
}

impl Schedule {
    fn of(identity: &Identity) -> Self {
        Self { not_after: identity.not_after(), due: identity.due(), looked: Instant::now() }
    }

    /// Between two looks at a certificate that is due: the more often, the less is left.
    fn pause(&self, now: SystemTime) -> Duration {
        const SHORTEST: Duration = Duration::from_secs(1);
        const LONGEST: Duration = Duration::from_secs(3600);
        /// It has run out: others say so as well.
        const PAST: Duration = Duration::from_secs(60);
        self.not_after.duration_since(now).map_or(PAST, |left| (left / 8).clamp(SHORTEST, LONGEST))
    }

    fn should_look(&self, now: SystemTime, since: Duration) -> bool {
        now >= self.due && since >= self.pause(now)
    }
}

impl Encryption {
    /// Starts the endpoint, if there is to be one, on an interface that takes UDP payloads of
    /// `payload` bytes, as the host `name` whose packets come to `address`.
    pub(super) fn start(
        config: &Config,
        material: Option<Material>,
        name: &str,
        (address, payload): (SocketAddr, u16),
        engine: &mut Engine,
    ) -> Result<Option<Self>, NodeError> {
        let Some(material) = material else { return Ok(None) };
        let writer = engine.slow_path_writer().map_err(|error| no_worker(&error))?;
        let view = engine.view();
        let Material { identity, trust, announced } = material;
        let reset_key =
            reset_key(&config.node.state_dir).map_err(|error| NodeError::Invalid(error.to_string()))?;
        let port = address.port();
        let address = SocketAddr::new(address.ip(), announced.port);
        let schedule = Schedule::of(&identity);
        let (sender, reports) = mpsc::unbounded_channel();
        let (max_payload_bytes, idle_timeout) = (payload, config.security.idle);
        let options = QuicOptions {
            address,
            max_payload_bytes,
            identity,
            trust,
            reset_key,
            idle_timeout,
            view,
            writer,
        };
        let quic = Quic::start(options, sender).map_err(|error| NodeError::Environment(error.to_string()))?;
        tracing::info!(
            mode = announced.mode.word(), quic = %address, fingerprint = %announced.fingerprint,
            "packets to hosts that encrypt too will be encrypted"
        );
        let name = name.to_owned();
        let fingerprint = announced.fingerprint;
        Ok(Some(Self { quic, reports, fingerprint, name, port, schedule }))
    }

    pub(super) fn board(&self) -> Arc<QuicStatus> {
        self.quic.status().clone()
    }

    /// The FIB has changed.
    pub(super) fn refresh(&self) {
        self.quic.refresh();
    }

    /// This host is reached at another address.
    pub(super) fn relocate(&self, public: IpAddr) {
        self.quic.relocate(public);
    }

    /// What the endpoint has to say; never, without one.
    pub(super) async fn report(this: &mut Option<Self>) -> QuicEvent {
        match this {
            Some(encryption) => encryption.reports.recv().await.unwrap_or(QuicEvent::Failed),
            None => std::future::pending().await,
        }
    }

    /// Whether it is time to look for a new certificate. Asked now and then.
    pub(super) fn should_renew(&mut self) -> bool {
        let should = self.schedule.should_look(SystemTime::now(), self.schedule.looked.elapsed());
        if should {
            self.schedule.looked = Instant::now();
        }
        should
    }

    /// Reads certificate, key and CA again, and makes a new certificate if ours runs out. Returns
    /// what is to be announced, if it is news. What cannot be used is refused, with the reason, and
    /// changes nothing. Unless it was `asked` for, connections stay as they are while the
    /// certificate is the same.
    pub(super) fn renew(&mut self, config: &Config, asked: bool) -> Result<Option<Announced>, NodeError> {
        let Some(material) = Material::load(config)? else { return Ok(None) };
        material.check(&self.name, self.port)?;
        let Material { identity, trust, announced } = material;
        self.schedule = Schedule::of(&identity);
        if identity.is_due(SystemTime::now()) {
            let left = self.schedule.not_after.duration_since(SystemTime::now()).unwrap_or_default();
            let hours = left.as_secs() / 3600;
            tracing::warn!(hours, "this host's certificate runs out soon: put a new one in its place");
        }
        if asked || announced.fingerprint != self.fingerprint {
            self.quic.renew(identity, trust);
        }
        let is_new = std::mem::replace(&mut self.fingerprint, announced.fingerprint) != announced.fingerprint;
        Ok(is_new.then_some(announced))
    }

    /// Says goodbye to the peers.
    pub(super) fn stop(self) {
        self.quic.stop();
    }
}

impl Node {
    /// What the endpoint says.
    pub(super) fn report(&mut self, report: QuicEvent) -> Result<(), NodeError> {
        match report {
            QuicEvent::PathMtu { peer, mtu } => {
                if self.backend.narrow(peer, mtu) {
                    tracing::info!(%peer, mtu, "the way to it takes inner packets of so many bytes");
                    self.publish();
                }
                Ok(())
            }
            QuicEvent::Failed => {
                Err(NodeError::Environment("the QUIC thread panicked: see above".to_owned()))
            }
        }
    }

    /// Takes certificates as they are on disk, by another configuration or our own.
    pub(super) fn renew(&mut self, config: Option<&Config>) {
        let Some(encryption) = &mut self.encryption else { return };
        let problems = self.reports.problems();
        match encryption.renew(config.unwrap_or(&self.config), config.is_some()) {
            Ok(announced) => {
                problems.end_all(ProblemCode::Certificate);
                if let Some(announced) = announced {
                    tracing::info!(fingerprint = %announced.fingerprint, "certificate of this host changed");
                    self.store.announce(announced);
                }
            }
            Err(error) => problems.raise(
                ProblemCode::Certificate,
                "security.cert",
                format!("{error}; the certificate that was loaded before stays in use"),
            ),
        }
        self.tell(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_looked_at_when_it_is_due_and_the_more_often_the_less_is_left() {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let (start, hour) = (SystemTime::UNIX_EPOCH + 1000 * DAY, Duration::from_secs(3600));
        let schedule =
            Schedule { not_after: start + 365 * DAY, due: start + 335 * DAY, looked: Instant::now() };
        assert!(!schedule.should_look(start + 334 * DAY, 300 * DAY), "a node that runs for a year");
        assert!(schedule.should_look(start + 335 * DAY, hour));
        assert!(!schedule.should_look(start + 335 * DAY, hour - Duration::from_secs(1)));
        let left = |seconds| schedule.pause(schedule.not_after - Duration::from_secs(seconds)).as_secs();
        assert_eq!([80_000, 8_000, 80, 4].map(left), [3600, 1000, 10, 1]);
        assert_eq!(schedule.pause(schedule.not_after + DAY).as_secs(), 60);
    }
}
