//! What moves packets on this node: which engine, with how many workers, between which sockets and queues, and why.
//!
//! The choice is made once, here, from the configuration and what the kernel can do; `status` and `check` tell it.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::NodeError;
use super::join::bind_udp;
use crate::config::{Dataplane, EngineChoice};
use crate::engine::{Io, QueueIo, SimpleIo};
use crate::sys::ring::Ring;
use crate::sys::tun::{Offload, Persistence, Queue, SimpleTun};
use crate::sys::{Capabilities, udp};

/// An engine, before it has anything to move packets between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Simple,
    Batch,
    Uring,
}

/// What was chosen.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) kind: Kind,
    pub(super) workers: usize,
    pub(super) offload: bool,
    reason: String,
}

/// By configuration and kernel.
pub(super) fn choose(config: &Dataplane, capabilities: &Capabilities) -> Result<Choice, NodeError> {
    let (kind, reason) = match config.engine {
        EngineChoice::Simple => (Kind::Simple, "dataplane.engine says so".to_owned()),
        EngineChoice::Batch => (Kind::Batch, "dataplane.engine says so".to_owned()),
        EngineChoice::Uring => match &capabilities.ring {
            Ok(()) => (Kind::Uring, "dataplane.engine says so".to_owned()),
            Err(error) => (Kind::Batch, format!("dataplane.engine asks for uring, but {}", no_ring(error))),
        },
        EngineChoice::Auto => match &capabilities.ring {
            Ok(()) => (Kind::Uring, "io_uring is there".to_owned()),
            Err(error) => (Kind::Batch, no_ring(error)),
        },
    };
    // A worker is a queue, which threads share. Four keep a ping out of a bulk transfer's queue three times in four, two only
    // every second time; more than that scatter small packets over more and smaller batches (benches/README.md).
    let several = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    let auto = if several { 4 } else { 1 };
    if kind == Kind::Batch && config.engine == EngineChoice::Uring {
        tracing::warn!(reason, "using the batch engine");
    }
    let workers = if kind == Kind::Simple { 1 } else { config.workers.map_or(auto, usize::from) };
    Ok(Choice { kind, workers, offload: config.offload, reason })
}

/// Why there is no ring, and what would change that.
pub(super) fn no_ring(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            format!(
                "io_uring is forbidden here ({error}): see kernel.io_uring_disabled and the seccomp profile"
            )
        }
        Some(libc::ENOSYS) => format!("this kernel has no io_uring ({error})"),
        Some(_) => format!("io_uring cannot be set up ({error})"),
        None => "this kernel's io_uring cannot keep silent about what succeeded (Linux 5.18)".to_owned(),
    }
}

impl Choice {
    /// Why this engine, for `status`.
    pub(super) fn reason(&self, offload: Offload) -> String {
        let offload = match offload {
            Offload::TcpAndUdp => "offloads for TCP and UDP",
            Offload::Tcp => "offloads for TCP (the kernel has none for UDP: Linux 6.2)",
            Offload::None if self.kind == Kind::Simple => "no offloads",
            Offload::None => "offloads off",
        };
        format!("{}; {offload}", self.reason)
    }

    /// What is asked of the device.
    pub(super) fn wanted(&self) -> Offload {
        if self.offload { Offload::TcpAndUdp } else { Offload::None }
    }
}

/// A worker's sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    receive: UdpSocket,
    send: UdpSocket,
}

/// Opens what the workers receive and send by.
pub(super) async fn sockets(
    choice: &Choice,
    address: SocketAddr,
    spread: bool,
) -> Result<Vec<Sockets>, NodeError> {
    // Alone first: sockets that share a port would share it with another hopsack as well.
    let alone = bind_patiently(address).await?;
    let failed = |error| NodeError::Environment(format!("cannot open a UDP socket on {address}: {error}"));
    if choice.kind == Kind::Simple {
        let send = alone.try_clone().map_err(failed)?;
        return Ok(vec![Sockets { receive: alone, send }]);
    }
    drop(alone);
    let receive = |_| {
        let receive = udp::bind_shared(address)?;
        if choice.offload
            && let Err(error) = udp::receive_trains(&receive)
        {
            tracing::warn!(%error, "no UDP_GRO: each datagram is received alone");
        }
        Ok(receive)
    };
    let receive: Vec<UdpSocket> =
        (0..choice.workers).map(receive).collect::<std::io::Result<_>>().map_err(failed)?;
    if choice.workers > 1
        && let Err(error) = udp::choose_by_source_port(&receive[0], address.port(), choice.workers)
    {
        tracing::warn!(%error, "a peer's workers may share one of ours: the kernel distributes by hash");
    }
    let both = |(number, receive): (usize, UdpSocket)| {
        let has_own = spread && number > 0;
        let send = if has_own { bind_own(address, number, choice.workers)? } else { receive.try_clone()? };
        Ok(Sockets { receive, send })
    };
    receive.into_iter().enumerate().map(both).collect::<std::io::Result<_>>().map_err(failed)
}

/// A socket to send by, on a port that stands for this worker: a peer with as many workers answers it by the one that it
/// sends to, and none of ours shares that one ([`udp::choose_by_source_port`]).
fn bind_own(address: SocketAddr, number: usize, workers: usize) -> std::io::Result<UdpSocket> {
    /// Each fits with a chance of one in `workers`, which are 64 at most.
    const TRIES: usize = 2000;
    for _ in 0..TRIES {
        let socket = udp::bind(SocketAddr::new(address.ip(), 0))?;
        let port = u32::from(socket.local_addr()?.port());
        let at = usize::try_from(port.wrapping_sub(address.port().into())).unwrap_or(0) % workers;
        if at == number {
            udp::receive_nothing(&socket)?;
            return Ok(socket);
        }
    }
    Err(std::io::ErrorKind::AddrInUse.into())
}

/// The kernel closes the descriptors of a killed process that used io_uring a moment after its end.
async fn bind_patiently(address: SocketAddr) -> Result<UdpSocket, NodeError> {
    const TRIES: u32 = 10;
    for _ in 1..TRIES {
        if let Ok(socket) = bind_udp(address) {
            return Ok(socket);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bind_udp(address)
}

/// The overlay device, opened as an engine needs it.
#[derive(Debug)]
pub(super) enum Tun {
    /// For the simple engine.
    Simple(SimpleTun),
    /// For the others: one queue a worker, and what the device agreed to.
    Queues(Vec<Queue>, Offload),
}

impl Tun {
    pub(super) fn open(name: &str, choice: &Choice) -> std::io::Result<Self> {
        if choice.kind == Kind::Simple {
            return SimpleTun::open(name).map(Self::Simple);
        }
        let queues: Vec<Queue> =
            (0..choice.workers).map(|_| Queue::open(name)).collect::<std::io::Result<_>>()?;
        let offload = queues[0].set_offload(choice.wanted())?;
        Ok(Self::Queues(queues, offload))
    }

    /// The right to decide what happens to the device when its last descriptor closes.
    pub(super) fn persistence(&self) -> std::io::Result<Persistence> {
        match self {
            Self::Simple(tun) => Persistence::of(tun),
            Self::Queues(queues, _) => Persistence::of(&queues[0]),
        }
    }

    pub(super) fn offload(&self) -> Offload {
        match self {
            Self::Simple(_) => Offload::None,
            Self::Queues(_, offload) => *offload,
        }
    }

    /// The same device once more, to put other sockets beside it later.
    pub(super) fn try_clone(&self) -> std::io::Result<Self> {
        match self {
            Self::Simple(tun) => Ok(Self::Simple(tun.share())),
            Self::Queues(queues, offload) => {
                let queues = queues.iter().map(Queue::try_clone).collect::<std::io::Result<_>>()?;
                Ok(Self::Queues(queues, *offload))
            }
        }
    }

    /// Puts both sides together. Where a ring cannot be made though the probe could make one (descriptors or memory have
    /// run short), the choice becomes the batch engine, until the next start.
    pub(super) fn between(self, choice: &mut Choice, sockets: Vec<Sockets>) -> Io {
        let (queues, mut sockets) = match self {
            Self::Simple(tun) => {
                let mut sockets = sockets;
                let socket = sockets.remove(0).receive;
                return Io::Simple(SimpleIo { tun, socket });
            }
            Self::Queues(queues, _) => (queues, sockets.into_iter()),
        };
        let queues: Vec<QueueIo> = queues
            .into_iter()
            .zip(&mut sockets)
            .map(|(tun, Sockets { receive, send })| QueueIo { tun, receive, send })
            .collect();
        if choice.kind != Kind::Uring {
            return Io::Batch(queues);
        }
        match queues.iter().map(QueueIo::ring).collect::<std::io::Result<Vec<Ring>>>() {
            Ok(rings) => Io::Uring(queues.into_iter().zip(rings).collect()),
            Err(error) => {
                choice.kind = Kind::Batch;
                choice.reason = format!("{}, at this start", no_ring(&error));
                tracing::warn!(reason = choice.reason, "using the batch engine");
                Io::Batch(queues)
            }
        }
    }
}
