//! Requests and answers: one datagram at a time, or one TCP connection at a time.
//!
//! The only client never has more than one open request. So it measures latency, and wake-ups of
//! CPUs are a large part of it. Client and server represent two machines, so they are pinned to two
//! CPUs if there are two. Without pinning, they are sometimes on one CPU and sometimes on two, and
//! the round trip is 11 us or 87 us (measured with kernel VXLAN). They have real-time priority: as
//! ordinary threads beside a bulk transfer they would measure their own time slice.
//!
//! Invariant: a request without an answer counts with the time that the client waited for it.

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
use crate::sys::{Interest, cpu, poll, sched};

/// Length of a request and of its answer in bytes.
const REQUEST_BYTES: usize = 64;

/// Time that the client waits for an answer, or for a connection.
const TIMEOUT: Duration = Duration::from_millis(300);

/// Time after which a server checks whether it should end.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// Times from request to answer in seconds, sorted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RoundTrips {
    times: Vec<f64>,
    /// Whether both ends had real-time priority.
    pub(super) realtime: bool,
}

impl RoundTrips {
    fn new(mut times: Vec<f64>, realtime: bool) -> Self {
        times.sort_by(f64::total_cmp);
        Self { times, realtime }
    }

    /// Time that `part` (0 to 1) of the requests did not exceed; none if there was no request.
    pub(super) fn quantile(&self, part: f64) -> Option<f64> {
        let last = self.times.len().checked_sub(1)?;
        // The index is not negative, and it is rounded on purpose.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let index = (part * last as f64).round() as usize;
        self.times.get(index.min(last)).copied()
    }
}

/// Sends requests by UDP for `time`, each after the answer to the one before.
pub(super) fn round_trips(
    [from, to]: [&Pod; 2],
    time: Duration,
    interrupt: &Interrupt,
) -> Result<RoundTrips, LabError> {
    let failed = || LabError::io(format!("send requests to {} from {} by UDP", to.name, from.name));
    let open = |pod: &Pod| {
        let address = SocketAddrV4::new(pod.v4, 0);
        in_netns(&pod.netns, || UdpSocket::bind(address)).and_then(|bound| bound).map_err(failed())
    };
    let (client, server) = (open(from)?, open(to)?);
    client.connect(server.local_addr().map_err(failed())?).map_err(failed())?;
    server.connect(client.local_addr().map_err(failed())?).map_err(failed())?;
    client.set_read_timeout(Some(TIMEOUT)).map_err(failed())?;
    server.set_read_timeout(Some(STOP_CHECK_INTERVAL)).map_err(failed())?;
    let (stop, [near, far]) = (AtomicBool::new(false), two_cpus().map_err(failed())?);
    thread::scope(|scope| {
        let answering = scope.spawn(|| {
            pin(far);
            let realtime = sched::set_realtime().is_ok();
            let mut request = [0; REQUEST_BYTES];
            while !stop.load(Ordering::Relaxed) {
                // The client notices a timeout here, and an answer that could not be sent.
                let _ = server.recv(&mut request).and_then(|length| server.send(&request[..length]));
            }
            realtime
        });
        let asking = scope.spawn(|| {
            pin(near);
            let realtime = sched::set_realtime().is_ok();
            Ok((ask(&client, time, interrupt)?, realtime))
        });
        let times =
            asking.join().unwrap_or_else(|_| Err(RequestError::Io(io::Error::other("the client panicked"))));
        stop.store(true, Ordering::Relaxed);
        let answered_first = answering.join().unwrap_or(false);
        let times = times.map_err(|error| match error {
            RequestError::Interrupted(error) => error,
            RequestError::Io(error) => failed()(error),
        });
        let (times, asked_first) = times?;
        Ok(RoundTrips::new(times, asked_first && answered_first))
    })
}

/// First and last CPU that this process may use.
fn two_cpus() -> io::Result<[usize; 2]> {
    let allowed = cpu::allowed()?;
    Ok([allowed.first(), allowed.last()].map(|cpu| cpu.copied().unwrap_or(0)))
}

fn pin(cpu: usize) {
    // The CPU was allowed a moment ago. If it no longer is, only the noise of the numbers grows.
    let _ = cpu::pin(cpu);
}

enum RequestError {
    Interrupted(LabError),
    Io(io::Error),
}

fn ask(client: &UdpSocket, time: Duration, interrupt: &Interrupt) -> Result<Vec<f64>, RequestError> {
    let (start, mut times) = (Instant::now(), Vec::new());
    let (mut request, mut answer) = ([0; REQUEST_BYTES], [0; REQUEST_BYTES]);
    for number in 0_u64.. {
        let asked = Instant::now();
        if asked - start >= time && !times.is_empty() {
            break;
        }
        interrupt.check().map_err(RequestError::Interrupted)?;
        request[..8].copy_from_slice(&number.to_be_bytes());
        client.send(&request).map_err(RequestError::Io)?;
        loop {
            match client.recv(&mut answer) {
                // This is the late answer to an earlier request.
                Ok(_) if answer != request && asked.elapsed() < TIMEOUT => {}
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(RequestError::Io(error)),
            }
        }
        times.push(asked.elapsed().as_secs_f64());
    }
    Ok(times)
}

/// Makes TCP connections for `time`: connect, send a request, read the answer to its end, close.
/// Returns the number per second.
pub(super) fn connections(
    [from, to]: [&Pod; 2],
    time: Duration,
    interrupt: &Interrupt,
) -> Result<f64, LabError> {
    let failed = || LabError::io(format!("make connections from {} to {}", from.name, to.name));
    let address = SocketAddrV4::new(to.v4, 0);
    let listener =
        in_netns(&to.netns, || TcpListener::bind(address)).and_then(|bound| bound).map_err(failed())?;
    listener.set_nonblocking(true).map_err(failed())?;
    let address = listener.local_addr().map_err(failed())?;
    let (stop, [near, far]) = (AtomicBool::new(false), two_cpus().map_err(failed())?);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(far);
            while !stop.load(Ordering::Relaxed) {
                if poll([(listener.as_fd(), Interest::Read)], Some(STOP_CHECK_INTERVAL))
                    .is_ok_and(|[ready]| ready)
                {
                    // The client notices a failure here as a failed connection.
                    let _ = listener.accept().and_then(|(socket, _)| answer(socket));
                }
            }
        });
        let rate = in_netns(&from.netns, || {
            pin(near);
            connect_for(address, time, interrupt)
        });
        stop.store(true, Ordering::Relaxed);
        rate.map_err(failed())?
    })
}

/// Answers and closes first. So the server keeps the TIME-WAIT state, and the client's ports stay
/// free.
fn answer(mut socket: TcpStream) -> io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.read_exact(&mut request)?;
    socket.write_all(&request)
}

fn connect_for(address: SocketAddr, time: Duration, interrupt: &Interrupt) -> Result<f64, LabError> {
    let once = || {
        let mut socket = TcpStream::connect_timeout(&address, TIMEOUT)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.write_all(&[0x5a; REQUEST_BYTES])?;
        let mut answer = Vec::with_capacity(REQUEST_BYTES);
        socket.read_to_end(&mut answer)?;
        if answer.len() == REQUEST_BYTES { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
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
    fn quantiles_are_taken_from_sorted_times() {
        let times = RoundTrips::new((0..=100).rev().map(f64::from).collect(), true);
        assert_eq!(
            [0.0, 0.5, 0.99, 1.0].map(|part| times.quantile(part)),
            [0.0, 50.0, 99.0, 100.0].map(Some)
        );
        assert_eq!(RoundTrips::new(vec![7.0], true).quantile(0.99), Some(7.0));
        assert_eq!(RoundTrips::new(vec![], true).quantile(0.5), None);
    }
}
