//! An io_uring that owns what the kernel looks at: blocks go in with [`Ring::send`] and [`Ring::write`] and come out of
//! [`Ring::returned`]; what was received is lent out as a [`Filled`] buffer, and given back.
//!
//! One thread, one ring: reads of the TUN and receives are multishot requests over rings of provided buffers, armed once;
//! sends and writes are single requests, never linked, which the kernel does in the order in which they were pushed, while
//! they are submitted (DATAPLANE.md §4.4). It decides nothing: results are handed to the worker.
//!
//! Invariant: no memory that the kernel may touch is freed before the kernel is done with it: blocks in flight lie in
//! `slots`, buffers are held beside those who read them, and [`Drop`] cancels and drains before it lets go of either.
//! Sources: io_uring(7), io_uring_setup(2), io_uring_register_buf_ring(3), io_uring_prep_recvmsg_multishot(3).

mod buffers;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fixed, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, types};

use super::block::{Block, MAX_PARTS};
use super::message::{CONTROL_LEN, NAME_LEN, Name, Outgoing, controls};
use crate::packet::Train;
use crate::packet::ecn::Ecn;
use buffers::Shared;
pub use buffers::{Buffers, Filled};

/// Requests that may wait for submission: a block's parts, and the requests that stay armed.
const ENTRIES: u32 = 512;
/// Completions that may wait to be seen. Beyond it the kernel keeps them for us (IORING_FEAT_NODROP).
const COMPLETIONS: u32 = 4096;
const _: () = assert!(MAX_PARTS < ENTRIES as usize);
/// Blocks in flight at most.
pub const SLOTS: usize = 16;
/// Buffers for reads of the TUN.
const TUN_BUFFERS: u16 = 16;
/// Buffers for receives: more, because without GRO each holds one datagram.
const UDP_BUFFERS: u16 = 64;
/// In front of what was received: the kernel's own header, the sender, control messages.
const HEAD: usize = 16 + NAME_LEN + CONTROL_LEN;
const UDP_BUFFER: usize = (HEAD + 65_536).next_multiple_of(64);

/// The descriptors of a ring, by their place in its table.
const TUN: Fixed = Fixed(0);
const RECEIVE: Fixed = Fixed(1);
const SEND: Fixed = Fixed(2);
const STOP: Fixed = Fixed(3);
/// The groups of provided buffers.
const FRAMES: u16 = 0;
const MESSAGES: u16 = 1;

/// What a request is, in the top byte of its `user_data`; below it, slot and part.
const KIND_TUN: u64 = 1;
const KIND_RECEIVE: u64 = 2;
const KIND_STOP: u64 = 3;
const KIND_CANCEL: u64 = 4;
const KIND_SEND: u64 = 5;
const KIND_WRITE: u64 = 6;

/// What happened.
#[derive(Debug)]
pub enum Completion {
    /// The TUN gave a frame.
    TunRead(Filled),
    /// The socket gave a message.
    UdpReceived(Filled),
    /// Somebody asked us to stop.
    Stop,
    /// A multishot request ended for lack of a buffer. It was armed again.
    Exhausted,
    /// Reading the TUN failed, for good.
    TunFailed(io::Error),
    /// A receive failed; receiving was armed again.
    ReceiveFailed(io::Error),
}

/// A block that came back, with a result in each part.
#[derive(Debug)]
pub enum Returned {
    /// From [`Ring::send`].
    Sent(Block),
    /// From [`Ring::write`].
    Written(Block),
}

/// Where a block waits while its parts are with the kernel.
struct Slot {
    block: Option<Block>,
    pending: usize,
    /// Headers of its messages, made once and never moved.
    headers: Box<[Outgoing]>,
}

/// The ring of one worker.
pub struct Ring {
    io: IoUring,
    /// What the kernel fills, until it has been told to stop.
    shared: [Rc<Shared>; 2],
    /// Says how the receive buffers are laid out. The kernel reads it whenever receiving is armed.
    template: Box<libc::msghdr>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Parts with the kernel.
    in_flight: usize,
    ready: VecDeque<Completion>,
    returned: VecDeque<Returned>,
    tun_armed: bool,
    udp_armed: bool,
    stop_armed: bool,
    /// System calls made.
    calls: u64,
}

/// Says whether this process may use all that a [`Ring`] needs, without keeping anything.
pub fn probe() -> io::Result<()> {
    let io = build()?;
    let mut probe = Probe::new();
    io.submitter().register_probe(&mut probe)?;
    let needed = [opcode::ReadMulti::CODE, opcode::RecvMsg::CODE, opcode::SendMsg::CODE, opcode::Write::CODE];
    if needed.iter().all(|code| probe.is_supported(*code)) {
        // Every kernel with multishot reads (6.7) has the other multishot requests and buffer rings.
        Ok(())
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// With the cheapest way of completion that the kernel knows (6.1, 5.19, before).
fn build() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETIONS).setup_single_issuer().setup_defer_taskrun();
    builder.build(ENTRIES).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => {
            let mut builder = IoUring::builder();
            builder.setup_cqsize(COMPLETIONS).setup_coop_taskrun();
            builder.build(ENTRIES)
        }
        _ => Err(error),
    })
}

impl Ring {
    /// Makes a ring for the calling thread over a TUN queue, a receiving and a sending socket, and an event to stop by;
    /// and the buffers for frames, of `frame` bytes, and for messages. Nothing happens before the first [`Ring::turn`].
    pub fn new(
        [tun, receive, send, stop]: [BorrowedFd<'_>; 4],
        frame: usize,
    ) -> io::Result<(Self, Buffers, Buffers)> {
        let io = build()?;
        let fds = [tun, receive, send, stop].map(|fd| fd.as_raw_fd());
        io.submitter().register_files(&fds)?;
        let frames = Buffers::new(&io, FRAMES, TUN_BUFFERS, frame)?;
        let messages = Buffers::new(&io, MESSAGES, UDP_BUFFERS, UDP_BUFFER)?;
        // SAFETY: a msghdr is made of plain integers and pointers, for which zero is a value.
        let mut template: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        template.msg_namelen = libc::socklen_t::try_from(NAME_LEN).unwrap_or(0);
        template.msg_controllen = CONTROL_LEN as _;
        let slot =
            || Slot { block: None, pending: 0, headers: (0..MAX_PARTS).map(|_| Outgoing::empty()).collect() };
        let mut ring = Self {
            io,
            shared: [frames.shared(), messages.shared()],
            template,
            slots: (0..SLOTS).map(|_| slot()).collect(),
            free: (0..SLOTS).collect(),
            in_flight: 0,
            ready: VecDeque::with_capacity(COMPLETIONS as usize),
            returned: VecDeque::with_capacity(SLOTS),
            tun_armed: false,
            udp_armed: false,
            stop_armed: true,
            calls: 0,
        };
        let stop = opcode::PollAdd::new(STOP, libc::POLLIN as _).build().user_data(KIND_STOP << 56);
        ring.push(&stop)?;
        Ok((ring, frames, messages))
    }

    /// Submits what was pushed, and waits until something has happened. What was submitted counts: sends and writes are
    /// done by then, and one that was refused must not lie until the next packet comes.
    pub fn turn(&mut self) -> io::Result<()> {
        self.arm()?;
        let something_is_ready = !self.ready.is_empty() || !self.returned.is_empty();
        let want = if something_is_ready { 0 } else { self.in_flight.max(1) };
        self.enter(want)
    }

    /// Submits what was pushed, without waiting.
    pub fn submit(&mut self) -> io::Result<()> {
        self.enter(0)
    }

    /// Waits until a block has come back. There must be one in flight.
    pub fn reclaim(&mut self) -> io::Result<()> {
        while self.returned.is_empty() && self.in_flight > 0 {
            self.enter(1)?;
        }
        Ok(())
    }

    /// The next thing that happened, in order.
    pub fn completion(&mut self) -> Option<Completion> {
        self.ready.pop_front()
    }

    /// The next block that came back.
    pub fn returned(&mut self) -> Option<Returned> {
        self.returned.pop_front()
    }

    /// System calls since the last question.
    pub fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }

    /// Sends the parts of a block, each as one message. At most [`SLOTS`] blocks may be on their way.
    pub fn send(&mut self, block: Block) -> io::Result<()> {
        self.lend(block, KIND_SEND)
    }

    /// Writes the parts of a block to the TUN, each as one frame. Likewise.
    pub fn write(&mut self, block: Block) -> io::Result<()> {
        self.lend(block, KIND_WRITE)
    }

    fn lend(&mut self, block: Block, kind: u64) -> io::Result<()> {
        let index = self.free.pop().ok_or_else(|| io::Error::from(io::ErrorKind::WouldBlock))?;
        let count = block.parts().len();
        let slot = &mut self.slots[index];
        slot.pending = count;
        slot.block = Some(block);
        self.in_flight += count;
        for part in 0..count {
            let entry =
                self.entry(index, part, kind).user_data(kind << 56 | (index as u64) << 32 | part as u64);
            self.push(&entry)?;
        }
        if count == 0 {
            self.give_back(index, kind);
        }
        Ok(())
    }

    fn entry(&mut self, slot: usize, part: usize, kind: u64) -> Entry {
        let Slot { block, headers, .. } = &mut self.slots[slot];
        let Some(block) = block else { return opcode::Nop::new().build() };
        let (described, bytes) = (&block.parts()[part], block.bytes(&block.parts()[part]));
        if kind == KIND_SEND {
            headers[part].fill(described, bytes);
            opcode::SendMsg::new(SEND, &raw const headers[part].header).build()
        } else {
            let length = u32::try_from(bytes.len()).unwrap_or(0);
            // The offset of a file without a position.
            opcode::Write::new(TUN, bytes.as_ptr(), length).offset(u64::MAX).build()
        }
    }

    /// Arms what is not armed: at the start, and after a multishot request ended.
    fn arm(&mut self) -> io::Result<()> {
        if !self.tun_armed {
            // The crate's `build` sets the flags anew and loses that the descriptor is a registered one.
            let read = opcode::ReadMulti::new(TUN, 0, FRAMES).offset(u64::MAX).build();
            self.push(&read.flags(Flags::FIXED_FILE).user_data(KIND_TUN << 56))?;
            self.tun_armed = true;
        }
        if !self.udp_armed {
            let receive = opcode::RecvMsgMulti::new(RECEIVE, &raw const *self.template, MESSAGES);
            self.push(&receive.build().user_data(KIND_RECEIVE << 56))?;
            self.udp_armed = true;
        }
        Ok(())
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        loop {
            // SAFETY: what the entry points to is owned by the ring: blocks and headers in `slots` until their completion,
            // `template` and the buffers until `drop` has cancelled and drained.
            if unsafe { self.io.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.enter(0)?;
        }
    }

    /// Submits what was pushed, waits for `want` completions, and takes them all.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        // Who waits for the end of sends must not sleep for ever if one were never to end.
        self.enter_within(want, self.in_flight > 0)
    }

    fn enter_within(&mut self, want: usize, impatient: bool) -> io::Result<()> {
        self.calls += 1;
        let patience = Timespec::new().nsec(200_000_000);
        let result = match want {
            0 => self.io.submit(),
            want if impatient => {
                let arguments = types::SubmitArgs::new().timespec(&patience);
                self.io.submitter().submit_with_args(want, &arguments)
            }
            want => self.io.submit_and_wait(want),
        };
        match result.map_err(|error| error.raw_os_error()) {
            Ok(_) => {}
            // Time, a signal, and a completion ring that overflowed: there is something to take, or nothing happened.
            Err(Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(errno) => return Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO))),
        }
        loop {
            let Some(entry) = self.io.completion().next() else { return Ok(()) };
            self.take(&entry);
        }
    }

    fn take(&mut self, entry: &cqueue::Entry) {
        let (kind, result) = (entry.user_data() >> 56, entry.result());
        match kind {
            KIND_TUN | KIND_RECEIVE => self.take_shot(kind, entry),
            KIND_STOP => {
                self.stop_armed = false;
                self.ready.push_back(Completion::Stop);
            }
            KIND_SEND | KIND_WRITE => {
                let index = (entry.user_data() >> 32 & 0xff_ffff) as usize;
                let part = (entry.user_data() & 0xffff_ffff) as usize;
                let slot = &mut self.slots[index];
                if let Some(block) = &mut slot.block {
                    block.settle(part, -result.min(0));
                }
                slot.pending -= 1;
                self.in_flight -= 1;
                if slot.pending == 0 {
                    self.give_back(index, kind);
                }
            }
            _ => {}
        }
    }

    fn give_back(&mut self, index: usize, kind: u64) {
        if let Some(block) = self.slots[index].block.take() {
            let returned = if kind == KIND_SEND { Returned::Sent(block) } else { Returned::Written(block) };
            self.returned.push_back(returned);
        }
        self.free.push(index);
    }

    /// One result of a multishot request.
    fn take_shot(&mut self, kind: u64, entry: &cqueue::Entry) {
        let is_tun = kind == KIND_TUN;
        if !cqueue::more(entry.flags()) {
            // Armed again at the next turn, when buffers have come back.
            *(if is_tun { &mut self.tun_armed } else { &mut self.udp_armed }) = false;
        }
        let completion = match (usize::try_from(entry.result()), cqueue::buffer_select(entry.flags())) {
            (Ok(length), Some(id)) if is_tun => Completion::TunRead(Buffers::filled(FRAMES, id, length)),
            (Ok(length), Some(id)) => Completion::UdpReceived(Buffers::filled(MESSAGES, id, length)),
            // A result without a buffer brings nothing: the request has ended.
            (Ok(_), None) => return,
            (Err(_), _) => {
                let error = io::Error::from_raw_os_error(-entry.result());
                match error.raw_os_error() {
                    Some(libc::ENOBUFS) => Completion::Exhausted,
                    Some(libc::EAGAIN | libc::EINTR | libc::ECANCELED) => return,
                    _ if is_tun => Completion::TunFailed(error),
                    _ => Completion::ReceiveFailed(error),
                }
            }
        };
        self.ready.push_back(completion);
    }

    /// The message in a buffer: who sent it, and the train that it is. `None` if the kernel's own header is not whole.
    #[must_use]
    pub fn message<'b>(
        &self,
        messages: &'b Buffers,
        filled: &Filled,
    ) -> Option<(SocketAddr, Ecn, Train<'b>)> {
        let whole = messages.bytes(filled);
        let out = types::RecvMsgOut::parse(whole, &self.template).ok()?;
        let bytes = whole.get(HEAD..HEAD + out.payload_data().len())?;
        let (stride, ecn) = controls(out.control_data());
        let train = Train { bytes, stride: stride.unwrap_or(bytes.len()).max(1) };
        Some((Name::parse(out.name_data())?, ecn, train))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(KIND_CANCEL << 56);
        let is_idle =
            |ring: &Self| !(ring.tun_armed || ring.udp_armed || ring.stop_armed) && ring.in_flight == 0;
        let mut told = self.push(&cancel);
        for _ in 0..10 {
            if told.is_err() || is_idle(self) {
                break;
            }
            told = self.enter_within(1, true);
        }
        // Closes our hold on the descriptors now; the kernel closes the ring itself a moment after its end.
        let _ = self.io.submitter().unregister_files();
        if !is_idle(self) {
            // Better lost than written to by the kernel after somebody else has got it.
            self.shared.iter().for_each(|shared| std::mem::forget(shared.clone()));
            std::mem::forget(std::mem::take(&mut self.slots));
            // SAFETY: a msghdr is made of plain integers and pointers, for which zero is a value.
            let empty = Box::new(unsafe { std::mem::zeroed() });
            std::mem::forget(std::mem::replace(&mut self.template, empty));
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::super::block::Part;
    use super::super::{Event, udp};
    use super::*;

    /// A socket stands for the TUN: the ring does not know the difference.
    struct Ends {
        tun: UnixDatagram,
        pod: UnixDatagram,
        socket: UdpSocket,
        stop: Event,
    }

    fn ends() -> Ends {
        let (tun, pod) = UnixDatagram::pair().expect("a pair");
        tun.set_nonblocking(true).expect("non-blocking");
        pod.set_nonblocking(true).expect("non-blocking");
        let socket = udp::bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        udp::receive_trains(&socket).expect("UDP_GRO");
        Ends { tun, pod, socket, stop: Event::new().expect("an eventfd") }
    }

    fn ring(ends: &Ends) -> (Ring, Buffers, Buffers) {
        let fds = [ends.tun.as_fd(), ends.socket.as_fd(), ends.socket.as_fd(), ends.stop.as_fd()];
        Ring::new(fds, 2048).expect("io_uring")
    }

    fn write(at: usize, len: usize) -> Part {
        Part::frame(at, len, 1, 0)
    }

    #[test]
    fn blocks_come_back_with_a_result_for_each_part() {
        let ends = ends();
        let (mut ring, _frames, messages) = ring(&ends);
        let to = ends.socket.local_addr().expect("bound");
        let mut block = Block::new(vec![7; 200_000].into());
        // A train, one that no send takes, and a single one.
        for (len, stride) in [(10_000, 1000), (70_000, 1000), (500, 500)] {
            block.push(Part::train(0, len, stride, to));
        }
        ring.send(block).expect("pushed");
        let mut block = Block::new((0..200).collect());
        (0..200).for_each(|n| block.push(write(n, 1)));
        ring.write(block).expect("pushed");

        let (mut sent, mut written, mut trains) = (None, None, Vec::new());
        while sent.is_none() || written.is_none() || trains.len() < 2 {
            ring.turn().expect("a turn");
            while let Some(returned) = ring.returned() {
                match returned {
                    Returned::Sent(block) => sent = Some(block),
                    Returned::Written(block) => written = Some(block),
                }
            }
            while let Some(completion) = ring.completion() {
                let Completion::UdpReceived(filled) = completion else { panic!("{completion:?}") };
                let (from, _, train) = ring.message(&messages, &filled).expect("whole");
                assert_eq!(from, to);
                trains.push((train.bytes.len(), train.stride));
            }
        }
        let errors = |block: Option<Block>| -> Vec<i32> {
            block.expect("it came back").parts().iter().map(|part| part.errno).collect()
        };
        assert_eq!(errors(sent), [0, libc::EMSGSIZE, 0]);
        assert_eq!(trains, [(10_000, 1000), (500, 500)], "one message a train");
        let written = errors(written);
        // A socket pair takes a few; the rest says so, and what was taken kept its order.
        let taken = written.iter().filter(|errno| **errno == 0).count();
        assert!(taken > 0 && written.iter().all(|errno| matches!(*errno, 0 | libc::EAGAIN)), "{written:?}");
        for n in 0..taken {
            let mut byte = [0];
            ends.pod.recv(&mut byte).expect("it was written");
            assert_eq!(usize::from(byte[0]), n);
        }
    }

    #[test]
    fn a_ring_that_ends_leaves_nothing_with_the_kernel() {
        let ends = ends();
        for _ in 0..20 {
            let (mut ring, frames, messages) = ring(&ends);
            ends.pod.send(b"a frame that nobody takes").expect("sent");
            ring.turn().expect("armed");
            // Pushed and not submitted.
            let mut block = Block::new(vec![7; 1000].into());
            block.push(Part::train(0, 1000, 100, ends.socket.local_addr().expect("bound")));
            ring.send(block).expect("pushed");
            // Buffers may go first: the ring holds what the kernel knows of them.
            drop((frames, messages));
            drop(ring);
            // Nobody reads for us any more.
            ends.pod.send(b"for the next").expect("sent");
            let mut buffer = [0; 100];
            assert_eq!(ends.tun.recv(&mut buffer).expect("still there"), 12);
            while ends.socket.recv(&mut buffer).is_ok() {}
        }
    }

    #[test]
    fn a_stop_is_seen_while_the_ring_sleeps() {
        let ends = ends();
        let (mut ring, ..) = ring(&ends);
        std::thread::scope(|scope| {
            scope.spawn(|| ends.stop.give());
            ring.turn().expect("woken");
        });
        assert!(matches!(ring.completion(), Some(Completion::Stop)));
    }
}
