//! The canary: a TCP transfer between the overlay addresses of two hosts, which shows that packets
//! by the fast path arrive whole.
//!
//! Some network cards and hypervisors may lose or damage packets that have an incomplete checksum,
//! or must be cut, inside a UDP datagram without a checksum. Only the receiver can tell. So the
//! host sends [`LENGTH`] bytes by the fast path, in small, full and super packets, and the receiver
//! answers with their hash.
//!
//! It decides nothing. Invariant: the server answers only the overlay addresses of peers, at most
//! [`CONNECTIONS`] at a time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256, digest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::engine::EngineView;
use crate::forward::{Hop, Table};
use crate::packet::Family;
use crate::route::Local;

/// Bytes of a transfer: enough that TCP makes super packets.
const LENGTH: usize = 192 * 1024;
/// How long a transfer may take. Lost super packets are sent again one by one, which takes longer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Transfers that the server receives at the same time at most.
const CONNECTIONS: usize = 16;

/// The result of a transfer: why it failed.
pub(super) type Outcome = Result<(), String>;

/// Sends and answers trial transfers.
#[derive(Debug)]
pub(super) struct Canary {
    server: Option<JoinHandle<()>>,
    sender: mpsc::UnboundedSender<(IpAddr, Outcome)>,
    results: mpsc::UnboundedReceiver<(IpAddr, Outcome)>,
    /// A result that has been received already.
    next: Option<(IpAddr, Outcome)>,
}

impl Default for Canary {
    fn default() -> Self {
        let (sender, results) = mpsc::unbounded_channel();
        Self { server: None, sender, results, next: None }
    }
}

impl Canary {
    /// Answers peers, if that has not begun yet. The overlay device may get its address later.
    pub(super) fn serve(&mut self, view: &EngineView, local: &Local) {
        if self.server.as_ref().is_some_and(|server| !server.is_finished()) {
            return;
        }
        let address = [Family::V4, Family::V6].into_iter().find_map(|family| local.device_address(family));
        let Some(address) = address.map(|ip| SocketAddr::new(ip, local.port)) else { return };
        if let Ok(listener) = listen(address) {
            self.server = Some(tokio::spawn(accept(listener, view.clone())));
        }
    }

    /// Begins a transfer to a peer.
    pub(super) fn begin(&mut self, peer: IpAddr, from: SocketAddr, to: SocketAddr) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let result = match timeout(TIMEOUT, transfer(from, to)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
            };
            let result = result.map_err(|why| {
                format!("a trial transfer by the fast path to TCP {to} failed: {why}; a packet filter there?")
            });
            // The receiver is gone if this host has moved, or stops.
            let _ = sender.send((peer, result));
        });
    }

    /// Waits until a transfer has ended. Cancel safe.
    pub(super) async fn finished(&mut self) {
        if self.next.is_none() {
            // This value holds a sender, so the channel is never closed.
            self.next = self.results.recv().await;
        }
    }

    /// The next result, if there is one.
    pub(super) fn take_result(&mut self) -> Option<(IpAddr, Outcome)> {
        self.next.take().or_else(|| self.results.try_recv().ok())
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(u32::try_from(CONNECTIONS).unwrap_or(16))
}

async fn accept(listener: TcpListener, view: EngineView) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                // No descriptors are left: they may be again.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !is_device_of_peer(&view.table(), from.ip()) {
            continue;
        }
        tokio::spawn(async move {
            // The host at the other end learns of a failure by the missing answer.
            let _ = timeout(TIMEOUT, answer(stream)).await;
            drop(place);
        });
    }
}

/// Whether an address is that of a peer's overlay device. Pods have other ones.
fn is_device_of_peer(table: &Table, address: IpAddr) -> bool {
    let Some(Hop::Peer(peer)) = table.lookup(address) else { return false };
    peer.subnets.iter().any(|subnet| subnet.network() == address)
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let (mut hash, mut left, mut buffer) = (Context::new(&SHA256), LENGTH, vec![0; 64 * 1024]);
    while left > 0 {
        let room = left.min(buffer.len());
        let count = stream.read(&mut buffer[..room]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&buffer[..count]);
        left -= count;
    }
    stream.write_all(hash.finish().as_ref()).await
}

async fn transfer(from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let socket = if from.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(from)?;
    let mut stream = socket.connect(to).await?;
    let bytes: Vec<u8> = (0..LENGTH).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect();
    stream.write_all(&bytes).await?;
    let mut found = [0; 32];
    stream.read_exact(&mut found).await?;
    if found == digest(&SHA256, &bytes).as_ref() {
        Ok(())
    } else {
        Err(io::Error::other("the bytes arrived changed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn transfer_is_answered_with_its_hash() {
        let listener = listen("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let to = listener.local_addr().expect("bound");
        let server = tokio::spawn(async move { answer(listener.accept().await.expect("accepted").0).await });
        transfer("127.0.0.1:0".parse().expect("an address"), to).await.expect("whole");
        server.await.expect("no panic").expect("answered");
    }
}
