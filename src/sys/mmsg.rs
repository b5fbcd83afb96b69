//! Many datagrams in one system call, for generators of traffic: what is sent is all alike, what is received is counted
//! and forgotten.
//!
//! It does not pace, measure or decide. The data plane has other needs (headers, trains, sources) and calls of its own.
//! Source: sendmmsg(2), recvmmsg(2), socket(7).

use std::io;
use std::mem::{self, size_of};
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

/// The most datagrams of one call: enough that entering the kernel is a small part of what each costs.
pub const BATCH: usize = 64;

/// Sends `payload` once to each address, at most [`BATCH`] of them, in this order. Returns to how many it was sent.
pub fn send(socket: &UdpSocket, payload: &[u8], to: &[SocketAddrV4]) -> io::Result<usize> {
    let count = to.len().min(BATCH);
    let mut names = [no_name(); BATCH];
    for (name, to) in names.iter_mut().zip(to) {
        name.sin_port = to.port().to_be();
        name.sin_addr.s_addr = u32::from_ne_bytes(to.ip().octets());
    }
    let mut piece = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let name_length = libc::socklen_t::try_from(size_of::<libc::sockaddr_in>()).map_err(io::Error::other)?;
    let mut messages = [no_message(); BATCH];
    for (message, name) in messages.iter_mut().zip(&mut names) {
        message.msg_hdr.msg_name = (&raw mut *name).cast();
        message.msg_hdr.msg_namelen = name_length;
        message.msg_hdr.msg_iov = &raw mut piece;
        message.msg_hdr.msg_iovlen = 1;
    }
    let length = libc::c_uint::try_from(count).map_err(io::Error::other)?;
    // SAFETY: the first `count` messages point to names and to one piece that live across the call, the piece to
    // `payload`, which is borrowed for it; sendmmsg reads them and writes only each message's msg_len.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), length, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Takes up to [`BATCH`] datagrams off a non-blocking socket and counts them. `scratch` ends up with a mixture of their
/// content. None waiting is no error.
pub fn receive(socket: &UdpSocket, scratch: &mut [u8]) -> io::Result<usize> {
    let mut piece = libc::iovec { iov_base: scratch.as_mut_ptr().cast(), iov_len: scratch.len() };
    let mut messages = [no_message(); BATCH];
    for message in &mut messages {
        message.msg_hdr.msg_iov = &raw mut piece;
        message.msg_hdr.msg_iovlen = 1;
    }
    let length = libc::c_uint::try_from(BATCH).map_err(io::Error::other)?;
    let (fd, forever) = (socket.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: all BATCH messages point to one piece that lives across the call, the piece to `scratch`, borrowed
    // mutably for it. That they share the bytes is fine: the kernel fills them one after the other, and they are bytes.
    let received = unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), length, 0, forever) };
    usize::try_from(received).or_else(|_| {
        let error = io::Error::last_os_error();
        let nothing = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
        if nothing { Ok(0) } else { Err(error) }
    })
}

/// Asks for a receive queue of `bytes`: forced where permitted, else what net.core.rmem_max allows.
pub fn set_receive_queue(socket: &UdpSocket, bytes: usize) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    let (fd, name) = (socket.as_raw_fd(), libc::SO_RCVBUFFORCE);
    // SAFETY: the option value is one c_int that lives across the call, and `length` is its size.
    match unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, name, (&raw const value).cast(), length) } {
        0 => Ok(()),
        _ => socket2::SockRef::from(socket).set_recv_buffer_size(bytes),
    }
}

fn no_name() -> libc::sockaddr_in {
    // SAFETY: sockaddr_in is made of integers, for which zero is a value.
    let mut name: libc::sockaddr_in = unsafe { mem::zeroed() };
    name.sin_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default();
    name
}

fn no_message() -> libc::mmsghdr {
    // SAFETY: mmsghdr is made of integers and raw pointers, for which zero (null) is a value.
    unsafe { mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn what_is_sent_is_counted_at_the_other_end() {
        let bind = || UdpSocket::bind("127.0.0.1:0").expect("bound");
        let (from, to) = (bind(), bind());
        to.set_nonblocking(true).expect("set");
        set_receive_queue(&to, 1 << 20).expect("set");
        let SocketAddr::V4(address) = to.local_addr().expect("bound") else { panic!("bound to IPv4") };
        assert_eq!(receive(&to, &mut [0; 8]).expect("nothing"), 0);
        assert_eq!(send(&from, b"hopsack!", &[address; 100]).expect("sent"), BATCH);
        assert_eq!(send(&from, b"hopsack!", &[address; 3]).expect("sent"), 3);
        let mut scratch = [0; 8];
        assert_eq!(receive(&to, &mut scratch).expect("received"), BATCH);
        assert_eq!(receive(&to, &mut scratch).expect("received"), 3);
        assert_eq!(&scratch, b"hopsack!");
    }
}
