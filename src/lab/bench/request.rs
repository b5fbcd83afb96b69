//! Asks and waits for the answer: one datagram at a time, or one TCP connection at a time.
//!
//! There is one client, which never has more than one question open; so what it measures is waiting, and the CPU's wake-ups
//! are a large part of it. Client and server stand for two machines: they are kept on two CPUs, where there are two. Left to
//! the scheduler, a run has them now on one CPU and now on two, and its round trips are 11 us or 87 (measured, kernel VXLAN).
//!
//! Invariant: a question without an answer counts as having waited for as long as we did.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::error::LabError;
use super::super::interrupt::Interrupt;
use super::super::site::Pod;
use crate::sys::netns::in_netns;
use crate::sys::{Interest, cpu, poll};

/// Bytes of a question and of its answer.
const QUESTION: usize = 64;

/// How long the client waits for an answer, or for a connection.
const PATIENCE: Duration = Duration::from_millis(300);

/// How often a server looks whether it should end.
const LOOK: Duration = Duration::from_millis(10);

/// Times from question to answer, in seconds, sorted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RoundTrips(Vec<f64>);

impl RoundTrips {
    fn new(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    /// The time that `part` (0 to 1) of the questions did not exceed; none if nobody asked.
    pub(super) fn quantile(&self, part: f64) -> Option<f64> {
        let last = self.0.len().checked_sub(1)?;
        // An index: not negative, and rounding it down is meant.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let index = (part * last as f64).round() as usize;
        self.0.get(index.min(last)).copied()
    }
}

/// Asks by UDP, back to back, for `time`.
pub(super) fn round_trips(
    [from, to]: [&Pod; 2],
    time: Duration,
    interrupt: &Interrupt,
) -> Result<RoundTrips, LabError> {
    let failed = || LabError::io(format!("ask {} from {} by UDP", to.name, from.name));
    let open = |pod: &Pod| {
        let address = SocketAddrV4::new(pod.v4, 0);
        in_netns(&pod.netns, || UdpSocket::bind(address)).and_then(|bound| bound).map_err(failed())
    };
    let (client, server) = (open(from)?, open(to)?);
    client.connect(server.local_addr().map_err(failed())?).map_err(failed())?;
    server.connect(client.local_addr().map_err(failed())?).map_err(failed())?;
    client.set_read_timeout(Some(PATIENCE)).map_err(failed())?;
    server.set_read_timeout(Some(LOOK)).map_err(failed())?;
    let (stop, [near, far]) = (AtomicBool::new(false), two_cpus().map_err(failed())?);
    thread::scope(|scope| {
        scope.spawn(|| {
            stay(far);
            let mut question = [0; QUESTION];
            while !stop.load(Ordering::Relaxed) {
                // A time that ran out, and an answer that could not leave, are the client's to notice.
                let _ = server.recv(&mut question).and_then(|length| server.send(&question[..length]));
            }
        });
        let asking = scope.spawn(|| {
            stay(near);
            ask(&client, time, interrupt)
        });
        let times =
            asking.join().unwrap_or_else(|_| Err(Asking::Io(io::Error::other("the client panicked"))));
        stop.store(true, Ordering::Relaxed);
        let times = times.map_err(|error| match error {
            Asking::Interrupted(error) => error,
            Asking::Io(error) => failed()(error),
        });
        Ok(RoundTrips::new(times?))
    })
}

/// The first and the last that we may use.
fn two_cpus() -> io::Result<[usize; 2]> {
    let allowed = cpu::allowed()?;
    Ok([allowed.first(), allowed.last()].map(|cpu| cpu.copied().unwrap_or(0)))
}

fn stay(cpu: usize) {
    // It was allowed a moment ago; if it no longer is, the numbers are noisier and nothing else.
    let _ = cpu::pin(cpu);
}

enum Asking {
    Interrupted(LabError),
    Io(io::Error),
}

fn ask(client: &UdpSocket, time: Duration, interrupt: &Interrupt) -> Result<Vec<f64>, Asking> {
    let (start, mut times) = (Instant::now(), Vec::new());
    let (mut question, mut answer) = ([0; QUESTION], [0; QUESTION]);
    for number in 0_u64.. {
        let asked = Instant::now();
        if asked - start >= time && !times.is_empty() {
            break;
        }
        interrupt.check().map_err(Asking::Interrupted)?;
        question[..8].copy_from_slice(&number.to_be_bytes());
        client.send(&question).map_err(Asking::Io)?;
        loop {
            match client.recv(&mut answer) {
                // The answer to an earlier question, which we had given up.
                Ok(_) if answer != question && asked.elapsed() < PATIENCE => {}
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Asking::Io(error)),
            }
        }
        times.push(asked.elapsed().as_secs_f64());
    }
    Ok(times)
}

/// Connects, asks, reads the answer to its end, closes; again and again for `time`. Returns how many a second.
pub(super) fn connections(
    [from, to]: [&Pod; 2],
    time: Duration,
    interrupt: &Interrupt,
) -> Result<f64, LabError> {
    let failed = || LabError::io(format!("connect {} to {} again and again", from.name, to.name));
    let address = SocketAddrV4::new(to.v4, 0);
    let listener =
        in_netns(&to.netns, || TcpListener::bind(address)).and_then(|bound| bound).map_err(failed())?;
    listener.set_nonblocking(true).map_err(failed())?;
    let address = listener.local_addr().map_err(failed())?;
    let (stop, [near, far]) = (AtomicBool::new(false), two_cpus().map_err(failed())?);
    thread::scope(|scope| {
        scope.spawn(|| {
            stay(far);
            while !stop.load(Ordering::Relaxed) {
                if poll([(listener.as_fd(), Interest::Read)], Some(LOOK)).is_ok_and(|[ready]| ready) {
                    // What fails here the client sees as a connection that came to nothing.
                    let _ = listener.accept().and_then(|(socket, _)| answer(socket));
                }
            }
        });
        let rate = in_netns(&from.netns, || {
            stay(near);
            connect_for(address, time, interrupt)
        });
        stop.store(true, Ordering::Relaxed);
        rate.map_err(failed())?
    })
}

/// Closes first, so that the connection's remains (TIME-WAIT) are the server's and the client's ports stay free.
fn answer(mut socket: TcpStream) -> io::Result<()> {
    let mut question = [0; QUESTION];
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.read_exact(&mut question)?;
    socket.write_all(&question)
}

fn connect_for(address: SocketAddr, time: Duration, interrupt: &Interrupt) -> Result<f64, LabError> {
    let once = || {
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(&[0x5a; QUESTION])?;
        let mut answer = Vec::with_capacity(QUESTION);
        socket.read_to_end(&mut answer)?;
        if answer.len() == QUESTION { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    };
    let (start, mut done, mut trouble) = (Instant::now(), 0_u64, None);
    while start.elapsed() < time {
        interrupt.check()?;
        match once() {
            Ok(()) => done += 1,
            Err(error) => trouble = Some(error),
        }
    }
    match trouble {
        Some(error) if done == 0 => Err(LabError::io(format!("connect to {address}"))(error)),
        _ => Ok(done as f64 / start.elapsed().as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let times = RoundTrips::new((0..=100).rev().map(f64::from).collect());
        assert_eq!(
            [0.0, 0.5, 0.99, 1.0].map(|part| times.quantile(part)),
            [0.0, 50.0, 99.0, 100.0].map(Some)
        );
        assert_eq!(RoundTrips::new(vec![7.0]).quantile(0.99), Some(7.0));
        assert_eq!(RoundTrips::new(vec![]).quantile(0.5), None);
    }
}
