//! Packets that wait for one peer: trains of sparse flows first, the others in order of arrival.
//!
//! The queue holds trains of one flow each. A short train overtakes the long ones if its flow has
//! no train among them. So a request and its answer do not wait behind megabytes of bulk data. RFC
//! 8290 section 4.2 treats its new flows in the same way.
//!
//! It knows no connection, and drops nothing by itself. Invariant: trains of one flow leave in the
//! order in which they came.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::engine::SlowPathPackets;

/// Most bytes of a train that may overtake others: one packet of any length on Ethernet.
const MAX_SPARSE_BYTES: usize = 1500;
/// Number of flows that the queue can tell apart. If two flows share a number, a sparse one among
/// them may not overtake; nothing else is lost.
const FLOWS: usize = 256;

/// Trains for one peer.
pub(super) struct PeerQueue {
    /// Trains that overtake.
    sparse: VecDeque<SlowPathPackets>,
    /// All other trains, each with the number of its flow.
    bulk: VecDeque<(usize, SlowPathPackets)>,
    /// Number of trains in `bulk` for each flow.
    bulk_by_flow: [u32; FLOWS],
    bytes: usize,
}

impl Default for PeerQueue {
    fn default() -> Self {
        Self { sparse: VecDeque::new(), bulk: VecDeque::new(), bulk_by_flow: [0; FLOWS], bytes: 0 }
    }
}

impl PeerQueue {
    /// Number of bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, train: SlowPathPackets) {
        self.bytes += train.bytes.len();
        let flow = flow_number(&train.bytes);
        if train.bytes.len() <= MAX_SPARSE_BYTES && self.bulk_by_flow[flow] == 0 {
            return self.sparse.push_back(train);
        }
        self.bulk_by_flow[flow] += 1;
        self.bulk.push_back((flow, train));
    }

    /// Puts back the rest of the train that was popped last. The next pop returns it.
    pub(super) fn put_back(&mut self, train: SlowPathPackets) {
        if !train.bytes.is_empty() {
            self.bytes += train.bytes.len();
            self.sparse.push_front(train);
        }
    }

    /// Takes out the train that must be sent next.
    pub(super) fn pop(&mut self) -> Option<SlowPathPackets> {
        let train = self.sparse.pop_front().or_else(|| self.pop_bulk())?;
        self.bytes -= train.bytes.len();
        Some(train)
    }

    /// When the queue is too long, takes out the train that must be dropped: the oldest bulk one.
    pub(super) fn pop_oldest(&mut self) -> Option<SlowPathPackets> {
        let train = self.pop_bulk().or_else(|| self.sparse.pop_front())?;
        self.bytes -= train.bytes.len();
        Some(train)
    }

    fn pop_bulk(&mut self) -> Option<SlowPathPackets> {
        let (flow, train) = self.bulk.pop_front()?;
        self.bulk_by_flow[flow] -= 1;
        Some(train)
    }
}

/// A number that is equal for all packets of a flow: a hash of the addresses, and of the ports if
/// the packet has them.
fn flow_number(packet: &[u8]) -> usize {
    let (addresses, next_header, ports) = match packet.first().map(|first| first >> 4) {
        Some(4) => (12..20, packet.get(9), usize::from(packet[0] & 0xf) * 4),
        Some(6) => (8..40, packet.get(6), 40),
        _ => return 0,
    };
    let has_ports = matches!(next_header, Some(6 | 17));
    let ports = packet.get(ports..ports + 4).filter(|_| has_ports).unwrap_or_default();
    let bytes = packet.get(addresses).unwrap_or_default().iter().chain(ports);
    // FNV-1a, folded.
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash ^ hash >> 16) as usize % FLOWS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A train of a flow that the source port identifies.
    fn train(port: u16, packets: usize) -> SlowPathPackets {
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

    fn ports(queue: &mut PeerQueue) -> Vec<(u16, u64)> {
        let port = |train: &SlowPathPackets| u16::from_be_bytes([train.bytes[20], train.bytes[21]]);
        std::iter::from_fn(|| queue.pop()).map(|train| (port(&train), train.count())).collect()
    }

    #[test]
    fn sparse_flow_overtakes_other_flows_only() {
        let mut queue = PeerQueue::default();
        assert_ne!(flow_number(&packet(1)), flow_number(&packet(2)));
        for (port, packets) in [(1, 40), (1, 40), (2, 1), (1, 1), (2, 1), (2, 40)] {
            queue.push(train(port, packets));
        }
        assert_eq!(queue.bytes(), 123_000);
        assert_eq!(ports(&mut queue), [(2, 1), (2, 1), (1, 40), (1, 40), (1, 1), (2, 40)]);
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn oldest_bulk_train_is_dropped_first() {
        let mut queue = PeerQueue::default();
        for (port, packets) in [(2, 1), (1, 40), (1, 41)] {
            queue.push(train(port, packets));
        }
        assert_eq!(queue.pop_oldest().map(|train| train.count()), Some(40));
        let first = queue.pop().expect("the queue holds the sparse train");
        queue.put_back(first);
        assert_eq!(ports(&mut queue), [(2, 1), (1, 41)]);
        assert!(queue.pop_oldest().is_none());
    }
}
