//! What one read of the overlay device delivers.
#![forbid(unsafe_code)]

use crate::packet::split::SplitPlan;
use crate::packet::{IpPacket, Malformed, VnetHeader};

/// What one read of the overlay device delivered.
#[derive(Debug, Clone, Copy)]
pub enum Frame<'a> {
    /// One packet.
    Bare(&'a [u8]),
    /// A [`VnetHeader`], followed by one packet or a super packet.
    Virtio(&'a [u8]),
}

impl<'a> Frame<'a> {
    /// Parses the packet, and plans its split.
    #[inline]
    pub(super) fn plan(self) -> Result<(IpPacket<'a>, SplitPlan<'a>), Malformed> {
        let (vnet, bytes) = match self {
            Self::Bare(bytes) => (VnetHeader::default(), bytes),
            Self::Virtio(bytes) => VnetHeader::parse(bytes)?,
        };
        let packet = IpPacket::parse(bytes)?;
        Ok((packet, SplitPlan::of(vnet, packet)?))
    }
}
