//! Engines: threads that move packets between the overlay device and the underlay socket.
//!
//! An [`Engine`] owns its workers, publishes the [`Table`] to them, counts for them and stops them. There are three, with the
//! same [`crate::forward`] in them: `simple`, the reference, one packet a system call; `batch`, offloads and many messages
//! a call; `uring`, the same through one ring a worker.
//!
//! A worker of the fast engines has a TUN queue, a receiving socket on the cluster's port, and a source port: a flow keeps
//! its queue, a queue its source port, and a source port its receiving socket at the peer, so that no two threads carry
//! packets of one flow in one direction at a time. Which thread serves which worker is `scheduler`'s matter.
//!
//! It knows nothing of leases, stores or configuration files, and never decides that the program should end: a worker
//! that cannot go on says so through the callback that it was started with.
//!
//! Invariant: each counter has one writer; publishing a route table takes no lock and wakes nobody.

mod batch;
mod budget;
mod codel;
mod link;
mod observe;
mod pmtu_cache;
mod scheduler;
#[cfg(test)]
mod sealed_tests;
mod simple;
mod slow_path;
mod tx_batch;
mod uring;
mod wait;

use std::collections::BTreeMap;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

pub use observe::EnginePart;
pub(crate) use observe::SOCKET_QUEUE_FULL;
pub use slow_path::{SlowPathPackets, SlowPathQueue, SlowPathWriter};

use crate::forward::{Counters, Table, VerifySource};
use crate::sys::ring::Ring;
use crate::sys::tun::{Offload, Queue, SimpleTun};
use crate::sys::{Event, udp};
use wait::{LastBulk, Spin};

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
    /// A mistake in the program; the panic stands above it in the log.
    #[error("a worker panicked: see above")]
    Panicked,
}

impl WorkerError {
    /// tun_chr_read_iter: EBADFD once the device has been unregistered.
    fn of_read(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EBADFD) => Self::DeviceGone(error),
            _ => Self::System { call: "read of the overlay device", error },
        }
    }
}

/// Between what the workers of an engine move packets.
#[derive(Debug)]
pub enum Io {
    /// One worker, one packet a system call.
    Simple(SimpleIo),
    /// A worker a queue, plain system calls.
    Batch(Vec<QueueIo>),
    /// A worker a queue, a ring each, made by [`QueueIo::ring`].
    Uring(Vec<(QueueIo, Ring)>),
}

/// What the simple engine's worker has.
#[derive(Debug)]
pub struct SimpleIo {
    /// The overlay device.
    pub tun: SimpleTun,
    /// The underlay socket, non-blocking.
    pub socket: UdpSocket,
}

/// What a worker of the other engines has.
#[derive(Debug)]
pub struct QueueIo {
    /// Its queue of the overlay device.
    pub tun: Queue,
    /// Its socket on the cluster's port, non-blocking, with UDP_GRO if offloads are wanted.
    pub receive: UdpSocket,
    /// The socket that it sends by: the same, or one with a port of its own.
    pub send: UdpSocket,
}

impl QueueIo {
    /// A ring over these ends.
    pub fn ring(&self) -> io::Result<Ring> {
        Ring::new([self.tun.as_fd(), self.receive.as_fd(), self.send.as_fd()])
    }
}

/// By what rules packets are moved.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// What inner sources must prove.
    pub verify: VerifySource,
    /// What the overlay device was set to; `None` goes for the sockets too.
    pub offload: Offload,
    /// For how many microseconds a worker of the fast engines spins before it sleeps, where that pays. 0: never.
    pub busy_poll_us: u16,
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
    rules: Rules,
    failed: Failed,
    stop: Arc<Event>,
    threads: Vec<JoinHandle<()>>,
    spare: slow_path::Door,
}

/// Who is told that a worker cannot go on.
#[derive(Clone)]
struct Failed(Arc<dyn Fn(WorkerError) + Send + Sync>);

impl std::fmt::Debug for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Failed")
    }
}

/// What may be asked of an engine, and the one thing that may be told it, from any thread and for as long as one likes.
#[derive(Debug, Clone)]
pub struct View {
    name: &'static str,
    fib: Arc<ArcSwap<Table>>,
    accounts: Vec<Arc<Account>>,
    receiving: Arc<Receiving>,
    workers: usize,
    slow_path: Arc<SlowPathQueue>,
}

/// The sockets that receive, once more, for the kernel's own account of them.
#[derive(Debug)]
struct Receiving {
    sockets: ArcSwap<Vec<UdpSocket>>,
    /// Drops of sockets that were replaced.
    before: AtomicU64,
}

impl Receiving {
    fn drops(&self) -> u64 {
        let drops = |socket: &UdpSocket| u64::from(udp::queue_drops(socket).unwrap_or(0));
        self.before.load(Ordering::Relaxed) + self.sockets.load().iter().map(drops).sum::<u64>()
    }
}

impl Io {
    fn name(&self) -> &'static str {
        match self {
            Self::Simple(_) => "simple",
            Self::Batch(_) => "batch",
            Self::Uring(_) => "uring",
        }
    }

    fn workers(&self) -> usize {
        match self {
            Self::Simple(_) => 1,
            Self::Batch(queues) => queues.len(),
            Self::Uring(queues) => queues.len(),
        }
    }

    /// The sockets that receive, once more.
    fn receiving(&self) -> io::Result<Vec<UdpSocket>> {
        match self {
            Self::Simple(io) => Ok(vec![io.socket.try_clone()?]),
            Self::Batch(queues) => queues.iter().map(|io| io.receive.try_clone()).collect(),
            Self::Uring(queues) => queues.iter().map(|(io, _)| io.receive.try_clone()).collect(),
        }
    }
}

/// A worker before it has a thread.
type Start = Box<dyn FnOnce() -> Result<(), WorkerError> + Send>;

impl Engine {
    /// Starts a worker for each end in `io`. `failed` is called, on a worker's thread, if one ends otherwise than by
    /// [`Engine::stop`].
    pub fn start(
        io: Io,
        rules: Rules,
        fib: Table,
        failed: impl Fn(WorkerError) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let sockets = ArcSwap::from_pointee(io.receiving()?);
        let view = View {
            name: io.name(),
            fib: Arc::new(ArcSwap::from_pointee(fib)),
            accounts: (0..io.workers()).map(|_| Arc::default()).collect(),
            receiving: Arc::new(Receiving { sockets, before: AtomicU64::new(0) }),
            workers: io.workers(),
            slow_path: Arc::default(),
        };
        let spare = slow_path::Door::of(&io, rules.offload)?;
        let failed = Failed(Arc::new(failed));
        let mut engine =
            Self { view, rules, failed, stop: Arc::new(Event::new()?), threads: Vec::new(), spare };
        match engine.spawn(io) {
            Ok(()) => Ok(engine),
            Err(error) => {
                engine.stop();
                Err(error)
            }
        }
    }

    /// Puts other ends under the engine, as many as it had: stops the workers, and starts others in their place. Table
    /// and accounts stay; packets wait meanwhile in the queues of the device and of the new sockets. After an error no
    /// worker runs.
    pub fn replace(&mut self, io: Io) -> io::Result<()> {
        let sockets = io.receiving()?;
        let stop = std::mem::replace(&mut self.stop, Arc::new(Event::new()?));
        stop.give();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let receiving = &self.view.receiving;
        let drops = receiving.drops();
        receiving.sockets.store(Arc::new(sockets));
        receiving.before.store(drops, Ordering::Relaxed);
        self.spawn(io)
    }

    fn spawn(&mut self, io: Io) -> io::Result<()> {
        for (name, start) in self.workers(io)? {
            let Failed(failed) = self.failed.clone();
            let run = move || match catch_unwind(AssertUnwindSafe(start)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed(error),
                Err(_) => failed(WorkerError::Panicked),
            };
            self.threads.push(std::thread::Builder::new().name(name).spawn(run)?);
        }
        Ok(())
    }

    fn workers(&self, io: Io) -> io::Result<Vec<scheduler::Named>> {
        let (View { fib, accounts, slow_path, .. }, rules) = (&self.view, self.rules);
        let accounts = accounts.iter().cloned();
        let bulk = LastBulk::default();
        let spin = || Spin::new(rules.busy_poll_us, bulk.clone());
        // Half of the CPUs are the other direction's and the pods'.
        let groups = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() / 2);
        match io {
            Io::Simple(io) => {
                let others = (self.stop.clone(), slow_path.clone());
                let worker = |account| simple::Worker::new(io, rules.verify, fib.clone(), account, others);
                let worker = accounts.take(1).next().map(worker).ok_or(io::ErrorKind::InvalidInput)?;
                Ok(vec![("hopsack-w0".to_owned(), Box::new(|| worker.run()))])
            }
            Io::Batch(queues) => {
                let workers = accounts.zip(queues).enumerate().map(|(number, (account, io))| {
                    batch::Worker::new(number, io, rules, fib.clone(), account, slow_path.clone())
                });
                scheduler::threads(workers.collect(), groups, &self.stop, spin)
            }
            Io::Uring(queues) => {
                let workers = accounts.zip(queues).enumerate().map(|(number, (account, ends))| {
                    uring::Worker::new(number, ends, rules, fib.clone(), account, slow_path.clone())
                });
                scheduler::threads(workers.collect(), groups, &self.stop, spin)
            }
        }
    }

    /// A way to the device for packets that do not come by the workers' sockets. Its account stands behind those of the
    /// workers in every [`View`] that is taken from here on.
    pub fn entrance(&mut self) -> io::Result<SlowPathWriter> {
        let account = Arc::<Account>::default();
        self.view.accounts.push(account.clone());
        Ok(SlowPathWriter::new(self.spare.try_clone()?, account))
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
        self.name
    }

    /// Makes `fib` what the next packet meets.
    pub fn publish(&self, fib: Table) {
        self.fib.store(Arc::new(fib));
    }

    /// The table in force.
    #[must_use]
    pub fn fib(&self) -> Arc<Table> {
        self.fib.load_full()
    }

    /// Where workers put packets that travel otherwise than by their sockets.
    #[must_use]
    pub fn slow_path(&self) -> &Arc<SlowPathQueue> {
        &self.slow_path
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// One account a worker, then one of an [`SlowPathWriter`] if there is any.
    #[must_use]
    pub fn accounts(&self) -> &[Arc<Account>] {
        &self.accounts
    }

    /// Datagrams that the kernel dropped before a worker could read them, because a socket's queue was full.
    #[must_use]
    pub fn socket_drops(&self) -> u64 {
        self.receiving.drops()
    }
}
