//! How a connection comes about: dialled or answered, authenticated, and, where both hosts seal, asked for keys.
//!
//! Either end may dial, and both may at once: the host with the lower address, the leader, refuses the other's attempt while its
//! own is under way. Connections that come about all the same reach the two ends in different orders, so order of arrival decides
//! nothing: the leader numbers them, whoever dialled, and tells the number to the other on a stream of each. Both use the one
//! with the greatest number that lives, and close the others a while later.
//!
//! For the one who dials, TLS is done before the other has seen his certificate. So the other says, by that stream, that it
//! believes him; before that the connection is not used.
//!
//! Invariant: no connection is used before [`Trust::admits`](crate::pki::Trust::admits) has said that the certificate is
//! that of the lease at its address.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use quinn::{Connection, ConnectionError, Incoming, TransportErrorCode};
use rustls::pki_types::{CertificateDer, ServerName};

use super::connection::Way;
use super::datagrams::{Core, Goodbye, protected};
use super::peer::{Line, may_tell};
use crate::pki::Untrusted;
use crate::route::{Announced, Fib, Peer};

/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause after the first failure, doubled with each, and its bound.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// TLS or QUIC did not come to an end.
    #[error("the handshake failed: {0}")]
    Handshake(#[from] ConnectionError),
    /// It cannot even begin.
    #[error("it cannot be dialled: {0}")]
    Dial(#[from] quinn::ConnectError),
    /// Nobody there.
    #[error("no answer in {} s", PATIENCE.as_secs())]
    Silence,
    /// Somebody else.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// Not any more.
    #[error("no lease at its address announces encryption")]
    NoLease,
}

impl Failure {
    /// The peer was dialling us at the same moment, or does not know of us yet: no trouble, unless it stays so.
    fn is_refusal(&self) -> bool {
        let Self::Handshake(ConnectionError::ConnectionClosed(close)) = self else { return false };
        close.error_code == TransportErrorCode::CONNECTION_REFUSED
    }
}

impl Core {
    /// Dials a peer, unless it is being dialled, or failed a moment ago: then later, if packets wait.
    pub(super) fn dial(self: &Rc<Self>, line: &Rc<Line>) {
        if line.dialling.get() {
            return;
        }
        line.dialling.set(true);
        let (core, line) = (self.clone(), line.clone());
        tokio::task::spawn_local(async move {
            let must_wait = line.retry_at.get() > Instant::now();
            tokio::time::sleep_until(line.retry_at.get().into()).await;
            // Meanwhile the peer may have dialled us.
            let is_settled = must_wait && line.connection().is_some();
            let failure = if is_settled { None } else { core.attempt(&line).await.err() };
            line.dialling.set(false);
            if let Some(failure) = failure {
                core.failed(&line, &failure);
            }
        });
    }

    async fn attempt(self: &Rc<Self>, line: &Rc<Line>) -> Result<(), Failure> {
        let (name, announced) = {
            let fib = self.view.fib();
            let (peer, announced) = protected(&fib, line.address).ok_or(Failure::NoLease)?;
            (peer.name.clone(), announced)
        };
        // Only for SNI: whose certificate it must be is asked afterwards.
        let server = if ServerName::try_from(name.as_str()).is_ok() { name.as_str() } else { "hopsack" };
        let client = self.client.borrow().clone();
        let connecting = self.endpoint.connect_with(client, Self::remote(line, announced), server)?;
        let connection = tokio::time::timeout(PATIENCE, connecting).await.map_err(|_| Failure::Silence)??;
        let number = tokio::time::timeout(PATIENCE, hear_number(&connection));
        let number = number.await.map_err(|_| Failure::Silence)??;
        self.authenticated(line, connection, Some(number))
    }

    /// Answers those who dial, until the endpoint is closed.
    pub(super) async fn accept(self: Rc<Self>) {
        while let Some(incoming) = self.endpoint.accept().await {
            let from = incoming.remote_address().ip();
            if protected(&self.view.fib(), from).is_none() {
                self.stranger(from, incoming);
                continue;
            }
            let line = self.line(from);
            if line.dialling.get() && line.retry_at.get() <= Instant::now() && self.leads(&line) {
                incoming.refuse();
                continue;
            }
            let core = self.clone();
            tokio::task::spawn_local(async move {
                if let Err(failure) = core.answer(&line, incoming).await {
                    core.failed(&line, &failure);
                }
            });
        }
    }

    fn stranger(&self, from: IpAddr, incoming: Incoming) {
        self.board.refused();
        if may_tell(&self.stranger_told) {
            tracing::warn!(%from, "a QUIC connection was refused: no lease at its address announces encryption");
        }
        // Its lease may be on its way to us: a clear answer lets it try again soon.
        incoming.refuse();
    }

    async fn answer(self: &Rc<Self>, line: &Rc<Line>, incoming: Incoming) -> Result<(), Failure> {
        let connecting = incoming.accept()?;
        let connection = tokio::time::timeout(PATIENCE, connecting).await.map_err(|_| Failure::Silence)??;
        self.authenticated(line, connection, None)
    }

    /// Whether it is we who number the connections to a peer.
    fn leads(&self, line: &Line) -> bool {
        self.ours.get().ip() < line.address
    }

    /// Lets packets pass by a connection, if it is the peer's. `welcome`: what the peer said to us who dialled.
    fn authenticated(
        self: &Rc<Self>,
        line: &Rc<Line>,
        connection: Connection,
        welcome: Option<u64>,
    ) -> Result<(), Failure> {
        let fib = self.view.fib();
        let Some((peer, announced)) = protected(&fib, line.address) else {
            connection.close(Goodbye::NoLease.code(), b"no lease");
            return Err(Failure::NoLease);
        };
        if let Err(untrusted) = self.admits(&connection, peer, announced) {
            connection.close(
                Goodbye::Untrusted.code(),
                b"the certificate is not that of the lease at this address",
            );
            return Err(untrusted.into());
        }
        let (leads, is_initiator) = (self.leads(line), welcome.is_some());
        let number = if leads { line.next_number() } else { welcome.unwrap_or(UNNUMBERED) };
        let way = Rc::new(Way::new(connection.clone(), number));
        if leads || !is_initiator {
            tell_number(&connection, number);
        }
        self.enter(line, &way, &peer.name);
        if !leads && !is_initiator {
            tokio::task::spawn_local(self.clone().await_number(line.clone(), way, peer.name.clone()));
        }
        self.agree_on_keys(line, &connection, peer, is_initiator);
        Ok(())
    }

    /// Until the leader has numbered the connection that it has dialled.
    async fn await_number(self: Rc<Self>, line: Rc<Line>, way: Rc<Way>, name: String) {
        // Without it the connection has ended, or is the least of all.
        if let Ok(number) = hear_number(&way.connection).await {
            way.number.set(number);
            if way.connection.close_reason().is_none() {
                self.place(&line, &way, &name);
            }
        }
    }

    fn admits(&self, connection: &Connection, peer: &Peer, announced: Announced) -> Result<(), Untrusted> {
        let shown =
            connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        let certificate = shown.as_ref().and_then(|chain| chain.first());
        self.trust.borrow().admits(certificate, &peer.name, announced.fingerprint)
    }

    /// Whether a connection's certificate is still that of the lease.
    pub(super) fn is_still_trusted(&self, line: &Line, connection: &Connection, fib: &Fib) -> bool {
        protected(fib, line.address)
            .is_some_and(|(peer, announced)| self.admits(connection, peer, announced).is_ok())
    }

    /// Counts and tells a failure, and tries again later if packets wait.
    fn failed(self: &Rc<Self>, line: &Rc<Line>, failure: &Failure) {
        /// Refusals in a row that are no trouble.
        const PATIENT: u32 = 5;
        let failures = line.failures.get() + 1;
        line.failures.set(failures);
        line.retry_at.set(Instant::now() + pause(failures));
        let is_trouble = !failure.is_refusal() || failures > PATIENT;
        if is_trouble {
            let is_cut_off = line.connection().is_none();
            self.board.failed(line.address, is_cut_off.then(|| failure.to_string()));
            if line.may_tell() {
                let fib = self.view.fib();
                let name = fib.peer_by_address(line.address).map_or("?", |peer| peer.name.as_str());
                tracing::warn!(host = name, peer = %line.address, "no encrypted connection: {failure}");
            }
        }
        if line.has_work() && line.connection().is_none() {
            self.dial(line);
        }
    }
}

/// What the one who does not number says of a connection.
const UNNUMBERED: u64 = 0;

/// Tells the other the number of a connection, and, if it has dialled, that we believe it.
fn tell_number(connection: &Connection, number: u64) {
    let connection = connection.clone();
    tokio::task::spawn_local(async move {
        // A connection that ends before that is no connection: whoever reads it will find out.
        if let Ok(mut stream) = connection.open_uni().await {
            let _ = stream.write_all(&number.to_be_bytes()).await;
        }
    });
}

async fn hear_number(connection: &Connection) -> Result<u64, ConnectionError> {
    let mut number = [0; 8];
    // A stream that is cut short stands for the least number.
    let _ = connection.accept_uni().await?.read_exact(&mut number).await;
    Ok(u64::from_be_bytes(number))
}

/// With half of it left to chance: peers that failed together do not try together.
fn pause(failures: u32) -> Duration {
    let most = PAUSE.saturating_mul(1 << failures.min(10).saturating_sub(1)).min(LONGEST_PAUSE);
    let mut chance = [0; 1];
    // Without chance they would try together.
    let _ = aws_lc_rs::rand::fill(&mut chance);
    most.mul_f64(0.5 + f64::from(chance[0]) / 512.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        for failures in 1..40 {
            let pause = pause(failures);
            assert!(pause >= PAUSE / 2 && pause <= LONGEST_PAUSE, "{pause:?}");
        }
        assert!(pause(30) >= LONGEST_PAUSE / 2);
    }
}
