//! The ring against real sockets: kernel contracts, single system calls, and a ring that is broken.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use super::super::udp;
use super::*;

/// A socket replaces the TUN: the ring does not notice the difference.
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

fn errors(messages: &[Message]) -> Vec<i32> {
    messages.iter().map(|message| message.errno).collect()
}

/// Kernel contract: requests that may not wait are finished when the system call returns, in their
/// order, and a failed request does not stop the others.
#[test]
fn each_message_has_its_result_after_the_call() {
    let ends = ends();
    let (mut ring, mut buffers) = (ring(&ends), Buffers::new(2048));
    let to = ends.socket.local_addr().expect("bound");
    let memory = vec![7; 200_000];
    // A train, a train that is too long for any send, and a single datagram.
    let mut sends =
        [(10_000, 1000), (70_000, 1000), (500, 500)].map(|(len, size)| Message::train(0, len, size, to));
    let bytes: Vec<u8> = (0..200).collect();
    let mut writes: Vec<Message> = (0..200).map(|n| Message::frame(n, 1)).collect();
    for n in 0..5 {
        ends.pod.send(&[n; 100]).expect("sent");
    }
    let (send, write) =
        (Batch { memory: &memory, messages: &mut sends }, Batch { memory: &bytes, messages: &mut writes });
    ring.submit(send, write).expect("submitted");
    ring.receive(&mut buffers, [8, 3]).expect("received");
    assert_eq!(errors(&sends), [0, libc::EMSGSIZE, 0]);
    // A socket pair takes a few messages. The others have an error, and those that it took are in
    // order.
    let written = errors(&writes);
    let taken = written.iter().filter(|errno| **errno == 0).count();
    assert!(taken > 0 && written.iter().all(|errno| matches!(*errno, 0 | libc::EAGAIN)), "{written:?}");
    for n in 0..taken {
        let mut byte = [0];
        ends.pod.recv(&mut byte).expect("it was written");
        assert_eq!(usize::from(byte[0]), n);
    }
    let messages = buffers.messages_received().map(|message| message.expect("received"));
    let messages: Vec<_> = messages.map(|got| (got.from, got.train.bytes.len(), got.train.stride)).collect();
    assert_eq!(messages, [(Some(to), 10_000, 1000), (Some(to), 500, 500)], "one message a train");
    let frames = buffers.frames_read().map(|frame| frame.expect("read"));
    let frames: Vec<_> = frames.map(|frame| (frame.len(), frame[0])).collect();
    assert_eq!(frames, [(100, 0), (100, 1), (100, 2), (100, 3), (100, 4)]);
    assert_eq!(ring.take_calls(), 2);

    // Without requests there is no system call, and empty queues yield nothing.
    ring.submit(Batch::default(), Batch::default()).expect("nothing");
    assert_eq!(ring.take_calls(), 0);
    ring.receive(&mut buffers, [MAX_SINGLE_CALLS, 1]).expect("a turn");
    assert_eq!(
        (buffers.frames_read().count(), buffers.messages_received().count(), ring.take_calls()),
        (0, 0, 1)
    );
}

/// A single packet passes by plain system calls, with the same results.
#[test]
fn few_requests_use_single_system_calls() {
    let ends = ends();
    let (mut ring, mut buffers) = (ring(&ends), Buffers::new(2048));
    let to = ends.socket.local_addr().expect("bound");
    let memory = vec![7; 200_000];
    let mut sends = [Message::train(0, 70_000, 1000, to), Message::train(0, 2500, 1000, to)];
    let batch = Batch { memory: &memory, messages: &mut sends };
    ring.submit(batch, Batch::default()).expect("sent");
    assert_eq!((errors(&sends), ring.take_calls()), (vec![libc::EMSGSIZE, 0], 2));
    ends.pod.send(&[8; 100]).expect("sent");
    ring.receive(&mut buffers, [1, 1]).expect("a turn");
    let trains: Vec<_> =
        buffers.messages_received().map(|message| message.expect("received").train).collect();
    assert_eq!((trains.len(), trains[0].bytes.len(), trains[0].stride), (1, 2500, 1000));
    assert_eq!(buffers.frames_read().map(|frame| frame.expect("read").len()).collect::<Vec<_>>(), [100]);
    let mut writes = [Message::frame(0, 10)];
    let batch = Batch { memory: &[9; 10], messages: &mut writes };
    ring.submit(Batch::default(), batch).expect("written");
    ring.receive(&mut buffers, [1, 0]).expect("a turn");
    assert_eq!((errors(&writes), buffers.frames_read().count()), (vec![0], 0), "an empty queue is no error");
    assert_eq!(ends.pod.recv(&mut [0; 100]).expect("written"), 10);
    assert_eq!(ring.take_calls(), 2 + 2);
}

#[test]
fn dropped_ring_leaves_no_request() {
    let ends = ends();
    for _ in 0..20 {
        let mut ring = ring(&ends);
        let mut buffers = Buffers::new(2048);
        ring.receive(&mut buffers, [4, 4]).expect("a turn");
        drop((ring, buffers));
        // The kernel has no read request left that would take this.
        ends.pod.send(b"for the next").expect("sent");
        assert_eq!(ends.tun.recv(&mut [0; 100]).expect("still there"), 12);
    }
}

/// The descriptor of the ring is replaced by another file.
#[test]
fn broken_ring_is_never_used_again() {
    let ends = ends();
    let mut ring = ring(&ends);
    let null = std::fs::File::open("/dev/null").expect("it is there");
    // SAFETY: both descriptors are open; the ring goes on to own the second number.
    assert!(unsafe { libc::dup2(null.as_raw_fd(), ring.as_raw_fd()) } >= 0);
    let to = ends.socket.local_addr().expect("bound");
    let mut sends: Vec<Message> =
        (0..=MAX_SINGLE_CALLS).map(|n| Message::train(100 * n, 100, 100, to)).collect();
    let batch = Batch { memory: &[7; 1000], messages: &mut sends };
    let error = ring.submit(batch, Batch::default()).expect_err("broken");
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    let mut buffers = Buffers::new(2048);
    let error = ring.receive(&mut buffers, [MAX_SINGLE_CALLS, MAX_SINGLE_CALLS]).expect_err("still broken");
    let is_ring_error = error.get_ref().is_some_and(|error| error.is::<BrokenRing>());
    assert!(is_ring_error, "the ring refuses, and the kernel is not asked: {error}");
}
