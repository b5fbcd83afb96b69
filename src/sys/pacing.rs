//! The rate at which a TCP socket sends at most.
//!
//! Invariant: the kernel paces the socket itself; no qdisc is needed. Source: socket(7)
//! SO_MAX_PACING_RATE, `sk_pacing_status` in the kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::udp::set;

/// Limits a socket to so many bytes a second.
pub fn limit_rate(socket: &impl AsFd, bytes_per_second: u32) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    set(fd, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, bytes_per_second.cast_signed())
}
