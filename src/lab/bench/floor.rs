//! The floor: what a daemon between a TUN device and a UDP socket costs if it does nothing but pass on.
//!
//! A thread waits in read(2) of the TUN and sends what came, header of the device and all, by one UDP_SEGMENT send; another
//! waits in recv(2) and writes what came. Nobody polls, looks anything up, cuts, sums, merges, counts or encrypts. So what it
//! reaches bounds every daemon that moves packets by these calls from above: TCP by what the kernel does for them, round trips
//! and connections by their two wake-ups each way. (Not small packets: for these many a call is better than one.)
//!
//! Not for use: it knows one peer and IPv4 only, and what comes out at the far end is whole only if nothing is lost between.
//!
//! Invariant: a super packet crosses the border of the kernel by one read and one send here, and by one write there.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::thread::{Builder, yield_now};

use clap::Args;
use socket2::SockRef;

use super::super::error::LabError;
use crate::packet::VnetHeader;
use crate::sys::block::Part;
use crate::sys::tun::{Offload, Queue};
use crate::sys::udp;

pub(super) const DEVICE: &str = "floor0";
/// Of the device: one packet and its device header fill a datagram.
pub(super) const MTU: u16 = 1472 - 10;
/// Bytes of payload of the datagrams that a super packet leaves in.
const STRIDE: usize = 1472;
/// Takes any frame.
const FRAME: usize = 65_536 + VnetHeader::LEN;

/// What the process is told.
#[derive(Debug, Args)]
pub struct FloorArgs {
    /// A TUN device that is there, with header and queues.
    #[arg(long)]
    device: String,
    /// Our end.
    #[arg(long)]
    bind: SocketAddr,
    /// The other end.
    #[arg(long)]
    peer: SocketAddr,
    /// Never sleep: one thread asks both ends in turn, and offers its CPU in between.
    #[arg(long)]
    spin: bool,
}

/// Carries packets until it is ended.
///
/// # Errors
/// Whatever ends it.
pub fn run(args: &FloorArgs) -> Result<(), LabError> {
    carry(args).map_err(|error| LabError::Bench(format!("the floor ended: {error}")))
}

fn carry(args: &FloorArgs) -> io::Result<()> {
    let tun = Queue::open(&args.device)?;
    tun.set_offload(Offload::TcpAndUdp)?;
    let socket = udp::bind(args.bind)?;
    udp::receive_trains(&socket)?;
    if args.spin {
        return spin(&tun, &socket, args.peer);
    }
    // It sets a flag that every descriptor has.
    SockRef::from(&tun.as_fd()).set_nonblocking(false)?;
    socket.set_nonblocking(false)?;
    let (reader, sender, peer) = (tun.try_clone()?, socket.try_clone()?, args.peer);
    // It ends with the process: a read of a device that nobody writes to does not. The bench tells daemons' threads by name.
    Builder::new().name("hopsack-w0".into()).spawn(move || outbound(&reader, &sender, peer))?;
    let inbound = Builder::new().name("hopsack-w1".into()).spawn(move || inbound(&tun, &socket))?;
    inbound.join().map_err(|_| io::Error::other("a thread panicked"))?
}

fn outbound(tun: &Queue, socket: &UdpSocket, peer: SocketAddr) -> io::Result<()> {
    let mut frame = vec![0; FRAME];
    loop {
        let length = tun.read(&mut frame)?;
        send(socket, &frame[..length], peer);
    }
}

/// What does not pass is lost.
fn send(socket: &UdpSocket, frame: &[u8], peer: SocketAddr) {
    let _ = udp::send_many(socket, frame, &[Part::train(0, frame.len(), STRIDE, peer)]);
}

fn inbound(tun: &Queue, socket: &UdpSocket) -> io::Result<()> {
    let (mut frame, mut have) = (vec![0; 2 * FRAME], 0);
    let mut rest = udp::Receiver::new(udp::RECEIVE_BATCH);
    loop {
        have += socket.recv(&mut frame[have..])?;
        if let Some(wanted) = length(&frame[..have]) {
            while have < wanted {
                // Where datagrams come singly it waits for as many as there must be, and copies them together: a twentieth of
                // what their way through the kernel costs.
                let count = rest.receive(socket, (wanted - have).div_ceil(STRIDE))?;
                for bytes in (0..count).map(|index| rest.get(index).train.bytes) {
                    frame[have..have + bytes.len()].copy_from_slice(bytes);
                    have += bytes.len();
                }
            }
            // What is not whole is refused there, or by the receiver's TCP.
            let _ = tun.write(&frame[..wanted]);
        }
        have = 0;
    }
}

/// For packets that come alone.
fn spin(tun: &Queue, socket: &UdpSocket, peer: SocketAddr) -> io::Result<()> {
    let mut buffer = vec![0; FRAME];
    loop {
        let mut has_moved = false;
        if let Some(length) = taken(tun.read(&mut buffer))? {
            send(socket, &buffer[..length], peer);
            has_moved = true;
        }
        if let Some(length) = taken(socket.recv(&mut buffer))? {
            let _ = tun.write(&buffer[..length]);
            has_moved = true;
        }
        if !has_moved {
            yield_now();
        }
    }
}

fn taken(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}

/// How long the frame is that begins so; none if it is none.
fn length(bytes: &[u8]) -> Option<usize> {
    let packet = bytes.get(VnetHeader::LEN..)?;
    let total = u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]);
    (packet.first()? >> 4 == 4).then_some(VnetHeader::LEN + usize::from(total))
}
