//! The scheduler: assigns workers to threads.
//!
//! A worker is a queue with its sockets, its account and its keys; a thread serves one worker or
//! several. Few threads are good for packets that arrive singly or are small: no thread must be
//! woken for one queue while another thread is awake, and the packets of several queues are moved
//! in one go. But few threads are bad for packets during a bulk transfer: the kernel lets a thread
//! that uses much CPU time wait. So several workers share one thread, and a worker with a bulk
//! transfer moves to a dedicated thread until the transfer ends.
//!
//! It moves no packet: it waits, and gives workers their turns. All memory that a turn needs
//! belongs to the thread, except the descriptors of the worker.
//!
//! Invariant: a worker is on one thread at a time. So its packets keep their order, and its
//! counters have one writer.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use super::account::Account;
use super::budget::Budget;
use super::error::WorkerError;
use super::policy::{BULK_BEGIN_BYTES, BULK_BEGIN_WINDOW, BULK_END_BYTES, BULK_END_WINDOW};
use super::priority::Load;
use super::wait::Spin;
use crate::sys::epoll::Epoll;
use crate::sys::{Event, now};
use crate::time::Nanos;

#[cfg(test)]
mod tests;

/// A worker, as a thread serves it.
pub(super) trait ScheduledWorker: Send + 'static {
    /// Memory that all workers of a thread share, so that it stays in the cache from one worker to
    /// the next.
    type Scratch: Send;
    /// Makes such memory.
    fn scratch() -> Self::Scratch;
    /// The overlay device and the socket.
    fn descriptors(&self) -> [BorrowedFd<'_>; 2];
    /// The budgets of the descriptors.
    fn budgets(&self) -> &[Budget; 2];
    /// The budgets, to tell them which descriptors are ready.
    fn budgets_mut(&mut self) -> &mut [Budget; 2];
    /// The account of the worker.
    fn account(&self) -> &Account;
    /// Moves as many packets as the budgets allow, and holds none when it returns. Returns how many
    /// bytes it moved.
    fn turn(&mut self, scratch: &mut Self::Scratch) -> Result<usize, WorkerError>;

    /// Whether a turn would ask for packets.
    fn has_work(&self) -> bool {
        self.budgets().iter().any(|budget| budget.next() > 0)
    }
}

/// The numbers of descriptors in epoll: a descriptor of a worker has twice the worker's slot, plus
/// its index; the stop event and the event for returned workers have these.
const STOP: usize = usize::MAX;
const RETURNED: usize = usize::MAX - 1;

/// A worker before its thread runs.
pub(super) type Start = Box<dyn FnOnce() -> Result<(), WorkerError> + Send>;

/// A thread before it runs.
pub(super) struct WorkerThread {
    pub(super) name: String,
    pub(super) load: Load,
    pub(super) start: Start,
}

/// Makes threads for workers. `shared_threads` of them serve about equally many workers each.
pub(super) fn threads<W: ScheduledWorker>(
    workers: Vec<W>,
    shared_threads: usize,
    stop: &Arc<Event>,
    spin: impl Fn() -> Spin,
) -> std::io::Result<Vec<WorkerThread>> {
    let (count, groups) = (workers.len(), shared_threads.clamp(1, workers.len().max(1)));
    let (mut threads, mut first) = (Vec::new(), 0);
    let mut workers = workers.into_iter().map(Box::new);
    for group in 1..=groups {
        let mut group_workers: Vec<Box<W>> = workers.by_ref().take(group * count / groups - first).collect();
        let mut runner = Runner::<W>::new(stop.clone(), spin())?;
        let name = format!("hopsack-w{first}");
        if group_workers.len() == 1 {
            let run =
                move || group_workers.drain(..).try_for_each(|worker| runner.serve(worker, false).map(drop));
            threads.push(WorkerThread { name, load: Load::Any, start: Box::new(run) });
        } else {
            let runners = group_workers.iter().map(|_| Runner::new(stop.clone(), spin()));
            let runners = runners.collect::<Result<_, _>>()?;
            let (shared, dedicated) = share(runner, group_workers, runners)?;
            let named = |thread: DedicatedThread<W>| {
                let name = format!("hopsack-b{}", first + thread.slot);
                WorkerThread { name, load: Load::Any, start: Box::new(|| thread.run()) }
            };
            threads.push(WorkerThread { name, load: Load::Small, start: Box::new(|| shared.run()) });
            threads.extend(dedicated.into_iter().map(named));
        }
        first = group * count / groups;
    }
    Ok(threads)
}

/// Makes a shared thread, and a dedicated thread for each of its workers.
fn share<W: ScheduledWorker>(
    runner: Runner<W>,
    workers: Vec<Box<W>>,
    runners: Vec<Runner<W>>,
) -> std::io::Result<(SharedThread<W>, Vec<DedicatedThread<W>>)> {
    let ((give_back, returned), event) = (sync_channel(workers.len()), Arc::new(Event::new()?));
    runner.epoll.add(event.as_fd(), RETURNED)?;
    let (mut threads, mut to_dedicated) = (Vec::new(), Vec::new());
    for (slot, runner) in runners.into_iter().enumerate() {
        let (sender, workers) = sync_channel(1);
        let (give_back, event) = (give_back.clone(), event.clone());
        threads.push(DedicatedThread { runner, workers, give_back, event, slot });
        to_dedicated.push(sender);
    }
    let rates = vec![RateMeter::default(); workers.len()];
    let workers = workers.into_iter().map(Some).collect();
    Ok((SharedThread { runner, workers, rates, to_dedicated, returned, event }, threads))
}

/// What a thread waits with, and the memory that it works in.
struct Runner<W: ScheduledWorker> {
    epoll: Epoll,
    stop: Arc<Event>,
    spin: Spin,
    scratch: W::Scratch,
}

impl<W: ScheduledWorker> Runner<W> {
    fn new(stop: Arc<Event>, spin: Spin) -> std::io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(stop.as_fd(), STOP)?;
        Ok(Self { epoll, stop, spin, scratch: W::scratch() })
    }

    /// Adds the descriptors of a worker to epoll.
    fn watch(&self, slot: usize, worker: &W) -> Result<(), WorkerError> {
        for (index, fd) in worker.descriptors().into_iter().enumerate() {
            self.epoll.add(fd, 2 * slot + index).map_err(wait_failed)?;
        }
        Ok(())
    }

    /// Removes the descriptors of a worker from epoll.
    fn unwatch(&self, worker: &W) -> Result<(), WorkerError> {
        worker.descriptors().into_iter().try_for_each(|fd| self.epoll.remove(fd)).map_err(wait_failed)
    }

    /// Gives a worker one turn. Returns how many bytes it moved, and the time after it.
    fn turn(&mut self, worker: &mut W) -> Result<(usize, Nanos), WorkerError> {
        let bytes = worker.turn(&mut self.scratch)?;
        if worker.has_work() {
            // The next turn comes without a wait and must ask both descriptors, or one would starve
            // the other.
            worker.budgets_mut().iter_mut().for_each(Budget::may_be_ready);
        }
        let time = now();
        self.spin.moved(bytes, time);
        Ok((bytes, time))
    }

    /// Serves one worker until the stop event. If it `may_end`, it returns the worker when its bulk
    /// transfer has ended.
    fn serve(&mut self, mut worker: Box<W>, may_end: bool) -> Result<Option<Box<W>>, WorkerError> {
        self.watch(0, &worker)?;
        let mut rate = RateMeter::starting(now());
        while !self.stop.is_set() {
            if !worker.has_work() {
                let (start, mut looks) = (now(), 0);
                let look = |epoll: &mut Epoll, time: Option<Duration>| {
                    looks += 1;
                    let ready = epoll.wait(if may_end { time.or(Some(BULK_END_WINDOW)) } else { time })?;
                    let time = now();
                    for number in ready {
                        if let Some(budget) = worker.budgets_mut().get_mut(*number) {
                            budget.is_ready(time);
                        }
                    }
                    Ok(!ready.is_empty())
                };
                let has_spun = self.spin.wait(&mut self.epoll, start, look).map_err(wait_failed)?;
                count_wait(worker.account(), looks, has_spun);
            }
            let (bytes, time) = if worker.has_work() { self.turn(&mut worker)? } else { (0, now()) };
            if may_end && rate.is_over(bytes, time) {
                self.unwatch(&worker)?;
                return Ok(Some(worker));
            }
        }
        Ok(None)
    }
}

/// A thread that several workers share.
struct SharedThread<W: ScheduledWorker> {
    runner: Runner<W>,
    /// The workers by slot; `None` for a worker that is on its dedicated thread.
    workers: Vec<Option<Box<W>>>,
    rates: Vec<RateMeter>,
    to_dedicated: Vec<SyncSender<Box<W>>>,
    /// Workers that come back from their dedicated threads, with their slots.
    returned: Receiver<(usize, Box<W>)>,
    event: Arc<Event>,
}

impl<W: ScheduledWorker> SharedThread<W> {
    fn run(mut self) -> Result<(), WorkerError> {
        for (slot, worker) in self.workers.iter().flatten().enumerate() {
            self.runner.watch(slot, worker)?;
        }
        while !self.runner.stop.is_set() {
            self.look()?;
            if self.event.is_set() {
                self.take_back()?;
            }
            for slot in 0..self.workers.len() {
                self.turn(slot)?;
            }
        }
        Ok(())
    }

    /// Asks which descriptors are ready. It sleeps if no worker has work.
    fn look(&mut self) -> Result<(), WorkerError> {
        let Self { runner: Runner { epoll, spin, .. }, workers, .. } = self;
        let is_busy = workers.iter().flatten().any(|worker| worker.has_work());
        let (start, mut looks, mut first) = (now(), 0, None);
        let mut look = |epoll: &mut Epoll, time: Option<Duration>| {
            looks += 1;
            let ready = epoll.wait(time)?;
            let time = now();
            for number in ready {
                let (slot, index) = (number / 2, number % 2);
                if let Some(Some(worker)) = workers.get_mut(slot) {
                    worker.budgets_mut()[index].is_ready(time);
                    first = first.or(Some(slot));
                }
            }
            Ok(!ready.is_empty())
        };
        let has_spun = if is_busy {
            look(epoll, Some(Duration::ZERO)).map(|_| false)
        } else {
            spin.wait(epoll, start, look)
        };
        let has_spun = has_spun.map_err(wait_failed)?;
        // The worker that became ready counts the wait; if there is none, any worker may.
        let awaited = first.and_then(|slot| workers[slot].as_ref()).or(workers.iter().flatten().next());
        if let Some(worker) = awaited {
            count_wait(worker.account(), looks, has_spun);
        }
        Ok(())
    }

    fn turn(&mut self, slot: usize) -> Result<(), WorkerError> {
        let Some(worker) = self.workers[slot].as_mut().filter(|worker| worker.has_work()) else {
            return Ok(());
        };
        let (bytes, time) = self.runner.turn(worker)?;
        if self.rates[slot].is_bulk(bytes, time)
            && let Some(worker) = self.workers[slot].take()
        {
            self.rates[slot] = RateMeter::default();
            self.runner.unwatch(&worker)?;
            // The send fails only after the dedicated thread saw the stop event, and this thread is
            // about to see it.
            let _ = self.to_dedicated[slot].send(worker);
        }
        Ok(())
    }

    fn take_back(&mut self) -> Result<(), WorkerError> {
        self.event.clear();
        while let Ok((slot, worker)) = self.returned.try_recv() {
            self.runner.watch(slot, &worker)?;
            self.workers[slot] = Some(worker);
        }
        Ok(())
    }
}

/// A thread for one worker while it has a bulk transfer.
struct DedicatedThread<W: ScheduledWorker> {
    runner: Runner<W>,
    workers: Receiver<Box<W>>,
    give_back: SyncSender<(usize, Box<W>)>,
    event: Arc<Event>,
    slot: usize,
}

impl<W: ScheduledWorker> DedicatedThread<W> {
    /// Runs until the shared thread has ended.
    fn run(mut self) -> Result<(), WorkerError> {
        while let Ok(worker) = self.workers.recv() {
            let Some(worker) = self.runner.serve(worker, true)? else { break };
            let _ = self.give_back.send((self.slot, worker));
            self.event.set();
        }
        Ok(())
    }
}

/// Counts the bytes that a worker moves, to recognise a bulk transfer.
#[derive(Debug, Clone, Copy, Default)]
struct RateMeter {
    since: Nanos,
    bytes: usize,
}

impl RateMeter {
    fn starting(now: Nanos) -> Self {
        Self { since: now, bytes: 0 }
    }

    /// Adds the bytes of a turn. Returns whether a bulk transfer has begun.
    fn is_bulk(&mut self, bytes: usize, now: Nanos) -> bool {
        if now.since(self.since) > BULK_BEGIN_WINDOW {
            *self = Self::starting(now);
        }
        self.bytes += bytes;
        self.bytes >= BULK_BEGIN_BYTES
    }

    /// Adds the bytes of a turn. Returns whether the bulk transfer has ended.
    fn is_over(&mut self, bytes: usize, now: Nanos) -> bool {
        self.bytes += bytes;
        if now.since(self.since) < BULK_END_WINDOW {
            return false;
        }
        let is_over = self.bytes < BULK_END_BYTES;
        *self = Self::starting(now);
        is_over
    }
}

fn count_wait(account: &Account, system_calls: u64, has_spun: bool) {
    account.counters.system_calls.add(system_calls);
    account.counters.busy_polls.add(u64::from(has_spun));
}

fn wait_failed(error: std::io::Error) -> WorkerError {
    WorkerError::System { call: "epoll_wait", error }
}
