//! The endpoint's socket: what a connection sends piece by piece leaves as one train.
//!
//! quinn hands over at most [`PIECE`] datagrams at a time; one UDP_SEGMENT send takes 64, for little more than the price of
//! ten, here and where they arrive. So a full piece waits for the next one, for as long as the connection goes on sending: a
//! piece that is not full, another destination or another length ends the train, and so does a turn of the runtime that
//! brought nothing.
//!
//! It knows no QUIC. Invariant: datagrams leave in the order in which they came, and a train that the kernel has no room for
//! stays until it has; who sends meanwhile is told to wait.
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

/// Datagrams that quinn 0.11 puts into one [`Transmit`] at most (`MAX_TRANSMIT_SEGMENTS`). Were it another number, trains would
/// be shorter, or wait a turn longer.
const PIECE: usize = 10;

/// A socket that puts trains together.
#[derive(Debug)]
pub(super) struct Socket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// Once more, for the kernel's account of it.
    plain: UdpSocket,
    train: Mutex<Train>,
    begun: Notify,
    tally: Tally,
}

/// Messages and datagrams since the last look.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) sends: AtomicU64,
    pub(super) receives: AtomicU64,
    pub(super) datagrams: AtomicU64,
}

/// Datagrams of one length for one destination, back to back.
#[derive(Debug, Default)]
struct Train {
    to: Option<SocketAddr>,
    ecn: Option<EcnCodepoint>,
    from: Option<IpAddr>,
    segment: usize,
    bytes: Vec<u8>,
}

impl Train {
    fn begin(&mut self, piece: &Transmit<'_>) {
        (self.to, self.ecn, self.from) = (Some(piece.destination), piece.ecn, piece.src_ip);
        self.segment = segment(piece);
    }

    /// Whether a piece may stand behind what is there.
    fn continues(&self, piece: &Transmit<'_>) -> bool {
        let same_way =
            self.to == Some(piece.destination) && self.ecn == piece.ecn && self.from == piece.src_ip;
        let is_open = self.bytes.len().is_multiple_of(self.segment);
        // A single shorter one may be the last.
        let same_length = segment(piece) == self.segment || piece.contents.len() < self.segment;
        same_way && is_open && same_length && self.has_room(piece.contents.len())
    }

    fn has_room(&self, more: usize) -> bool {
        let bytes = self.bytes.len() + more;
        bytes <= MAX_PAYLOAD && bytes.div_ceil(self.segment) <= SEGMENTS
    }
}

fn segment(piece: &Transmit<'_>) -> usize {
    piece.segment_size.unwrap_or(piece.contents.len()).max(1)
}

impl Socket {
    /// Around a bound socket. Part of what it is given leaves only while [`Socket::send_trains`] runs.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Arc<Self>> {
        let plain = socket.try_clone()?;
        let inner = TokioRuntime.wrap_udp_socket(socket)?;
        let (train, begun, tally) = (Mutex::default(), Notify::new(), Tally::default());
        Ok(Arc::new(Self { inner, plain, train, begun, tally }))
    }

    /// What passed.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Datagrams that the kernel dropped because the receive queue was full.
    pub(super) fn queue_drops(&self) -> u64 {
        udp::queue_drops(&self.plain).unwrap_or(0).into()
    }

    /// Sends trains that nothing follows, for ever.
    pub(super) async fn send_trains(self: Arc<Self>) {
        let mut room = self.inner.clone().create_io_poller();
        loop {
            self.begun.notified().await;
            let mut before = 0;
            loop {
                let waiting = self.train().bytes.len();
                if waiting == 0 {
                    break;
                }
                if waiting == before && self.send(&mut self.train()).is_err() {
                    // That it fails is what the next attempt will say.
                    let _ = poll_fn(|cx| room.as_mut().poll_writable(cx)).await;
                }
                before = waiting;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Hands the train to the kernel. On an error it stays.
    fn send(&self, train: &mut Train) -> io::Result<()> {
        let (Some(destination), false) = (train.to, train.bytes.is_empty()) else { return Ok(()) };
        let is_alone = train.bytes.len() <= train.segment;
        let transmit = Transmit {
            destination,
            ecn: train.ecn,
            contents: &train.bytes,
            segment_size: (!is_alone).then_some(train.segment),
            src_ip: train.from,
        };
        self.hand_on(&transmit)?;
        train.bytes.clear();
        Ok(())
    }

    fn hand_on(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)?;
        self.tally.sends.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn train(&self) -> MutexGuard<'_, Train> {
        self.train.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, piece: &Transmit<'_>) -> io::Result<()> {
        let mut train = self.train();
        if !train.bytes.is_empty() && !train.continues(piece) {
            self.send(&mut train)?;
        }
        let most = PIECE * segment(piece);
        let more_may_follow = piece.contents.len() == most && self.inner.max_transmit_segments() > PIECE;
        if train.bytes.is_empty() {
            if !more_may_follow {
                return self.hand_on(piece);
            }
            train.begin(piece);
            self.begun.notify_one();
        }
        train.bytes.extend_from_slice(piece.contents);
        if !more_may_follow || !train.has_room(most) {
            // The piece was taken: what the kernel refuses waits for room.
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
            self.tally.receives.fetch_add(*messages as u64, Ordering::Relaxed);
            self.tally.datagrams.fetch_add(datagrams.sum(), Ordering::Relaxed);
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
