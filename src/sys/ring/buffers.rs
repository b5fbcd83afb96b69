//! The buffers that a ring reads and receives into.
//!
//! Every turn uses the first buffer first, so that a small turn touches little memory.
//!
//! Invariant: the bytes that are handed out are bytes that the kernel has written in this turn.

use std::io;

use super::super::cmsg::{CONTROL_LEN, NAME_LEN, Name, controls};
use super::super::udp::Received;
use crate::packet::Train;

/// Frames that a turn reads at most.
pub const MAX_FRAMES: usize = 32;
/// Messages that a turn receives at most: more than frames, because without GRO each is one
/// datagram.
pub const MAX_MESSAGES: usize = 64;
/// Bytes from one message buffer to the next: the longest UDP datagram, and five cache lines, so
/// that the starts of the buffers fall into different sets of the L1 cache.
const MESSAGE_BYTES: usize = 65_536 + 5 * 64;

/// Buffers for the frames and messages of one turn.
pub struct Buffers {
    /// The memory of frames and of messages.
    memory: [Box<[u8]>; 2],
    /// Bytes from one buffer of each kind to the next.
    size: [usize; 2],
    /// The result of each read and receive: a length, or an error number below zero; EAGAIN before
    /// the kernel has reported one.
    results: [Vec<i32>; 2],
    incoming: Box<[Incoming]>,
}

/// All that a receive needs in addition to the bytes.
struct Incoming {
    header: libc::msghdr,
    name: Name,
    iov: libc::iovec,
    control: [u64; CONTROL_LEN / 8],
}

impl Buffers {
    /// Makes buffers for frames of at most `frame` bytes.
    #[must_use]
    pub fn new(frame: usize) -> Self {
        let size = [frame + 5 * 64, MESSAGE_BYTES];
        // SAFETY: all fields are plain integers and pointers, for which zero is a value.
        let incoming = || unsafe { std::mem::zeroed::<Incoming>() };
        Self {
            memory: [vec![0; MAX_FRAMES * size[0]].into(), vec![0; MAX_MESSAGES * size[1]].into()],
            size,
            results: [Vec::with_capacity(MAX_FRAMES), Vec::with_capacity(MAX_MESSAGES)],
            incoming: (0..MAX_MESSAGES).map(|_| incoming()).collect(),
        }
    }

    /// Forgets the last turn and prepares for `frames` reads and `messages` receives.
    pub(super) fn clear(&mut self, frames: usize, messages: usize) {
        for (results, count) in
            self.results.iter_mut().zip([frames.min(MAX_FRAMES), messages.min(MAX_MESSAGES)])
        {
            results.clear();
            results.resize(count, -libc::EAGAIN);
        }
    }

    /// The buffers for the frames of this turn.
    pub(super) fn frames(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.memory[0].chunks_exact_mut(self.size[0]).take(self.results[0].len())
    }

    /// The headers for the messages of this turn. They point into `self`.
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

    /// Stores the result of a read or a receive.
    #[inline]
    pub(super) fn set_result(&mut self, is_frame: bool, number: usize, result: i32) {
        self.results[usize::from(!is_frame)][number] = result;
    }

    /// The frames that this turn has read, in their order. A read that found the queue empty yields
    /// nothing; other errors are yielded.
    pub fn frames_read(&self) -> impl Iterator<Item = io::Result<&[u8]>> {
        (0..self.results[0].len()).filter_map(|number| self.frame(number))
    }

    /// How many reads this turn has made.
    #[must_use]
    #[inline]
    pub fn reads(&self) -> usize {
        self.results[0].len()
    }

    /// The frame that a read has brought; `None` if it found the queue empty.
    #[must_use]
    #[inline]
    pub fn frame(&self, number: usize) -> Option<io::Result<&[u8]>> {
        self.bytes(0, number)
    }

    /// The messages that this turn has received, in their order. A receive that found the queue
    /// empty yields nothing; other errors are yielded.
    #[inline]
    pub fn messages_received(&self) -> impl Iterator<Item = io::Result<Received<'_>>> {
        (0..self.results[1].len()).filter_map(|number| Some((number, self.bytes(1, number)?))).map(
            |(number, bytes)| {
                let bytes = bytes?;
                let incoming = &self.incoming[number];
                let control: &[u64] = &incoming.control;
                let control =
                    // SAFETY: the array has CONTROL_LEN bytes, and any of its bytes is a u8.
                    unsafe { std::slice::from_raw_parts(control.as_ptr().cast::<u8>(), CONTROL_LEN) };
                #[allow(clippy::unnecessary_cast, reason = "a libc has it as u32 or as usize")]
                let control_len = incoming.header.msg_controllen as usize;
                let (stride, ecn) = controls(&control[..control_len.min(CONTROL_LEN)]);
                let train = Train { bytes, stride: stride.unwrap_or(bytes.len()).max(1) };
                Ok(Received { from: incoming.name.get(), ecn, train })
            },
        )
    }

    #[inline]
    fn bytes(&self, kind: usize, number: usize) -> Option<io::Result<&[u8]>> {
        let result = *self.results[kind].get(number)?;
        match usize::try_from(result) {
            Ok(length) => {
                let slot = &self.memory[kind][number * self.size[kind]..][..self.size[kind]];
                Some(Ok(&slot[..length.min(slot.len())]))
            }
            Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) => None,
            Err(_) => Some(Err(io::Error::from_raw_os_error(-result))),
        }
    }
}

// SAFETY: the pointers in `incoming` are written and used within one turn, which borrows the
// buffers. No code uses them between two turns, so they may move to another thread with the
// buffers.
unsafe impl Send for Buffers {}

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffers").field("size", &self.size).finish_non_exhaustive()
    }
}
