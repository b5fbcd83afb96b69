//! Interrupt: a flag that Ctrl-C, SIGTERM or a terminal that hangs up sets.
//!
//! It ends nothing by itself. Code that waits uses [`Interrupt::sleep`], which then fails; the
//! error is handled like any other, so the lab is removed on the way out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::error::LabError;

/// A flag that is set once. The default is a flag that is never set.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// A flag that SIGINT, SIGTERM and SIGHUP set. From now until the end of the process these
    /// signals do nothing else.
    ///
    /// # Errors
    /// The handlers could not be installed.
    pub fn on_signals() -> Result<Self, LabError> {
        let flag = Self::default();
        let set = flag.clone();
        let what = "handle signals";
        // The thread has its own runtime, because the caller may or may not have one.
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
            set.0.store(true, Ordering::Relaxed);
        };
        thread::Builder::new().name("hopsack-signals".into()).spawn(wait).map_err(LabError::io(what))?;
        Ok(flag)
    }

    /// Fails if the flag is set.
    ///
    /// # Errors
    /// [`LabError::Interrupted`]
    pub fn check(&self) -> Result<(), LabError> {
        if self.0.load(Ordering::Relaxed) { Err(LabError::Interrupted) } else { Ok(()) }
    }

    /// Sleeps. Fails within 50 ms after the flag is set.
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
