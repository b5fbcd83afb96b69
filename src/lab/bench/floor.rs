//! Floor tunnel: the cost of a daemon between a TUN device and a UDP socket that only passes
//! packets on.
//!
//! One thread waits in read(2) of the TUN and sends the packet, with the device's header, by one
//! UDP_SEGMENT send. Another thread waits in recv(2) and writes to the TUN. The tunnel does not
//! poll, look up, split, compute checksums, merge, count or encrypt. So no daemon that uses these
//! calls can be faster with TCP, where the kernel's work is the cost, or with round trips and
//! connections, where two wake-ups in each direction are the cost. It is not a bound for small
//! packets: several packets in each call are faster than one.
//!
//! It is not for real use: it knows one peer and IPv4 only, and a lost datagram damages a packet.
//!
//! Invariant: a super packet enters and leaves user space by one read and one send at the sender,
//! and by one write at the receiver.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::thread::{Builder, yield_now};

use clap::Args;
use socket2::SockRef;

use super::super::error::LabError;
use crate::packet::VnetHeader;
use crate::sys::batch::Message;
use crate::sys::tun::{Offload, Queue};
use crate::sys::udp;

pub(super) const DEVICE: &str = "floor0";
/// MTU of the device: one packet with its device header fills a datagram.
pub(super) const MTU: u16 = 1472 - 10;
/// Payload in bytes of the datagrams that carry a super packet.
const DATAGRAM_BYTES: usize = 1472;
/// Size of a buffer for the largest frame.
const FRAME_BYTES: usize = 65_536 + VnetHeader::LEN;

/// Arguments of one end.
#[derive(Debug, Args)]
pub struct FloorArgs {
    /// Name of an existing TUN device with vnet_hdr and multi_queue.
    #[arg(long)]
    device: String,
    /// Local address.
    #[arg(long)]
    bind: SocketAddr,
    /// Address of the other end.
    #[arg(long)]
    peer: SocketAddr,
    /// Never sleep: one thread polls both descriptors in turn, and yields the CPU between.
    #[arg(long)]
    spin: bool,
}

/// Carries packets until it is ended.
///
/// # Errors
/// The error that ended the tunnel.
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
    // O_NONBLOCK is a flag of every descriptor, so socket2 can clear it on the TUN too.
    SockRef::from(&tun.as_fd()).set_nonblocking(false)?;
    socket.set_nonblocking(false)?;
    let (reader, sender, peer) = (tun.try_clone()?, socket.try_clone()?, args.peer);
    // This thread ends with the process, because a read of an idle device cannot be interrupted.
    // The bench recognises threads of daemons by their names.
    Builder::new().name("hopsack-w0".into()).spawn(move || outbound(&reader, &sender, peer))?;
    let inbound = Builder::new().name("hopsack-w1".into()).spawn(move || inbound(&tun, &socket))?;
    inbound.join().map_err(|_| io::Error::other("a thread panicked"))?
}

fn outbound(tun: &Queue, socket: &UdpSocket, peer: SocketAddr) -> io::Result<()> {
    let mut frame = vec![0; FRAME_BYTES];
    loop {
        let length = tun.read(&mut frame)?;
        send(socket, &frame[..length], peer);
    }
}

/// Sends a frame. A frame that cannot be sent is lost.
fn send(socket: &UdpSocket, frame: &[u8], peer: SocketAddr) {
    let _ = udp::send_many(socket, frame, &[Message::train(0, frame.len(), DATAGRAM_BYTES, peer)]);
}

fn inbound(tun: &Queue, socket: &UdpSocket) -> io::Result<()> {
    let (mut frame, mut have) = (vec![0; 2 * FRAME_BYTES], 0);
    let mut rest = udp::Receiver::new(udp::RECEIVE_BATCH);
    loop {
        have += socket.recv(&mut frame[have..])?;
        if let Some(wanted) = length(&frame[..have]) {
            while have < wanted {
                // If datagrams arrive one by one, this waits for the missing ones and copies them
                // together. The copy costs a twentieth of their way through the kernel.
                let count = rest.receive(socket, (wanted - have).div_ceil(DATAGRAM_BYTES))?;
                for bytes in (0..count).map(|index| rest.get(index).train.bytes) {
                    frame[have..have + bytes.len()].copy_from_slice(bytes);
                    have += bytes.len();
                }
            }
            // The TUN, or the receiver's TCP, refuses a damaged packet.
            let _ = tun.write(&frame[..wanted]);
        }
        have = 0;
    }
}

/// Passes single packets on, without ever sleeping.
fn spin(tun: &Queue, socket: &UdpSocket, peer: SocketAddr) -> io::Result<()> {
    let mut buffer = vec![0; FRAME_BYTES];
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

/// Length of the frame that begins with these bytes; none if they are not an IPv4 frame.
fn length(bytes: &[u8]) -> Option<usize> {
    let packet = bytes.get(VnetHeader::LEN..)?;
    let total = u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]);
    (packet.first()? >> 4 == 4).then_some(VnetHeader::LEN + usize::from(total))
}
