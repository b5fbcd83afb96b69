//! Places for packets that remember what they were given.

use hopsack::forward::{ToNet, ToTun, Train, TrainMeta};
use hopsack::packet::IpPacket;
use hopsack::route::Peer;

/// Instead of the TUN.
#[derive(Debug, Default)]
pub struct Sink {
    /// From peers.
    pub packets: Vec<Vec<u8>>,
    /// ICMP errors.
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

/// Instead of the network.
#[derive(Debug, Default)]
pub struct Sent {
    room: Vec<u8>,
    /// For peers, one datagram each.
    pub packets: Vec<Vec<u8>>,
}

impl ToNet for Sent {
    fn room(&mut self, _peer: Option<&Peer>, load: TrainMeta) -> &mut [u8] {
        self.room.resize(load.bytes, 0);
        &mut self.room
    }
    fn push(&mut self, _peer: &Peer, load: TrainMeta) {
        let train = Train { bytes: &self.room[..load.bytes], stride: load.stride };
        self.packets.extend(train.datagrams().map(<[u8]>::to_vec));
    }
    fn divert(&mut self, peer: &Peer, load: TrainMeta) {
        self.push(peer, load);
    }
}
