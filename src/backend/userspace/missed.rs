//! The task that takes the datagrams of the kernel fast path that our own fast path has missed.
//!
//! It runs on the main thread: few packets come this way, and only for a while. If the datagrams of
//! a peer are missed on and on, for example because they arrive by another device than packets to
//! it leave by, the answers to that peer say that this host does not receive by the fast path.
//!
//! Invariant: while the task runs, the kernel gives it every datagram with the
//! UDP checksum 0 that reaches our port, and no worker gets one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::paths::Health;
use crate::engine::{EngineView, MissedReceiver};
use crate::sys::now;
use crate::time::Nanos;

/// For how long the datagrams of a peer may be missed before it is told to send by its engine.
const PATIENCE: Duration = Duration::from_secs(3);
/// Datagrams that come after a pause of this length begin anew.
const PAUSE: Duration = Duration::from_secs(2);
/// For how long the peer is told so.
const DENIED_FOR: Duration = Duration::from_secs(60);

/// Since when the datagrams of each peer are missed, and when the last one was.
#[derive(Debug, Default)]
struct Misses(BTreeMap<IpAddr, (Nanos, Nanos)>);

impl Misses {
    /// Adds the senders of datagrams that were missed now. Returns those that have to send by their
    /// engine.
    fn add(&mut self, senders: &BTreeSet<IpAddr>, now: Nanos) -> Vec<IpAddr> {
        self.0.retain(|_, (_, last)| now.since(*last) <= PAUSE);
        let mut lasting = Vec::new();
        for sender in senders {
            let (since, last) = self.0.entry(*sender).or_insert((now, now));
            *last = now;
            if now.since(*since) >= PATIENCE {
                lasting.push(*sender);
            }
        }
        lasting
    }
}

/// The running task.
#[derive(Debug)]
pub(super) struct Missed {
    sockets: mpsc::UnboundedSender<UdpSocket>,
    task: JoinHandle<()>,
}

impl Missed {
    /// Starts the task, which receives at `socket`.
    pub(super) fn start(
        view: EngineView,
        receiver: MissedReceiver,
        socket: UdpSocket,
        health: Arc<Health>,
    ) -> Self {
        let (sockets, new_sockets) = mpsc::unbounded_channel();
        Self { sockets, task: tokio::spawn(run((view, health), receiver, socket, new_sockets)) }
    }

    /// From now on the task receives at another socket.
    pub(super) fn relocate(&self, socket: UdpSocket) {
        // The task ends only with this value.
        let _ = self.sockets.send(socket);
    }
}

impl Drop for Missed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    (view, health): (EngineView, Arc<Health>),
    mut receiver: MissedReceiver,
    mut socket: UdpSocket,
    mut sockets: mpsc::UnboundedReceiver<UdpSocket>,
) {
    let (mut misses, mut senders) = (Misses::default(), BTreeSet::new());
    loop {
        let waiting = match socket.try_clone().and_then(tokio::net::UdpSocket::from_std) {
            Ok(waiting) => waiting,
            Err(error) => {
                return tracing::error!(%error, "missed datagrams of the fast path are not received");
            }
        };
        socket = loop {
            tokio::select! {
                new = sockets.recv() => match new {
                    Some(new) => break new,
                    None => return,
                },
                Ok(()) = waiting.readable() => {
                    // WouldBlock makes `readable` wait for the next datagram.
                    let _ = waiting.try_io(Interest::READABLE, || {
                        match receiver.drain(&socket, &view.table(), &mut senders) {
                            0 => Err(io::ErrorKind::WouldBlock.into()),
                            _ => Ok(()),
                        }
                    });
                    let now = now();
                    for peer in misses.add(&senders, now) {
                        health.deny_fast(peer, now + DENIED_FOR);
                    }
                    senders.clear();
                    // Other tasks of the thread have their turn in between.
                    tokio::task::yield_now().await;
                }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_whose_datagrams_are_missed_on_and_on_is_found() {
        let (peer, other) = (IpAddr::from([192, 0, 2, 2]), IpAddr::from([192, 0, 2, 3]));
        let mut misses = Misses::default();
        let mut at = |millis: u64, senders: &[IpAddr]| {
            misses.add(&senders.iter().copied().collect(), Nanos(millis * 1_000_000))
        };
        assert!(at(1000, &[peer]).is_empty());
        assert!(at(2000, &[peer, other]).is_empty());
        assert!(at(3900, &[peer]).is_empty());
        assert_eq!(at(4000, &[peer]), [peer]);
        // A pause: it begins anew.
        assert!(at(7000, &[peer, other]).is_empty());
        assert!(at(8000, &[peer]).is_empty());
    }
}
