//! The error queue of a socket: datagrams that did not arrive, as ICMP messages report it
//! (IP_RECVERR).
//!
//! Anybody can forge such a message, so it is good for a hint to the operator only. Sources: ip(7),
//! ipv6(7), recvmsg(2).

use std::mem::size_of;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use super::super::cmsg::{NAME_LEN, Name};

/// Bytes for the control message: the error, and the address of the host that reports it.
const CONTROL_BYTES: usize = 256;

/// Takes the oldest error: the destination of the datagram, and the error number. `None`: there is
/// no error.
pub fn take_error(socket: &UdpSocket) -> Option<(SocketAddr, i32)> {
    let mut name = Name::empty();
    let mut control = [0u64; CONTROL_BYTES / 8];
    // SAFETY: a msghdr is made of plain integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = libc::socklen_t::try_from(NAME_LEN).unwrap_or(0);
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES as _;
    // SAFETY: name and control buffer are as long as the header says, and live across the call. The
    // datagram itself is not asked for.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE) };
    if result < 0 {
        return None;
    }
    let mut errno = None;
    // SAFETY: the kernel has written `msg_controllen` bytes of whole control messages into
    // `control`, which is aligned for a cmsghdr; the functions stay within them, and the length of
    // a message is checked before its data are read.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while !message.is_null() {
            let kind = ((*message).cmsg_level, (*message).cmsg_type);
            let is_error = matches!(
                kind,
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            );
            let length = (*message).cmsg_len as usize;
            if is_error && length >= size_of::<libc::cmsghdr>() + size_of::<libc::sock_extended_err>() {
                let error = libc::CMSG_DATA(message).cast::<libc::sock_extended_err>().read_unaligned();
                errno = i32::try_from(error.ee_errno).ok();
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    Some((name.get()?, errno?))
}

#[cfg(test)]
mod tests {
    use super::super::{bind, keep_errors};
    use super::*;

    /// Kernel contract: a datagram to a closed port comes back with the address that it was sent
    /// to.
    #[test]
    fn closed_port_is_reported() {
        for host in ["127.0.0.1", "::1"] {
            let any = SocketAddr::new(host.parse().expect("an address"), 0);
            let (socket, closed) = (bind(any).expect("bound"), bind(any).expect("bound"));
            let to = closed.local_addr().expect("bound");
            drop(closed);
            keep_errors(&socket).expect("IP_RECVERR");
            assert_eq!(take_error(&socket), None);
            socket.send_to(&[0; 12], to).expect("sent");
            assert_eq!(take_error(&socket), Some((to, libc::ECONNREFUSED)));
            assert_eq!(take_error(&socket), None);
        }
    }
}
