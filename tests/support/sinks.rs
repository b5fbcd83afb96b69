//! Test doubles of the overlay device and the network. They keep the packets that they get.

use hopsack::forward::{Exit, Reservation, ToNet, ToTun, Train, TrainMeta};
use hopsack::packet::IpPacket;

/// Replaces the overlay device.
#[derive(Debug, Default)]
pub struct Sink {
    /// Packets that came from peers.
    pub packets: Vec<Vec<u8>>,
    /// ICMP errors that were made here.
    pub replies: Vec<Vec<u8>>,
}

impl ToTun for Sink {
    fn push(&mut self, packet: IpPacket<'_>) {
        self.packets.push(packet.bytes().to_vec());
    }
    fn reply(&mut self, error: &[u8]) {
        self.replies.push(error.to_vec());
    }
}

/// Replaces the network.
#[derive(Debug, Default)]
pub struct Sent {
    room: Vec<u8>,
    /// Packets for peers, one datagram each.
    pub packets: Vec<Vec<u8>>,
}

/// Room for one train that is for the network.
#[derive(Debug)]
pub struct Room<'a> {
    sent: &'a mut Sent,
    train: TrainMeta,
}

impl ToNet for Sent {
    type Reservation<'a> = Room<'a>;
    fn reserve<'a>(&'a mut self, _exit: Exit<'a>, train: TrainMeta) -> Room<'a> {
        self.room.resize(train.bytes, 0);
        Room { sent: self, train }
    }
}

impl Reservation for Room<'_> {
    fn buffer(&mut self) -> &mut [u8] {
        &mut self.sent.room
    }
    fn commit(self, bytes: usize) {
        let Self { sent: Sent { room, packets }, train } = self;
        let train = Train { bytes: &room[..bytes], stride: train.stride };
        packets.extend(train.datagrams().map(<[u8]>::to_vec));
    }
}
