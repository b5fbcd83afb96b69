//! An io_uring that makes many requests in one system call: all reads and receives in one
//! io_uring_enter(2), and all sends and writes in another.
//!
//! No request waits (MSG_DONTWAIT, RWF_NOWAIT) and no request is linked: the kernel executes them
//! in their order during submission. So when a call returns, the caller owns its memory again, no
//! request is under way, and the same few buffers, which stay in the cache, serve all turns. Sends
//! and writes report only failures (IOSQE_CQE_SKIP_SUCCESS). The thread sleeps in epoll(7), not in
//! the ring: that made round trips a tenth shorter.
//!
//! If there are few requests, as for a single packet, each is made by its own system call, which is
//! cheaper than the ring.
//!
//! It decides nothing: it gives the results to the worker.
//!
//! Invariant: no request outlives the call of [`Ring::receive`] or [`Ring::submit`] that made it,
//! and one that could not be submitted is never submitted later. Sources: io_uring(7),
//! io_uring_setup(2), io_uring_enter(2).

mod buffers;
mod plain;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fixed;
use io_uring::{IoUring, Probe, cqueue, opcode};

use super::batch::{Batch, MAX_BATCH, Message};
use super::cmsg::Outgoing;
pub use buffers::{Buffers, MAX_FRAMES, MAX_MESSAGES};

/// Requests that the ring has room for: all requests of a turn.
const ENTRIES: u32 = 1024;
const _: () = assert!(2 * MAX_BATCH + MAX_FRAMES + MAX_MESSAGES <= ENTRIES as usize);

/// The indexes of the descriptors in the table that is registered with the ring.
const TUN: Fixed = Fixed(0);
const RECEIVE: Fixed = Fixed(1);
const SEND: Fixed = Fixed(2);

/// The kinds of requests. The kind is the top byte of the `user_data` of a request, and its number
/// is in the lower bytes.
const KIND_READ: u64 = 1;
const KIND_RECEIVE: u64 = 2;
const KIND_SEND: u64 = 3;
const KIND_WRITE: u64 = 4;

/// Up to this many requests are made by single system calls.
const MAX_SINGLE_CALLS: usize = 2;

/// Failed submissions in a row before the ring counts as broken: the kernel may be short of memory
/// for a moment.
const MAX_RETRIES: u32 = 100;

/// Where the results of the requests are written.
struct Results<'a> {
    sends: &'a mut [Message],
    writes: &'a mut [Message],
    buffers: Option<&'a mut Buffers>,
}

/// The error of a ring that was used after a call of it had failed.
#[derive(Debug, thiserror::Error)]
#[error("the ring has failed before")]
struct BrokenRing;

/// The ring of one worker.
pub struct Ring {
    io: IoUring,
    /// The TUN queue, the receiving socket and the sending socket.
    files: [OwnedFd; 3],
    /// The headers of the messages of a batch.
    headers: Box<[Outgoing]>,
    /// Whether a call has failed. The requests that it left unsubmitted point to memory that the
    /// ring may no longer use.
    is_broken: bool,
    /// System calls since [`Ring::take_calls`].
    calls: u64,
}

/// Checks whether this process may use all that a [`Ring`] needs. It keeps nothing open.
pub fn probe() -> io::Result<()> {
    let io = build()?;
    let mut probe = Probe::new();
    io.submitter().register_probe(&mut probe)?;
    let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::RecvMsg::CODE, opcode::SendMsg::CODE];
    let has_all = needed.iter().all(|code| probe.is_supported(*code));
    if has_all && io.params().is_feature_skip_cqe_on_success() {
        Ok(())
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn build() -> io::Result<IoUring> {
    IoUring::builder().setup_submit_all().build(ENTRIES)
}

impl Ring {
    /// Makes a ring for a TUN queue, a receiving socket and a sending socket.
    pub fn new([tun, receive, send]: [BorrowedFd<'_>; 3]) -> io::Result<Self> {
        let io = build()?;
        io.submitter().register_files(&[tun, receive, send].map(|fd| fd.as_raw_fd()))?;
        let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
        Ok(Self {
            io,
            files: [own(tun)?, own(receive)?, own(send)?],
            headers: (0..MAX_BATCH).map(|_| Outgoing::empty()).collect(),
            is_broken: false,
            calls: 0,
        })
    }

    /// Reads up to `frames` frames and receives up to `messages` messages into `buffers`.
    pub fn receive(&mut self, buffers: &mut Buffers, [frames, messages]: [usize; 2]) -> io::Result<()> {
        buffers.clear(frames, messages);
        if frames + messages <= MAX_SINGLE_CALLS {
            plain::receive(&self.files, buffers, &mut self.calls);
            return Ok(());
        }
        self.begin()?;
        for (number, slot) in buffers.frames().enumerate() {
            let length = u32::try_from(slot.len()).unwrap_or(0);
            // The offset of a file without a position.
            let read = opcode::Read::new(TUN, slot.as_mut_ptr(), length).offset(u64::MAX);
            self.push(&read.rw_flags(libc::RWF_NOWAIT).build().user_data(KIND_READ << 56 | number as u64))?;
        }
        for (number, header) in buffers.headers().enumerate() {
            let receive = opcode::RecvMsg::new(RECEIVE, header).flags(libc::MSG_DONTWAIT.cast_unsigned());
            self.push(&receive.build().user_data(KIND_RECEIVE << 56 | number as u64))?;
        }
        self.enter(&mut Results { sends: &mut [], writes: &mut [], buffers: Some(buffers) })
    }

    /// Sends and writes all messages of two batches.
    pub fn submit(&mut self, sends: Batch<'_>, writes: Batch<'_>) -> io::Result<()> {
        if sends.messages.len() + writes.messages.len() <= MAX_SINGLE_CALLS {
            self.one_by_one(sends, writes);
            return Ok(());
        }
        self.begin()?;
        self.push_messages(&sends, &writes)?;
        self.enter(&mut Results { sends: sends.messages, writes: writes.messages, buffers: None })
    }

    fn one_by_one(&mut self, sends: Batch<'_>, writes: Batch<'_>) {
        let Self { files: [tun, _, send], headers, calls, .. } = self;
        for (header, message) in headers.iter_mut().zip(sends.messages) {
            header.fill(message, &sends.memory[message.contents()]);
            plain::send(send, header, message, calls);
        }
        for frame in writes.messages {
            plain::write(tun, &writes.memory[frame.contents()], frame, calls);
        }
    }

    /// Returns how many system calls were made since the last call of this function.
    pub fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }

    /// Marks the ring as broken until all requests are submitted.
    fn begin(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.is_broken, true) {
            return Err(io::Error::other(BrokenRing));
        }
        Ok(())
    }

    fn push_messages(&mut self, sends: &Batch<'_>, writes: &Batch<'_>) -> io::Result<()> {
        // The kernel reports only the failures of these requests.
        let quiet = |entry: Entry, kind: u64, number: usize| {
            entry.flags(Flags::SKIP_SUCCESS).user_data(kind << 56 | number as u64)
        };
        for (number, message) in sends.messages.iter().enumerate() {
            self.headers[number].fill(message, &sends.memory[message.contents()]);
            let header = &raw const self.headers[number].header;
            let send = opcode::SendMsg::new(SEND, header).flags(libc::MSG_DONTWAIT.cast_unsigned());
            self.push(&quiet(send.build(), KIND_SEND, number))?;
        }
        for (number, frame) in writes.messages.iter().enumerate() {
            let bytes = &writes.memory[frame.contents()];
            let length = u32::try_from(bytes.len()).unwrap_or(0);
            let write = opcode::Write::new(TUN, bytes.as_ptr(), length).offset(u64::MAX);
            self.push(&quiet(write.rw_flags(libc::RWF_NOWAIT).build(), KIND_WRITE, number))?;
        }
        Ok(())
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        // SAFETY: the function that pushes the entry borrows the messages, headers or buffers that
        // it points to until its call of `enter` has returned. By then the kernel has executed the
        // request, which may not wait, or the ring has failed and is never entered again.
        unsafe { self.io.submission().push(entry) }
            .map_err(|_| io::Error::other("more requests than a ring has entries"))
    }

    /// Submits all requests that were pushed, and takes all results.
    fn enter(&mut self, results: &mut Results<'_>) -> io::Result<()> {
        let mut retries = 0;
        while !self.io.submission().is_empty() {
            self.calls += 1;
            let result = self.io.submit();
            while let Some(entry) = self.completion() {
                results.take(&entry);
            }
            match result {
                Ok(_) => {}
                // A signal, too little memory, or a full completion ring, which is empty by now.
                Err(error) if is_temporary(&error) && retries < MAX_RETRIES => retries += 1,
                Err(error) => return Err(error),
            }
        }
        self.is_broken = false;
        Ok(())
    }

    fn completion(&mut self) -> Option<cqueue::Entry> {
        self.io.completion().next()
    }
}

impl Drop for Ring {
    /// Gives the files back at once. The kernel closes a ring some milliseconds after its last
    /// descriptor, and the sockets would keep their port in use until then.
    fn drop(&mut self) {
        // Nothing can be done about a ring that is broken: the kernel closes it later.
        let _ = self.io.submitter().unregister_files();
    }
}

impl Results<'_> {
    fn take(&mut self, entry: &cqueue::Entry) {
        let (kind, number) = (entry.user_data() >> 56, (entry.user_data() & 0xffff_ffff) as usize);
        let result = entry.result();
        match kind {
            KIND_SEND => self.sends[number].errno = -result.min(0),
            KIND_WRITE => self.writes[number].errno = -result.min(0),
            _ => {
                if let Some(buffers) = &mut self.buffers {
                    buffers.set_result(kind == KIND_READ, number, result);
                }
            }
        }
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

// SAFETY: the pointers in `headers` are written and used within one call that borrows the ring. No
// code uses them between two calls, so they may move to another thread with the ring.
unsafe impl Send for Ring {}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.io.as_raw_fd()
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("calls", &self.calls).finish_non_exhaustive()
    }
}
