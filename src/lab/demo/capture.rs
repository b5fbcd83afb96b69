//! Capture: looks for a text in every frame between the hosts, to show whether they encrypt.
//!
//! It only receives. Invariant: its thread has ended when [`Capture::finish`] returns, and when the
//! capture is dropped.

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

/// Text that is sent and looked for.
pub(super) const TEXT: &str = "the password is swordfish";
/// Number of packets with the text.
pub(super) const TEXT_COUNT: u32 = 20;

/// Result of a capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Captured {
    /// Packets with the text that arrived.
    pub(super) arrived: u32,
    /// Captured frames. A frame is captured once on each interface that it passes.
    pub(super) frames: u32,
    /// Captured frames that contain the text.
    pub(super) with_text: u32,
}

impl std::fmt::Display for Captured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { arrived, frames, with_text } = self;
        write!(f, "{arrived} of {TEXT_COUNT} arrived; {with_text} of {frames} frames contain it")
    }
}

/// Sends the text from p1 to p2 and captures the frames between the hosts.
pub(super) fn send_and_capture(lab: &Lab, interrupt: &Interrupt) -> Result<Captured, LabError> {
    let failed = || LabError::io("send text by UDP");
    let bind = |number: usize| {
        let at = (lab.pod(number).v4, 0);
        in_netns(&lab.pod(number).netns, move || UdpSocket::bind(at))
            .and_then(|bound| bound)
            .map_err(failed())
    };
    let (from, to) = (bind(1)?, bind(2)?);
    to.set_read_timeout(Some(Duration::from_secs(1))).map_err(failed())?;
    let target = to.local_addr().map_err(failed())?;
    let capture = Capture::start(lab)?;
    let (mut arrived, mut buffer) = (0, [0; 128]);
    for _ in 0..TEXT_COUNT {
        interrupt.check()?;
        from.send_to(TEXT.as_bytes(), target).map_err(failed())?;
        // A packet that is late or lost is missing in the count; the caller checks the count.
        arrived += u32::from(to.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == TEXT.as_bytes()));
    }
    interrupt.sleep(Duration::from_millis(100))?;
    let (frames, with_text) = capture.finish();
    Ok(Captured { arrived, frames, with_text })
}

struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(u32, u32)>>,
}

impl Capture {
    /// Starts to capture in the namespace of the underlay, which all frames between the hosts pass.
    fn start(lab: &Lab) -> Result<Self, LabError> {
        let failed = || LabError::io("capture frames between the hosts");
        // ETH_P_ALL in network byte order (packet(7)).
        let every_protocol = Protocol::from(i32::from(0x0003_u16.to_be()));
        let open = move || -> io::Result<Socket> {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(every_protocol))?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok(socket)
        };
        let mut socket = in_netns(&lab.underlay_netns(), open).and_then(|opened| opened).map_err(failed())?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let capture = move || {
            let (mut frame, mut frames, mut with_text) = (vec![0; 65_536], 0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = socket.read(&mut frame) else { continue };
                frames += 1;
                let text = TEXT.as_bytes();
                with_text += u32::from(frame[..length].windows(text.len()).any(|window| window == text));
            }
            (frames, with_text)
        };
        let thread = thread::Builder::new().name("hopsack-capture".into()).spawn(capture).map_err(failed())?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends the capture. Returns the number of frames, and of those that contain the text.
    fn finish(mut self) -> (u32, u32) {
        self.end()
    }

    fn end(&mut self) -> (u32, u32) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}
