//! Tells work in progress that somebody wants it to end: Ctrl-C, SIGTERM, or the terminal hanging up.
//!
//! It ends nothing by itself. What waits, waits by [`Interrupt::sleep`]; what has something to remove, removes it on the
//! way out as after any other failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::LabError;

/// A flag that is raised once. The default is one that never is.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// A flag that SIGINT, SIGTERM and SIGHUP raise. From here to the end of the process they do nothing else.
    ///
    /// # Errors
    /// The handlers could not be installed.
    pub fn on_signals() -> Result<Self, LabError> {
        let flag = Self::default();
        let raised = flag.clone();
        let what = "handle signals";
        // A thread with a runtime of its own: the caller may be inside a runtime, or in none.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(LabError::io(what))?;
        let listen = |kind| {
            let _context = runtime.enter();
            signal(kind).map_err(LabError::io(what))
        };
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        let mut hangup = listen(SignalKind::hangup())?;
        let wait = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            raised.0.store(true, Ordering::Relaxed);
        };
        thread::Builder::new().name("hopsack-signals".into()).spawn(wait).map_err(LabError::io(what))?;
        Ok(flag)
    }

    /// Fails if the flag is up.
    ///
    /// # Errors
    /// [`LabError::Interrupted`]
    pub fn check(&self) -> Result<(), LabError> {
        if self.0.load(Ordering::Relaxed) { Err(LabError::Interrupted) } else { Ok(()) }
    }

    /// Sleeps, and wakes within 50 ms when the flag goes up.
    ///
    /// # Errors
    /// [`LabError::Interrupted`]
    pub fn sleep(&self, duration: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + duration;
        loop {
            self.check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}
