//! An io_uring as one system call for many: all reads and receives in one io_uring_enter(2), all sends and writes in another.
//!
//! No request waits (MSG_DONTWAIT, RWF_NOWAIT), and none is linked: the kernel does them in their order while they are
//! submitted. So whatever a call is lent is the caller's again when it returns, nothing is ever under way between calls, and
//! the same few buffers, which stay in the cache, serve all turns. Of sends and writes only failures are told
//! (IOSQE_CQE_SKIP_SUCCESS). Sleeping is epoll(7)'s work: round trips were shorter by a tenth than with a ring that waits.
//!
//! Where there are few requests, as for a packet that comes alone, each is done by a system call of its own: these are
//! cheaper then than a ring is.
//!
//! It decides nothing: results are handed to the worker.
//!
//! Invariant: no request outlives the call of [`Ring::receive`] or [`Ring::submit`] that made it; one that could not be
//! submitted never is.
//! Sources: io_uring(7), io_uring_setup(2), io_uring_enter(2), DATAPLANE.md §3, §4.4.

mod buffers;
mod plain;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fixed;
use io_uring::{IoUring, Probe, cqueue, opcode};

use super::block::{Lot, MAX_PARTS, Part};
use super::message::Outgoing;
pub use buffers::{Buffers, MAX_FRAMES, MAX_MESSAGES};

/// Requests that may wait for submission: all of a turn.
const ENTRIES: u32 = 1024;
const _: () = assert!(2 * MAX_PARTS + MAX_FRAMES + MAX_MESSAGES <= ENTRIES as usize);

/// The descriptors of a ring, by their place in its table.
const TUN: Fixed = Fixed(0);
const RECEIVE: Fixed = Fixed(1);
const SEND: Fixed = Fixed(2);

/// What a request is, in the top byte of its `user_data`; below it, its number.
const KIND_READ: u64 = 1;
const KIND_RECEIVE: u64 = 2;
const KIND_SEND: u64 = 3;
const KIND_WRITE: u64 = 4;

/// Requests that are better done one by one.
const FEW: usize = 2;

/// System calls in a row that submit nothing, before the ring counts as broken: the kernel may be short of memory.
const TRIES: u32 = 100;

/// What the kernel answers to.
struct Answers<'a> {
    sends: &'a mut [Part],
    writes: &'a mut [Part],
    buffers: Option<&'a mut Buffers>,
}

/// The ring of one worker.
pub struct Ring {
    io: IoUring,
    /// TUN, receiving and sending socket.
    files: [OwnedFd; 3],
    /// Headers of the messages of a lot.
    headers: Box<[Outgoing]>,
    /// A call failed. What it left unsubmitted points to memory that is no longer lent.
    is_broken: bool,
    /// System calls made.
    calls: u64,
}

/// Says whether this process may use all that a [`Ring`] needs, without keeping anything.
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
    /// Makes a ring over a TUN queue, a receiving and a sending socket.
    pub fn new([tun, receive, send]: [BorrowedFd<'_>; 3]) -> io::Result<Self> {
        let io = build()?;
        io.submitter().register_files(&[tun, receive, send].map(|fd| fd.as_raw_fd()))?;
        let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
        Ok(Self {
            io,
            files: [own(tun)?, own(receive)?, own(send)?],
            headers: (0..MAX_PARTS).map(|_| Outgoing::empty()).collect(),
            is_broken: false,
            calls: 0,
        })
    }

    /// Reads up to `frames` frames and receives up to `messages` messages into `buffers`.
    pub fn receive(&mut self, buffers: &mut Buffers, [frames, messages]: [usize; 2]) -> io::Result<()> {
        buffers.clear(frames, messages);
        if frames + messages <= FEW {
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
        self.enter(&mut Answers { sends: &mut [], writes: &mut [], buffers: Some(buffers) })
    }

    /// Sends and writes.
    pub fn submit(&mut self, sends: Lot<'_>, writes: Lot<'_>) -> io::Result<()> {
        if sends.parts.len() + writes.parts.len() <= FEW {
            self.one_by_one(sends, writes);
            return Ok(());
        }
        self.begin()?;
        self.push_parts(&sends, &writes)?;
        self.enter(&mut Answers { sends: sends.parts, writes: writes.parts, buffers: None })
    }

    fn one_by_one(&mut self, sends: Lot<'_>, writes: Lot<'_>) {
        let Self { files: [tun, _, send], headers, calls, .. } = self;
        for (header, part) in headers.iter_mut().zip(sends.parts) {
            header.fill(part, &sends.memory[part.at..part.at + part.len]);
            plain::send(send, header, part, calls);
        }
        for part in writes.parts {
            plain::write(tun, &writes.memory[part.at..part.at + part.len], part, calls);
        }
    }

    /// System calls since the last question.
    pub fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }

    /// It counts as broken until all has been submitted.
    fn begin(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.is_broken, true) {
            return Err(io::Error::other("the ring has failed before"));
        }
        Ok(())
    }

    fn push_parts(&mut self, sends: &Lot<'_>, writes: &Lot<'_>) -> io::Result<()> {
        // What only failures are told of.
        let quiet = |entry: Entry, kind: u64, number: usize| {
            entry.flags(Flags::SKIP_SUCCESS).user_data(kind << 56 | number as u64)
        };
        for (number, part) in sends.parts.iter().enumerate() {
            self.headers[number].fill(part, &sends.memory[part.at..part.at + part.len]);
            let header = &raw const self.headers[number].header;
            let send = opcode::SendMsg::new(SEND, header).flags(libc::MSG_DONTWAIT.cast_unsigned());
            self.push(&quiet(send.build(), KIND_SEND, number))?;
        }
        for (number, part) in writes.parts.iter().enumerate() {
            let bytes = &writes.memory[part.at..part.at + part.len];
            let length = u32::try_from(bytes.len()).unwrap_or(0);
            let write = opcode::Write::new(TUN, bytes.as_ptr(), length).offset(u64::MAX);
            self.push(&quiet(write.rw_flags(libc::RWF_NOWAIT).build(), KIND_WRITE, number))?;
        }
        Ok(())
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        // SAFETY: what the entry points to, parts of a lot, their headers, and buffers, is borrowed by the function that
        // pushes it until its call of `enter` has returned: by then the kernel has done the request, which may not wait,
        // or the ring has failed and is never entered again.
        unsafe { self.io.submission().push(entry) }
            .map_err(|_| io::Error::other("more requests than a ring has entries"))
    }

    /// Submits all that was pushed, and takes all answers.
    fn enter(&mut self, answers: &mut Answers<'_>) -> io::Result<()> {
        let mut tries = 0;
        while !self.io.submission().is_empty() {
            self.calls += 1;
            let result = self.io.submit();
            while let Some(entry) = self.answer() {
                answers.take(&entry);
            }
            match result {
                Ok(_) => {}
                // A signal, too little memory, and a completion ring that overflowed: it has room again.
                Err(error) if is_passing(&error) && tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
        self.is_broken = false;
        Ok(())
    }

    fn answer(&mut self) -> Option<cqueue::Entry> {
        self.io.completion().next()
    }
}

impl Answers<'_> {
    fn take(&mut self, entry: &cqueue::Entry) {
        let (kind, number) = (entry.user_data() >> 56, (entry.user_data() & 0xffff_ffff) as usize);
        let result = entry.result();
        match kind {
            KIND_SEND => self.sends[number].errno = -result.min(0),
            KIND_WRITE => self.writes[number].errno = -result.min(0),
            _ => {
                if let Some(buffers) = &mut self.buffers {
                    buffers.settle(kind == KIND_READ, number, result);
                }
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

// SAFETY: the pointers in `headers` are written and used within one call that borrows the ring; none stands for anything
// between two calls, so that they may move to another thread with it.
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::super::block::{Block, Part};
    use super::super::udp;
    use super::*;

    /// A socket stands for the TUN: the ring does not know the difference.
    struct Ends {
        tun: UnixDatagram,
        pod: UnixDatagram,
        socket: UdpSocket,
    }

    fn ends() -> Ends {
        let (tun, pod) = UnixDatagram::pair().expect("a pair");
        tun.set_nonblocking(true).expect("non-blocking");
        pod.set_nonblocking(true).expect("non-blocking");
        let socket = udp::bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        udp::receive_trains(&socket).expect("UDP_GRO");
        Ends { tun, pod, socket }
    }

    fn ring(ends: &Ends) -> Ring {
        Ring::new([ends.tun.as_fd(), ends.socket.as_fd(), ends.socket.as_fd()]).expect("io_uring")
    }

    fn write(at: usize, len: usize) -> Part {
        Part::frame(at, len, 1, 0)
    }

    fn errors(block: &Block) -> Vec<i32> {
        block.parts().iter().map(|part| part.errno).collect()
    }

    /// Kernel contract: requests that may not wait are done when the system call returns, in their order, and one that
    /// failed takes none with it.
    #[test]
    fn each_part_is_done_or_has_its_error_when_the_turn_ends() {
        let ends = ends();
        let (mut ring, mut buffers) = (ring(&ends), Buffers::new(2048));
        let to = ends.socket.local_addr().expect("bound");
        let mut sends = Block::new(vec![7; 200_000].into());
        // A train, one that no send takes, and a single one.
        for (len, stride) in [(10_000, 1000), (70_000, 1000), (500, 500)] {
            sends.push(Part::train(0, len, stride, to));
        }
        let mut writes = Block::new((0..200).collect());
        (0..200).for_each(|n| writes.push(write(n, 1)));
        for n in 0..5 {
            ends.pod.send(&[n; 100]).expect("sent");
        }
        ring.submit(sends.lot(), writes.lot()).expect("submitted");
        ring.receive(&mut buffers, [8, 3]).expect("received");
        assert_eq!(errors(&sends), [0, libc::EMSGSIZE, 0]);
        // A socket pair takes a few; the rest says so, and what was taken kept its order.
        let written = errors(&writes);
        let taken = written.iter().filter(|errno| **errno == 0).count();
        assert!(taken > 0 && written.iter().all(|errno| matches!(*errno, 0 | libc::EAGAIN)), "{written:?}");
        for n in 0..taken {
            let mut byte = [0];
            ends.pod.recv(&mut byte).expect("it was written");
            assert_eq!(usize::from(byte[0]), n);
        }
        let messages = buffers.received().map(|message| message.expect("received"));
        let messages: Vec<_> =
            messages.map(|got| (got.from, got.train.bytes.len(), got.train.stride)).collect();
        assert_eq!(messages, [(Some(to), 10_000, 1000), (Some(to), 500, 500)], "one message a train");
        let frames = buffers.read().map(|frame| frame.expect("read"));
        let frames: Vec<_> = frames.map(|frame| (frame.len(), frame[0])).collect();
        assert_eq!(frames, [(100, 0), (100, 1), (100, 2), (100, 3), (100, 4)]);
        assert_eq!(ring.take_calls(), 2);

        // Nothing to do is no system call; nothing to read brings nothing.
        ring.submit(Lot::default(), Lot::default()).expect("nothing");
        assert_eq!(ring.take_calls(), 0);
        ring.receive(&mut buffers, [FEW, 1]).expect("a turn");
        assert_eq!((buffers.read().count(), buffers.received().count(), ring.take_calls()), (0, 0, 1));
    }

    /// What comes alone passes by plain system calls, with the same results.
    #[test]
    fn few_requests_are_done_one_by_one() {
        let ends = ends();
        let (mut ring, mut buffers) = (ring(&ends), Buffers::new(2048));
        let to = ends.socket.local_addr().expect("bound");
        let mut sends = Block::new(vec![7; 200_000].into());
        sends.push(Part::train(0, 70_000, 1000, to));
        sends.push(Part::train(0, 2500, 1000, to));
        ring.submit(sends.lot(), Lot::default()).expect("sent");
        assert_eq!((errors(&sends), ring.take_calls()), (vec![libc::EMSGSIZE, 0], 2));
        ends.pod.send(&[8; 100]).expect("sent");
        ring.receive(&mut buffers, [1, 1]).expect("a turn");
        let trains: Vec<_> = buffers.received().map(|message| message.expect("received").train).collect();
        assert_eq!((trains.len(), trains[0].bytes.len(), trains[0].stride), (1, 2500, 1000));
        assert_eq!(buffers.read().map(|frame| frame.expect("read").len()).collect::<Vec<_>>(), [100]);
        let mut writes = Block::new(vec![9; 10].into());
        writes.push(write(0, 10));
        ring.submit(Lot::default(), writes.lot()).expect("written");
        ring.receive(&mut buffers, [1, 0]).expect("a turn");
        assert_eq!(
            (errors(&writes), buffers.read().count()),
            (vec![0], 0),
            "and nothing to read is no error"
        );
        assert_eq!(ends.pod.recv(&mut [0; 100]).expect("written"), 10);
        assert_eq!(ring.take_calls(), 2 + 2);
    }

    #[test]
    fn a_ring_that_ends_leaves_nothing_with_the_kernel() {
        let ends = ends();
        for _ in 0..20 {
            let mut ring = ring(&ends);
            let mut buffers = Buffers::new(2048);
            ring.receive(&mut buffers, [4, 4]).expect("a turn");
            drop((ring, buffers));
            // Nobody reads for us any more.
            ends.pod.send(b"for the next").expect("sent");
            assert_eq!(ends.tun.recv(&mut [0; 100]).expect("still there"), 12);
        }
    }

    /// The descriptor of the ring is something else all of a sudden.
    #[test]
    fn a_broken_ring_says_so_and_is_never_used_again() {
        let ends = ends();
        let mut ring = ring(&ends);
        let null = std::fs::File::open("/dev/null").expect("it is there");
        // SAFETY: both descriptors are open; the ring goes on to own the second number.
        assert!(unsafe { libc::dup2(null.as_raw_fd(), ring.as_raw_fd()) } >= 0);
        let mut sends = Block::new(vec![7; 1000].into());
        let to = ends.socket.local_addr().expect("bound");
        (0..=FEW).for_each(|n| sends.push(Part::train(100 * n, 100, 100, to)));
        let error = ring.submit(sends.lot(), Lot::default()).expect_err("broken");
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        drop(sends);
        let mut buffers = Buffers::new(2048);
        let error = ring.receive(&mut buffers, [FEW, FEW]).expect_err("still broken");
        assert!(error.to_string().contains("failed before"), "{error}");
    }
}
