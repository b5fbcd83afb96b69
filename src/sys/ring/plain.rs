//! The requests of a ring as system calls of their own, with the same results: the kernel's answer stands where the ring's
//! would.
//!
//! Invariant: none waits, and each returns before what it was lent is used again.

use std::os::fd::{AsRawFd, OwnedFd};

use super::super::block::Part;
use super::super::message::Outgoing;
use super::Buffers;

/// Sends the part that `header` describes.
pub(super) fn send(socket: &OwnedFd, header: &Outgoing, part: &mut Part, calls: &mut u64) {
    *calls += 1;
    // SAFETY: the header was filled where it stands, for bytes that the caller borrows until this returns.
    let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header.header, libc::MSG_DONTWAIT) };
    part.errno = errno(result);
}

/// Writes a frame to the TUN, which does not block.
pub(super) fn write(tun: &OwnedFd, bytes: &[u8], part: &mut Part, calls: &mut u64) {
    *calls += 1;
    // SAFETY: the kernel reads `bytes.len()` bytes from there during the call.
    let result = unsafe { libc::write(tun.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    part.errno = errno(result);
}

/// Reads and receives as much as `buffers` were cleared for, until there is nothing more.
pub(super) fn receive([tun, socket, _]: &[OwnedFd; 3], buffers: &mut Buffers, calls: &mut u64) {
    for number in 0..buffers.frames().count() {
        let Some(slot) = buffers.frames().nth(number) else { break };
        *calls += 1;
        // SAFETY: the kernel writes at most `slot.len()` bytes there during the call.
        let result = unsafe { libc::read(tun.as_raw_fd(), slot.as_mut_ptr().cast(), slot.len()) };
        buffers.settle(true, number, answer(result));
        if result < 0 {
            break;
        }
    }
    for number in 0..buffers.headers().count() {
        let Some(header) = buffers.headers().nth(number) else { break };
        *calls += 1;
        // SAFETY: the header points to a name, an iovec and control room of its own, and that to a slot of its own, all
        // in `buffers`, which nobody else uses during the call.
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), header, libc::MSG_DONTWAIT) };
        buffers.settle(false, number, answer(result));
        if result < 0 {
            break;
        }
    }
}

/// As the ring answers: a length, or an error number below zero.
fn answer(result: isize) -> i32 {
    match i32::try_from(result) {
        Ok(length) if length >= 0 => length,
        _ => -errno(result),
    }
}

/// 0 if it went well.
fn errno(result: isize) -> i32 {
    if result >= 0 {
        return 0;
    }
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
