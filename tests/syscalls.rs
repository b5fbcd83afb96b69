//! An engine in this process: it makes few system calls for many packets, allocates nothing, and
//! reports a broken ring.
//!
//! The test is alone in its binary, because the allocator counts for the whole process.

#[path = "support/counting.rs"]
mod counting;
mod support;

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::time::Duration;

use counting::allocations;
use etherparse::PacketBuilder;
use hopsack::engine::{Engine, EngineView, Io, WorkerError};
use support::eventually;
use support::host::{Host, OPTIONS, host, table};

/// Packets that wait in each queue: a TUN holds 500.
const BACKLOG: u64 = 480;

/// Fills the queues of both directions.
fn fill(host: &Host, inner: &[u8]) {
    let (pod, ours) = (SocketAddr::from(([10, 1, 2, 9], 7)), SocketAddr::from(([127, 0, 0, 1], 8285)));
    for _ in 0..BACKLOG {
        host.pods.send_to(&[7; 64], pod).expect("sent");
        host.peer.send_to(inner, ours).expect("sent");
    }
}

/// Packets in each direction, and system calls.
fn counts(view: &EngineView) -> [u64; 3] {
    let counters = &view.accounts()[0].counters;
    [counters.egress.packets.get(), counters.ingress.packets.get(), counters.system_calls.get()]
}

#[test]
fn turns_make_few_calls_and_no_allocation() {
    let mut inner = Vec::new();
    let builder = PacketBuilder::ipv4([10, 1, 2, 9], [10, 1, 1, 1], 64).udp(7, 7000);
    builder.write(&mut inner, &[7; 64]).expect("fits");
    let host = host("turns");

    // Packets of 64 bytes that wait in the queues before the engine starts: one system call moves
    // many of them.
    fill(&host, &inner);
    let (queue_io, ring) = (host.queue_io(), host.queue_io.ring().expect("io_uring"));
    let ring_descriptor = ring.as_raw_fd();
    let (failure, failed) = mpsc::channel();
    let engine = Engine::start(Io::Uring(vec![(queue_io, ring)]), OPTIONS, table(), move |error| {
        let _ = failure.send(error);
    });
    let engine = engine.expect("started");
    let view = engine.view();
    let has_moved = |count| {
        let [egress, ingress, _] = counts(&view);
        egress >= count && ingress >= count
    };
    eventually("the backlog has been moved", || has_moved(BACKLOG));
    let [egress, ingress, calls] = counts(&view);
    let allowed = (egress + ingress) * 11 / 160 + 8;
    assert!(calls <= allowed, "{calls} system calls for {egress} and {ingress} packets");

    // The same again while the engine runs.
    let before = allocations();
    for round in 2..50 {
        fill(&host, &inner);
        while !has_moved(round * BACKLOG) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(allocations() - before, 0, "allocations in 46,000 packets");

    // The descriptor of the ring becomes another file.
    let null = File::open("/dev/null").expect("it is there");
    // SAFETY: both descriptors are open; the engine goes on to own the second number.
    assert!(unsafe { libc::dup2(null.as_raw_fd(), ring_descriptor) } >= 0);
    fill(&host, &inner);
    let error = failed.recv_timeout(Duration::from_secs(10)).expect("the failure is reported");
    assert!(matches!(error, WorkerError::System { call: "io_uring_enter", .. }), "{error}");
    engine.stop();
}
