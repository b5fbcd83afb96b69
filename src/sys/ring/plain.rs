//! The requests of a ring as single system calls. The results are stored where the ring stores its
//! results.
//!
//! Invariant: no call waits, and no call keeps a pointer after it has returned.

use std::os::fd::{AsRawFd, OwnedFd};

use super::super::batch::Message;
use super::super::cmsg::Outgoing;
use super::buffers::Buffers;

/// Sends the message that `header` describes.
pub(super) fn send(socket: &OwnedFd, header: &Outgoing, message: &mut Message, calls: &mut u64) {
    *calls += 1;
    // SAFETY: the header was filled at this address, for bytes that the caller borrows until this
    // function returns.
    let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header.header, libc::MSG_DONTWAIT) };
    message.errno = errno(result);
}

/// Writes a frame to the TUN, which does not block.
pub(super) fn write(tun: &OwnedFd, bytes: &[u8], frame: &mut Message, calls: &mut u64) {
    *calls += 1;
    // SAFETY: the kernel reads only the bytes of this slice, and only during the call.
    let result = unsafe { libc::write(tun.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    frame.errno = errno(result);
}

/// Reads and receives as much as `buffers` were cleared for, or until there is nothing more.
pub(super) fn receive([tun, socket, _]: &[OwnedFd; 3], buffers: &mut Buffers, calls: &mut u64) {
    for number in 0..buffers.frames().count() {
        let Some(slot) = buffers.frames().nth(number) else { break };
        *calls += 1;
        // SAFETY: the kernel writes only to this slice, and only during the call.
        let result = unsafe { libc::read(tun.as_raw_fd(), slot.as_mut_ptr().cast(), slot.len()) };
        buffers.set_result(true, number, ring_result(result));
        if result < 0 {
            break;
        }
    }
    for number in 0..buffers.headers().count() {
        let Some(header) = buffers.headers().nth(number) else { break };
        *calls += 1;
        // SAFETY: the header points to a name, an iovec and a control buffer of its own, and the
        // iovec to a slot of its own. All of them are in `buffers`, which no other code uses during
        // the call.
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), header, libc::MSG_DONTWAIT) };
        buffers.set_result(false, number, ring_result(result));
        if result < 0 {
            break;
        }
    }
}

/// The result as the ring reports it: a length, or an error number below zero.
fn ring_result(result: isize) -> i32 {
    match i32::try_from(result) {
        Ok(length) if length >= 0 => length,
        _ => -errno(result),
    }
}

/// The error number, or 0 for success.
fn errno(result: isize) -> i32 {
    if result >= 0 {
        return 0;
    }
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
