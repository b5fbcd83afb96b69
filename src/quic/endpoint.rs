//! The endpoint's thread, and the handle by which the node controls it.
//!
//! Commands to the thread do not block, and are done in the order in which they were given.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::MissedTickBehavior;

use super::error::QuicError;
use super::event::QuicEvent;
use super::options::QuicOptions;
use super::state::EndpointState;
use super::status::QuicStatus;
use crate::pki::{Identity, Trust};

/// Interval at which path MTUs, idle connections, waiting packets and old keys are checked.
const TICK: Duration = Duration::from_millis(500);

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
    status: Arc<QuicStatus>,
    commands: mpsc::UnboundedSender<Command>,
    thread: JoinHandle<()>,
}

impl Quic {
    /// Binds the socket and starts the thread. The first [`Quic::refresh`] dials the peers.
    pub fn start(options: QuicOptions, events: mpsc::UnboundedSender<QuicEvent>) -> Result<Self, QuicError> {
        let status = Arc::new(QuicStatus::default());
        let (commands, received) = mpsc::unbounded_channel();
        let (started, outcome) = std::sync::mpsc::channel();
        let shared = status.clone();
        let body = move || {
            let failed = events.clone();
            let run = || run(options, shared, received, events, &started);
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                // The send fails only if the node has stopped already.
                let _ = failed.send(QuicEvent::Failed);
            }
        };
        let thread =
            std::thread::Builder::new().name("hopsack-quic".into()).spawn(body).map_err(QuicError::Thread)?;
        outcome.recv().unwrap_or(Err(QuicError::Ended))?;
        Ok(Self { status, commands, thread })
    }

    /// The FIB has changed: closes the connections to hosts that are no longer in it.
    pub fn refresh(&self) {
        self.tell(Command::Refresh);
    }

    /// From now on this host shows another certificate, and accepts others by `trust`. Each
    /// connection is replaced by a new one without an interruption.
    pub fn renew(&self, identity: Identity, trust: Trust) {
        self.tell(Command::Renew(Box::new((identity, trust))));
    }

    /// This host has another underlay address: replaces all connections by new ones from there.
    pub fn relocate(&self, public: IpAddr) {
        self.tell(Command::Relocate(public));
    }

    /// State of the connections.
    #[must_use]
    pub fn status(&self) -> &Arc<QuicStatus> {
        &self.status
    }

    /// Closes all connections and ends the thread. Returns once its descriptors are closed.
    pub fn stop(self) {
        self.tell(Command::Stop);
        // If the thread panicked, it has already reported that.
        let _ = self.thread.join();
    }

    fn tell(&self, command: Command) {
        // The send fails only if the thread has ended, which it has reported.
        let _ = self.commands.send(command);
    }
}

fn run(
    options: QuicOptions,
    status: Arc<QuicStatus>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::UnboundedSender<QuicEvent>,
    started: &std::sync::mpsc::Sender<Result<(), QuicError>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(QuicError::Runtime(error)))),
    };
    LocalSet::new().block_on(&runtime, async move {
        let state = match EndpointState::new(options, status, events) {
            Ok(state) => state,
            Err(error) => return drop(started.send(Err(error))),
        };
        let _ = started.send(Ok(()));
        serve(state, &mut commands).await;
    });
}

async fn serve(state: Rc<EndpointState>, commands: &mut mpsc::UnboundedReceiver<Command>) {
    tokio::task::spawn_local(state.clone().dispatch());
    tokio::task::spawn_local(state.clone().accept());
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Refresh) => state.refresh(),
                Some(Command::Renew(new)) => state.renew(&new.0, new.1),
                Some(Command::Relocate(public)) => state.relocate(public),
                Some(Command::Stop) | None => return state.close().await,
            },
            _ = tick.tick() => {
                state.tick();
            }
        }
    }
}
