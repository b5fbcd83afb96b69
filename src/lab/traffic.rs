//! Traffic: moves TCP bytes from pod to pod and counts exactly what arrived.
//!
//! [`in_netns`] opens the sockets inside the namespaces; ordinary threads then use them, because a
//! socket stays in the namespace in which it was opened.
//!
//! Invariant: the receiver has read all bytes that [`Transfer::wait`] reports, up to the end that
//! the sender announced. With `verify`, each byte was compared.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::error::LabError;
use super::site::Pod;
use crate::packet::Family;
use crate::sys::limit_rate;
use crate::sys::netns::in_netns;

/// Time that each end waits for the other before it fails. TCP itself retransmits for longer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Size of one read or write: as large as the largest packet of a TUN queue, and a multiple of 8
/// for the pattern.
const BLOCK_BYTES: usize = 64 * 1024;

/// Amount of data to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// A number of bytes.
    Bytes(u64),
    /// As many bytes as possible in this time, or until [`Transfer::finish`].
    Time(Duration),
}

/// A TCP flow between two pods.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    /// Sending pod.
    pub from: &'a Pod,
    /// Receiving pod.
    pub to: &'a Pod,
    /// Family of the pods' addresses.
    pub family: Family,
    /// Amount of data.
    pub amount: Amount,
    /// Whether to send a pattern in which no 8 bytes repeat, and to compare each byte. This costs a
    /// little speed.
    pub verify: bool,
}

/// Result of a transfer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moved {
    /// TCP payload that arrived, in bytes.
    pub bytes: u64,
    /// Time from the arrival of the first byte to the arrival of the end of the stream.
    pub elapsed: Duration,
    /// Longest time between two arrivals.
    pub longest_stall: Duration,
}

impl Moved {
    /// Payload in bits per second.
    #[must_use]
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// A TCP connection that moves bytes. It is closed at once if it is dropped before its end.
#[derive(Debug)]
pub struct Transfer {
    shared: Arc<Shared>,
    sockets: [TcpStream; 2],
    sender: Option<JoinHandle<io::Result<()>>>,
    receiver: Option<JoinHandle<Result<Moved, LabError>>>,
}

#[derive(Debug, Default)]
struct Shared {
    received: AtomicU64,
    finish: AtomicBool,
}

/// Moves bytes over one TCP connection and waits for the end.
///
/// # Errors
/// The connection was not made within 10 s, it broke, nothing arrived for 60 s, or the content
/// differs from what was sent.
pub fn tcp(flow: Flow<'_>) -> Result<Moved, LabError> {
    Transfer::start(flow)?.wait()
}

impl Transfer {
    /// Connects and starts to send.
    ///
    /// # Errors
    /// The connection was not made within 10 s.
    pub fn start(flow: Flow<'_>) -> Result<Self, LabError> {
        let Flow { from, to, family, amount, verify } = flow;
        let what = || LabError::io(format!("connect {} to {} by TCP", from.name, to.name));
        let at = SocketAddr::new(to.address(family), 0);
        let listener =
            in_netns(&to.netns, || TcpListener::bind(at)).and_then(|bound| bound).map_err(what())?;
        let at = listener.local_addr().map_err(what())?;
        let connect = || TcpStream::connect_timeout(&at, Duration::from_secs(10));
        let outgoing = in_netns(&from.netns, connect).and_then(|connected| connected).map_err(what())?;
        // A connected socket is already in the listener's queue, so this does not wait.
        let (incoming, _) = listener.accept().map_err(what())?;
        incoming.set_read_timeout(Some(TIMEOUT)).map_err(what())?;
        outgoing.set_write_timeout(Some(TIMEOUT)).map_err(what())?;

        let shared = Arc::new(Shared::default());
        let sockets = [outgoing.try_clone().map_err(what())?, incoming.try_clone().map_err(what())?];
        let sender = spawn("hopsack-send", {
            let shared = shared.clone();
            move || send(outgoing, amount, verify, &shared)
        })?;
        let receiver = spawn("hopsack-receive", {
            let shared = shared.clone();
            move || receive(incoming, verify, &shared)
        })?;
        Ok(Self { shared, sockets, sender: Some(sender), receiver: Some(receiver) })
    }

    /// Sets the congestion control of the sender: `cubic`, `bbr`, ...
    ///
    /// # Errors
    /// The kernel has no congestion control of this name.
    pub fn set_congestion_control(&self, name: &str) -> Result<(), LabError> {
        let [sender, _] = &self.sockets;
        let set = socket2::SockRef::from(sender).set_tcp_congestion(name.as_bytes());
        set.map_err(LabError::io(format!("use {name} for a TCP connection")))
    }

    /// Limits the sender to so many bytes a second.
    ///
    /// # Errors
    /// The kernel does not pace TCP.
    pub fn limit_rate(&self, bytes_per_second: u32) -> Result<(), LabError> {
        let [sender, _] = &self.sockets;
        limit_rate(sender, bytes_per_second).map_err(LabError::io("limit the rate of a TCP connection"))
    }

    /// Number of bytes that have arrived so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Whether the transfer has ended, so that [`Transfer::wait`] returns at once.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let sent = self.sender.as_ref().is_none_or(JoinHandle::is_finished);
        let received = self.receiver.as_ref().is_none_or(JoinHandle::is_finished);
        sent && received
    }

    /// Asks the sender to end the stream in order, after the current block.
    pub fn finish(&self) {
        self.shared.finish.store(true, Ordering::Relaxed);
    }

    /// Waits for the end of the stream.
    ///
    /// # Errors
    /// The connection broke, nothing arrived for 60 s, or the content differs from what was sent.
    pub fn wait(mut self) -> Result<Moved, LabError> {
        let (sent, moved) = self.join();
        // The receiver's error comes first: wrong content is more important, and it also makes the
        // sender fail.
        let moved = moved?;
        sent.map_err(LabError::io("send by TCP"))?;
        Ok(moved)
    }

    fn join(&mut self) -> (io::Result<()>, Result<Moved, LabError>) {
        let panicked = || io::Error::other("the thread panicked");
        let sent = self.sender.take().map(|thread| thread.join().unwrap_or_else(|_| Err(panicked())));
        let moved = self.receiver.take().map(|thread| thread.join());
        let moved = moved.and_then(Result::ok);
        let moved = moved.unwrap_or_else(|| Err(LabError::io("receive by TCP")(panicked())));
        (sent.unwrap_or(Ok(())), moved)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if self.receiver.is_some() {
            for socket in &self.sockets {
                // This fails if the connection has already ended, which is fine.
                let _ = socket.shutdown(Shutdown::Both);
            }
            let _ = self.join();
        }
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, LabError> {
    thread::Builder::new().name(name.into()).spawn(work).map_err(LabError::io("start a thread"))
}

fn send(mut socket: TcpStream, amount: Amount, verify: bool, shared: &Shared) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    let (mut sent, begin) = (0, Instant::now());
    loop {
        let next = match amount {
            Amount::Bytes(total) => usize::try_from(total - sent).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES),
            Amount::Time(time) if begin.elapsed() < time => BLOCK_BYTES,
            Amount::Time(_) => 0,
        };
        if next == 0 || shared.finish.load(Ordering::Relaxed) {
            break;
        }
        if verify {
            pattern(sent, &mut block[..next]);
        }
        socket.write_all(&block[..next])?;
        sent += next as u64;
    }
    socket.shutdown(Shutdown::Write)?;
    // The receiver answers with the number of bytes that it read. Without this, a connection that
    // broke after the last write would look complete.
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut count = [0; 8];
    socket.read_exact(&mut count)?;
    let received = u64::from_be_bytes(count);
    if received == sent {
        Ok(())
    } else {
        Err(io::Error::other(format!("{sent} bytes were sent and {received} arrived")))
    }
}

fn receive(mut socket: TcpStream, verify: bool, shared: &Shared) -> Result<Moved, LabError> {
    let failed = || LabError::io("receive by TCP");
    let (mut block, mut expected) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    let (mut received, mut begin, mut last) = (0_u64, None, Instant::now());
    let mut longest_stall = Duration::ZERO;
    let mut end = false;
    while !end {
        // Blocks are filled completely, so that the pattern is compared at multiples of 8.
        let (at, mut filled) = (received, 0);
        while filled < BLOCK_BYTES && !end {
            let read = match socket.read(&mut block[filled..]) {
                // The process was stopped and continued: the kernel does not restart a read that
                // has a timeout (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(failed())?,
            };
            let now = Instant::now();
            begin.get_or_insert(now);
            if received > 0 {
                longest_stall = longest_stall.max(now - last);
            }
            last = now;
            end = read == 0;
            filled += read;
            received += read as u64;
            shared.received.store(received, Ordering::Relaxed);
        }
        if verify {
            pattern(at, &mut expected[..filled]);
            check(at, &block[..filled], &expected[..filled])?;
        }
    }
    socket.write_all(&received.to_be_bytes()).map_err(failed())?;
    let elapsed = begin.map(|begin| last - begin).unwrap_or_default();
    Ok(Moved { bytes: received, elapsed, longest_stall })
}

/// Fills a block with the content of the stream at offset `at`, a multiple of 8. Each 8 bytes are a
/// bijective mix of their number (splitmix64's finaliser). So a block that is lost, repeated or in
/// the wrong place is always detected.
fn pattern(at: u64, block: &mut [u8]) {
    for (word, number) in block.chunks_mut(8).zip(at / 8..) {
        let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..word.len()]);
    }
}

fn check(at: u64, block: &[u8], expected: &[u8]) -> Result<(), LabError> {
    if block == expected {
        return Ok(());
    }
    let right = block.iter().zip(expected).take_while(|(is, should)| is == should).count() as u64;
    Err(LabError::Corrupt { at: at + right / 8 * 8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_detects_misplaced_bytes() {
        let (mut first, mut second) = ([0; 64], [0; 64]);
        pattern(0, &mut first);
        pattern(64, &mut second);
        check(0, &first, &first).unwrap();
        assert!(matches!(check(64, &first, &second), Err(LabError::Corrupt { at: 64 })));
        let mut flipped = first;
        flipped[21] ^= 1;
        assert!(matches!(check(0, &flipped, &first), Err(LabError::Corrupt { at: 16 })));
        let mut whole = [0; 128];
        pattern(0, &mut whole);
        assert_eq!(whole[64..], second);
    }
}
