//! Floods a pod with datagrams, or sends it as many a second as asked, and counts what arrives.
//!
//! All datagrams of a trial are alike; that they arrive in order and unharmed is the tests' business. The receiver has a
//! queue of its own size and a thread of its own, so that what is lost was lost by the system between.
//!
//! Invariant: each trial has fresh sockets, so nothing that was late in one is counted in the next.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::error::LabError;
use super::super::interrupt::Interrupt;
use super::super::site::Pod;
use crate::sys::block::Part;
use crate::sys::netns::in_netns;
use crate::sys::udp::{self, Receiver};
use crate::sys::{Interest, poll};

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of UDP payload.
    pub(super) payload: usize,
    /// Many flows take turns, one datagram each; else there is one.
    pub(super) many: bool,
}

/// How many flows are many (DATAPLANE.md 4.5).
const MANY: usize = 32;

/// What a trial came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trial {
    /// Datagrams a second that were sent.
    pub(super) offered: f64,
    /// Datagrams a second that arrived while it was sent.
    pub(super) delivered: f64,
    /// The part of what was sent that never arrived.
    pub(super) loss: f64,
}

/// What may be lost of a rate that counts as carried.
const TOLERATED: f64 = 0.01;

/// For what still lies in queues when the last datagram was sent.
pub(super) const DRAIN: Duration = Duration::from_millis(50);

/// Datagrams of one sendmmsg: enough that entering the kernel is a small part of what each costs.
const BATCH: usize = 64;

/// Between two looks at the clock of a paced sender: short against all queues, long against a wake-up.
const TICK: Duration = Duration::from_micros(100);

/// Sends for `time`, `rate` datagrams a second or as fast as it goes. `ended` is called when the last one has been sent.
pub(super) fn trial(
    [from, to]: [&Pod; 2],
    shape: Shape,
    rate: Option<f64>,
    time: Duration,
    interrupt: &Interrupt,
    ended: impl FnOnce(),
) -> Result<Trial, LabError> {
    let failed = || LabError::io(format!("send datagrams from {} to {}", from.name, to.name));
    // With the queue that udp::bind gives them, receivers that are scheduled late are not taken for the system's loss.
    let open = |pod: &Pod, bind: fn(SocketAddr) -> io::Result<UdpSocket>| {
        let address = SocketAddr::new(pod.v4.into(), 0);
        in_netns(&pod.netns, || bind(address)).and_then(|bound| bound).map_err(failed())
    };
    let sender = open(from, UdpSocket::bind)?;
    let (mut receivers, mut addresses) = (Vec::new(), Vec::new());
    for _ in 0..if shape.many { MANY } else { 1 } {
        let socket = open(to, udp::bind)?;
        addresses.push(socket.local_addr().map_err(failed())?);
        receivers.push(socket);
    }
    let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let (sent, elapsed, meanwhile) = thread::scope(|scope| {
        let receiving = scope.spawn(|| match <[UdpSocket; MANY]>::try_from(receivers) {
            Ok(many) => count(&many, &stop, &received),
            Err(one) => one.first().map_or(Ok(()), |one| count(&[one], &stop, &received)),
        });
        let sent = flood(&sender, &addresses, shape, rate, time, interrupt, &received);
        ended();
        thread::sleep(DRAIN);
        stop.store(true, Ordering::Relaxed);
        let counted = receiving.join().unwrap_or_else(|_| Err(io::Error::other("the receiver panicked")));
        counted.map_err(failed())?;
        sent
    })?;
    let (sent, seconds) = (sent as f64, elapsed.as_secs_f64().max(1e-9));
    let loss = (1.0 - received.into_inner() as f64 / sent.max(1.0)).max(0.0);
    Ok(Trial { offered: sent / seconds, delivered: meanwhile as f64 / seconds, loss })
}

/// Returns how many were sent, in what time, and how many had arrived by then.
fn flood(
    socket: &UdpSocket,
    addresses: &[SocketAddr],
    shape: Shape,
    rate: Option<f64>,
    time: Duration,
    interrupt: &Interrupt,
    received: &AtomicU64,
) -> Result<(u64, Duration, u64), LabError> {
    let payload = vec![0x5a; shape.payload];
    // A batch may begin at any flow: one flow's datagrams keep their distance.
    let part = |address: &SocketAddr| Part::train(0, payload.len(), payload.len(), *address);
    let turns: Vec<Part> = addresses.iter().map(part).cycle().take(BATCH + addresses.len()).collect();
    let (start, mut sent, mut first) = (Instant::now(), 0, 0);
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok((sent, elapsed, received.load(Ordering::Relaxed)));
        }
        let due = rate.map_or(u64::MAX, |rate| whole(rate * elapsed.as_secs_f64()).saturating_sub(sent));
        let batch = usize::try_from(due).unwrap_or(usize::MAX).min(BATCH);
        interrupt.check()?;
        if batch == 0 {
            thread::sleep(TICK);
            continue;
        }
        let done = udp::send_many(socket, &payload, &turns[first..first + batch]);
        let done = done.map_err(LabError::io("send datagrams"))?;
        sent += done as u64;
        first = (first + done) % addresses.len();
    }
}

fn whole(number: f64) -> u64 {
    // A rate times a time: never negative, far below 2^64.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let number = number as u64;
    number
}

/// Counts until told to stop.
fn count<S, const N: usize>(sockets: &[S; N], stop: &AtomicBool, received: &AtomicU64) -> io::Result<()>
where
    S: std::borrow::Borrow<UdpSocket>,
{
    let mut receiver = Receiver::default();
    let interests = sockets.each_ref().map(|socket| (socket.borrow().as_fd(), Interest::Read));
    while !stop.load(Ordering::Relaxed) {
        let ready = poll(interests, Some(Duration::from_millis(10)))?;
        for (socket, _) in sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
            match receiver.receive(socket.borrow(), udp::RECEIVE_BATCH) {
                Ok(taken) => received.fetch_add(taken as u64, Ordering::Relaxed),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
        }
    }
    Ok(())
}

/// The search for the highest rate at which at most 1 % is lost. Pure: it says what to try and is told what came of it.
///
/// It starts from a flood, whose delivered rate is a good guess but may lie on either side: a flooded system can carry
/// less than one that is offered what it can take.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Search {
    /// Carried with tolerable loss.
    low: f64,
    /// Offered and not carried.
    high: f64,
    next: f64,
    tried: u32,
    carried: Option<f64>,
    /// The most that arrived in any trial.
    highest: f64,
}

/// Trials after the flood: each about halves what is not known, and the last settles some per cent of the rate.
pub(super) const TRIALS: u32 = 5;

/// Trials if none carried: then each halves the rate.
const MOST_TRIALS: u32 = 8;

/// Closer than this the trials' own noise decides.
const CLOSE: f64 = 1.04;

impl Search {
    pub(super) fn after(flood: Trial) -> Self {
        let carried = (flood.loss <= TOLERATED).then_some(flood.delivered);
        let (high, next) = (flood.offered, flood.delivered.min(flood.offered / CLOSE));
        Self { low: carried.unwrap_or(0.0), high, next, tried: 0, carried, highest: flood.delivered }
    }

    /// The rate to try; none when it is settled.
    pub(super) fn next(&self) -> Option<f64> {
        let settled = self.low * CLOSE >= self.high;
        let trials = if self.carried.is_some() { TRIALS } else { MOST_TRIALS };
        (!settled && self.tried < trials && self.next > 0.0).then_some(self.next)
    }

    pub(super) fn observe(&mut self, trial: Trial) {
        self.tried += 1;
        self.highest = self.highest.max(trial.delivered);
        if trial.loss <= TOLERATED {
            self.carried = Some(self.carried.unwrap_or(0.0).max(trial.delivered));
            // What the sender managed, if it is less than what it was told: offering more would offer the same.
            let saturated = trial.offered * CLOSE < self.next;
            self.low = self.next;
            self.high = if saturated { self.next } else { self.high };
        } else {
            self.high = self.next;
        }
        // A flood may offer many times what can be carried: going up, no further than half as much again.
        let middle = f64::midpoint(self.low, self.high);
        self.next = if self.low > 0.0 { middle.min(self.low * 1.5) } else { middle };
    }

    /// The most that arrived in any trial.
    pub(super) fn highest(&self) -> f64 {
        self.highest
    }

    /// The most that arrived in a trial with tolerable loss.
    pub(super) fn carried(&self) -> Option<f64> {
        self.carried
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system that carries up to `limit`, and when flooded with more wastes part of it.
    fn system(limit: f64, waste: f64) -> impl Fn(f64) -> Trial {
        move |offered: f64| {
            let over = (offered - limit).max(0.0);
            let delivered = offered.min(limit) - (over * waste).min(limit * 0.8);
            Trial { offered, delivered, loss: 1.0 - delivered / offered }
        }
    }

    #[test]
    fn the_search_finds_the_knee() {
        for (limit, flood, waste) in [(100e3, 400e3, 0.0), (100e3, 400e3, 0.1), (250e3, 260e3, 0.5)] {
            let system = system(limit, waste);
            let mut search = Search::after(system(flood));
            let mut trials = 0;
            while let Some(rate) = search.next() {
                search.observe(system(rate));
                trials += 1;
            }
            let found = search.carried().unwrap();
            assert!((0.85 * limit..=1.01 * limit).contains(&found), "{limit} {flood} {waste}: {found}");
            assert!(trials <= TRIALS, "{trials}");
            assert!(search.highest() >= found);
        }
    }

    #[test]
    fn a_flood_that_is_carried_ends_the_search() {
        let search = Search::after(Trial { offered: 100.0, delivered: 99.5, loss: 0.005 });
        assert_eq!((search.next(), search.carried()), (None, Some(99.5)));
    }

    #[test]
    fn a_system_that_always_loses_ends_it_too() {
        let mut search = Search::after(Trial { offered: 1000.0, delivered: 500.0, loss: 0.5 });
        let mut trials = 0;
        while let Some(rate) = search.next() {
            search.observe(Trial { offered: rate, delivered: rate / 2.0, loss: 0.5 });
            trials += 1;
        }
        assert_eq!((trials, search.carried(), search.highest()), (MOST_TRIALS, None, 500.0));
    }
}
