//! What waits for one connection: sparse flows first, the others in the order in which they came.
//!
//! A parcel is a train of one flow. One that is short, of a flow that has nothing in the queue, overtakes the long ones: a
//! question and its answer don't wait behind megabytes (RFC 8290 §4.2 does the same with its new flows).
//!
//! It knows no connection, and drops nothing by itself. Invariant: parcels of one flow leave in the order in which they came.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::engine::SlowPathPackets;

/// Bytes of a parcel that may overtake: one packet of any length on Ethernet.
const SHORT: usize = 1500;
/// Flows that are told apart. Two that are taken for one only lose what the rule would gain.
const FLOWS: usize = 256;

/// Parcels of one peer.
pub(super) struct Queue {
    sparse: VecDeque<SlowPathPackets>,
    bulk: VecDeque<(usize, SlowPathPackets)>,
    /// Parcels in `bulk` by flow.
    standing: [u32; FLOWS],
    bytes: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self { sparse: VecDeque::new(), bulk: VecDeque::new(), standing: [0; FLOWS], bytes: 0 }
    }
}

impl Queue {
    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, parcel: SlowPathPackets) {
        self.bytes += parcel.bytes.len();
        let flow = flow(&parcel.bytes);
        if parcel.bytes.len() <= SHORT && self.standing[flow] == 0 {
            return self.sparse.push_back(parcel);
        }
        self.standing[flow] += 1;
        self.bulk.push_back((flow, parcel));
    }

    /// What was popped last, and is not done with.
    pub(super) fn put_back(&mut self, parcel: SlowPathPackets) {
        if !parcel.bytes.is_empty() {
            self.bytes += parcel.bytes.len();
            self.sparse.push_front(parcel);
        }
    }

    pub(super) fn pop(&mut self) -> Option<SlowPathPackets> {
        let parcel = self.sparse.pop_front().or_else(|| self.pop_bulk())?;
        self.bytes -= parcel.bytes.len();
        Some(parcel)
    }

    /// What has to go for others.
    pub(super) fn pop_oldest(&mut self) -> Option<SlowPathPackets> {
        let parcel = self.pop_bulk().or_else(|| self.sparse.pop_front())?;
        self.bytes -= parcel.bytes.len();
        Some(parcel)
    }

    fn pop_bulk(&mut self) -> Option<SlowPathPackets> {
        let (flow, parcel) = self.bulk.pop_front()?;
        self.standing[flow] -= 1;
        Some(parcel)
    }
}

/// A number that all packets of a flow have: of addresses, and ports where they stand.
fn flow(packet: &[u8]) -> usize {
    let (addresses, next, ports) = match packet.first().map(|first| first >> 4) {
        Some(4) => (12..20, packet.get(9), usize::from(packet[0] & 0xf) * 4),
        Some(6) => (8..40, packet.get(6), 40),
        _ => return 0,
    };
    let has_ports = matches!(next, Some(6 | 17));
    let ports = packet.get(ports..ports + 4).filter(|_| has_ports).unwrap_or_default();
    let bytes = packet.get(addresses).unwrap_or_default().iter().chain(ports);
    // FNV-1a, folded.
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash ^ hash >> 16) as usize % FLOWS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A parcel of so many packets of a flow, told by its port.
    fn parcel(port: u16, packets: usize) -> SlowPathPackets {
        let packet = packet(port);
        SlowPathPackets {
            to: [192, 0, 2, 2].into(),
            stride: packet.len(),
            bytes: packet.repeat(packets).into(),
        }
    }

    fn packet(port: u16) -> Vec<u8> {
        let mut packet = vec![0; 1000];
        packet[0] = 0x45;
        packet[9] = 17;
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet
    }

    fn ports(queue: &mut Queue) -> Vec<(u16, u64)> {
        let port = |parcel: &SlowPathPackets| u16::from_be_bytes([parcel.bytes[20], parcel.bytes[21]]);
        std::iter::from_fn(|| queue.pop()).map(|parcel| (port(&parcel), parcel.count())).collect()
    }

    #[test]
    fn a_sparse_flow_overtakes_and_no_flow_overtakes_itself() {
        let mut queue = Queue::default();
        assert_ne!(flow(&packet(1)), flow(&packet(2)));
        for (port, packets) in [(1, 40), (1, 40), (2, 1), (1, 1), (2, 1), (2, 40)] {
            queue.push(parcel(port, packets));
        }
        assert_eq!(queue.bytes(), 123_000);
        assert_eq!(ports(&mut queue), [(2, 1), (2, 1), (1, 40), (1, 40), (1, 1), (2, 40)]);
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn the_oldest_of_the_bulk_goes_first_and_what_is_put_back_comes_next() {
        let mut queue = Queue::default();
        for (port, packets) in [(2, 1), (1, 40), (1, 41)] {
            queue.push(parcel(port, packets));
        }
        assert_eq!(queue.pop_oldest().map(|parcel| parcel.count()), Some(40));
        let first = queue.pop().expect("the sparse one");
        queue.put_back(first);
        assert_eq!(ports(&mut queue), [(2, 1), (1, 41)]);
        assert!(queue.pop_oldest().is_none());
    }
}
