//! Reports of the encrypted connections: handshakes, the connection to each peer, the connection
//! step of `explain`.
//!
//! It changes nothing: it reads what the endpoint's thread writes to [`QuicStatus`].
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::overhead::OVERHEAD_BYTES;
use super::status::{QuicPeerStatus, QuicStatus};
use crate::api::{Explanation, Outcome, PeerRow, Status, StepCode};
use crate::engine::SOCKET_QUEUE_FULL;
use crate::observe::{Drops, Encoder, Part, Pending};
use crate::packet::{Family, outer_overhead};
use crate::route::Policy;

/// The encrypted connections as a part of the daemon's reports. A host that does not encrypt has no
/// such part.
#[derive(Debug)]
pub struct QuicPart {
    connections: Arc<QuicStatus>,
    policy: Policy,
}

impl QuicPart {
    /// Reports what the endpoint writes to `connections`.
    #[must_use]
    pub fn new(connections: Arc<QuicStatus>, policy: Policy) -> Self {
        Self { connections, policy }
    }

    fn peer(&self, endpoint: &str) -> QuicPeerStatus {
        let endpoint: Option<SocketAddr> = endpoint.parse().ok();
        endpoint.map(|endpoint| self.connections.peer(endpoint.ip())).unwrap_or_default()
    }
}

impl Part for QuicPart {
    fn status(&self, status: &mut Status) {
        let counts = self.connections.counts();
        let others = match self.policy.require {
            true => "other hosts get no packets",
            false => "other hosts are sent clear packets",
        };
        status.encryption = format!(
            "{}, with hosts that encrypt too; {others}; {} connections, {} handshakes ({} failed)",
            self.policy.mode.word(),
            counts.connected,
            counts.handshakes,
            counts.failures
        );
    }

    /// Fills in the encryption of the peers that have no keys.
    fn peers(&self, rows: &mut Vec<PeerRow>) {
        for row in rows.iter_mut().filter(|row| row.encryption.is_empty()) {
            let peer = self.peer(&row.endpoint);
            row.key_age_seconds = peer.since.map(|since| since.elapsed().as_secs());
            row.encryption = encryption(&peer);
        }
    }

    fn drops<'a>(&'a self, drops: &'a mut Drops) -> Pending<'a> {
        drops.add("ingress", "socket_queue_full", self.connections.queue_drops(), SOCKET_QUEUE_FULL);
        Box::pin(std::future::ready(()))
    }

    fn explain<'a>(&'a self, explanation: &'a mut Explanation) -> Pending<'a> {
        if matches!(explanation.transport.as_deref(), Some("sealed" | "quic")) {
            self.explain_connection(explanation);
        }
        Box::pin(std::future::ready(()))
    }

    fn metrics(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
        let counts = self.connections.counts();
        let results = [
            ("authenticated", counts.handshakes),
            ("failed", counts.failures),
            ("refused", counts.refused),
            ("address_validation", counts.validations),
            ("ignored", counts.ignored),
        ];
        let results = results.into_iter().map(|(result, count)| ([("result", result)], count));
        encoder.counters("quic_handshakes", "Handshakes with other hosts, by result", results)?;
        let open = i64::try_from(counts.open).unwrap_or(i64::MAX);
        let help = "Handshakes that other hosts have begun and that are not complete";
        encoder.gauge("quic_open_handshakes", help, open)?;
        let ended = counts.ended.into_iter().map(|(reason, count)| ([("reason", reason)], count));
        let help = "Connections to other hosts that ended while they were in use, by reason";
        encoder.counters("quic_connections_ended", help, ended)?;
        let help = "Times that the keys of sealed packets were replaced";
        encoder.counter("seal_rekeys", help, counts.rekeys)?;
        let help = "Certificates that were not valid for their host any more: their connections and keys were removed";
        encoder.counter("quic_certificates_revoked", help, counts.revoked)?;
        let connected = i64::try_from(counts.connected).unwrap_or(i64::MAX);
        encoder.gauge("quic_connections", "Hosts to which an encrypted connection exists", connected)
    }
}

impl QuicPart {
    fn explain_connection(&self, explanation: &mut Explanation) {
        let endpoint = explanation.next_hop.clone().unwrap_or_default();
        let peer = self.peer(&endpoint);
        let seconds = peer.since.map(|since| since.elapsed().as_secs());
        explanation.connection = Some(match (seconds, &peer.last_error) {
            (Some(seconds), None) => format!("QUIC, for {seconds} s"),
            (Some(seconds), Some(last_error)) => {
                format!("QUIC, for {seconds} s; the last handshake failed: {last_error}")
            }
            (None, Some(last_error)) => format!("none: {last_error}"),
            (None, None) => "none: the next packet starts a handshake".to_owned(),
        });
        if explanation.encryption.is_none() {
            explanation.encryption = Some(encryption(&peer));
        }
        let is_sealed = explanation.transport.as_deref() == Some("sealed");
        if !is_sealed && let Ok(endpoint) = endpoint.parse::<SocketAddr>() {
            let overhead = outer_overhead(Family::of(endpoint.ip())) + OVERHEAD_BYTES;
            explanation.frame = Some(format!("one packet a QUIC datagram: at most {overhead} bytes more"));
        }
        if !explanation.has(StepCode::KernelToOverlay)
            || explanation.has(StepCode::SendSealed)
            || explanation.has(StepCode::RouteUnreachable)
        {
            return;
        }
        let name = explanation.host.as_deref().unwrap_or(&endpoint);
        let code = if peer.since.is_some() {
            let why = if is_sealed { ", until there are keys to seal it" } else { "" };
            explanation.outcome = Outcome::Sent;
            explanation.sentence = format!("it is sent to {name} by QUIC{why}");
            StepCode::SendQuic
        } else {
            let why = peer.last_error.map_or(String::new(), |last_error| format!(": {last_error}"));
            explanation.outcome = Outcome::Waits;
            explanation.sentence = format!(
                "it waits up to 2 s for an encrypted connection to {name}, and is dropped if there is none then{why}"
            );
            StepCode::WaitForConnection
        };
        explanation.step(code, explanation.sentence.clone());
    }
}

fn encryption(peer: &QuicPeerStatus) -> String {
    match (peer.since, &peer.last_error) {
        (Some(_), _) => "QUIC, TLS 1.3".to_owned(),
        (None, Some(last_error)) => format!("NO CONNECTION: {last_error}"),
        (None, None) => "QUIC, TLS 1.3; idle".to_owned(),
    }
}
