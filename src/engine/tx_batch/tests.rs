//! Layout of packets in messages: trains, bundles, limits and order.

use std::time::Duration;

use proptest::prelude::*;

use super::super::offload_switch::RETRY_AFTER;
use super::*;
use crate::forward::{PathSource, Traffic};
use crate::route::{Abilities, Protection, Public};

/// Host `n`, from 2 on. Hosts with an even number take bundles.
fn peer(n: u8) -> Peer {
    let endpoint = ([192, 0, 2, n], 8285).into();
    let abilities = if n.is_multiple_of(2) { Abilities::OURS } else { Abilities::default() };
    Peer {
        name: format!("h{n}"),
        endpoint,
        public: Public { v4: Some([192, 0, 2, n].into()), v6: None },
        subnets: Vec::new(),
        mtu: 1472,
        mtu_source: PathSource::Interface,
        widest_mtu: 1472,
        fragments: true,
        own_mtu: 1472,
        abilities,
        protection: Protection::Clear,
        session: None,
        traffic: Traffic::default(),
    }
}

fn meta(bytes: usize, stride: usize) -> TrainMeta {
    TrainMeta { bytes, stride, ecn: Ecn::NotEct }
}

fn push(batch: &mut TxBatch, peer: &Peer, train: TrainMeta) {
    let mut reserved = batch.reserve(Exit::Socket(peer), train);
    reserved.buffer().fill(0x45);
    reserved.commit(train.bytes);
}

/// Adds trains: the number of the host, the bytes and the stride of each.
fn fill(batch: &mut TxBatch, pushes: &[(u8, usize, usize)]) {
    for (number, (host, bytes, stride)) in pushes.iter().enumerate() {
        assert!(!batch.is_tight());
        let peer = peer(*host);
        let mut reserved = batch.reserve(Exit::Socket(&peer), meta(*bytes, *stride));
        let room = reserved.buffer();
        assert_eq!(room.len(), *bytes);
        for (index, packet) in room.chunks_mut(*stride).enumerate() {
            packet.copy_from_slice(&bytes_of(number, index, packet.len()));
        }
        reserved.commit(*bytes);
    }
}

/// A batch that knows that the path to host 2 has this inner MTU.
fn with_narrow_path(inner_mtu: usize) -> TxBatch {
    let mut batch = TxBatch::new(SEGMENTS);
    batch.clear(&mut vec![(peer(2).endpoint, inner_mtu)], Nanos(0));
    batch
}

/// Bytes that begin with the nibble of an IPv4 packet, and that differ between all packets.
fn bytes_of(push: usize, index: usize, length: usize) -> Vec<u8> {
    let seed = push * 8191 + index;
    (0..length)
        .map(|n| if n == 0 { 0x45 } else { (seed * 31 + n * 7 + seed / 256).to_le_bytes()[0] })
        .collect()
}

/// Host, bytes, segment size and packets of each message.
fn messages(pushes: &[(u8, usize, usize)]) -> Vec<(u8, usize, usize, u64)> {
    messages_of(&mut TxBatch::new(SEGMENTS), pushes)
}

fn messages_of(batch: &mut TxBatch, pushes: &[(u8, usize, usize)]) -> Vec<(u8, usize, usize, u64)> {
    fill(batch, pushes);
    check(batch, pushes);
    batch
        .block()
        .iter()
        .map(|tx| (host(&tx), tx.message.len, tx.message.segment_size, tx.record.packets))
        .collect()
}

fn host(tx: &TxMessage) -> u8 {
    match tx.message.destination {
        Some(SocketAddr::V4(to)) => to.ip().octets()[3],
        other => panic!("{other:?}"),
    }
}

/// Checks that each peer gets the packets that were added for it in their order, and that each
/// message keeps the invariants.
fn check(batch: &TxBatch, pushes: &[(u8, usize, usize)]) {
    let mut arrived: Vec<(u8, Vec<u8>)> = Vec::new();
    let mut taken: Vec<std::ops::Range<usize>> = Vec::new();
    for tx in batch.block().iter() {
        let TxMessage { message, record } = tx;
        let (stride, contents) = (message.segment_size, message.contents());
        assert!(message.len <= MAX_PAYLOAD && message.datagrams() <= SEGMENTS as u64 && stride <= 1472);
        let (before, bytes) = (arrived.len(), batch.block().bytes(&message));
        assert_eq!(batch.block().plain(&tx).0, bytes, "the packets before sealing are the same");
        for datagram in (Train { bytes, stride }).datagrams() {
            assert_eq!(bundle::is_bundle(datagram), record.bundled);
            match bundle::entries(datagram) {
                Ok(entries) => {
                    arrived.extend(entries.map(|entry| (host(&tx), entry.expect("whole").to_vec())))
                }
                Err(_) => arrived.push((host(&tx), datagram.to_vec())),
            }
        }
        let packets = &arrived[before..];
        assert_eq!(record.packets, packets.len() as u64);
        assert_eq!(record.packet_bytes, packets.iter().map(|(_, packet)| packet.len() as u64).sum::<u64>());
        assert!(!record.bundled || (peer(host(&tx)).abilities.bundles && packets.len() > 1));
        assert!(taken.iter().all(|range| contents.start >= range.end || contents.end <= range.start));
        taken.push(contents);
    }
    for wanted in 0..=20 {
        let of = |(host, packet): &(u8, Vec<u8>)| (*host == wanted).then(|| packet.clone());
        let mut pushed = Vec::new();
        for (number, (host, bytes, stride)) in pushes.iter().enumerate().filter(|(_, push)| push.0 == wanted)
        {
            let lengths = (0..*bytes).step_by(*stride).map(|at| (*stride).min(bytes - at));
            pushed
                .extend(lengths.enumerate().map(|(index, length)| (*host, bytes_of(number, index, length))));
        }
        assert!(
            arrived.iter().filter_map(of).eq(pushed.iter().filter_map(of)),
            "host {wanted} does not get the packets that were added for it"
        );
    }
}

#[test]
fn packets_of_equal_length_become_one_train() {
    assert_eq!(messages(&[(3, 92, 92), (3, 92, 92), (3, 92, 92)]), [(3, 276, 92, 3)]);
    assert_eq!(messages(&[(3, 92, 92), (3, 100, 100)]), [(3, 92, 92, 1), (3, 100, 100, 1)], "longer");
    assert_eq!(
        messages(&[(3, 92, 92), (3, 60, 60), (3, 92, 92)]),
        [(3, 152, 92, 2), (3, 92, 92, 1)],
        "a shorter packet is the last one"
    );
    assert_eq!(messages(&[(3, 2000, 1472), (3, 1472, 1472)]).len(), 2, "a short packet has ended the train");
    assert_eq!(messages(&[(3, 2944, 1472), (3, 2000, 1472)]), [(3, 4944, 1472, 4)]);
    assert_eq!(messages(&[(2, 14_720, 1472), (2, 60, 60)]), [(2, 14_780, 1472, 11)]);
}

#[test]
fn no_message_is_longer_than_one_send() {
    assert_eq!(messages(&[(3, 66_000, 1472)]), [(3, 64_768, 1472, 44), (3, 1232, 1472, 1)]);
    assert_eq!(messages(&[(3, 7000, 100)]), [(3, 6400, 100, 64), (3, 600, 100, 6)]);
    assert_eq!(messages(&[(3, 60_000, 1472), (3, 14_720, 1472)]).len(), 2);
    let many: Vec<_> = (0..130).map(|_| (3, 40, 40)).collect();
    assert_eq!(messages(&many).iter().map(|part| part.3).collect::<Vec<_>>(), [64, 64, 2]);
}

#[test]
fn small_packets_are_bundled() {
    assert_eq!(messages(&[(2, 92, 92)]), [(2, 92, 92, 1)], "a single packet stays bare");
    assert_eq!(messages(&[(2, 92, 92), (2, 60, 60)]), [(2, 4 + 94 + 62, 1472, 2)]);
    let many: Vec<_> = (0..40).map(|_| (2, 92, 92)).collect();
    assert_eq!(
        messages(&many),
        [(2, 2 * 1472 + 4 + 10 * 94, 1472, 40)],
        "15 packets in a bundle, one message"
    );
    assert_eq!(
        messages(&[(2, 4600, 92)]),
        [(2, 3 * 1472 + 4 + 5 * 94, 1472, 50)],
        "also from a super packet"
    );
    assert_eq!(messages(&[(2, 488, 488), (2, 488, 488)]), [(2, 976, 488, 2)], "three of them would not fit");
    assert_eq!(messages(&[(2, 487, 487), (2, 487, 487)]), [(2, 982, 1472, 2)]);
}

#[test]
fn packet_joins_open_bundle_only_if_it_fits() {
    assert_eq!(messages(&[(2, 92, 92), (2, 1372, 1372)]), [(2, 1472, 1472, 2)], "it fits to the last byte");
    assert_eq!(
        messages(&[(2, 92, 92), (2, 1373, 1373), (2, 92, 92)]),
        [(2, 92, 92, 1), (2, 1465, 1373, 2)],
        "no packet overtakes the long one"
    );
    assert_eq!(messages(&[(2, 1400, 1400), (2, 40, 40), (2, 40, 40), (2, 40, 40)]).len(), 2);
}

#[test]
fn bundles_fit_a_narrow_path_for_a_minute() {
    let many: Vec<_> = (0..40).map(|_| (2, 92, 92)).collect();
    let mut batch = with_narrow_path(1000);
    assert_eq!(
        messages_of(&mut batch, &many),
        [(2, 3 * 1000 + 4 + 10 * 94, 1000, 40)],
        "10 packets in a bundle"
    );
    batch.clear(&mut Vec::new(), Nanos::ZERO + RETRY_AFTER - Duration::from_nanos(1));
    assert_eq!(messages_of(&mut batch, &[(2, 4600, 92)]), [(2, 4 * 1000 + 4 + 10 * 94, 1000, 50)]);
    batch.clear(&mut Vec::new(), Nanos::ZERO + RETRY_AFTER - Duration::from_nanos(1));
    let (bare, long) = ((2, 662, 331), (2, 1400, 1400));
    assert_eq!(messages_of(&mut batch, &[bare, long]), [(2, 662, 331, 2), (2, 1400, 1400, 1)]);
    batch.clear(&mut Vec::new(), Nanos::ZERO + RETRY_AFTER - Duration::from_nanos(1));
    assert_eq!(
        messages_of(&mut batch, &[(2, 92, 92), (4, 92, 92), (2, 902, 902), (4, 902, 902)]),
        [(2, 92, 92, 1), (4, 1002, 1472, 2), (2, 902, 902, 1)],
        "the path to the other host is wider"
    );
    batch.clear(&mut Vec::new(), Nanos::ZERO + RETRY_AFTER);
    assert_eq!(
        messages_of(&mut batch, &many),
        [(2, 2 * 1472 + 4 + 10 * 94, 1472, 40)],
        "the usual length is tried again"
    );
    assert_eq!(
        messages_of(&mut with_narrow_path(119), &many),
        [(2, 40 * 92, 92, 40)],
        "a train of bare packets"
    );
}

/// A bare packet may be longer than a bundle: our own link limits it, and a bundle must also fit
/// the link of the peer.
#[test]
fn bundle_fits_the_link_of_the_peer() {
    let longest = |link_mtu, public: std::net::IpAddr, own_mtu| {
        let abilities = Abilities { link_mtu, ..Abilities::OURS };
        let peer = Peer { endpoint: (public, 8285).into(), mtu: own_mtu, abilities, ..peer(2) };
        let mut batch = TxBatch::new(SEGMENTS);
        (0..200).for_each(|_| push(&mut batch, &peer, meta(60, 60)));
        let longest = batch.block().messages().iter().map(|message| message.segment_size).max();
        longest.expect("a message")
    };
    let (v4, v6) = ([192, 0, 2, 2].into(), "2001:db8::2".parse().expect("an address"));
    assert_eq!(longest(None, v4, 8972), 1472, "Ethernet is assumed");
    assert_eq!(longest(None, v6, 8952), 1452);
    assert_eq!(longest(Some(9000), v4, 8972), 8972);
    assert_eq!(longest(Some(9000), v6, 8952), 8952);
    assert_eq!(longest(Some(9000), v4, 1472), 1472, "our own link is narrower");
    assert_eq!(longest(Some(1400), v4, 8972), 1372);
    assert_eq!(longest(Some(576), v4, 1472), 548);
}

#[test]
fn packets_of_several_peers_may_alternate() {
    let alternating = |bytes, stride, hosts: u8| -> Vec<_> {
        (0..6 * hosts).map(|n| (2 + n % hosts, bytes, stride)).collect()
    };
    for hosts in 2..=8 {
        assert_eq!(messages(&alternating(92, 92, hosts)).len(), usize::from(hosts), "small");
        assert_eq!(messages(&alternating(1472, 1472, hosts)).len(), usize::from(hosts), "full size");
    }
    assert_eq!(messages(&alternating(58_880, 1472, 2)[..4]).len(), 4, "each super packet is a train");
    assert_eq!(messages(&alternating(92, 92, 17)[..28]).len(), 28, "more peers than open messages");
}

/// All datagrams of a message have one ECN field: packets with another one leave in another
/// message, or in a bundle without a mark.
#[test]
fn ecn_marks_are_not_spread_and_not_lost() {
    let messages = |host: u8, pushes: &[(usize, Ecn)]| -> Vec<(u64, Ecn)> {
        let (mut batch, peer) = (TxBatch::new(SEGMENTS), peer(host));
        for (bytes, ecn) in pushes {
            let train = TrainMeta { ecn: *ecn, ..meta(*bytes, *bytes) };
            push(&mut batch, &peer, train);
        }
        batch.block().iter().map(|tx| (tx.record.packets, tx.message.ecn)).collect()
    };
    use Ecn::{Ce, Ect0, NotEct};
    assert_eq!(messages(2, &[(1000, Ect0), (1000, Ect0), (1000, Ce)]), [(2, Ect0), (1, Ce)]);
    assert_eq!(messages(2, &[(92, Ect0), (92, Ect0)]), [(2, Ect0)]);
    assert_eq!(messages(2, &[(92, Ect0), (92, Ce), (92, Ect0)]), [(3, NotEct)]);
    assert_eq!(messages(3, &[(92, Ect0), (92, Ce)]), [(2, NotEct)], "the peer does not read the outer field");
}

#[test]
fn trains_are_longer_on_newer_kernels() {
    let mut batch = TxBatch::new(2 * SEGMENTS);
    for _ in 0..130 {
        push(&mut batch, &peer(3), meta(40, 40));
    }
    let packets: Vec<u64> = batch.block().iter().map(|tx| tx.record.packets).collect();
    assert_eq!(packets, [128, 2]);
}

#[test]
fn full_batch_is_tight_until_cleared() {
    let mut batch = TxBatch::new(SEGMENTS);
    let (peer, mut reads) = (peer(3), 0);
    while !batch.is_tight() {
        // One read can make at most as many messages as this.
        let bytes = 8192 * 28;
        push(&mut batch, &peer, meta(bytes, 28));
        reads += 1;
    }
    assert!(reads >= 1 && batch.block().messages().len() < MAX_BATCH);
    assert!(!batch.is_empty());
    batch.clear(&mut Vec::new(), Nanos(0));
    assert!(batch.is_empty() && !batch.is_tight());
}

/// [`PLAIN_BYTES`] relies on this bound.
#[test]
fn longest_trains_of_small_packets_fit_when_bundled() {
    let peer = peer(2);
    let lengths = [1472, 1000, 500, 150, 121, 120].into_iter();
    let strides = |most| (20..=bundle::longest_small_packet(most)).map(move |stride| (most, stride));
    for (most, stride) in lengths.flat_map(strides) {
        let mut batch = with_narrow_path(most);
        while !batch.is_tight() {
            let bytes = SPLIT_BUFFER / stride * stride;
            push(&mut batch, &peer, meta(bytes, stride));
        }
        assert!(batch.used <= PLAIN_BYTES);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_peer_gets_its_packets_in_order(
        pushes in proptest::collection::vec(
            (2u8..14, prop_oneof![4 => 1usize..=1, 1 => 1usize..60], prop_oneof![3 => 28usize..200, 1 => 200usize..1473], 0usize..28),
            1..60,
        ),
        hosts in 1u8..12,
        most in prop_oneof![Just(1472usize), 0usize..1472],
    ) {
        let mut pushes: Vec<_> = pushes
            .into_iter()
            .map(|(host, count, stride, short)| (2 + host % hosts, count * stride - if count > 1 { short } else { 0 }, stride))
            .collect();
        let mut sum = 0;
        pushes.retain(|(_, bytes, _)| {
            sum += bytes + GAP_BYTES;
            sum < BATCH_BYTES
        });
        let mut batch = with_narrow_path(most);
        fill(&mut batch, &pushes);
        check(&batch, &pushes);
        prop_assert!(batch.block().iter().all(|tx| host(&tx) != 2 || !tx.record.bundled || tx.message.segment_size <= most));
    }
}
