//! The UDP sockets of the workers.
//!
//! All receiving sockets share the cluster's port. A worker sends by its receiving socket, or by a
//! socket of its own. Its port tells the peer which worker sent the datagram.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::choice::{Choice, EngineKind};
use crate::sys::udp;

/// Why the sockets cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process has the port.
    #[error(
        "UDP port {} is in use on {}: another hopsack or flanneld? stop it (see `ss -ulpn`), or change \
         overlay.port on every host", .0.port(), .0.ip()
    )]
    InUse(SocketAddr),
    /// The address cannot be bound.
    #[error("cannot bind UDP {address}: {error}")]
    Bind {
        /// Address and port.
        address: SocketAddr,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// One of several sockets cannot be opened.
    #[error("cannot open a UDP socket on {address}: {error}")]
    Open {
        /// Address and port.
        address: SocketAddr,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
}

impl SocketError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InUse(_) => "udp_port_in_use",
            Self::Bind { .. } => "udp_bind",
            Self::Open { .. } => "udp_open",
        }
    }
}

/// The sockets of one worker.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) receive: UdpSocket,
    pub(super) send: UdpSocket,
}

/// Opens the sockets as [`open`] does, and waits a moment for the port: the kernel closes the
/// descriptors of a killed process that used io_uring shortly after its end.
pub(super) async fn open_patiently(
    choice: &Choice,
    address: SocketAddr,
    spread: bool,
) -> Result<Vec<Sockets>, SocketError> {
    const TRIES: u32 = 10;
    for _ in 1..TRIES {
        match open(choice, address, spread) {
            Err(SocketError::InUse(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            opened => return opened,
        }
    }
    open(choice, address, spread)
}

/// Opens the sockets of all workers. `spread`: all but the first worker send from a port of their
/// own.
pub(super) fn open(choice: &Choice, address: SocketAddr, spread: bool) -> Result<Vec<Sockets>, SocketError> {
    // First a socket that does not share its port: sockets that do would share it with another
    // hopsack as well.
    let alone = bind(address)?;
    let failed = |error| SocketError::Open { address, error };
    if choice.engine == EngineKind::Simple {
        // With a fixed port, the sockets for control messages share it.
        let receive = if spread {
            alone
        } else {
            drop(alone);
            udp::bind_shared(address).map_err(failed)?
        };
        udp::allow_fragments(&receive).map_err(failed)?;
        let send = receive.try_clone().map_err(failed)?;
        return Ok(vec![Sockets { receive, send }]);
    }
    drop(alone);
    let receive = |_| {
        let receive = udp::bind_shared(address)?;
        udp::allow_fragments(&receive)?;
        if choice.offload
            && let Err(error) = udp::receive_trains(&receive)
        {
            tracing::warn!(%error, "no UDP_GRO: each datagram is received alone");
        }
        Ok(receive)
    };
    let receive: Vec<UdpSocket> =
        (0..choice.workers).map(receive).collect::<io::Result<_>>().map_err(failed)?;
    if let Err(error) = choose(choice, address, &receive[0]) {
        tracing::warn!(%error, "a peer's workers may share one of ours: the kernel distributes by hash");
    }
    let both = |(number, receive): (usize, UdpSocket)| {
        let has_own = spread && number > 0;
        let send = if has_own { bind_own(address, number, choice.workers)? } else { receive.try_clone()? };
        Ok(Sockets { receive, send })
    };
    receive.into_iter().enumerate().map(both).collect::<io::Result<_>>().map_err(failed)
}

/// Opens the socket that gets the datagrams of the kernel fast path: those with the UDP checksum 0.
/// The sockets of the workers must be open. `None`: the simple engine does not share its port.
pub(super) fn missed(choice: &Choice, address: SocketAddr) -> Result<Option<UdpSocket>, SocketError> {
    if choice.engine == EngineKind::Simple {
        return Ok(None);
    }
    udp::bind_shared(address).map(Some).map_err(|error| SocketError::Open { address, error })
}

/// Makes the kernel choose among the sockets of the workers, and give [`missed`] its share.
fn choose(choice: &Choice, address: SocketAddr, first: &UdpSocket) -> io::Result<()> {
    match choice.engine {
        EngineKind::Simple => udp::choose_by_source_port(first, address.port(), 1, false),
        EngineKind::Batch | EngineKind::Uring => {
            udp::choose_by_source_port(first, address.port(), choice.workers, true)
        }
    }
}

/// The ports from which the workers send.
pub(super) fn ports(workers: &[Sockets]) -> Vec<u16> {
    let address = |sockets: &Sockets| sockets.send.local_addr().ok();
    workers.iter().filter_map(address).map(|address| address.port()).collect()
}

/// The sockets for control messages. They receive nothing but ICMP errors.
#[derive(Debug)]
pub(super) struct ControlSockets {
    /// Its datagrams are never fragmented, so that they can probe a path. `None`: it cannot be had.
    pub(super) probing: Option<UdpSocket>,
    /// Its datagrams may be fragmented, as those of the workers.
    pub(super) fragmenting: UdpSocket,
}

/// Opens the sockets for control messages: with ports of their own, or with the cluster's port, if
/// all datagrams must leave by it. All other sockets must be open, because those that share the
/// port and are bound last receive nothing.
pub(super) fn control(
    choice: &Choice,
    address: SocketAddr,
    spread: bool,
    workers: &[Sockets],
) -> Result<ControlSockets, SocketError> {
    let open = || {
        let socket =
            if spread { udp::bind(SocketAddr::new(address.ip(), 0))? } else { udp::bind_shared(address)? };
        udp::receive_nothing(&socket)?;
        io::Result::Ok(socket)
    };
    let both = || {
        let is_chosen =
            spread || workers.first().is_some_and(|first| choose(choice, address, &first.receive).is_ok());
        if let Some(first) = workers.first().filter(|_| !is_chosen) {
            // The kernel would give one more socket its share of what arrives.
            return Ok(ControlSockets { probing: None, fragmenting: first.send.try_clone()? });
        }
        let (probing, fragmenting) = (open()?, open()?);
        udp::keep_errors(&probing)?;
        udp::allow_fragments(&fragmenting)?;
        Ok(ControlSockets { probing: Some(probing), fragmenting })
    };
    both().map_err(|error| SocketError::Open { address, error })
}

/// Binds one socket that does not share its port.
pub(super) fn bind(address: SocketAddr) -> Result<UdpSocket, SocketError> {
    udp::bind(address).map_err(|error| {
        let in_use = error.kind() == io::ErrorKind::AddrInUse;
        if in_use { SocketError::InUse(address) } else { SocketError::Bind { address, error } }
    })
}

/// Binds a socket for sending, on a port that belongs to this worker: a peer with as many workers
/// answers by the worker that this port belongs to ([`udp::choose_by_source_port`]).
fn bind_own(address: SocketAddr, number: usize, workers: usize) -> io::Result<UdpSocket> {
    /// Each port fits with a probability of one in `workers`, which are 64 at most.
    const TRIES: usize = 2000;
    for _ in 0..TRIES {
        let socket = udp::bind(SocketAddr::new(address.ip(), 0))?;
        let port = u32::from(socket.local_addr()?.port());
        let at = usize::try_from(port.wrapping_sub(address.port().into())).unwrap_or(0) % workers;
        if at == number {
            udp::receive_nothing(&socket)?;
            udp::allow_fragments(&socket)?;
            return Ok(socket);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}
