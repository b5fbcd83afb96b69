//! Keys for sealed packets, agreed on over an authenticated connection.
//!
//! The one who dialled opens a stream. Each tells its [`Hello`], both compute the same [`Agreement`], export the secret of
//! it from the TLS session (RFC 8446 §7.5) and install it; when each has told the other so, both seal by it. New keys are
//! asked for by a new connection, so that they come from a fresh key exchange.
//!
//! Invariant: nobody seals by keys that the other has not installed.
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{Connection, RecvStream, SendStream};

use super::datagrams::{Core, protected};
use super::peer::Line;
use crate::route::{Fib, Peer};
use crate::seal::{Agreement, EXPORTER_LABEL, Hello, HelloError, InstallError, Role, Secret, Session};
use crate::sys::now;

/// How long the other may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// What each says when it has installed the keys.
const INSTALLED: u8 = 1;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum KeyError {
    /// The connection ended, or the stream.
    #[error("the connection ended: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The peer did not read.
    #[error("the peer does not take part: {0}")]
    Write(#[from] quinn::WriteError),
    /// The peer did not write.
    #[error("the peer does not take part: {0}")]
    Read(#[from] quinn::ReadExactError),
    /// The peer speaks another version.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The session refuses.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// TLS has no secret to export.
    #[error("TLS exports no secret")]
    Export,
    /// The peer said something else.
    #[error("the peer did not install the keys")]
    NotInstalled,
    /// The peer said nothing.
    #[error("no answer in {} s", PATIENCE.as_secs())]
    Silence,
}

impl Core {
    /// Asks for keys, or answers, if both hosts seal; until then, and if it fails, packets go by the connection.
    pub(super) fn agree_on_keys(
        self: &Rc<Self>,
        line: &Rc<Line>,
        connection: &Connection,
        peer: &Peer,
        is_initiator: bool,
    ) {
        let Some(session) = peer.session.clone() else { return };
        let role = if is_initiator { Role::Initiator } else { Role::Responder };
        let workers = u8::try_from(self.view.workers()).unwrap_or(u8::MAX);
        let (core, line, connection, name) =
            (self.clone(), line.clone(), connection.clone(), peer.name.clone());
        tokio::task::spawn_local(async move {
            let had_keys = session.status(now()).is_some();
            let exchange = exchange(&connection, &session, role, workers);
            match tokio::time::timeout(PATIENCE, exchange).await.unwrap_or(Err(KeyError::Silence)) {
                Ok(()) if had_keys => core.board.rekeyed(),
                Ok(()) => tracing::info!(host = name, "packets to it are sealed from here on"),
                Err(error) => {
                    line.failures.set(line.failures.get() + 1);
                    line.retry_at.set(Instant::now() + Duration::from_secs(1));
                    if line.may_tell() {
                        tracing::warn!(host = name, "no keys for sealed packets, they go by QUIC: {error}");
                    }
                }
            }
        });
    }

    /// The connection that the keys came with has ended without another: the peer may have forgotten them.
    pub(super) fn key_lost(&self, line: &Line) {
        if let Some(session) = session(&self.view.fib(), line) {
            session.forget();
        }
    }

    /// Lets go of keys whose time is over.
    pub(super) fn wear_out(&self, line: &Line, fib: &Fib) {
        let Some((peer, session)) = protected(fib, line.address)
            .and_then(|(peer, _)| peer.session.as_ref().map(|session| (peer, session)))
        else {
            return;
        };
        if session.tick(now()) {
            let host = peer.name.as_str();
            tracing::warn!(
                host,
                "its keys have sealed for as long as they may, and no handshake has brought new ones: packets to it go by QUIC \
                 until one does"
            );
        }
    }

    /// Dials for new keys if it is time.
    pub(super) fn dial_if_due(self: &Rc<Self>, line: &Rc<Line>, fib: &Fib) {
        let Some(session) = session(fib, line) else { return };
        if session.rekey_due(now()) && line.connection().is_some() {
            self.dial(line);
        }
    }

    /// Whether packets were sealed since the last question.
    pub(super) fn is_in_use(&self, line: &Line) -> bool {
        let sealed = session(&self.view.fib(), line).and_then(|session| session.status(now()));
        let packets = sealed.map_or(0, |status| status.packets);
        line.sealed.replace(packets) != packets
    }
}

fn session(fib: &Fib, line: &Line) -> Option<Arc<Session>> {
    protected(fib, line.address).and_then(|(peer, _)| peer.session.clone())
}

async fn exchange(
    connection: &Connection,
    session: &Session,
    role: Role,
    workers: u8,
) -> Result<(), KeyError> {
    let ours = session.hello(workers);
    let (mut send, mut receive) = match role {
        Role::Initiator => connection.open_bi().await?,
        Role::Responder => connection.accept_bi().await?,
    };
    let theirs = {
        tell(&mut send, &ours.encode()).await?;
        Hello::decode(&hear(&mut receive).await?)?
    };
    let agreement = Agreement::of(&ours, &theirs, role);
    let epoch = agreement.epoch;
    let mut secret = [0; 32];
    connection.export_keying_material(&mut secret, EXPORTER_LABEL, &[epoch]).map_err(|_| KeyError::Export)?;
    session.install(agreement, &Secret::new(secret), now())?;
    tell(&mut send, &[INSTALLED]).await?;
    if hear(&mut receive).await? != [INSTALLED] {
        return Err(KeyError::NotInstalled);
    }
    session.activate(epoch, now());
    // A stream that is not finished would be reset, and with it what the peer has not read yet.
    let _ = send.finish();
    Ok(())
}

/// One message: its length in one byte, and it.
async fn tell(send: &mut SendStream, message: &[u8]) -> Result<(), KeyError> {
    let length = u8::try_from(message.len()).unwrap_or(u8::MAX);
    send.write_all(&[length]).await?;
    Ok(send.write_all(message).await?)
}

async fn hear(receive: &mut RecvStream) -> Result<Vec<u8>, KeyError> {
    let mut length = [0];
    receive.read_exact(&mut length).await?;
    let mut message = vec![0; usize::from(length[0])];
    receive.read_exact(&mut message).await?;
    Ok(message)
}
