//! The task that takes the datagrams of the kernel fast path that our own fast path has missed.
//!
//! It runs on the main thread: few packets come this way, and only for a while. It decides nothing
//! about the fast path. Invariant: while the task runs, the kernel gives it every datagram with the
//! UDP checksum 0 that reaches our port, and no worker gets one.

use std::io;
use std::net::UdpSocket;

use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::engine::{EngineView, MissedReceiver};

/// The running task.
#[derive(Debug)]
pub(super) struct Missed {
    sockets: mpsc::UnboundedSender<UdpSocket>,
    task: JoinHandle<()>,
}

impl Missed {
    /// Starts the task, which receives at `socket`.
    pub(super) fn start(view: EngineView, receiver: MissedReceiver, socket: UdpSocket) -> Self {
        let (sockets, new_sockets) = mpsc::unbounded_channel();
        Self { sockets, task: tokio::spawn(run(view, receiver, socket, new_sockets)) }
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
    view: EngineView,
    mut receiver: MissedReceiver,
    mut socket: UdpSocket,
    mut sockets: mpsc::UnboundedReceiver<UdpSocket>,
) {
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
                        match receiver.drain(&socket, &view.table()) {
                            0 => Err(io::ErrorKind::WouldBlock.into()),
                            _ => Ok(()),
                        }
                    });
                    // Other tasks of the thread have their turn in between.
                    tokio::task::yield_now().await;
                }
            }
        };
    }
}
