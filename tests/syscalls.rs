//! What the fast engines promise of a turn, counted with an engine in this process: few system calls for many packets, no
//! allocation, and an end that is told when its ring breaks. Alone in its binary, because the counting allocator counts for
//! the whole process.

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
use support::host::{Host, RULES, fib, host};

/// Packets that stand in a queue at once: a TUN holds 500.
const BACKLOG: u64 = 480;

/// As many packets each way as queues hold.
fn fill(host: &Host, inner: &[u8]) {
    let (pod, ours) = (SocketAddr::from(([10, 1, 2, 9], 7)), SocketAddr::from(([127, 0, 0, 1], 8285)));
    for _ in 0..BACKLOG {
        host.pods.send_to(&[7; 64], pod).expect("sent");
        host.peer.send_to(inner, ours).expect("sent");
    }
}

/// Packets each way, and system calls.
fn counts(view: &EngineView) -> [u64; 3] {
    let counters = &view.accounts()[0].counters;
    [counters.egress.packets.get(), counters.ingress.packets.get(), counters.system_calls.get()]
}

#[test]
fn turns_are_few_allocate_nothing_and_end_with_their_ring() {
    let mut inner = Vec::new();
    let builder = PacketBuilder::ipv4([10, 1, 2, 9], [10, 1, 1, 1], 64).udp(7, 7000);
    builder.write(&mut inner, &[7; 64]).expect("fits");
    let host = host("turns");

    // What stood in the queues before the engine came, of 64 bytes each: many by one system call.
    fill(&host, &inner);
    let (ends, ring) = (host.ends(), host.ends.ring().expect("io_uring"));
    let ring_descriptor = ring.as_raw_fd();
    let (failure, failed) = mpsc::channel();
    let engine = Engine::start(Io::Uring(vec![(ends, ring)]), RULES, fib(), move |error| {
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

    // The same again, with the engine at work and warm.
    let before = allocations();
    for round in 2..50 {
        fill(&host, &inner);
        while !has_moved(round * BACKLOG) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(allocations() - before, 0, "allocations in 46,000 packets");

    // The ring's descriptor becomes something else.
    let null = File::open("/dev/null").expect("it is there");
    // SAFETY: both descriptors are open; the engine goes on to own the second number.
    assert!(unsafe { libc::dup2(null.as_raw_fd(), ring_descriptor) } >= 0);
    fill(&host, &inner);
    let error = failed.recv_timeout(Duration::from_secs(10)).expect("it says so");
    assert!(matches!(error, WorkerError::System { call: "io_uring_enter", .. }), "{error}");
    engine.stop();
}
