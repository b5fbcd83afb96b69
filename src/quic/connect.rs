//! Makes connections: dials or answers, authenticates the peer, and asks for keys if both hosts
//! seal.
//!
//! Either host may dial, and both may do so at the same moment. The host with the lower address is
//! the leader: it refuses the other's attempt while its own is under way. If two connections are
//! made nevertheless, they may reach the two hosts in different orders, so the order of arrival
//! decides nothing. The leader numbers every connection, no matter which host dialled, and sends
//! the number on a stream ([`super::numbering`]). Both hosts use the connection with the highest
//! number, and close the others a while later.
//!
//! For the host that dials, TLS is complete before the other host has seen its certificate. The
//! number therefore also says that the other host accepts the certificate. The connection is not
//! used before.
//!
//! Invariant: no connection is used before [`Trust::admits`](crate::pki::Trust::admits) has
//! confirmed that its certificate is the one of the lease at its address.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use quinn::{Connection, Incoming};
use rustls::pki_types::ServerName;
use tokio::time::timeout;

use super::admission::Verdict;
use super::backoff::pause;
use super::close_reason::CloseReason;
use super::connection::TrackedConnection;
use super::handshake_error::{HandshakeError, TIMEOUT};
use super::numbering::{self, UNNUMBERED};
use super::peer::QuicPeer;
use super::shown::ShownCertificate;
use super::state::{EndpointState, claim, encrypting_peer};
use crate::forward::Peer;
use crate::pki::Untrusted;
use crate::route::Announced;

/// Refusals in a row that are normal: the peer learns of this host's lease a moment later.
const NORMAL_REFUSALS: u32 = 5;

/// Name that a client sends if the peer's own name is not a valid server name.
const FALLBACK_SERVER_NAME: &str = "hopsack";

impl EndpointState {
    /// Dials a peer, unless an attempt is under way. After a failure the attempt waits for the
    /// pause.
    pub(super) fn dial(self: &Rc<Self>, peer: &Rc<QuicPeer>) {
        if peer.is_dialling.get() {
            return;
        }
        peer.is_dialling.set(true);
        let (state, peer) = (self.clone(), peer.clone());
        tokio::task::spawn_local(async move {
            let must_wait = peer.retry_at.get() > Instant::now();
            tokio::time::sleep_until(peer.retry_at.get().into()).await;
            // The peer may have dialled this host during the pause.
            let is_connected = must_wait && peer.is_connected();
            let error = if is_connected { None } else { state.attempt(&peer).await.err() };
            peer.is_dialling.set(false);
            if let Some(error) = error {
                state.handshake_failed(&peer, error);
            }
        });
    }

    async fn attempt(self: &Rc<Self>, peer: &Rc<QuicPeer>) -> Result<(), HandshakeError> {
        let (name, announced) = {
            let table = self.view.table();
            let (route, announced) = encrypting_peer(&table, peer.address).ok_or(HandshakeError::NoLease)?;
            (route.name.clone(), announced)
        };
        // The name is only used for SNI: the certificate is checked after the handshake.
        let is_valid_name = ServerName::try_from(name.as_str()).is_ok();
        let server_name = if is_valid_name { name.as_str() } else { FALLBACK_SERVER_NAME };
        let client_config = self.client_config.borrow().clone();
        let identity_number = self.identity_number.get();
        let remote = SocketAddr::new(peer.address, announced.port);
        let server = (remote, server_name.to_owned());
        let connection = self.handshakes.dial(&self.endpoint, client_config, server).await?;
        let number = timeout(TIMEOUT, numbering::receive(&connection));
        let number = number.await.map_err(|_| HandshakeError::Timeout)??;
        self.authenticate(peer, connection, Some(number))?;
        peer.dialled_with.set(identity_number);
        Ok(())
    }

    /// Answers hosts that dial, until the endpoint is closed.
    pub(super) async fn accept(self: Rc<Self>) {
        while let Some(incoming) = self.endpoint.accept().await {
            let source = incoming.remote_address();
            let port = encrypting_peer(&self.view.table(), source.ip()).map(|(_, announced)| announced.port);
            let Some(port) = port else {
                self.refuse_unknown(source.ip(), incoming);
                continue;
            };
            let peer = self.peer(source.ip());
            let has_own_attempt = peer.is_dialling.get() && peer.retry_at.get() <= Instant::now();
            if has_own_attempt && self.leads(&peer) {
                self.refuse(incoming);
                continue;
            }
            self.admit(&peer, source.port() == port, incoming);
        }
    }

    /// Answers an attempt of a peer, within the bounds of [`super::admission`].
    fn admit(self: &Rc<Self>, peer: &Rc<QuicPeer>, is_endpoint: bool, incoming: Incoming) {
        let from = (peer.address, is_endpoint);
        let is_validated = incoming.remote_address_validated();
        let verdict = self.admission.borrow_mut().decide(from, is_validated, Instant::now());
        let open = match verdict {
            Verdict::Answer(open) => open,
            Verdict::Validate => {
                self.status.count_validation();
                // An address that is not validated can be asked to validate itself.
                let _ = incoming.retry();
                return;
            }
            Verdict::Ignore => {
                self.status.count_ignored();
                incoming.ignore();
                return;
            }
        };
        self.status.set_open(self.admission.borrow().open());
        let (state, peer) = (self.clone(), peer.clone());
        tokio::task::spawn_local(async move {
            let connection = state.handshakes.answer(incoming).await;
            state.admission.borrow_mut().closed(open);
            state.status.set_open(state.admission.borrow().open());
            let result = connection.and_then(|connection| state.authenticate(&peer, connection, None));
            if let Err(error) = result {
                state.handshake_failed(&peer, error);
            }
        });
    }

    fn refuse_unknown(&self, source: IpAddr, incoming: Incoming) {
        self.status.count_refused();
        if self.unknown_source_warning.allows() {
            tracing::warn!(
                %source,
                "QUIC connection refused: no lease at its source address announces encryption"
            );
        }
        // The lease may not have arrived here yet. After a refusal the host soon tries again, which
        // it would not after silence.
        self.refuse(incoming);
    }

    /// Refuses an attempt, or ignores it if too many were refused.
    fn refuse(&self, incoming: Incoming) {
        if self.admission.borrow_mut().may_refuse(Instant::now()) {
            incoming.refuse();
        } else {
            self.status.count_ignored();
            incoming.ignore();
        }
    }

    /// Whether this host numbers the connections to a peer.
    fn leads(&self, peer: &QuicPeer) -> bool {
        self.local_address.get().ip() < peer.address
    }

    /// Uses a connection for packets if its certificate is the peer's. `received_number` is what
    /// the peer has sent if this host dialled; `None` if the peer dialled.
    fn authenticate(
        self: &Rc<Self>,
        peer: &Rc<QuicPeer>,
        connection: Connection,
        received_number: Option<u64>,
    ) -> Result<(), HandshakeError> {
        let table = self.view.table();
        let Some((route, announced)) = encrypting_peer(&table, peer.address) else {
            CloseReason::NoLease.close(&connection);
            return Err(HandshakeError::NoLease);
        };
        let shown = match self.shown_certificate(&connection, route, announced) {
            Ok(shown) => peer.record_certificate(shown),
            Err(untrusted) => {
                CloseReason::Untrusted.close(&connection);
                return Err(untrusted.into());
            }
        };
        let (leads, is_initiator) = (self.leads(peer), received_number.is_some());
        let number = if leads { peer.next_number() } else { received_number.unwrap_or(UNNUMBERED) };
        let tracked = Rc::new(TrackedConnection::new(connection.clone(), shown, number));
        if leads || !is_initiator {
            numbering::send(&connection, number);
        }
        self.connected(peer, &tracked, &route.name);
        if !leads && !is_initiator {
            tokio::task::spawn_local(self.clone().await_number(
                peer.clone(),
                tracked.clone(),
                route.name.clone(),
            ));
        }
        self.agree_on_keys(peer, &tracked, route, is_initiator);
        Ok(())
    }

    /// Waits until the leader, which has dialled, has numbered the connection.
    async fn await_number(self: Rc<Self>, peer: Rc<QuicPeer>, tracked: Rc<TrackedConnection>, name: String) {
        // On an error the connection has ended, or keeps the lowest number.
        if let Ok(number) = numbering::receive(&tracked.connection).await {
            tracked.number.set(number);
            if tracked.connection.close_reason().is_none() {
                self.select_connection(&peer, &tracked, &name);
            }
        }
    }

    /// The certificate of a connection, if it belongs to the peer.
    fn shown_certificate(
        &self,
        connection: &Connection,
        route: &Peer,
        announced: Announced,
    ) -> Result<ShownCertificate, Untrusted> {
        let shown = ShownCertificate::of(connection).ok_or(Untrusted::None)?;
        self.trust.borrow().admits(&shown.chain, &claim(route, announced))?;
        Ok(shown)
    }

    /// Counts and logs a failure, and tries again later if packets wait.
    fn handshake_failed(self: &Rc<Self>, peer: &Rc<QuicPeer>, error: HandshakeError) {
        let failures = peer.failures.get() + 1;
        peer.failures.set(failures);
        peer.retry_at.set(Instant::now() + pause(failures));
        let is_problem = !error.is_refusal() || failures > NORMAL_REFUSALS;
        if is_problem {
            let error = Arc::new(error);
            let is_unreachable = !peer.is_connected();
            self.status.count_failed(peer.address, is_unreachable.then(|| error.clone()));
            if is_unreachable && let HandshakeError::Untrusted(untrusted) = &*error {
                self.report_untrusted(peer, untrusted);
            }
            if peer.warning.allows() {
                let table = self.view.table();
                let host = table.peer_by_address(peer.address).map_or("?", |route| route.name.as_str());
                tracing::warn!(
                    host, peer = %peer.address, reason = error.code(), %error,
                    "encrypted connection failed"
                );
            }
        }
        if peer.has_waiting_packets() && !peer.is_connected() {
            self.dial(peer);
        }
    }
}
