//! Sends control messages, sealed if the peer's packets are.
//!
//! Invariant: a probe of the path is never fragmented, and nothing else is sent as one.

use std::net::{IpAddr, UdpSocket};

use super::super::sockets::ControlSockets;
use crate::forward::{Peer, Train};
use crate::packet::control::{Control, LEN};
use crate::seal::OVERHEAD;
use crate::sys::udp;
use crate::time::Nanos;

/// Errors that one look takes from the socket at most.
const MOST_ERRORS: usize = 64;

/// The sockets for control messages.
pub(super) struct Sender {
    sockets: ControlSockets,
    /// The number of the key that control messages are sealed with: it comes after those of the
    /// workers.
    key: usize,
    message: Vec<u8>,
    sealed: Vec<u8>,
}

impl Sender {
    pub(super) fn new(sockets: ControlSockets, workers: usize) -> Self {
        Self { sockets, key: workers, message: Vec::new(), sealed: Vec::new() }
    }

    /// Whether there is a socket that can probe a path.
    pub(super) fn may_probe(&self) -> bool {
        self.sockets.probing.is_some()
    }

    /// Sends a message that fills a datagram of `length` bytes, or has no padding. An error is the
    /// number of the kernel's.
    pub(super) fn send(
        &mut self,
        peer: &Peer,
        message: Control,
        length: usize,
        now: Nanos,
    ) -> Result<(), i32> {
        self.send_by(peer, message, (length, false), now)
    }

    /// Sends a message that fills a datagram of `length` bytes, which may be fragmented.
    pub(super) fn send_in_fragments(
        &mut self,
        peer: &Peer,
        message: Control,
        length: usize,
        now: Nanos,
    ) -> Result<(), i32> {
        self.send_by(peer, message, (length, true), now)
    }

    fn send_by(
        &mut self,
        peer: &Peer,
        mut message: Control,
        (length, may_fragment): (usize, bool),
        now: Nanos,
    ) -> Result<(), i32> {
        let content = length.saturating_sub(peer.overhead()).max(LEN);
        if length > 0 {
            message.length = u16::try_from(content).unwrap_or(u16::MAX);
        }
        self.message.clear();
        self.message.extend(message.to_bytes());
        self.message.resize(content, 0);
        let datagram = match &peer.session {
            None => &self.message[..],
            Some(session) => {
                self.sealed.resize(content + OVERHEAD, 0);
                let packet = Train::single(&self.message);
                let sealed = session.keys().seal(self.key, packet, &mut self.sealed, now);
                sealed.map_err(|_| libc::ENOKEY)?.bytes
            }
        };
        let socket = if may_fragment { &self.sockets.fragmenting } else { socket(&self.sockets) };
        let send = || socket.send_to(datagram, peer.endpoint).map(drop);
        // The socket also reports an ICMP error about an earlier datagram by its next call.
        let sent = send().or_else(|_| send());
        sent.map_err(|error| error.raw_os_error().unwrap_or(0))
    }

    /// Peers of which ICMP messages say that they refuse our datagrams, since the last call.
    pub(super) fn refused(&self) -> impl Iterator<Item = (IpAddr, i32)> {
        let errors = std::iter::from_fn(|| udp::take_error(socket(&self.sockets))).take(MOST_ERRORS);
        errors.filter(|(_, errno)| *errno != libc::EMSGSIZE).map(|(to, errno)| (to.ip(), errno))
    }
}

/// The socket for messages that are short, or must not be fragmented.
fn socket(sockets: &ControlSockets) -> &UdpSocket {
    sockets.probing.as_ref().unwrap_or(&sockets.fragmenting)
}
