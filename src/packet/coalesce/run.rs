//! A run: consecutive packets of one flow, merged into one super packet.
//!
//! It holds no bytes: they are in the coalescer's memory.
//!
//! Invariant: the headers of a run of one packet are never changed.
#![forbid(unsafe_code)]

use super::super::checksum::checksum;
use super::super::family::Family;
use super::super::header::{IPV4_HEADER, field, put, to_u16, udp};
use super::super::vnet::VnetHeader;
use super::layout::Layout;
use super::segment::ExpectedNext;

/// One run; its bytes are in its slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// Bytes of the run as one IP packet.
    pub(super) length: usize,
    pub(super) packets: u32,
    /// Bytes of the merged packets, headers included.
    pub(super) packet_bytes: usize,
    /// What the next packet must have; `None` if no packet may follow.
    pub(super) next: Option<ExpectedNext>,
    /// Payload bytes of each packet; the last may have fewer.
    pub(super) size: usize,
}

impl Run {
    /// Completes the headers of a run of several packets: lengths, the partial checksum, and the
    /// [`VnetHeader`] that tells the kernel how to split it.
    #[inline]
    pub(super) fn write_headers(&self, slot: &mut [u8]) {
        if self.packets == 1 {
            return;
        }
        let (vnet, packet) = slot.split_at_mut(VnetHeader::LEN);
        let layout = Layout::of(packet);
        let l4 = layout.l4();
        let l4_len = to_u16(self.length - l4);
        match layout.family {
            Family::V4 => {
                put(packet, field::V4_LENGTH, to_u16(self.length).to_be_bytes());
                put(packet, field::V4_CHECKSUM, [0, 0]);
                let sum = checksum(&packet[..IPV4_HEADER]);
                put(packet, field::V4_CHECKSUM, sum);
            }
            Family::V6 => put(packet, field::V6_LENGTH, l4_len.to_be_bytes()),
        }
        if !layout.is_tcp {
            put(packet, l4 + udp::LENGTH, l4_len.to_be_bytes());
        }
        let partial = layout.pseudo_header(packet, l4_len).partial();
        put(packet, l4 + layout.checksum(), partial);
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: layout.gso_type(),
            hdr_len: to_u16(l4 + layout.l4_header_len(packet)),
            gso_size: to_u16(self.size),
            csum_start: to_u16(l4),
            csum_offset: to_u16(layout.checksum()),
        };
        vnet.copy_from_slice(&header.to_bytes());
    }
}
