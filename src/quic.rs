//! The QUIC endpoint: connections to the hosts that encrypt, and packets in them.
//!
//! One endpoint on a port of its own, mutual TLS 1.3 and the ALPN `hopsack/1`. Packets for such hosts come from the workers
//! by the engine's [`SlowPathQueue`](crate::engine::SlowPathQueue), leave as unreliable DATAGRAM frames (RFC 9221), and what comes in goes to
//! the overlay device by an [`SlowPathWriter`]. Where both hosts seal, the same handshake authenticates them and gives the keys
//! ([`crate::seal`]); the connection then carries only what has no key yet.
//!
//! It lets the inner transports control congestion (`congestion`), numbers connections so that both ends use the same one
//! (`connect`), and knows what became of each packet that quinn has taken (`ledger`).
//!
//! One connection a peer, on one thread for all: sealing, opening and QUIC's own work keep that thread busy, so with more CPUs than
//! the two that were measured several connections would carry more. There both CPUs are full with one (benches/README.md).
//!
//! It runs on a thread of its own, with a runtime of its own: a core of AES and packets must not starve the store's watch,
//! the control socket and the watchdog, which share `main`'s.
//!
//! It knows of hosts what the FIB says. Invariant: nothing is sent to, and nothing taken from, a host whose certificate is
//! not the one of the lease at its address; nothing waits longer than `datagrams::HOLD` for a connection.
//!
//! Sources: RFC 9000 (QUIC), 9001 (its TLS), 9221 (datagrams), 8446 §7.5 (exporters).
#![forbid(unsafe_code)]

mod congestion;
mod connect;
mod connection;
mod datagrams;
mod keys;
mod observe;
mod peer;
mod queue;
mod socket;
mod status;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use datagrams::Core;
pub use observe::QuicPart;
pub use status::{Counts, PeerStatus, QuicStatus};

use crate::engine::{SlowPathWriter, View};
use crate::pki::{Identity, Trust};

/// Bytes of a UDP payload that an inner packet cannot have: short header with an 8-byte connection id and a 4-byte packet
/// number, the AEAD's tag, and the frame's type and length as quinn bounds them.
pub const OVERHEAD: u16 = 1 + 8 + 4 + 16 + 9;

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The port cannot be had.
    #[error("cannot bind UDP {address} for QUIC: {error}; set security.port to a free port")]
    Bind {
        /// Address and port.
        address: SocketAddr,
        /// From the kernel.
        error: std::io::Error,
    },
    /// Certificate, key or limits do not do for TLS or QUIC.
    #[error("QUIC cannot be set up: {0}")]
    Setup(String),
    /// No thread.
    #[error("cannot start the QUIC thread: {0}")]
    Thread(std::io::Error),
}

/// What an endpoint is made of.
#[derive(Debug)]
pub struct Setup {
    /// Where it listens: our public address, the QUIC port.
    pub address: SocketAddr,
    /// The longest UDP payload that the underlay interface takes.
    pub payload: u16,
    /// Who we are.
    pub identity: Identity,
    /// Whom we believe.
    pub trust: Trust,
    /// Survives restarts: by it peers are told that a connection is no more.
    pub reset_key: [u8; 32],
    /// A connection without packets for so long ends; the next packet brings it back.
    pub idle: Duration,
    /// Packets and the FIB.
    pub view: View,
    /// The way to the overlay device.
    pub entrance: SlowPathWriter,
}

/// What the node should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The longest inner packet that the way to a peer takes.
    Path {
        /// The peer's address on the underlay.
        peer: IpAddr,
        /// In bytes.
        mtu: u16,
    },
    /// The endpoint's thread has ended by a mistake of ours; the panic stands in the log.
    Failed,
}

#[derive(Debug)]
enum Command {
    Refresh,
    Renew(Box<(Identity, Trust)>),
    Relocate(IpAddr),
    Stop,
}

/// A running endpoint.
#[derive(Debug)]
pub struct Quic {
    board: Arc<QuicStatus>,
    commands: mpsc::UnboundedSender<Command>,
    thread: JoinHandle<()>,
}

impl Quic {
    /// Binds and starts; peers are dialled from the first [`Quic::refresh`] on.
    pub fn start(setup: Setup, reports: mpsc::UnboundedSender<Report>) -> Result<Self, QuicError> {
        let board = Arc::new(QuicStatus::default());
        let (commands, received) = mpsc::unbounded_channel();
        let (started, outcome) = std::sync::mpsc::channel();
        let shown = board.clone();
        let body = move || {
            let failed = reports.clone();
            let run = || run(setup, shown, received, reports, &started);
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                // The receiver is gone only when the node has stopped already.
                let _ = failed.send(Report::Failed);
            }
        };
        let thread =
            std::thread::Builder::new().name("hopsack-quic".into()).spawn(body).map_err(QuicError::Thread)?;
        match outcome.recv() {
            Ok(Ok(())) => Ok(Self { board, commands, thread }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(QuicError::Setup("the thread ended: see above".into())),
        }
    }

    /// The FIB has changed: connections to hosts that are no longer in it end.
    pub fn refresh(&self) {
        self.tell(Command::Refresh);
    }

    /// From here on we show another certificate, and believe by `trust`. Connections are made anew, one after the other,
    /// without a gap.
    pub fn renew(&self, identity: Identity, trust: Trust) {
        self.tell(Command::Renew(Box::new((identity, trust))));
    }

    /// This host is reached at another address: connections are made anew from there.
    pub fn relocate(&self, public: IpAddr) {
        self.tell(Command::Relocate(public));
    }

    /// What is known of the connections.
    #[must_use]
    pub fn board(&self) -> &Arc<QuicStatus> {
        &self.board
    }

    /// Says goodbye to the peers and ends. Returns once its descriptors are closed.
    pub fn stop(self) {
        self.tell(Command::Stop);
        // A thread that panicked has said so on its way down.
        let _ = self.thread.join();
    }

    fn tell(&self, command: Command) {
        // A thread that ended has reported it.
        let _ = self.commands.send(command);
    }
}

fn run(
    setup: Setup,
    board: Arc<QuicStatus>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    reports: mpsc::UnboundedSender<Report>,
    started: &std::sync::mpsc::Sender<Result<(), QuicError>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(QuicError::Thread(error)))),
    };
    LocalSet::new().block_on(&runtime, async move {
        let core = match Core::new(setup, board, reports) {
            Ok(core) => core,
            Err(error) => return drop(started.send(Err(error))),
        };
        let _ = started.send(Ok(()));
        serve(core, &mut commands).await;
    });
}

async fn serve(core: Rc<Core>, commands: &mut mpsc::UnboundedReceiver<Command>) {
    /// For path MTUs, idle connections, held packets and keys that get old.
    const TICK: Duration = Duration::from_millis(500);
    tokio::task::spawn_local(core.clone().dispatch());
    tokio::task::spawn_local(core.clone().accept());
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Refresh) => core.refresh(),
                Some(Command::Renew(new)) => core.renew(&new.0, new.1),
                Some(Command::Relocate(public)) => core.relocate(public),
                Some(Command::Stop) | None => return core.close().await,
            },
            _ = tick.tick() => core.tick(),
        }
    }
}
