//! [`Engine`]: starts workers, replaces their descriptors, and stops them.
//!
//! It moves no packet, and it never decides that the program ends: a worker that cannot go on
//! reports it through the callback that the engine was started with.
//!
//! Invariant: after [`Engine::stop`] no worker runs and all descriptors of the workers are closed.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::account::Account;
use super::batch::PlainIo;
use super::error::WorkerError;
use super::io::Io;
use super::missed::MissedReceiver;
use super::options::WorkerOptions;
use super::priority::{self, Load};
use super::scheduler::{self, WorkerThread};
use super::simple;
use super::slow_path::{DeviceHandle, SlowPathWriter};
use super::uring::RingIo;
use super::view::EngineView;
use super::wait::{LastBulk, Spin};
use super::worker::Worker;
use crate::forward::Table;
use crate::sys::Event;

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    view: EngineView,
    options: WorkerOptions,
    on_failure: OnFailure,
    stop: Arc<Event>,
    threads: Vec<JoinHandle<()>>,
    device: DeviceHandle,
}

/// The callback for a worker that cannot go on.
#[derive(Clone)]
struct OnFailure(Arc<dyn Fn(WorkerError) + Send + Sync>);

impl std::fmt::Debug for OnFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnFailure")
    }
}

impl Engine {
    /// Starts a worker for each queue in `io`. If a worker ends before [`Engine::stop`], its thread
    /// calls `on_failure`.
    pub fn start(
        io: Io,
        options: WorkerOptions,
        table: Table,
        on_failure: impl Fn(WorkerError) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let view = EngineView::new(&io, table)?;
        let device = DeviceHandle::of(&io, options.offload)?;
        let on_failure = OnFailure(Arc::new(on_failure));
        let stop = Arc::new(Event::new()?);
        let mut engine = Self { view, options, on_failure, stop, threads: Vec::new(), device };
        match engine.spawn(io) {
            Ok(()) => Ok(engine),
            Err(error) => {
                engine.stop();
                Err(error)
            }
        }
    }

    /// Replaces the descriptors by as many others: stops the workers and starts new ones. Route
    /// table and accounts stay, and packets wait meanwhile in the queues of the device and of the
    /// new sockets. After an error no worker runs.
    pub fn replace(&mut self, io: Io) -> io::Result<()> {
        let sockets = io.receiving()?;
        let stop = std::mem::replace(&mut self.stop, Arc::new(Event::new()?));
        stop.set();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.view.threads.clear();
        self.view.replace_sockets(sockets);
        self.spawn(io)
    }

    fn spawn(&mut self, io: Io) -> io::Result<()> {
        for WorkerThread { name, load, start } in self.threads_for(io)? {
            let OnFailure(on_failure) = self.on_failure.clone();
            let (running, realtime, own_name) =
                (self.view.threads.clone(), self.options.realtime, name.clone());
            let run = move || {
                priority::set(load, realtime);
                running.add(own_name);
                match catch_unwind(AssertUnwindSafe(start)) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => on_failure(error),
                    Err(_) => on_failure(WorkerError::Panicked),
                }
            };
            self.threads.push(std::thread::Builder::new().name(name).spawn(run)?);
        }
        Ok(())
    }

    fn threads_for(&self, io: Io) -> io::Result<Vec<WorkerThread>> {
        let (EngineView { table, accounts, slow_path, control_inbox, .. }, options) =
            (&self.view, self.options);
        let accounts = accounts.iter().cloned();
        let bulk = LastBulk::default();
        let spin = || Spin::new(options.busy_poll_us, bulk.clone());
        // The other direction and the pods need the other half of the CPUs.
        let shared_threads = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() / 2);
        let shared = |account| (account, table.clone(), slow_path.clone(), control_inbox.clone());
        match io {
            Io::Simple(io) => {
                let account = accounts.take(1).next().ok_or(io::ErrorKind::InvalidInput)?;
                let worker = simple::Worker::new(io, options.verify, shared(account), self.stop.clone());
                let (name, start) = ("hopsack-w0".to_owned(), Box::new(|| worker.run()));
                Ok(vec![WorkerThread { name, load: Load::Any, start }])
            }
            Io::Batch(queues) => {
                let workers = accounts.zip(queues).enumerate().map(|(number, (account, queue))| {
                    Worker::new(number, queue, PlainIo, options, shared(account))
                });
                scheduler::threads(workers.collect(), shared_threads, &self.stop, spin)
            }
            Io::Uring(queues) => {
                let workers = accounts.zip(queues).enumerate().map(|(number, (account, (queue, ring)))| {
                    Worker::new(number, queue, RingIo::new(ring), options, shared(account))
                });
                scheduler::threads(workers.collect(), shared_threads, &self.stop, spin)
            }
        }
    }

    /// Makes a writer that brings packets of the slow path to the device. The accounts of every
    /// [`EngineView`] that is taken later include its account, after those of the workers.
    pub fn slow_path_writer(&mut self) -> io::Result<SlowPathWriter> {
        let account = Arc::<Account>::default();
        self.view.accounts.push(account.clone());
        Ok(SlowPathWriter::new(self.device.try_clone()?, account))
    }

    /// Makes a receiver for the datagrams that the kernel fast path has missed; `None` if the
    /// device cannot take their packets. Its account comes after those that were made before.
    pub fn missed_receiver(&mut self) -> io::Result<Option<MissedReceiver>> {
        let account = Arc::<Account>::default();
        let receiver = MissedReceiver::new(self.device.try_clone()?, self.options.verify, account.clone());
        if receiver.is_some() {
            self.view.accounts.push(account);
        }
        Ok(receiver)
    }

    /// Returns a view, for threads that read counters or publish route tables.
    #[must_use]
    pub fn view(&self) -> EngineView {
        self.view.clone()
    }

    /// Stops all workers and waits for them. When it returns, their descriptors are closed.
    pub fn stop(self) {
        self.stop.set();
        for thread in self.threads {
            // A worker that panicked has reported it already.
            let _ = thread.join();
        }
    }
}
