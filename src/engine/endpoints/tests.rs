//! Messages that the kernel refuses: each packet passes in another way, or is counted.

use std::os::unix::net::UnixDatagram;

use etherparse::PacketBuilder;

use super::super::offload_switch::RETRY_AFTER;
use super::*;
use crate::packet::IpPacket;
use crate::packet::coalesce::Coalescer;
use crate::sys::now;

/// Endpoints with a socket in place of the TUN, the other end of that socket, and the receiver of
/// the datagrams.
fn endpoints() -> (Endpoints, UnixDatagram, UdpSocket) {
    let (ours, theirs) = UnixDatagram::pair().expect("a pair");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let (socket, receiver) = (udp::bind(any).expect("bound"), UdpSocket::bind(any).expect("bound"));
    for pipe in [&ours, &theirs] {
        pipe.set_nonblocking(true).expect("non-blocking");
    }
    receiver.set_nonblocking(true).expect("non-blocking");
    let queue = Queue::over(ours.into());
    (Endpoints::new(queue, socket, Arc::default(), Offload::TcpAndUdp, 0), theirs, receiver)
}

fn packets(count: u16) -> Vec<Vec<u8>> {
    (0..count)
        .map(|n| {
            let mut packet = Vec::new();
            let builder = PacketBuilder::ipv4([10, 1, 1, 2], [10, 1, 2, 2], 64).udp(1, 2);
            builder.write(&mut packet, &[n.to_le_bytes()[0]; 100]).expect("fits");
            packet
        })
        .collect()
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

#[test]
fn refused_train_is_sent_singly_for_a_minute() {
    let (mut endpoints, _tun, receiver) = endpoints();
    let (packets, table, start) = (packets(100), Table::default(), now());
    let bytes = packets.concat();
    let to = receiver.local_addr().expect("bound");
    let train = TxMessage::train(0, bytes.len(), 128, to);
    endpoints.recover_send(&bytes, &train, &error(libc::EIO), &table, start);
    let mut buffer = [0; 2000];
    for packet in &packets {
        let length = receiver.recv(&mut buffer).expect("it was sent");
        assert_eq!(&buffer[..length], &packet[..]);
    }
    let counters = &endpoints.account.counters;
    assert_eq!((counters.egress.packets.get(), counters.send_fallbacks.get()), (100, 1));
    assert!(!endpoints.may_segment(start));
    assert!(endpoints.may_segment(start + RETRY_AFTER), "it is tried again");

    // While the offload is off, the datagrams are sent one by one, in order.
    let mut block = TxBlock::new(bytes.into());
    for (first, count) in [(0, 1), (1, 3), (4, 1)] {
        block.push(TxMessage::train(first * 128, count * 128, 128, to));
    }
    endpoints.send(&block, &table, start);
    for packet in &packets[..5] {
        let length = receiver.recv(&mut buffer).expect("it was sent");
        assert_eq!(&buffer[..length], &packet[..]);
    }
    assert!(receiver.recv(&mut buffer).is_err(), "no packet is sent twice");
}

/// The path is too narrow for the bundle, but not for its packets.
#[test]
fn packets_of_too_long_bundle_leave_bare() {
    let (mut endpoints, _tun, receiver) = endpoints();
    let (packets, mut bytes) = (packets(6), vec![0; 2 * 400]);
    for (datagram, packets) in bytes.chunks_mut(400).zip(packets.chunks(3)) {
        let filled = packets
            .iter()
            .fold(0, |filled, packet| bundle::append(datagram, filled, packet).expect("it fits"));
        bundle::pad(datagram, filled);
    }
    let to = receiver.local_addr().expect("bound");
    let bundled = |len, packets| {
        let train = TxMessage::train(0, len, 400, to);
        let record = Record { packets, packet_bytes: packets * 128, bundled: true, ..train.record };
        TxMessage { record, ..train }
    };
    let (table, start, mut buffer) = (Table::default(), now(), [0; 2000]);

    // The kernel takes the datagrams of a refused train singly: the bundles stay as they are.
    endpoints.recover_send(&bytes, &bundled(800, 6), &error(libc::EIO), &table, start);
    for datagram in bytes.chunks(400) {
        let length = receiver.recv(&mut buffer).expect("it was sent");
        assert_eq!(&buffer[..length], datagram);
    }
    let counters = endpoints.account.clone();
    let counters = &counters.counters;
    assert_eq!(counters.egress_bundles.get(), 2);
    assert_eq!((counters.bundle_fallbacks.get(), endpoints.narrow_paths.len()), (0, 0));

    endpoints.recover_send(&bytes[..400], &bundled(400, 3), &error(libc::EMSGSIZE), &table, start);
    for packet in &packets[..3] {
        let length = receiver.recv(&mut buffer).expect("it was sent");
        assert_eq!(&buffer[..length], &packet[..]);
    }
    assert!(receiver.recv(&mut buffer).is_err(), "no packet is sent twice");
    assert_eq!((counters.egress.packets.get(), counters.egress.bytes.get()), (6 + 3, 9 * 128));
    assert_eq!(counters.bundle_fallbacks.get(), 1);
    assert_eq!(endpoints.narrow_paths, [(to, 200)]);
}

#[test]
fn other_errors_drop_and_count() {
    let (mut endpoints, _tun, receiver) = endpoints();
    let bytes = packets(3).concat();
    let train = TxMessage::train(0, bytes.len(), 128, receiver.local_addr().expect("bound"));
    endpoints.recover_send(&bytes, &train, &error(libc::ENOBUFS), &Table::default(), now());
    assert_eq!(endpoints.account.counters.egress.dropped(DropReason::SendFailed), 3);
    assert_eq!(endpoints.account.errors(), [(Op::UdpSend, libc::ENOBUFS, 1)]);
    assert!(endpoints.may_segment(now()));
}

#[test]
fn refused_super_packet_is_written_singly() {
    let (mut endpoints, tun, _receiver) = endpoints();
    let (packets, mut coalescer) = (packets(20), Coalescer::new(4));
    let views: Vec<IpPacket<'_>> =
        packets.iter().map(|packet| IpPacket::parse(packet).expect("well formed")).collect();
    assert!(endpoints.writer.may_merge(&views[0], now()));
    for view in &views {
        coalescer.push(*view).expect("room");
    }
    let merged: Vec<(Vec<u8>, u64)> =
        coalescer.finish().map(|run| (run.bytes.to_vec(), run.packets)).collect();
    assert!(merged.len() < 20, "they were merged");
    let start = now();
    for (frame, count) in &merged {
        endpoints.writer.recover_write(frame, *count, &error(libc::EINVAL), start);
    }
    let mut buffer = [0; 2000];
    for packet in &packets {
        let length = tun.recv(&mut buffer).expect("it was written");
        assert_eq!(buffer[..10], [0; 10]);
        // With DF set, the identification and the checksum over it may differ.
        assert_eq!(&buffer[10 + 12..length], &packet[12..]);
    }
    assert_eq!(endpoints.account.counters.ingress.packets.get(), 20);
    assert!(!endpoints.writer.may_merge(&views[0], start), "no packet is merged for a while");
    assert!(endpoints.writer.may_merge(&views[0], start + RETRY_AFTER));
}
