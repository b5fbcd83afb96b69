//! The service manager: which signals come, and what is reported back (sd_notify(3)).

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::shown;
use crate::observe::Problems;

/// A signal that the daemon acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalName {
    Terminate,
    Interrupt,
    Hangup,
}

impl SignalName {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Hangup => "SIGHUP",
        }
    }
}

/// The signals that the daemon acts on.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal that ends the daemon. While it starts there is nothing to reload. Cancel
    /// safe.
    pub(super) async fn end(&mut self) -> SignalName {
        loop {
            let signal = self.next().await;
            if signal != SignalName::Hangup {
                return signal;
            }
        }
    }

    /// Waits for a signal. Cancel safe.
    pub(super) async fn next(&mut self) -> SignalName {
        tokio::select! {
            _ = self.terminate.recv() => SignalName::Terminate,
            _ = self.interrupt.recv() => SignalName::Interrupt,
            _ = self.hangup.recv() => SignalName::Hangup,
        }
    }
}

/// Reports the state of the daemon to systemd.
#[derive(Debug, Default)]
pub(super) struct ServiceManager {
    /// The status line that was reported last.
    reported: String,
}

impl ServiceManager {
    /// Reports that the daemon is ready, with one line of status, if the line has changed or
    /// `force` is set.
    pub(super) fn report(&mut self, peers: usize, problems: &Problems, force: bool) {
        let mut status = format!("forwarding to {peers} hosts");
        for problem in problems.list() {
            status = format!("{status}; {problem}");
        }
        if force || status != self.reported {
            notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
            self.reported = status;
        }
    }
}

/// Sends states to systemd. Without systemd there is no receiver.
pub(super) fn notify(states: &[NotifyState<'_>]) {
    // A line break in a status would begin another assignment.
    let text = |state: &NotifyState<'_>| {
        if let NotifyState::Status(text) = state { Some(shown(text).into_owned()) } else { None }
    };
    let texts: Vec<Option<String>> = states.iter().map(text).collect();
    let mut fit = Vec::with_capacity(states.len());
    for (state, text) in states.iter().zip(&texts) {
        fit.push(text.as_deref().map_or_else(|| state.clone(), NotifyState::Status));
    }
    let states = fit.as_slice();
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify systemd");
    }
}
