//! The scheduler with workers that record their packets.

use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::time::Instant;

use super::super::wait::LastBulk;
use super::*;

/// A worker that records each packet and the thread that it came on.
struct Recorder {
    sockets: [UnixDatagram; 2],
    budgets: [Budget; 2],
    account: Account,
    records: Records,
}

/// The thread and the first bytes of each packet.
type Records = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

impl ScheduledWorker for Recorder {
    type Scratch = Vec<u8>;

    fn scratch() -> Vec<u8> {
        vec![0; 65_536]
    }

    fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.sockets[0].as_fd(), self.sockets[1].as_fd()]
    }

    fn budgets(&self) -> &[Budget; 2] {
        &self.budgets
    }

    fn budgets_mut(&mut self) -> &mut [Budget; 2] {
        &mut self.budgets
    }

    fn account(&self) -> &Account {
        &self.account
    }

    fn turn(&mut self, buffer: &mut Vec<u8>) -> Result<usize, WorkerError> {
        let mut moved = 0;
        for (socket, budget) in self.sockets.iter().zip(&mut self.budgets) {
            let (mut count, mut bytes) = (0, 0);
            while count < budget.next() {
                let Ok(length) = socket.recv(buffer) else { break };
                (count, bytes) = (count + 1, bytes + length);
                let thread = std::thread::current().name().unwrap_or_default().to_owned();
                self.records.lock().expect("no panic").push((thread, buffer[..length.min(8)].to_vec()));
            }
            budget.brought(count, bytes, now());
            moved += bytes;
        }
        Ok(moved)
    }
}

fn socket_pair() -> (UnixDatagram, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().expect("a pair");
    ours.set_nonblocking(true).expect("non-blocking");
    (ours, theirs)
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn bulk_worker_gets_its_own_thread() {
    let (mut workers, mut senders, mut records) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let ((tun, pods), (socket, peers)) = (socket_pair(), socket_pair());
        let recorded = Records::default();
        let budgets = [Budget::new(32), Budget::new(32)];
        let account = Account::default();
        workers.push(Recorder { sockets: [tun, socket], budgets, account, records: recorded.clone() });
        senders.push((pods, peers));
        records.push(recorded);
    }
    let stop = Arc::new(Event::new().expect("an eventfd"));
    let spin = || Spin::new(0, LastBulk::default());
    let threads = threads(workers, 1, &stop, spin).expect("descriptors");
    assert_eq!(threads.len(), 1 + 3);
    let small: Vec<&str> =
        threads.iter().filter(|thread| thread.load == Load::Small).map(|thread| &*thread.name).collect();
    assert_eq!(small, ["hopsack-w0"], "a dedicated thread may carry bulk");
    let threads: Vec<_> = threads
        .into_iter()
        .map(|thread| std::thread::Builder::new().name(thread.name).spawn(thread.start).expect("a thread"))
        .collect();

    let mut sent = 0_u64;
    let mut send = |length: usize| {
        let mut bytes = vec![0; length];
        bytes[..8].copy_from_slice(&sent.to_be_bytes());
        senders[1].0.send(&bytes).expect("sent");
        sent += 1;
    };
    let last = |worker: usize| records[worker].lock().expect("no panic").last().cloned();
    let is_on = |worker: usize, name: &str| last(worker).is_some_and(|(thread, _)| thread == name);
    send(100);
    until("a single packet is served", || is_on(1, "hopsack-w0"));
    until("the bulk transfer gets a thread", || {
        (0..50).for_each(|_| send(60_000));
        is_on(1, "hopsack-b1")
    });
    senders[2].1.send(b"a single one during it").expect("sent");
    until("the other workers stay", || is_on(2, "hopsack-w0"));
    until("the bulk transfer has ended", || {
        std::thread::sleep(Duration::from_millis(20));
        send(8);
        is_on(1, "hopsack-w0")
    });
    let count = usize::try_from(sent).expect("few");
    until("all packets were served", || records[1].lock().expect("no panic").len() == count);
    stop.set();
    for thread in threads {
        thread.join().expect("no panic").expect("no error");
    }
    let numbers: Vec<Vec<u8>> =
        records[1].lock().expect("no panic").iter().map(|(_, number)| number.clone()).collect();
    assert_eq!(numbers, (0..sent).map(|n| n.to_be_bytes().to_vec()).collect::<Vec<_>>());
    assert_eq!(records[0].lock().expect("no panic").len(), 0);
}
