//! Somebody on the cables between the hosts, who looks for certain words in every frame.
//!
//! It listens only. Invariant: its thread has ended when [`Listener::heard`] returns, and when the listener is dropped.

use std::io::{self, Read as _};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::super::cluster::Lab;
use super::super::error::LabError;
use super::super::interrupt::Interrupt;
use crate::sys::netns::in_netns;

/// What is looked for.
pub(super) const WORDS: &str = "the password is swordfish";
/// How often it is sent.
pub(super) const TIMES: u32 = 20;

/// What became of the words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Packets with them that arrived.
    pub(super) arrived: u32,
    /// Frames that were seen; each passes several interfaces.
    pub(super) frames: u32,
    /// Frames that showed them.
    pub(super) shown: u32,
}

impl std::fmt::Display for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { arrived, frames, shown } = self;
        write!(f, "{arrived} of {TIMES} arrived; {shown} of {frames} frames showed it")
    }
}

/// Sends the words from p1 to p2 while somebody listens.
pub(super) fn overhear(lab: &Lab, interrupt: &Interrupt) -> Result<Heard, LabError> {
    let failed = || LabError::io("send words by UDP");
    let bind = |number: usize| {
        let at = (lab.pod(number).v4, 0);
        in_netns(&lab.pod(number).netns, move || UdpSocket::bind(at))
            .and_then(|bound| bound)
            .map_err(failed())
    };
    let (from, to) = (bind(1)?, bind(2)?);
    to.set_read_timeout(Some(Duration::from_secs(1))).map_err(failed())?;
    let target = to.local_addr().map_err(failed())?;
    let listener = Listener::start(lab)?;
    let (mut arrived, mut buffer) = (0, [0; 128]);
    for _ in 0..TIMES {
        interrupt.check()?;
        from.send_to(WORDS.as_bytes(), target).map_err(failed())?;
        // One that is late or lost is missing in the count, which is what decides.
        arrived += u32::from(to.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == WORDS.as_bytes()));
    }
    interrupt.sleep(Duration::from_millis(100))?;
    let (frames, shown) = listener.heard();
    Ok(Heard { arrived, frames, shown })
}

struct Listener {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(u32, u32)>>,
}

impl Listener {
    /// In the namespace where the hosts' cables meet.
    fn start(lab: &Lab) -> Result<Self, LabError> {
        let failed = || LabError::io("listen on the cables");
        // ETH_P_ALL, in network order (packet(7)).
        let every_protocol = Protocol::from(i32::from(0x0003_u16.to_be()));
        let open = move || -> io::Result<Socket> {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(every_protocol))?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok(socket)
        };
        let mut socket = in_netns(&lab.underlay_netns(), open).and_then(|opened| opened).map_err(failed())?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let listen = move || {
            let (mut frame, mut frames, mut shown) = (vec![0; 65_536], 0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = socket.read(&mut frame) else { continue };
                frames += 1;
                let words = WORDS.as_bytes();
                shown += u32::from(frame[..length].windows(words.len()).any(|window| window == words));
            }
            (frames, shown)
        };
        let thread = thread::Builder::new().name("hopsack-listen".into()).spawn(listen).map_err(failed())?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Frames, and those that showed the words.
    fn heard(mut self) -> (u32, u32) {
        self.end()
    }

    fn end(&mut self) -> (u32, u32) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.end();
    }
}
