//! Numbered datagrams from pod to pod. The number shows whether a datagram was lost, came late, or
//! arrived with wrong content.
//!
//! There are four flows: two families, two directions. The number of a datagram decides its size.
//!
//! Invariant: a datagram that is counted as received has the length and the number with which it
//! was sent.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::super::cluster::Lab;
use super::super::error::LabError;
use super::super::site::Pod;
use crate::packet::Family;
use crate::sys::netns::in_netns;
use crate::sys::udp;

/// SharedCounts of all flows so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DatagramCounts {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Datagrams that arrived after a later one of their flow, or twice.
    pub(super) late: u64,
    /// Datagrams with another length or content than was sent.
    pub(super) wrong: u64,
}

impl DatagramCounts {
    /// Part of the sent datagrams that has not arrived.
    pub(super) fn lost(self) -> f64 {
        self.sent.saturating_sub(self.received) as f64 / self.sent.max(1) as f64
    }
}

#[derive(Debug, Default)]
struct SharedCounts {
    sent: AtomicU64,
    received: AtomicU64,
    late: AtomicU64,
    wrong: AtomicU64,
}

/// Flows that run until [`Datagrams::end`], or until dropped.
#[derive(Debug)]
pub(super) struct Datagrams {
    counts: Arc<SharedCounts>,
    stop_sending: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

/// Time between two looks of a sender at the clock.
const TICK: Duration = Duration::from_millis(1);

/// Receive timeout, after which a receiver checks whether it should end.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(50);

impl Datagrams {
    /// Starts all flows with `rate` datagrams per second each.
    pub(super) fn start(lab: &Lab, rate: u32) -> Result<Self, LabError> {
        let mut flows = Self {
            counts: Arc::default(),
            stop_sending: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for family in [Family::V4, Family::V6] {
            for [from, to] in [[lab.pod(1), lab.pod(2)], [lab.pod(2), lab.pod(1)]] {
                let what = LabError::io(format!("send datagrams from {} to {}", from.name, to.name));
                flows.add(from, to, family, rate).map_err(what)?;
            }
        }
        Ok(flows)
    }

    fn add(&mut self, from: &Pod, to: &Pod, family: Family, rate: u32) -> io::Result<()> {
        let open = |pod: &Pod| {
            let address = SocketAddr::new(pod.address(family), 0);
            // `udp::bind` sets a large queue, so that a receiver that runs late on a busy machine
            // does not look like a loss in the overlay.
            let socket = in_netns(&pod.netns, || udp::bind(address)).and_then(|bound| bound)?;
            socket.set_nonblocking(false).map(|()| socket)
        };
        let (sender, receiver) = (open(from)?, open(to)?);
        sender.connect(receiver.local_addr()?)?;
        receiver.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
        let (counts, stop) = (Arc::clone(&self.counts), Arc::clone(&self.stop));
        self.threads.push(spawn(move || receive(&receiver, &counts, &stop))?);
        let (counts, stop) = (Arc::clone(&self.counts), Arc::clone(&self.stop_sending));
        self.threads.push(spawn(move || send(&sender, f64::from(rate), &counts, &stop))?);
        Ok(())
    }

    pub(super) fn counts(&self) -> DatagramCounts {
        // Received is read before sent, so that it is never larger than sent.
        let [received, late, wrong] = [&self.counts.received, &self.counts.late, &self.counts.wrong]
            .map(|count| count.load(Ordering::Relaxed));
        DatagramCounts { sent: self.counts.sent.load(Ordering::Relaxed), received, late, wrong }
    }

    /// Stops the senders, and after `drain` the receivers.
    pub(super) fn end(mut self, drain: Duration) -> Result<DatagramCounts, LabError> {
        self.stop_sending.store(true, Ordering::Relaxed);
        thread::sleep(drain);
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
            ended.map_err(LabError::io("send or receive datagrams"))?;
        }
        Ok(self.counts())
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop_sending.store(true, Ordering::Relaxed);
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn spawn(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<JoinHandle<io::Result<()>>> {
    thread::Builder::new().name("hopsack-soak".into()).spawn(work)
}

/// Length of a datagram. Most are small, so they are bundled; some fill a packet; some are between.
fn length(number: u64) -> usize {
    match number % 16 {
        0 => 1400,
        4 | 9 => 512,
        _ => 64,
    }
}

/// Fills a datagram: its number is at the beginning and at the end.
fn fill(buffer: &mut [u8; 1400], number: u64) -> &[u8] {
    let datagram = &mut buffer[..length(number)];
    let end = datagram.len() - 8;
    datagram[..8].copy_from_slice(&number.to_be_bytes());
    datagram[end..].copy_from_slice(&number.to_be_bytes());
    datagram
}

/// Number of a datagram; none if its length or content is wrong.
fn number(datagram: &[u8]) -> Option<u64> {
    let number = u64::from_be_bytes(*datagram.first_chunk()?);
    let whole = datagram.len() == length(number) && datagram.last_chunk() == Some(&number.to_be_bytes());
    whole.then_some(number)
}

fn send(socket: &UdpSocket, rate: f64, counts: &SharedCounts, stop: &AtomicBool) -> io::Result<()> {
    let (mut buffer, mut next) = ([0; 1400], 0);
    let mut last = Instant::now();
    let mut due = 0.0;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(TICK);
        let now = Instant::now();
        // A sender that was stopped for a while does not send the missed datagrams later.
        due = (due + rate * (now - last).as_secs_f64()).min(rate / 20.0 + 1.0);
        last = now;
        while due >= 1.0 {
            due -= 1.0;
            match socket.send(fill(&mut buffer, next)) {
                Ok(_) => {
                    next += 1;
                    counts.sent.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn receive(socket: &UdpSocket, counts: &SharedCounts, stop: &AtomicBool) -> io::Result<()> {
    let (mut buffer, mut expected) = ([0; 2048], 0);
    while !stop.load(Ordering::Relaxed) {
        let datagram = match socket.recv(&mut buffer) {
            Ok(length) => &buffer[..length],
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => continue,
            Err(error) => return Err(error),
        };
        let Some(number) = number(datagram) else {
            counts.wrong.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        counts.received.fetch_add(1, Ordering::Relaxed);
        if number < expected {
            counts.late.fetch_add(1, Ordering::Relaxed);
        }
        expected = expected.max(number + 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagram_number_is_read_back() {
        let mut buffer = [0; 1400];
        for n in [0, 1, 4, 15, 16, u64::MAX] {
            assert_eq!(number(fill(&mut buffer, n)), Some(n));
        }
        let mut short = fill(&mut buffer, 3).to_vec();
        short.pop();
        assert_eq!((number(&short), number(&[])), (None, None));
    }

    #[test]
    fn reordered_datagrams_are_counted() {
        let open = || UdpSocket::bind("127.0.0.1:0").expect("bound");
        let (from, to) = (open(), open());
        from.connect(to.local_addr().expect("bound")).expect("connected");
        to.set_read_timeout(Some(RECEIVE_TIMEOUT)).expect("timeout is set");
        let mut buffer = [0; 1400];
        for n in [0, 2, 1, 3, 3] {
            from.send(fill(&mut buffer, n)).expect("sent");
        }
        from.send(b"rubbish").expect("sent");
        let (counts, stop) = (Arc::new(SharedCounts::default()), Arc::new(AtomicBool::new(false)));
        let receiving = spawn({
            let (counts, stop) = (Arc::clone(&counts), Arc::clone(&stop));
            move || receive(&to, &counts, &stop)
        });
        while counts.wrong.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        receiving.expect("a thread").join().expect("no panic").expect("received");
        let [received, late] = [&counts.received, &counts.late].map(|count| count.load(Ordering::Relaxed));
        assert_eq!((received, late), (5, 2));
    }
}
