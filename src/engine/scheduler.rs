//! Who serves which worker: threads, and how they share the work.
//!
//! A worker is a queue with its sockets, its account and its keys; a thread serves one or several. Few threads are good for
//! packets that come alone or small: none has to be woken for a queue while another is awake, and what several queues bring
//! is moved in one go. But they are bad for packets that meet a bulk transfer, if only because a thread that works hard is
//! made to wait by the scheduler. So the workers of a group have one thread between them, and one that carries bulk is lent
//! to a thread of its own for as long as it does.
//!
//! It moves no packet: it waits, and lets workers have their turns. All that a turn needs beside the worker's own ends belongs
//! to the thread.
//!
//! Invariant: a worker is with one thread at a time, whole; so what it carries keeps its order, and its counters have one
//! writer.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use super::budget::Budget;
use super::wait::Spin;
use super::{Account, Start, WorkerError};
use crate::sys::epoll::Epoll;
use crate::sys::{Event, now};
use crate::time::Nanos;

/// What a thread serves.
pub(super) trait Worker: Send + 'static {
    /// What a thread has for all its workers: memory that stays in the cache from one to the next.
    type Tools: Send;
    /// Makes such.
    fn tools() -> Self::Tools;
    /// The overlay device, and the socket.
    fn ends(&self) -> [BorrowedFd<'_>; 2];
    /// What the next turn asks its ends for.
    fn budgets(&self) -> &[Budget; 2];
    /// The same, to be told of what is ready.
    fn budgets_mut(&mut self) -> &mut [Budget; 2];
    /// Where it counts.
    fn account(&self) -> &Account;
    /// Moves as much as its budgets say, and nothing is held when it returns. Says how many bytes it was.
    fn turn(&mut self, tools: &mut Self::Tools) -> Result<usize, WorkerError>;

    /// Whether a turn would do something.
    fn has_work(&self) -> bool {
        self.budgets().iter().any(|budget| budget.next() > 0)
    }
}

/// What a descriptor is called: twice the worker's place and its end, or one of these.
const STOP: usize = usize::MAX;
const BACK: usize = usize::MAX - 1;

/// What counts as bulk: so many bytes in so many nanoseconds, half a gigabit a second.
const BULK: usize = 256 * 1024;
const SHORT: u64 = 4_000_000;
/// What ends it: fewer than so many in so many nanoseconds, a sixth of a gigabit a second.
const QUIET: usize = 1024 * 1024;
const LONG: u64 = 50_000_000;
const LONGEST_SLEEP: Duration = Duration::from_nanos(LONG);

/// A thread's name, and what it does.
pub(super) type Named = (String, Start);

/// Threads for workers, in `groups` of about the same size.
pub(super) fn threads<W: Worker>(
    workers: Vec<W>,
    groups: usize,
    stop: &Arc<Event>,
    spin: impl Fn() -> Spin,
) -> std::io::Result<Vec<Named>> {
    let (count, groups) = (workers.len(), groups.clamp(1, workers.len().max(1)));
    let (mut threads, mut first) = (Vec::new(), 0);
    let mut workers = workers.into_iter().map(Box::new);
    for group in 1..=groups {
        let mut mine: Vec<Box<W>> = workers.by_ref().take(group * count / groups - first).collect();
        let mut hand = Hand::<W>::new(stop.clone(), spin())?;
        let name = format!("hopsack-w{first}");
        if mine.len() == 1 {
            let run = move || mine.drain(..).try_for_each(|worker| hand.serve(worker, false).map(drop));
            threads.push((name, Box::new(run) as Start));
        } else {
            let hands = mine.iter().map(|_| Hand::new(stop.clone(), spin())).collect::<Result<_, _>>()?;
            let (group, helpers) = share(hand, mine, hands)?;
            let named = |helper: Helper<W>| {
                (format!("hopsack-b{}", first + helper.place), Box::new(|| helper.run()) as Start)
            };
            threads.push((name, Box::new(|| group.run())));
            threads.extend(helpers.into_iter().map(named));
        }
        first = group * count / groups;
    }
    Ok(threads)
}

/// A group, and helpers for its workers, one each.
fn share<W: Worker>(
    hand: Hand<W>,
    workers: Vec<Box<W>>,
    hands: Vec<Hand<W>>,
) -> std::io::Result<(Group<W>, Vec<Helper<W>>)> {
    let (back, event) = (sync_channel(workers.len()), Arc::new(Event::new()?));
    hand.epoll.add(event.as_fd(), BACK)?;
    let (mut helpers, mut lend) = (Vec::new(), Vec::new());
    for (place, hand) in hands.into_iter().enumerate() {
        let (to, from) = sync_channel(1);
        helpers.push(Helper { hand, from, back: back.0.clone(), event: event.clone(), place });
        lend.push(to);
    }
    let loads = vec![Load::default(); workers.len()];
    let mine = workers.into_iter().map(Some).collect();
    Ok((Group { hand, mine, loads, lend, back: back.1, event }, helpers))
}

/// What a thread waits and works with.
struct Hand<W: Worker> {
    epoll: Epoll,
    stop: Arc<Event>,
    spin: Spin,
    tools: W::Tools,
}

impl<W: Worker> Hand<W> {
    fn new(stop: Arc<Event>, spin: Spin) -> std::io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(stop.as_fd(), STOP)?;
        Ok(Self { epoll, stop, spin, tools: W::tools() })
    }

    fn watch(&self, place: usize, worker: &W) -> Result<(), WorkerError> {
        for (end, fd) in worker.ends().into_iter().enumerate() {
            self.epoll.add(fd, 2 * place + end).map_err(wait_failed)?;
        }
        Ok(())
    }

    fn forget(&self, worker: &W) -> Result<(), WorkerError> {
        worker.ends().into_iter().try_for_each(|fd| self.epoll.remove(fd)).map_err(wait_failed)
    }

    /// A turn of a worker, and what is remembered of it. Says how many bytes it moved.
    fn turn(&mut self, worker: &mut W) -> Result<(usize, Nanos), WorkerError> {
        let bytes = worker.turn(&mut self.tools)?;
        if worker.has_work() {
            // Who goes on without a wait must ask both ends, or one would starve the other.
            worker.budgets_mut().iter_mut().for_each(Budget::may_be_ready);
        }
        let time = now();
        self.spin.moved(bytes, time);
        Ok((bytes, time))
    }

    /// Serves one worker until told to stop, or, if it `may_end`, until it carries little: then it is given back.
    fn serve(&mut self, mut worker: Box<W>, may_end: bool) -> Result<Option<Box<W>>, WorkerError> {
        self.watch(0, &worker)?;
        let mut load = Load::begun(now());
        while !self.stop.is_given() {
            if !worker.has_work() {
                let (start, mut looks) = (now(), 0);
                let look = |epoll: &mut Epoll, time: Option<Duration>| {
                    looks += 1;
                    let ready = epoll.wait(if may_end { time.or(Some(LONGEST_SLEEP)) } else { time })?;
                    let time = now();
                    for number in ready {
                        if let Some(budget) = worker.budgets_mut().get_mut(*number) {
                            budget.is_ready(time);
                        }
                    }
                    Ok(!ready.is_empty())
                };
                let has_spun = self.spin.wait(&mut self.epoll, start, look).map_err(wait_failed)?;
                let counters = &worker.account().counters;
                counters.system_calls.add(looks);
                counters.busy_polls.add(u64::from(has_spun));
            }
            let (bytes, time) = if worker.has_work() { self.turn(&mut worker)? } else { (0, now()) };
            if may_end && load.is_over(bytes, time) {
                self.forget(&worker)?;
                return Ok(Some(worker));
            }
        }
        Ok(None)
    }
}

/// The thread that serves a group.
struct Group<W: Worker> {
    hand: Hand<W>,
    /// By place; none where it is lent.
    mine: Vec<Option<Box<W>>>,
    loads: Vec<Load>,
    lend: Vec<SyncSender<Box<W>>>,
    back: Receiver<(usize, Box<W>)>,
    event: Arc<Event>,
}

impl<W: Worker> Group<W> {
    fn run(mut self) -> Result<(), WorkerError> {
        for (place, worker) in self.mine.iter().flatten().enumerate() {
            self.hand.watch(place, worker)?;
        }
        while !self.hand.stop.is_given() {
            self.look()?;
            if self.event.is_given() {
                self.take_back()?;
            }
            for place in 0..self.mine.len() {
                self.turn(place)?;
            }
        }
        Ok(())
    }

    /// Looks at what is ready; sleeps if nothing is to be done.
    fn look(&mut self) -> Result<(), WorkerError> {
        let Self { hand: Hand { epoll, spin, .. }, mine, .. } = self;
        let is_busy = mine.iter().flatten().any(|worker| worker.has_work());
        let (start, mut looks, mut first) = (now(), 0, None);
        let mut look = |epoll: &mut Epoll, time: Option<Duration>| {
            looks += 1;
            let ready = epoll.wait(time)?;
            let time = now();
            for number in ready {
                let (place, end) = (number / 2, number % 2);
                if let Some(Some(worker)) = mine.get_mut(place) {
                    worker.budgets_mut()[end].is_ready(time);
                    first = first.or(Some(place));
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
        // Whom the wait was for: any of them may count it.
        let awaited = first.and_then(|place| mine[place].as_ref()).or(mine.iter().flatten().next());
        if let Some(worker) = awaited {
            let counters = &worker.account().counters;
            counters.system_calls.add(looks);
            counters.busy_polls.add(u64::from(has_spun));
        }
        Ok(())
    }

    fn turn(&mut self, place: usize) -> Result<(), WorkerError> {
        let Some(worker) = self.mine[place].as_mut().filter(|worker| worker.has_work()) else {
            return Ok(());
        };
        let (bytes, time) = self.hand.turn(worker)?;
        if self.loads[place].is_bulk(bytes, time)
            && let Some(worker) = self.mine[place].take()
        {
            self.loads[place] = Load::default();
            self.hand.forget(&worker)?;
            // Whose thread has ended has seen the stop, and this one is about to.
            let _ = self.lend[place].send(worker);
        }
        Ok(())
    }

    fn take_back(&mut self) -> Result<(), WorkerError> {
        self.event.clear();
        while let Ok((place, worker)) = self.back.try_recv() {
            self.hand.watch(place, &worker)?;
            self.mine[place] = Some(worker);
        }
        Ok(())
    }
}

/// A thread for one worker of a group while it carries bulk.
struct Helper<W: Worker> {
    hand: Hand<W>,
    from: Receiver<Box<W>>,
    back: SyncSender<(usize, Box<W>)>,
    event: Arc<Event>,
    place: usize,
}

impl<W: Worker> Helper<W> {
    /// Until the group's thread has ended.
    fn run(mut self) -> Result<(), WorkerError> {
        while let Ok(worker) = self.from.recv() {
            let Some(worker) = self.hand.serve(worker, true)? else { break };
            let _ = self.back.send((self.place, worker));
            self.event.give();
        }
        Ok(())
    }
}

/// How much a worker has carried lately.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    since: u64,
    bytes: usize,
}

impl Load {
    fn begun(now: Nanos) -> Self {
        Self { since: now.0, bytes: 0 }
    }

    /// Whether it is bulk, with what a turn has moved.
    fn is_bulk(&mut self, bytes: usize, now: Nanos) -> bool {
        if now.0.saturating_sub(self.since) > SHORT {
            *self = Self::begun(now);
        }
        self.bytes += bytes;
        self.bytes >= BULK
    }

    /// Whether bulk is over, with what a turn has moved.
    fn is_over(&mut self, bytes: usize, now: Nanos) -> bool {
        self.bytes += bytes;
        if now.0.saturating_sub(self.since) < LONG {
            return false;
        }
        let is_over = self.bytes < QUIET;
        *self = Self::begun(now);
        is_over
    }
}

fn wait_failed(error: std::io::Error) -> WorkerError {
    WorkerError::System { call: "epoll_wait", error }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::Mutex;
    use std::time::Instant;

    use super::super::wait::LastBulk;
    use super::*;

    /// Notes what comes, and on which thread.
    struct Clerk {
        ends: [UnixDatagram; 2],
        budgets: [Budget; 2],
        account: Account,
        notes: Notes,
    }

    /// Thread and first bytes of each packet.
    type Notes = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

    impl Worker for Clerk {
        type Tools = Vec<u8>;

        fn tools() -> Vec<u8> {
            vec![0; 65_536]
        }

        fn ends(&self) -> [BorrowedFd<'_>; 2] {
            [self.ends[0].as_fd(), self.ends[1].as_fd()]
        }

        fn budgets(&self) -> &[Budget; 2] {
            &self.budgets
        }

        fn budgets_mut(&mut self) -> &mut [Budget; 2] {
            &mut self.budgets
        }

        fn account(&self) -> &Account {
            &self.account
        }

        fn turn(&mut self, buffer: &mut Vec<u8>) -> Result<usize, WorkerError> {
            let mut moved = 0;
            for (end, budget) in self.ends.iter().zip(&mut self.budgets) {
                let (mut count, mut bytes) = (0, 0);
                while count < budget.next() {
                    let Ok(length) = end.recv(buffer) else { break };
                    (count, bytes) = (count + 1, bytes + length);
                    let thread = std::thread::current().name().unwrap_or_default().to_owned();
                    self.notes.lock().expect("no panic").push((thread, buffer[..length.min(8)].to_vec()));
                }
                budget.brought(count, bytes, now());
                moved += bytes;
            }
            Ok(moved)
        }
    }

    fn end() -> (UnixDatagram, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        ours.set_nonblocking(true).expect("non-blocking");
        (ours, theirs)
    }

    fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn who_carries_bulk_has_a_thread_of_its_own_meanwhile_and_order_holds() {
        let (mut clerks, mut senders, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            let ((tun, pods), (socket, peers)) = (end(), end());
            let noted = Notes::default();
            let budgets = [Budget::new(32), Budget::new(32)];
            let account = Account::default();
            clerks.push(Clerk { ends: [tun, socket], budgets, account, notes: noted.clone() });
            senders.push((pods, peers));
            notes.push(noted);
        }
        let stop = Arc::new(Event::new().expect("an eventfd"));
        let spin = || Spin::new(0, LastBulk::default());
        let threads = threads(clerks, 1, &stop, spin).expect("descriptors");
        assert_eq!(threads.len(), 1 + 3);
        let threads: Vec<_> = threads
            .into_iter()
            .map(|(name, start)| std::thread::Builder::new().name(name).spawn(start).expect("a thread"))
            .collect();

        let mut sent = 0_u64;
        let mut send = |length: usize| {
            let mut bytes = vec![0; length];
            bytes[..8].copy_from_slice(&sent.to_be_bytes());
            senders[1].0.send(&bytes).expect("sent");
            sent += 1;
        };
        let last = |clerk: usize| notes[clerk].lock().expect("no panic").last().cloned();
        let is_on = |clerk: usize, name: &str| last(clerk).is_some_and(|(thread, _)| thread == name);
        send(100);
        until("a lone packet is served", || is_on(1, "hopsack-w0"));
        until("bulk gets a thread", || {
            (0..50).for_each(|_| send(60_000));
            is_on(1, "hopsack-b1")
        });
        senders[2].1.send(b"a lone one beside it").expect("sent");
        until("others stay", || is_on(2, "hopsack-w0"));
        until("bulk has ended", || {
            std::thread::sleep(Duration::from_millis(20));
            send(8);
            is_on(1, "hopsack-w0")
        });
        let count = usize::try_from(sent).expect("few");
        until("all were served", || notes[1].lock().expect("no panic").len() == count);
        stop.give();
        for thread in threads {
            thread.join().expect("no panic").expect("no error");
        }
        let numbers: Vec<Vec<u8>> =
            notes[1].lock().expect("no panic").iter().map(|(_, number)| number.clone()).collect();
        assert_eq!(numbers, (0..sent).map(|n| n.to_be_bytes().to_vec()).collect::<Vec<_>>());
        assert_eq!(notes[0].lock().expect("no panic").len(), 0);
    }
}
