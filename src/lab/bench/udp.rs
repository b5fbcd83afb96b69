//! UDP trials: floods a pod with datagrams, or sends a given rate, and counts what arrives.
//!
//! All datagrams of a trial are equal; tests check order and content elsewhere. The receiver has a
//! large queue and its own thread, so only the measured system loses datagrams.
//!
//! Invariant: each trial has new sockets, so a late datagram of one trial is not counted in the
//! next.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::error::LabError;
use super::super::interrupt::Interrupt;
use super::super::site::Pod;
use crate::sys::batch::Message;
use crate::sys::netns::in_netns;
use crate::sys::udp::{self, Receiver};
use crate::sys::{Interest, poll};

/// Datagrams of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// UDP payload in bytes.
    pub(super) payload: usize,
    /// Whether 32 flows take turns, one datagram each. Otherwise there is one flow.
    pub(super) many: bool,
}

/// Number of flows if there are several.
const FLOWS: usize = 32;

/// Result of a trial.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trial {
    /// Sent datagrams per second.
    pub(super) offered: f64,
    /// Datagrams per second that arrived while the sender sent.
    pub(super) delivered: f64,
    /// Part of the sent datagrams that did not arrive.
    pub(super) loss: f64,
}

/// Largest loss of a rate that counts as carried.
const MAX_LOSS: f64 = 0.01;

/// Time for datagrams that are still queued when the last one was sent.
pub(super) const DRAIN: Duration = Duration::from_millis(50);

/// Datagrams per sendmmsg. With this number, the system call itself is a small part of the cost.
const BATCH: usize = 64;

/// Time between two looks of a paced sender at the clock. All queues last longer; a wake-up is
/// shorter.
const TICK: Duration = Duration::from_micros(100);

/// Sends for `time`: `rate` datagrams per second, or as many as possible. Calls `ended` after the
/// last one.
pub(super) fn trial(
    [from, to]: [&Pod; 2],
    shape: Shape,
    rate: Option<f64>,
    time: Duration,
    interrupt: &Interrupt,
    ended: impl FnOnce(),
) -> Result<Trial, LabError> {
    let failed = || LabError::io(format!("send datagrams from {} to {}", from.name, to.name));
    // `udp::bind` sets a large queue, so that a receiver that runs late does not look like a loss
    // in the system.
    let open = |pod: &Pod, bind: fn(SocketAddr) -> io::Result<UdpSocket>| {
        let address = SocketAddr::new(pod.v4.into(), 0);
        in_netns(&pod.netns, || bind(address)).and_then(|bound| bound).map_err(failed())
    };
    let sender = open(from, UdpSocket::bind)?;
    let (mut receivers, mut addresses) = (Vec::new(), Vec::new());
    for _ in 0..if shape.many { FLOWS } else { 1 } {
        let socket = open(to, udp::bind)?;
        addresses.push(socket.local_addr().map_err(failed())?);
        receivers.push(socket);
    }
    let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let (sent, elapsed, meanwhile) = thread::scope(|scope| {
        let receiving = scope.spawn(|| match <[UdpSocket; FLOWS]>::try_from(receivers) {
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

/// Sends datagrams. Returns how many were sent, in which time, and how many had arrived by then.
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
    // A batch may begin at any flow, so the flows always take turns.
    let part = |address: &SocketAddr| Message::train(0, payload.len(), payload.len(), *address);
    let turns: Vec<Message> = addresses.iter().map(part).cycle().take(BATCH + addresses.len()).collect();
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
    // A rate times a duration is never negative and far below 2^64.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let number = number as u64;
    number
}

/// Counts received datagrams until `stop` is set.
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

/// Search for the highest rate with at most 1 % loss. Pure: [`Search::next`] returns the rate to
/// try, and [`Search::observe`] takes the result.
///
/// It starts from a flood. The rate that the flood delivered is a good first guess, but may be too
/// high or too low: a flooded system can deliver less than one that gets only what it can carry.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Search {
    /// Highest rate so far with at most the tolerated loss.
    low: f64,
    /// Lowest rate so far with more than the tolerated loss.
    high: f64,
    next: f64,
    tried: u32,
    carried: Option<f64>,
    /// Highest rate that arrived in any trial.
    highest: f64,
}

/// Number of trials after the flood. Each about halves the unknown range; the last one is within
/// some per cent of the rate.
pub(super) const TRIALS: u32 = 5;

/// Number of trials if all lost too much. Each of them halves the rate.
const MOST_TRIALS: u32 = 8;

/// Ratio below which the noise of the trials is larger than the difference.
const CLOSE: f64 = 1.04;

impl Search {
    pub(super) fn after(flood: Trial) -> Self {
        let carried = (flood.loss <= MAX_LOSS).then_some(flood.delivered);
        let (high, next) = (flood.offered, flood.delivered.min(flood.offered / CLOSE));
        Self { low: carried.unwrap_or(0.0), high, next, tried: 0, carried, highest: flood.delivered }
    }

    /// Next rate to try; none when the search has ended.
    pub(super) fn next(&self) -> Option<f64> {
        let settled = self.low * CLOSE >= self.high;
        let trials = if self.carried.is_some() { TRIALS } else { MOST_TRIALS };
        (!settled && self.tried < trials && self.next > 0.0).then_some(self.next)
    }

    pub(super) fn observe(&mut self, trial: Trial) {
        self.tried += 1;
        self.highest = self.highest.max(trial.delivered);
        if trial.loss <= MAX_LOSS {
            self.carried = Some(self.carried.unwrap_or(0.0).max(trial.delivered));
            // A sender that sent less than it was told cannot send more, so a higher rate needs no
            // trial.
            let saturated = trial.offered * CLOSE < self.next;
            self.low = self.next;
            self.high = if saturated { self.next } else { self.high };
        } else {
            self.high = self.next;
        }
        // A flood may offer many times the rate that can be carried. So the rate grows at most by
        // half.
        let middle = f64::midpoint(self.low, self.high);
        self.next = if self.low > 0.0 { middle.min(self.low * 1.5) } else { middle };
    }

    /// Highest rate that arrived in any trial.
    pub(super) fn highest(&self) -> f64 {
        self.highest
    }

    /// Highest rate that arrived in a trial with at most the tolerated loss.
    pub(super) fn carried(&self) -> Option<f64> {
        self.carried
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of a system that carries up to `limit`. A higher rate wastes a part of it.
    fn system(limit: f64, waste: f64) -> impl Fn(f64) -> Trial {
        move |offered: f64| {
            let over = (offered - limit).max(0.0);
            let delivered = offered.min(limit) - (over * waste).min(limit * 0.8);
            Trial { offered, delivered, loss: 1.0 - delivered / offered }
        }
    }

    #[test]
    fn search_finds_the_highest_rate() {
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
    fn carried_flood_ends_the_search() {
        let search = Search::after(Trial { offered: 100.0, delivered: 99.5, loss: 0.005 });
        assert_eq!((search.next(), search.carried()), (None, Some(99.5)));
    }

    #[test]
    fn permanent_loss_ends_the_search() {
        let mut search = Search::after(Trial { offered: 1000.0, delivered: 500.0, loss: 0.5 });
        let mut trials = 0;
        while let Some(rate) = search.next() {
            search.observe(Trial { offered: rate, delivered: rate / 2.0, loss: 0.5 });
            trials += 1;
        }
        assert_eq!((trials, search.carried(), search.highest()), (MOST_TRIALS, None, 500.0));
    }
}
