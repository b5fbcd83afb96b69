//! Where a ring reads and receives to, and what came.
//!
//! The first buffer is used first in every turn, so that a turn that brings little touches little memory.
//!
//! Invariant: what is handed out as received lies within what the kernel has written in this turn.

use std::io;

use super::super::message::{CONTROL_LEN, NAME_LEN, Name, controls};
use super::super::udp::Received;
use crate::packet::Train;

/// Frames and messages of a turn, at most. More messages, because without GRO each is one datagram.
pub const MAX_FRAMES: usize = 32;
pub const MAX_MESSAGES: usize = 64;
/// A message is as long as a UDP datagram can be; then five cache lines, which make the starts of buffers fall into
/// different sets of an L1 cache.
const MESSAGE: usize = 65_536 + 5 * 64;

/// The buffers of one worker.
pub struct Buffers {
    memory: [Box<[u8]>; 2],
    /// Bytes of a buffer of each kind.
    size: [usize; 2],
    /// Not read yet, or what the kernel said: a length, or an error number below zero.
    results: [Vec<i32>; 2],
    incoming: Box<[Incoming]>,
}

/// Everything beside the bytes that a receive needs.
struct Incoming {
    header: libc::msghdr,
    name: Name,
    iov: libc::iovec,
    control: [u64; CONTROL_LEN / 8],
}

impl Buffers {
    /// For frames of at most `frame` bytes.
    #[must_use]
    pub fn new(frame: usize) -> Self {
        let size = [frame + 5 * 64, MESSAGE];
        // SAFETY: all fields are plain integers and pointers, for which zero is a value.
        let incoming = || unsafe { std::mem::zeroed::<Incoming>() };
        Self {
            memory: [vec![0; MAX_FRAMES * size[0]].into(), vec![0; MAX_MESSAGES * size[1]].into()],
            size,
            results: [Vec::with_capacity(MAX_FRAMES), Vec::with_capacity(MAX_MESSAGES)],
            incoming: (0..MAX_MESSAGES).map(|_| incoming()).collect(),
        }
    }

    /// Forgets the last turn, and is ready for one of so many frames and messages.
    pub(super) fn clear(&mut self, frames: usize, messages: usize) {
        for (results, count) in
            self.results.iter_mut().zip([frames.min(MAX_FRAMES), messages.min(MAX_MESSAGES)])
        {
            results.clear();
            results.resize(count, -libc::EAGAIN);
        }
    }

    /// Where this turn's frames go.
    pub(super) fn frames(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.memory[0].chunks_exact_mut(self.size[0]).take(self.results[0].len())
    }

    /// Where this turn's messages go: headers that point into `self`.
    pub(super) fn headers(&mut self) -> impl Iterator<Item = *mut libc::msghdr> {
        let slots = self.memory[1].chunks_exact_mut(self.size[1]).take(self.results[1].len());
        slots.zip(self.incoming.iter_mut()).map(|(slot, incoming)| {
            incoming.iov = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            incoming.header.msg_name = (&raw mut incoming.name).cast();
            incoming.header.msg_namelen = libc::socklen_t::try_from(NAME_LEN).unwrap_or(0);
            incoming.header.msg_iov = &raw mut incoming.iov;
            incoming.header.msg_iovlen = 1;
            incoming.header.msg_control = incoming.control.as_mut_ptr().cast();
            incoming.header.msg_controllen = CONTROL_LEN as _;
            &raw mut incoming.header
        })
    }

    pub(super) fn settle(&mut self, is_frame: bool, number: usize, result: i32) {
        self.results[usize::from(!is_frame)][number] = result;
    }

    /// What reads of the TUN brought, in order. An empty queue brings nothing; other errors are told.
    pub fn read(&self) -> impl Iterator<Item = io::Result<&[u8]>> {
        self.brought(0).map(|brought| brought.map(|(_, bytes)| bytes))
    }

    /// What receives brought, in order. Likewise.
    pub fn received(&self) -> impl Iterator<Item = io::Result<Received<'_>>> {
        self.brought(1).map(|brought| {
            let (number, bytes) = brought?;
            let incoming = &self.incoming[number];
            let control: &[u64] = &incoming.control;
            // SAFETY: the array has CONTROL_LEN bytes, and any of its bytes is a u8.
            let control = unsafe { std::slice::from_raw_parts(control.as_ptr().cast::<u8>(), CONTROL_LEN) };
            #[allow(clippy::unnecessary_cast, reason = "a libc has it as u32 or as usize")]
            let control_len = incoming.header.msg_controllen as usize;
            let (stride, ecn) = controls(&control[..control_len.min(CONTROL_LEN)]);
            let train = Train { bytes, stride: stride.unwrap_or(bytes.len()).max(1) };
            Ok(Received { from: incoming.name.get(), ecn, train })
        })
    }

    fn brought(&self, kind: usize) -> impl Iterator<Item = io::Result<(usize, &[u8])>> {
        let slots = self.memory[kind].chunks_exact(self.size[kind]);
        self.results[kind].iter().zip(slots).enumerate().filter_map(|(number, (result, slot))| {
            match usize::try_from(*result) {
                Ok(length) => Some(Ok((number, &slot[..length.min(slot.len())]))),
                Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) => None,
                Err(_) => Some(Err(io::Error::from_raw_os_error(-result))),
            }
        })
    }
}

// SAFETY: the pointers in `incoming` are written and used within one turn, which borrows the buffers; none stands for anything
// between two turns, so that they may move to another thread with it.
unsafe impl Send for Buffers {}

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffers").field("size", &self.size).finish_non_exhaustive()
    }
}
