//! Many messages in one system call: sendmmsg(2) with UDP_SEGMENT (sendmsg(2) for one message),
//! and recvmmsg(2) with UDP_GRO.
//!
//! It does not retry. Invariant: all memory that the kernel gets a pointer to belongs to the
//! caller or to `self` until the call returns.

use std::io;
use std::mem::size_of;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use super::super::batch::Message;
use super::super::cmsg::{CONTROL_LEN, NAME_LEN, Name, Outgoing, controls};
use crate::packet::Train;
use crate::packet::ecn::Ecn;

/// Messages of one sendmmsg at most.
const SEND_BATCH: usize = 64;
/// Messages of one recvmmsg at most.
pub const RECEIVE_BATCH: usize = 32;
/// Bytes of a receive buffer: a train is at most as long as a UDP datagram.
const SLOT: usize = 65_536;

/// Sends the first of `messages`, at most 64, out of `memory`. Returns how many of them the kernel
/// took, in their order; an error is that of the first message.
pub fn send_many(socket: &UdpSocket, memory: &[u8], messages: &[Message]) -> io::Result<usize> {
    match messages {
        // A single message need not wait until the headers of 64 are cleared.
        [message] => send_one(socket, &memory[message.contents()], message).map(|()| 1),
        _ => send_some(socket, memory, messages),
    }
}

fn send_one(socket: &UdpSocket, bytes: &[u8], message: &Message) -> io::Result<()> {
    let mut outgoing = Outgoing::empty();
    outgoing.fill(message, bytes);
    // SAFETY: the header points into `outgoing` and `bytes`, which live across the call and are
    // not moved.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const outgoing.header, 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn send_some(socket: &UdpSocket, memory: &[u8], messages: &[Message]) -> io::Result<usize> {
    let mut outgoing: [Outgoing; SEND_BATCH] = std::array::from_fn(|_| Outgoing::empty());
    // SAFETY: an mmsghdr is made of plain integers and pointers, for which zero is a value.
    let mut headers: [libc::mmsghdr; SEND_BATCH] = unsafe { std::mem::zeroed() };
    let count = messages.len().min(SEND_BATCH);
    for ((message, outgoing), header) in messages[..count].iter().zip(&mut outgoing).zip(&mut headers) {
        outgoing.fill(message, &memory[message.contents()]);
        header.msg_hdr = outgoing.header;
    }
    let length = libc::c_uint::try_from(count).unwrap_or(0);
    // SAFETY: the first `count` headers point into `outgoing` and `memory`, which live across the
    // call and are not moved.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), length, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Buffers for recvmmsg, and the messages of the last receive.
pub struct Receiver {
    memory: Box<[u8]>,
    /// At most [`RECEIVE_BATCH`].
    messages: Box<[Incoming]>,
}

struct Incoming {
    name: Name,
    control: [u64; CONTROL_LEN / 8],
    control_len: usize,
    length: usize,
}

const _: () = assert!(NAME_LEN == size_of::<Name>());

/// One received message: a datagram, or a GRO train of datagrams.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// The sender's address; `None` if its family is unknown.
    pub from: Option<SocketAddr>,
    /// The ECN field of the outer header.
    pub ecn: Ecn,
    /// The datagrams.
    pub train: Train<'a>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new(RECEIVE_BATCH)
    }
}

impl Receiver {
    /// Makes buffers for `messages` messages a call, at most [`RECEIVE_BATCH`].
    #[must_use]
    pub fn new(messages: usize) -> Self {
        let count = messages.clamp(1, RECEIVE_BATCH);
        let message =
            || Incoming { name: Name::empty(), control: [0; CONTROL_LEN / 8], control_len: 0, length: 0 };
        Self { memory: vec![0; count * SLOT].into(), messages: (0..count).map(|_| message()).collect() }
    }

    /// Receives at most `most` messages, and at most as many as there are buffers. Returns how
    /// many it received, or WouldBlock if there is no message.
    pub fn receive(&mut self, socket: &UdpSocket, most: usize) -> io::Result<usize> {
        let most = most.min(self.messages.len());
        let (mut vectors, mut headers): ([libc::iovec; RECEIVE_BATCH], [libc::mmsghdr; RECEIVE_BATCH]) =
            // SAFETY: iovec and mmsghdr are made of plain integers and pointers, for which zero is
            // a value.
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let slots = self.memory.chunks_exact_mut(SLOT).zip(self.messages.iter_mut()).take(most);
        for (((slot, message), vector), header) in slots.zip(&mut vectors).zip(&mut headers) {
            *vector = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = (&raw mut message.name).cast();
            header.msg_hdr.msg_namelen = libc::socklen_t::try_from(NAME_LEN).unwrap_or(0);
            header.msg_hdr.msg_control = message.control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL_LEN as _;
        }
        let length = libc::c_uint::try_from(most).unwrap_or(0);
        // SAFETY: each of the first `length` headers points to a vector, a name and a control
        // buffer of its own, and each vector to a slot of its own; all live across the call and
        // are writable through `self` and the local arrays.
        let count = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), length, 0, std::ptr::null_mut())
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (message, header) in self.messages.iter_mut().zip(&headers[..count]) {
            message.length = header.msg_len as usize;
            #[allow(clippy::unnecessary_cast, reason = "a libc has it as u32 or as usize")]
            let control_len = header.msg_hdr.msg_controllen as usize;
            message.control_len = control_len;
        }
        Ok(count)
    }

    /// The message `index` of the last receive.
    #[must_use]
    pub fn get(&self, index: usize) -> Received<'_> {
        let message = &self.messages[index];
        let bytes = &self.memory[index * SLOT..][..message.length.min(SLOT)];
        let control: &[u64] = &message.control;
        // SAFETY: the array has CONTROL_LEN bytes, and any of its bytes is a u8.
        let control = unsafe { std::slice::from_raw_parts(control.as_ptr().cast::<u8>(), CONTROL_LEN) };
        let (stride, ecn) = controls(&control[..message.control_len.min(CONTROL_LEN)]);
        let train = Train { bytes, stride: stride.unwrap_or(bytes.len()).max(1) };
        Received { from: message.name.get(), ecn, train }
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MAX_PAYLOAD, SEGMENTS, bind, max_segments, receive_trains};
    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let any = "127.0.0.1:0".parse().expect("an address");
        let (from, to) = (bind(any).expect("bound"), bind(any).expect("bound"));
        receive_trains(&to).expect("UDP_GRO: Linux 5.0");
        (from, to)
    }

    fn send(from: &UdpSocket, to: &UdpSocket, len: usize, stride: usize) -> io::Result<usize> {
        let message = Message::train(0, len, stride, to.local_addr().expect("bound"));
        send_many(from, &vec![7; len], &[message])
    }

    /// Kernel contract: a UDP_SEGMENT send arrives as one message with its stride in a UDP_GRO
    /// control message.
    #[test]
    fn train_arrives_with_its_stride() {
        let (from, to) = pair();
        let mut receiver = Receiver::new(RECEIVE_BATCH);
        assert_eq!(send(&from, &to, 44 * 1472 + 700, 1472).expect("sent"), 1);
        assert_eq!(receiver.receive(&to, RECEIVE_BATCH).expect("received"), 1);
        let received = receiver.get(0);
        assert_eq!(received.from, Some(from.local_addr().expect("bound")));
        assert_eq!((received.train.bytes.len(), received.train.stride), (44 * 1472 + 700, 1472));
        assert_eq!(
            receiver.receive(&to, RECEIVE_BATCH).expect_err("empty").kind(),
            io::ErrorKind::WouldBlock
        );
    }

    /// Kernel contract: the limits of one send.
    #[test]
    fn train_has_the_known_limits() {
        let (from, to) = pair();
        send(&from, &to, SEGMENTS * 100, 100).expect("64 segments");
        send(&from, &to, max_segments() * 100, 100).expect("what was asked for");
        send(&from, &to, MAX_PAYLOAD, 1472).expect("65,507 bytes");
        let errno = |result: io::Result<usize>| result.expect_err("too much").raw_os_error();
        assert_eq!(errno(send(&from, &to, MAX_PAYLOAD + 1, 1472)), Some(libc::EMSGSIZE));
        assert_eq!(errno(send(&from, &to, 129 * 100, 100)), Some(libc::EINVAL), "more than any kernel takes");
        assert_eq!(errno(send(&from, &to, (max_segments() + 1) * 100, 100)), Some(libc::EINVAL));
    }

    /// Kernel contract: a control message sets the ECN field together with UDP_SEGMENT, and
    /// another returns it together with UDP_GRO.
    #[test]
    fn ecn_field_is_sent_and_received() {
        for host in ["127.0.0.1", "::1"] {
            let any = || SocketAddr::new(host.parse().expect("an address"), 0);
            let (from, to) = (bind(any()).expect("bound"), bind(any()).expect("bound"));
            receive_trains(&to).expect("UDP_GRO");
            let mut receiver = Receiver::new(1);
            for ecn in [Ecn::Ect0, Ecn::NotEct, Ecn::Ce, Ecn::Ect1] {
                for stride in [1000, 100] {
                    let to_address = to.local_addr().expect("bound");
                    let message = Message { ecn, ..Message::train(0, 1000, stride, to_address) };
                    assert_eq!(send_many(&from, &[7; 1000], &[message]).expect("sent"), 1);
                    assert_eq!(receiver.receive(&to, RECEIVE_BATCH).expect("received"), 1);
                    let received = receiver.get(0);
                    assert_eq!((received.ecn, received.train.stride), (ecn, stride), "{host}");
                    assert_eq!(received.train.bytes.len(), 1000);
                }
            }
        }
    }

    #[test]
    fn messages_keep_their_order() {
        let (from, to) = pair();
        let memory: Vec<u8> = (0..=255).collect();
        let to_address = to.local_addr().expect("bound");
        let messages: Vec<Message> =
            (0..100).map(|n| Message::train(n, 1 + n % 3, 1 + n % 3, to_address)).collect();
        assert_eq!(send_many(&from, &memory, &messages).expect("sent"), SEND_BATCH);
        assert_eq!(send_many(&from, &memory, &messages[SEND_BATCH..]).expect("sent"), 36);
        let (mut receiver, mut seen) = (Receiver::new(RECEIVE_BATCH), Vec::new());
        while let Ok(count) = receiver.receive(&to, RECEIVE_BATCH) {
            for index in 0..count {
                seen.extend(receiver.get(index).train.datagrams().map(|datagram| datagram[0]));
            }
        }
        assert_eq!(seen, (0..100).collect::<Vec<u8>>());
    }
}
