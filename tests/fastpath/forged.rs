//! Packets as a hostile or an odd sender makes them, from a seed.

use std::net::{Ipv4Addr, Ipv6Addr};

use hopsack::packet::checksum::checksum;

/// Pseudo-random numbers, the same for each seed (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % bound
    }

    /// True in one of `of` cases.
    pub fn one_of(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    pub fn byte(&mut self) -> u8 {
        (self.next() >> 40).to_le_bytes()[0]
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Inner protocol numbers: TCP, UDP, ICMP, SCTP, a tunnel.
const PROTOCOLS: [u8; 6] = [6, 6, 17, 1, 132, 4];

/// An inner packet. Sources and destinations are those of two hosts and of others.
pub fn inner(random: &mut Random, way: Toward, most: usize) -> Vec<u8> {
    if random.one_of(3) { inner_v6(random, way, most) } else { inner_v4(random, way, most) }
}

/// In which direction a packet should go, if nothing is wrong with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Toward {
    Peers,
    Us,
}

fn v4(random: &mut Random, ours: bool) -> Ipv4Addr {
    let last = random.byte();
    match random.below(24) {
        0 => Ipv4Addr::from(random.next().to_be_bytes().first_chunk::<4>().copied().expect("four")),
        1 => [192, 0, 2, random.pick(&[1, 2, 3, 4, 5])].into(),
        2 => [224, 0, 0, 5].into(),
        3 => [0, 0, 0, 0].into(),
        4 => [10, 1, random.pick(&[1, 2, 3, 4, 5, 6]), last].into(),
        _ if ours => [10, 1, 1, last].into(),
        _ => [10, 1, random.pick(&[2, 2, 2, 3, 4, 5]), last].into(),
    }
}

fn v6(random: &mut Random, ours: bool) -> Ipv6Addr {
    let host = |subnet: u16, last: u8| Ipv6Addr::new(0xfd00, 1, 0, subnet, 0, 0, 0, last.into());
    let last = random.byte();
    match random.below(24) {
        0 => Ipv6Addr::UNSPECIFIED,
        1 => "2001:db8::2".parse().expect("an address"),
        2 => "2001:db8::1".parse().expect("an address"),
        3 => "ff02::1".parse().expect("an address"),
        4 => host(random.pick(&[1, 2, 3, 4, 5, 6]), last),
        _ if ours => host(1, last),
        _ => host(random.pick(&[2, 2, 2, 3, 4, 5]), last),
    }
}

fn inner_v4(random: &mut Random, way: Toward, most: usize) -> Vec<u8> {
    let options = if random.one_of(12) { 1 + random.below(10) } else { 0 };
    let header = 20 + 4 * options;
    let mut packet = vec![0; header];
    packet[0] = 0x45 + u8::try_from(options).expect("at most 10");
    packet[1] = random.byte();
    packet[6..8].copy_from_slice(&match random.below(10) {
        0 => [0x20, 0],
        1 => [0, 7],
        2 => [0, 0],
        _ => [0x40, 0],
    });
    packet[8] = random.byte();
    packet[9] = random.pick(&PROTOCOLS);
    let (src, dst) = (v4(random, way == Toward::Peers), v4(random, way == Toward::Us));
    packet[12..16].copy_from_slice(&src.octets());
    packet[16..20].copy_from_slice(&dst.octets());
    transport(random, &mut packet, most);
    let length = u16::try_from(packet.len()).expect("short");
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    let sum = checksum(&packet[..header]);
    packet[10..12].copy_from_slice(&sum);
    packet
}

fn inner_v6(random: &mut Random, way: Toward, most: usize) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60 | random.byte() >> 4;
    packet[1] = random.byte();
    packet[6] = random.pick(&PROTOCOLS);
    packet[7] = random.byte();
    let (src, dst) = (v6(random, way == Toward::Peers), v6(random, way == Toward::Us));
    packet[8..24].copy_from_slice(&src.octets());
    packet[24..40].copy_from_slice(&dst.octets());
    if random.one_of(12) {
        // A hop-by-hop header, or a fragment header.
        let next = std::mem::replace(&mut packet[6], random.pick(&[0, 44]));
        packet.extend([next, 0, 1, 4, 0, 0, 0, 0]);
    }
    transport(random, &mut packet, most);
    let length = u16::try_from(packet.len() - 40).expect("short");
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

/// A transport header that is often right for TCP, and a payload.
fn transport(random: &mut Random, packet: &mut Vec<u8>, most: usize) {
    let length = random.below(most);
    let at = packet.len();
    packet.extend((0..length).map(|_| random.byte()));
    if let Some(header) = packet.get_mut(at..at + 20)
        && !random.one_of(8)
    {
        header[12] = 0x50 + 0x10 * u8::try_from(random.below(3)).expect("small");
        header[13] = random.pick(&[0x10, 0x10, 0x10, 0x18, 0x11, 0x02, 0x04, 0x30, 0x90]);
    }
}

/// A frame on the underlay with this content. Every field has its right value most of the time.
pub fn datagram(random: &mut Random, content: &[u8]) -> Vec<u8> {
    let from = match random.below(20) {
        0 => 1,
        1 => 77,
        _ => random.pick(&[2, 2, 2, 2, 3, 4, 5]),
    };
    let option = if random.one_of(40) { 4u8 } else { 0 };
    let total = 28 + usize::from(option) + content.len();
    let mut frame = vec![0; 14];
    if random.one_of(40) {
        frame[random.below(6)] = 1 + random.byte() / 2;
    }
    let kind = if random.one_of(40) { random.pick(&[0x86dd, 0x0806, 0x8100]) } else { 0x0800u16 };
    frame[12..14].copy_from_slice(&kind.to_be_bytes());
    let mut length = u16::try_from(total).expect("short");
    if random.one_of(30) {
        length = length.wrapping_add_signed(random.pick(&[-1, 1, -20, 8, 100]));
    }
    let fragment = if random.one_of(30) { random.pick(&[0x2000, 0x0001, 0x2010]) } else { 0x4000u16 };
    let to = if random.one_of(30) { random.byte() } else { 1 };
    let protocol = if random.one_of(30) { random.byte() } else { 17 };
    let mut header = vec![0x45 + option / 4, random.byte()];
    header.extend(length.to_be_bytes());
    header.extend([random.byte(), random.byte()]);
    header.extend(fragment.to_be_bytes());
    header.extend([random.byte(), protocol, 0, 0, 192, 0, 2, from, 192, 0, 2, to]);
    header.extend(vec![1; option.into()]);
    if random.one_of(30) {
        let at = random.below(header.len());
        header[at] = random.byte();
    }
    if !random.one_of(30) {
        (header[10], header[11]) = (0, 0);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
    }
    frame.extend(header);
    let port = if random.one_of(30) { 8286 } else { 8285u16 };
    let mut length = u16::try_from(8 + content.len()).expect("short");
    if random.one_of(30) {
        length = length.wrapping_add_signed(random.pick(&[-1, 1, -8, 8, 1000]));
    }
    let sum = if random.one_of(12) { u16::from(random.byte()) } else { 0 };
    for field in [u16::from(random.byte()), port, length, sum] {
        frame.extend(field.to_be_bytes());
    }
    frame.extend(content);
    frame
}

/// Changes single bytes, the first nibble, or the length.
pub fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    match random.below(12) {
        0 => {
            let at = random.below(bytes.len());
            bytes[at] = random.byte();
        }
        1 => {
            for _ in 0..3 {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
        }
        2 => bytes[0] = bytes[0] & 15 | random.byte() & 0xf0,
        3 => bytes.truncate(1 + random.below(bytes.len())),
        4 => bytes.extend(vec![0; 1 + random.below(40)]),
        _ => {}
    }
}
