//! Engines: threads that move packets between the overlay device and the underlay socket.
//!
//! An [`Engine`] owns its workers, publishes the [`Fib`] to them, counts for them and stops them. The simple engine is the
//! reference: one thread, one packet a system call, the same [`crate::forward`] as every other.
//!
//! It knows nothing of leases, stores or configuration files, and never decides that the program should end: a worker
//! that cannot go on says so through the callback that it was started with.
//!
//! Invariant: each counter has one writer; publishing a route table takes no lock and wakes nobody.

mod simple;

use std::collections::BTreeMap;
use std::io;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::forward::{Counters, VerifySource};
use crate::route::Fib;
use crate::sys::tun::SimpleTun;
use crate::sys::{Event, udp};

/// A worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The overlay device was removed under us.
    #[error("the overlay device is gone ({0}): somebody removed it; start hopsack again")]
    DeviceGone(io::Error),
    /// The kernel refuses what a worker cannot do without.
    #[error("{call} failed: {error}")]
    System {
        /// The system call.
        call: &'static str,
        /// What it said.
        error: io::Error,
    },
}

/// Between what a worker moves packets, and by what rules.
#[derive(Debug)]
pub struct Io {
    /// The overlay device.
    pub tun: SimpleTun,
    /// The underlay socket, non-blocking.
    pub socket: UdpSocket,
    /// What inner sources must prove.
    pub verify: VerifySource,
}

/// A data-path system call, as label of `hopsack_io_errors_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Writing to it.
    TunWrite,
    /// Receiving from the underlay.
    UdpReceive,
    /// Sending to it.
    UdpSend,
}

impl Op {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TunWrite => "tun_write",
            Self::UdpReceive => "udp_receive",
            Self::UdpSend => "udp_send",
        }
    }
}

/// What one worker shares with those who read its account.
#[derive(Debug, Default)]
pub struct Account {
    /// What it moved and dropped.
    pub counters: Counters,
    errors: Mutex<BTreeMap<(Op, i32), ErrorCount>>,
}

#[derive(Debug, Default)]
struct ErrorCount {
    count: u64,
    warned: Option<Instant>,
}

/// A repeated error is warned about once in this time.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

impl Account {
    /// Counts a failed system call, and warns at most once a minute for each call and error number.
    fn error(&self, op: Op, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = errors.entry((op, errno)).or_default();
        entry.count += 1;
        let due = entry.warned.is_none_or(|warned| warned.elapsed() >= WARN_INTERVAL);
        if due {
            entry.warned = Some(Instant::now());
            tracing::warn!(op = op.label(), %error, count = entry.count, "a packet could not pass the kernel");
        }
    }

    /// Failed system calls by call and error number.
    #[must_use]
    pub fn errors(&self) -> Vec<(Op, i32, u64)> {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors.iter().map(|((op, errno), entry)| (*op, *errno, entry.count)).collect()
    }
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    view: View,
    stop: Arc<Event>,
    threads: Vec<JoinHandle<()>>,
}

/// What may be asked of an engine, and the one thing that may be told it, from any thread and for as long as one likes.
#[derive(Debug, Clone)]
pub struct View {
    fib: Arc<ArcSwap<Fib>>,
    accounts: Vec<Arc<Account>>,
    socket: Arc<UdpSocket>,
}

impl Engine {
    /// Starts the simple engine. `failed` is called, on the worker's thread, if it ends otherwise than by
    /// [`Engine::stop`].
    pub fn start_simple(
        io: Io,
        fib: Fib,
        failed: impl FnOnce(WorkerError) + Send + 'static,
    ) -> io::Result<Self> {
        let fib = Arc::new(ArcSwap::from_pointee(fib));
        let stop = Arc::new(Event::new()?);
        let account = Arc::new(Account::default());
        let socket = Arc::new(io.socket.try_clone()?);
        let worker = simple::Worker::new(io, fib.clone(), account.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("hopsack-w0".into()).spawn(move || {
            if let Err(error) = worker.run() {
                failed(error);
            }
        })?;
        let view = View { fib, accounts: vec![account], socket };
        Ok(Self { view, stop, threads: vec![thread] })
    }

    /// For those who watch and publish.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Stops all workers and waits for them. Returns once their descriptors are closed.
    pub fn stop(self) {
        self.stop.give();
        for thread in self.threads {
            // A worker that panicked has said so on its way down.
            let _ = thread.join();
        }
    }
}

impl View {
    /// The engine's name.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        "simple"
    }

    /// Makes `fib` what the next packet meets.
    pub fn publish(&self, fib: Fib) {
        self.fib.store(Arc::new(fib));
    }

    /// The table in force.
    #[must_use]
    pub fn fib(&self) -> Arc<Fib> {
        self.fib.load_full()
    }

    /// One account a worker.
    #[must_use]
    pub fn accounts(&self) -> &[Arc<Account>] {
        &self.accounts
    }

    /// Datagrams that the kernel dropped before a worker could read them, because the socket's queue was full.
    #[must_use]
    pub fn socket_drops(&self) -> u32 {
        udp::queue_drops(&self.socket).unwrap_or(0)
    }
}
