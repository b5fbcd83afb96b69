//! The endpoint's socket: it joins the datagrams that a connection sends into trains.
//!
//! quinn hands over at most [`QUINN_DATAGRAMS`] datagrams in one call. One UDP_SEGMENT send takes
//! 64 of them, for little more than the cost of ten, on this host and on the receiving one. So when
//! quinn hands over a full piece, the socket waits for the next one. A train ends when:
//!
//! - quinn hands over fewer datagrams than that, or a shorter last one,
//! - the destination or the datagram length changes, or
//! - a turn of the runtime adds nothing.
//!
//! It knows nothing of QUIC. Invariant: datagrams leave in the order in which quinn hands them
//! over. A train for which the kernel has no room stays until it has, and quinn is told to wait
//! meanwhile.
#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use tokio::sync::Notify;

use crate::sys::udp::{self, MAX_PAYLOAD, SEGMENTS};

/// Most datagrams in one [`Transmit`] of quinn 0.11 (`MAX_TRANSMIT_SEGMENTS`). If quinn used
/// another number, trains would be shorter, or would wait for one more turn of the runtime.
const QUINN_DATAGRAMS: usize = 10;

/// A socket that joins datagrams into trains.
#[derive(Debug)]
pub(super) struct TrainSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// A second descriptor of the socket, to read the kernel's counters.
    plain: UdpSocket,
    train: Mutex<Train>,
    /// Wakes the task that sends trains to which nothing more is added.
    has_train: Notify,
    counters: SocketCounters,
}

/// System calls and datagrams since the counters were reset.
#[derive(Debug, Default)]
pub(super) struct SocketCounters {
    pub(super) sends: AtomicU64,
    pub(super) receives: AtomicU64,
    pub(super) datagrams: AtomicU64,
}

/// Datagrams of one length for one destination, one after the other.
#[derive(Debug, Default)]
struct Train {
    destination: Option<SocketAddr>,
    ecn: Option<EcnCodepoint>,
    source: Option<IpAddr>,
    /// Length in bytes of each datagram; the last one may be shorter.
    datagram_bytes: usize,
    bytes: Vec<u8>,
}

impl Train {
    fn begin(&mut self, piece: &Transmit<'_>) {
        (self.destination, self.ecn, self.source) = (Some(piece.destination), piece.ecn, piece.src_ip);
        self.datagram_bytes = datagram_bytes(piece);
    }

    /// Whether a piece may be added.
    fn accepts(&self, piece: &Transmit<'_>) -> bool {
        let has_same_header = self.destination == Some(piece.destination)
            && self.ecn == piece.ecn
            && self.source == piece.src_ip;
        let ends_with_full_datagram = self.bytes.len().is_multiple_of(self.datagram_bytes);
        // A single shorter datagram may be the last one.
        let has_same_length =
            datagram_bytes(piece) == self.datagram_bytes || piece.contents.len() < self.datagram_bytes;
        has_same_header && ends_with_full_datagram && has_same_length && self.has_room(piece.contents.len())
    }

    fn has_room(&self, more_bytes: usize) -> bool {
        let bytes = self.bytes.len() + more_bytes;
        bytes <= MAX_PAYLOAD && bytes.div_ceil(self.datagram_bytes) <= SEGMENTS
    }
}

fn datagram_bytes(piece: &Transmit<'_>) -> usize {
    piece.segment_size.unwrap_or(piece.contents.len()).max(1)
}

impl TrainSocket {
    /// Wraps a bound socket. Some trains leave only while [`TrainSocket::send_trains`] runs.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Arc<Self>> {
        let plain = socket.try_clone()?;
        let inner = TokioRuntime.wrap_udp_socket(socket)?;
        Ok(Arc::new(Self {
            inner,
            plain,
            train: Mutex::default(),
            has_train: Notify::new(),
            counters: SocketCounters::default(),
        }))
    }

    pub(super) fn counters(&self) -> &SocketCounters {
        &self.counters
    }

    /// Datagrams that the kernel dropped because the receive queue was full.
    pub(super) fn queue_drops(&self) -> u64 {
        udp::queue_drops(&self.plain).unwrap_or(0).into()
    }

    /// Sends trains to which nothing more is added. It never returns.
    pub(super) async fn send_trains(self: Arc<Self>) {
        let mut writable = self.inner.clone().create_io_poller();
        loop {
            self.has_train.notified().await;
            let mut bytes_before = 0;
            loop {
                let bytes = self.train().bytes.len();
                if bytes == 0 {
                    break;
                }
                if bytes == bytes_before && self.send(&mut self.train()).is_err() {
                    // If the wait fails, the next attempt to send reports the error.
                    let _ = poll_fn(|cx| writable.as_mut().poll_writable(cx)).await;
                }
                bytes_before = bytes;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Gives the train to the kernel. On an error the train stays.
    fn send(&self, train: &mut Train) -> io::Result<()> {
        let (Some(destination), false) = (train.destination, train.bytes.is_empty()) else { return Ok(()) };
        let is_single = train.bytes.len() <= train.datagram_bytes;
        let transmit = Transmit {
            destination,
            ecn: train.ecn,
            contents: &train.bytes,
            segment_size: (!is_single).then_some(train.datagram_bytes),
            src_ip: train.source,
        };
        self.send_now(&transmit)?;
        train.bytes.clear();
        Ok(())
    }

    fn send_now(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)?;
        self.counters.sends.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn train(&self) -> MutexGuard<'_, Train> {
        self.train.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncUdpSocket for TrainSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, piece: &Transmit<'_>) -> io::Result<()> {
        let mut train = self.train();
        if !train.bytes.is_empty() && !train.accepts(piece) {
            self.send(&mut train)?;
        }
        let full_piece_bytes = QUINN_DATAGRAMS * datagram_bytes(piece);
        let more_may_follow =
            piece.contents.len() == full_piece_bytes && self.inner.max_transmit_segments() > QUINN_DATAGRAMS;
        if train.bytes.is_empty() {
            if !more_may_follow {
                return self.send_now(piece);
            }
            train.begin(piece);
            self.has_train.notify_one();
        }
        train.bytes.extend_from_slice(piece.contents);
        if !more_may_follow || !train.has_room(full_piece_bytes) {
            // The piece is in the train. If the kernel refuses the train now, it is sent later.
            let _ = self.send(&mut train);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(cx, buffers, metas);
        if let Poll::Ready(Ok(messages)) = &received {
            let datagrams =
                metas.iter().take(*messages).map(|meta| meta.len.div_ceil(meta.stride.max(1)) as u64);
            self.counters.receives.fetch_add(*messages as u64, Ordering::Relaxed);
            self.counters.datagrams.fetch_add(datagrams.sum(), Ordering::Relaxed);
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
