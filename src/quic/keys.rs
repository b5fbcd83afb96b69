//! Agrees on keys for sealed packets over an authenticated connection.
//!
//! The host that dialled opens a stream. Each host sends its [`Hello`]. Both compute the same
//! [`Agreement`], export its secret from the TLS session (RFC 8446 section 7.5) and install it.
//! Each tells the other when it has done so, and then both seal with the new keys. A host asks for
//! new keys by a new connection, so that they come from a fresh key exchange.
//!
//! It does not decide when keys are old: [`Session`] does. Invariant: no host seals with keys that
//! the other has not installed.
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};

use super::connection::TrackedConnection;
use super::peer::QuicPeer;
use super::state::{EndpointState, encrypting_peer};
use crate::forward::{Peer, Table};
use crate::seal::{Agreement, EXPORTER_LABEL, Hello, HelloError, InstallError, Role, Secret, Session};
use crate::sys::now;

/// How long the exchange may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Pause before the next handshake after a failed exchange.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The message that says that the keys are installed.
const INSTALLED: u8 = 1;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum KeyError {
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The peer did not accept a message.
    #[error("the peer did not accept a message: {0}")]
    Write(#[from] quinn::WriteError),
    /// The peer did not send a message.
    #[error("the peer did not send a message: {0}")]
    Read(#[from] quinn::ReadExactError),
    /// The peer's hello is malformed, or of a version that this host does not support.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The session refuses the keys.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// TLS does not export a secret.
    #[error("TLS did not export a secret")]
    Export,
    /// The peer's last message is not that it has installed the keys.
    #[error("the peer did not install the keys")]
    NotInstalled,
    /// The peer did not answer.
    #[error("the peer did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

impl EndpointState {
    /// Starts the exchange of keys if both hosts seal. Packets go by the connection until it is
    /// done, and if it fails.
    pub(super) fn agree_on_keys(
        self: &Rc<Self>,
        peer: &Rc<QuicPeer>,
        tracked: &Rc<TrackedConnection>,
        route: &Peer,
        is_initiator: bool,
    ) {
        let Some(session) = route.session.clone() else { return };
        let role = if is_initiator { Role::Initiator } else { Role::Responder };
        // Control messages are sealed with a key of their own, after those of the workers.
        let workers = u8::try_from(self.view.workers() + 1).unwrap_or(u8::MAX);
        let (state, peer, tracked, name) = (self.clone(), peer.clone(), tracked.clone(), route.name.clone());
        tokio::task::spawn_local(async move {
            let had_keys = session.status(now()).is_some();
            let exchange = exchange(&tracked, &session, role, workers);
            match tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or(Err(KeyError::Timeout)) {
                Ok(()) if had_keys => state.status.count_rekey(),
                Ok(()) => tracing::info!(host = name, "keys installed: packets to the peer are sealed"),
                Err(error) => {
                    peer.failures.set(peer.failures.get() + 1);
                    peer.retry_at.set(Instant::now() + RETRY_PAUSE);
                    if peer.warning.allows() {
                        tracing::warn!(
                            host = name, %error,
                            "no keys for sealed packets: packets to the peer go by QUIC"
                        );
                    }
                }
            }
        });
    }

    /// Forgets a peer's keys. Their connection has ended and there is no other one. The peer may
    /// have forgotten the keys too.
    pub(super) fn forget_keys(&self, peer: &QuicPeer) {
        if let Some(session) = session(&self.view.table(), peer) {
            session.forget();
        }
    }

    /// Removes a peer's keys when their time is over.
    pub(super) fn expire_keys(&self, peer: &QuicPeer, table: &Table) {
        let Some((route, _)) = encrypting_peer(table, peer.address) else { return };
        let has_expired = route.session.as_ref().is_some_and(|session| session.tick(now()));
        if has_expired {
            tracing::warn!(
                host = route.name.as_str(),
                "keys expired: packets to the peer go by QUIC until a handshake brings new keys"
            );
        }
    }

    /// Dials for new keys if they are due.
    pub(super) fn dial_if_rekey_is_due(self: &Rc<Self>, peer: &Rc<QuicPeer>, table: &Table) {
        let Some(session) = session(table, peer) else { return };
        if session.rekey_due(now()) && peer.is_connected() {
            self.dial(peer);
        }
    }

    /// Whether packets were sealed for a peer since the last call.
    pub(super) fn has_sealed_packets(&self, peer: &QuicPeer) -> bool {
        let keys = session(&self.view.table(), peer).and_then(|session| session.status(now()));
        let packets = keys.map_or(0, |status| status.packets);
        peer.sealed_packets.replace(packets) != packets
    }
}

pub(super) fn session(table: &Table, peer: &QuicPeer) -> Option<Arc<Session>> {
    encrypting_peer(table, peer.address).and_then(|(route, _)| route.session.clone())
}

async fn exchange(
    tracked: &TrackedConnection,
    session: &Session,
    role: Role,
    workers: u8,
) -> Result<(), KeyError> {
    let (connection, ours) = (&tracked.connection, session.hello(workers));
    let (mut send, mut receive) = match role {
        Role::Initiator => connection.open_bi().await?,
        Role::Responder => connection.accept_bi().await?,
    };
    write_message(&mut send, &ours.encode()).await?;
    let theirs = Hello::decode(&read_message(&mut receive).await?)?;
    let agreement = Agreement::of(&ours, &theirs, role);
    let epoch = agreement.epoch;
    let mut secret = [0; 32];
    connection.export_keying_material(&mut secret, EXPORTER_LABEL, &[epoch]).map_err(|_| KeyError::Export)?;
    session.install(agreement, &Secret::new(secret, tracked.certificate.fingerprint.0), now())?;
    write_message(&mut send, &[INSTALLED]).await?;
    if read_message(&mut receive).await? != [INSTALLED] {
        return Err(KeyError::NotInstalled);
    }
    session.activate(epoch, now());
    // A stream that is dropped without this is reset, and the peer loses what it has not read yet.
    let _ = send.finish();
    Ok(())
}

/// Sends one message: one byte with its length, then its bytes.
async fn write_message(send: &mut SendStream, message: &[u8]) -> Result<(), KeyError> {
    let length = u8::try_from(message.len()).unwrap_or(u8::MAX);
    send.write_all(&[length]).await?;
    Ok(send.write_all(message).await?)
}

async fn read_message(receive: &mut RecvStream) -> Result<Vec<u8>, KeyError> {
    let mut length = [0];
    receive.read_exact(&mut length).await?;
    let mut message = vec![0; usize::from(length[0])];
    receive.read_exact(&mut message).await?;
    Ok(message)
}
